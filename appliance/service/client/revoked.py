"""The newest revocation list that any server has given this client, kept in its state directory.

So a server whose key was stolen is refused by clients as well, after a restart too, and whoever it was that
brought the list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from twisted.logger import Logger

from appliance.service.wholefile import replace_whole
from appliance.tunnel.crl import CrlRefused, RevocationList, read_crl

FILE = "revoked.pem"


class Revoked:
    """`revoked` is the list; `tell(revoked)` is called with every newer one. ``open()`` reads the file."""

    _log = Logger()

    def __init__(self, state: Path, ca: x509.Certificate, tell: Callable[[RevocationList], None]) -> None:
        self.revoked = RevocationList(0, frozenset())
        self._path = state / FILE
        self._ca = ca
        self._tell = tell

    def open(self) -> None:
        """Read what was kept. A list that cannot be read is as good as none: servers have it."""
        try:
            self.revoked = read_crl(self._path.read_bytes(), self._ca)
        except FileNotFoundError:
            pass
        except (OSError, CrlRefused) as error:
            self._log.warn("{path}: {error}", path=self._path, error=error)

    def take(self, crl_pem: bytes, /) -> bool:
        """Take over a list that a server brought; False if this one is as new. Raises CrlRefused."""
        brought = read_crl(crl_pem, self._ca)
        if brought.number <= self.revoked.number:
            return False
        self.revoked = brought
        self._keep(crl_pem)
        self._tell(brought)
        return True

    def _keep(self, pem: bytes) -> None:
        try:
            replace_whole(self._path, pem)
        except OSError as error:  # it holds for this run all the same
            self._log.warn("{path}: cannot be kept: {why}", path=self._path, why=error.strerror)

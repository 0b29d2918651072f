"""What is kept of ACME in the client's state directory: the account, and of each name its ledger and its
certificate. Every file is replaced whole, and is its owner's only.

Hides paths. Each CA has a directory of its own, so that what a staging CA gave is never shown as another's. A
certificate and its key are one file: they belong together after any crash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from appliance.service.wholefile import replace_whole
from appliance.tunnel.issuanceledger import Ledger, LedgerRefused, read_ledger
from appliance.tunnel.keypair import Keypair, KeypairRefused, read_keypair

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Account:
    """At a CA: its key, and where it is, ``""`` until the CA has said so."""

    key_pem: str = field(repr=False)
    url: str = ""


class AcmeState:
    """Of one CA, by the URL of its directory. What is not there, or cannot be used, is None."""

    def __init__(self, state: Path, url: str) -> None:
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.directory = state / "acme" / f"{urlsplit(url).hostname or 'ca'}-{digest}"

    def account(self) -> Account | None:
        """The account. Raises OSError: to make a second one where one cannot be read would be wrong."""
        try:
            kept = json.loads((self.directory / "account.json").read_bytes())
            return Account(str(kept["key"]), str(kept["url"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise OSError(0, f"{self.directory / 'account.json'} cannot be used; remove it") from None

    def put_account(self, account: Account) -> None:
        """Keep it. Raises OSError."""
        kept = {"key": account.key_pem, "url": account.url}
        self._put(self.directory / "account.json", json.dumps(kept).encode("ascii") + b"\n")

    def ledger(self, name: str) -> Ledger | None:
        """The ledger of a name's orders."""
        try:
            return read_ledger((self._of(name) / "orders.json").read_bytes())
        except (OSError, LedgerRefused):
            return None

    def put_ledger(self, name: str, ledger: Ledger) -> None:
        """Keep it. Raises OSError."""
        self._put(self._of(name) / "orders.json", ledger.octets())

    def certificate(self, name: str) -> Keypair | None:
        """The certificate of a name, with its key."""
        try:
            key, begin, rest = (self._of(name) / "certificate.pem").read_bytes().partition(_BEGIN)
            return read_keypair(begin + rest, key)
        except (OSError, KeypairRefused):
            return None

    def put_certificate(self, name: str, keypair: Keypair) -> None:
        """Keep it. Raises OSError."""
        self._put(self._of(name) / "certificate.pem", keypair.key_pem + keypair.certificate_pem)

    def _of(self, name: str) -> Path:
        """``*`` means something to a shell; no host name is ``_``."""
        return self.directory / name.replace("*", "_")

    def _put(self, path: Path, octets: bytes) -> None:
        for directory in reversed(path.parents):  # parents=True would give those above another mode
            directory.mkdir(mode=0o700, exist_ok=True)
        replace_whole(path, octets)

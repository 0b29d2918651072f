"""Revocation lists of the tests' CA, and somebody who keeps one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from appliance.tunnel.certificates import Credential
from appliance.tunnel.crl import RevocationList, make_crl, read_crl


def revoking(ca: Credential, serials: Collection[int], number: int, wall: datetime) -> RevocationList:
    """A list that the CA signed."""
    return read_crl(make_crl(ca, dict.fromkeys(serials, wall), number, wall), ca.certificate)


class KeptList:
    """The newest list that it was given; `tell` hears of each."""

    def __init__(self, ca: Credential, tell: Callable[[RevocationList], None] = lambda revoked: None) -> None:
        self.revoked = RevocationList(0, frozenset())
        self._ca = ca
        self.tell = tell

    def take(self, crl_pem: bytes, /) -> bool:
        brought = read_crl(crl_pem, self._ca.certificate)
        if brought.number <= self.revoked.number:
            return False
        self.revoked = brought
        self.tell(brought)
        return True

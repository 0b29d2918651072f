"""Certificates for names, of a CA of the test's own, as PEM."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme

from appliance.tunnel.keypair import Keypair, read_keypair


@dataclass(frozen=True)
class Pems:
    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Both, whole, the key for its owner only."""
        for path, octets in ((certificate, self.certificate), (key, self.key)):
            new = path.with_name(f"{path.name}.written")
            new.touch(0o600)
            new.write_bytes(octets)
            new.rename(path)

    @property
    def pair(self) -> Keypair:
        return read_keypair(self.certificate, self.key)


def issue(ca: trustme.CA, *names: str, expires: datetime | None = None, rsa: bool = False) -> Pems:
    """A new certificate with its key."""
    key_type = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
    made = ca.issue_cert(*names, not_after=expires, key_type=key_type)
    return Pems(b"".join(pem.bytes() for pem in made.cert_chain_pems), made.private_key_pem.bytes())


def now() -> datetime:
    return datetime.now(UTC)

"""Keys that are derived and listed nowhere: for each holder of a certificate another, at each nameserver.

Hides the derivation and the form of a key's name. key(holder, nameserver) = HKDF(the nameserver's own secret,
the holder's id and the serial number of its certificate). So a new holder changes nothing at a nameserver, a
stolen nameserver can speak for nobody at another one, and a key ends with its certificate: who reads the name
of a revoked one's key needs no list of ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.dns import names
from appliance.dns.tsig import Key

SECRET_OCTETS = 32
"""As long as the hash of hmac-sha256, the algorithm of every such key; a nameserver's own secret as well."""
_ALGORITHM = names.from_text("hmac-sha256")
_SERIAL = re.compile(rb"[0-9a-f]{1,40}")
"""A serial number has at most 20 octets (RFC 5280 4.1.2.2)."""


class KeyFamily:
    """The keys of all holders of one kind: their names are below `below`, `salt` is theirs alone."""

    def __init__(self, below: str, salt: bytes) -> None:
        self._below = names.from_text(below)
        self._salt = salt

    def key_name(self, holder_id: str, serial: int) -> bytes:
        """What the key of this holder, with the certificate of this serial number, is called (wire form).

        Raises BadName for an id that no key can be called after.
        """
        return names.from_text(f"{holder_id}.{serial:x}.{names.to_text(self._below)}").lower()

    def whose(self, name: bytes) -> tuple[str, int] | None:
        """The id and the serial number in the name of a key; None: it is no such key's."""
        if not names.is_at_or_below(name, self._below):
            return None
        parts = names.labels(name)[: -len(names.labels(self._below))]
        if len(parts) < 2 or not _SERIAL.fullmatch(parts[-1]):
            return None
        try:
            serial = int(parts[-1], 16)
            holder_id = b".".join(parts[:-1]).decode("ascii")
            is_written_so = self.key_name(holder_id, serial) == name
        except ValueError:  # BadName is one
            return None
        return (holder_id, serial) if is_written_so else None

    def key_of(self, secret: bytes, holder_id: str, serial: int) -> Key:
        """The key at the nameserver whose own secret is `secret`. Raises BadName."""
        derived = HKDF(SHA256(), SECRET_OCTETS, self._salt, f"{holder_id}/{serial:x}".encode()).derive(secret)
        return Key(self.key_name(holder_id, serial), _ALGORITHM, derived)


class DerivedKeys(Mapping[bytes, Key]):
    """The keys of a family, by name: each is made when it is asked for. A walk finds none."""

    def __init__(self, family: KeyFamily, secret: bytes) -> None:
        self._family = family
        self._secret = secret

    def __getitem__(self, name: bytes) -> Key:
        found = self._family.whose(name)
        if found is None:
            raise KeyError(name)
        return self._family.key_of(self._secret, *found)

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def __len__(self) -> int:
        return 0

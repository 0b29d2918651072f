"""The key with which an enrolled tunnel server introduces itself to a nameserver: derived, listed nowhere.

Hides the derivation and the form of the key's name. key(server, nameserver) = HKDF(the nameserver's own
secret, the server's id and the serial number of its certificate). So a new server changes nothing at a
nameserver, a stolen nameserver can speak for nobody at another one, and a key ends with its certificate: who
reads the name of a revoked one's key needs no list of ids.
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
_SALT = b"tunnel-appliance: key of a tunnel server at a nameserver"
_ALGORITHM = names.from_text("hmac-sha256")
_BELOW = names.from_text("server.internal")
_SERIAL = re.compile(rb"[0-9a-f]{1,40}")
"""A serial number has at most 20 octets (RFC 5280 4.1.2.2)."""


def key_name(server_id: str, serial: int) -> bytes:
    """What the key of this server, with the certificate of this serial number, is called (wire form)."""
    return names.from_text(f"{server_id}.{serial:x}.{names.to_text(_BELOW)}").lower()


def whose(name: bytes) -> tuple[str, int] | None:
    """The id and the serial number in the name of a key; None: it is no such key's."""
    if not names.is_at_or_below(name, _BELOW):
        return None
    parts = names.labels(name)[: -len(names.labels(_BELOW))]
    if len(parts) < 2 or not _SERIAL.fullmatch(parts[-1]):
        return None
    try:
        serial = int(parts[-1], 16)
        server_id = b".".join(parts[:-1]).decode("ascii")
        is_written_so = key_name(server_id, serial) == name
    except ValueError:  # BadName is one
        return None
    return (server_id, serial) if is_written_so else None


def key_of(secret: bytes, server_id: str, serial: int) -> Key:
    """The key at the nameserver whose own secret is `secret`."""
    derived = HKDF(SHA256(), SECRET_OCTETS, _SALT, f"{server_id}/{serial:x}".encode()).derive(secret)
    return Key(key_name(server_id, serial), _ALGORITHM, derived)


class ServerKeys(Mapping[bytes, Key]):
    """The keys of all servers, by name: each is made when it is asked for. A walk finds none."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __getitem__(self, name: bytes) -> Key:
        found = whose(name)
        if found is None:
            raise KeyError(name)
        return key_of(self._secret, *found)

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def __len__(self) -> int:
        return 0

"""The key with which an enrolled tunnel server introduces itself to a nameserver (see `derivedkeys`)."""

from __future__ import annotations

from appliance.fleet.derivedkeys import SECRET_OCTETS, DerivedKeys, KeyFamily

__all__ = ["SECRET_OCTETS", "ServerKeys", "key_name", "key_of", "whose"]

_SERVERS = KeyFamily("server.internal", b"tunnel-appliance: key of a tunnel server at a nameserver")

key_name = _SERVERS.key_name
whose = _SERVERS.whose
key_of = _SERVERS.key_of


class ServerKeys(DerivedKeys):
    """The keys of all servers at the nameserver with this secret."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(_SERVERS, secret)

"""To whom a tunnel server that is enrolled here announces itself: to us and to our further nameservers.

Hides which zone it does so in, and that where the CA is the secrets of all nameservers are known.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from appliance.dns import names
from appliance.fleet.serverkeys import key_name, key_of
from appliance.service.store import EnrolledPeer
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Introduction, NameserverKey


def introduction_of(
    server_id: str,
    serial: int,
    *,
    zone: bytes,
    own: EnrolledPeer,
    peers: Iterable[EnrolledPeer],
) -> Introduction:
    """What this server, whose certificate has this serial number, needs to announce itself to us (`own`) and
    to `peers`, but not to itself. Raises BadName.
    """
    return Introduction(
        names.to_text(zone),
        names.to_text(key_name(server_id, serial)),
        tuple(
            NameserverKey(one.id, one.addresses, _secret(one.secret, server_id, serial))
            for one in (own, *(peer for peer in peers if peer.id != server_id))
        ),
    )


def zone_for(apexes: Iterable[bytes], discovery: str | None) -> bytes:
    """The zone that servers announce themselves in: that of the discovery name, else the first one."""
    ordered = sorted(apexes, key=lambda apex: (len(apex), apex))
    if discovery is not None:
        name = names.from_text(discovery)
        ordered = [apex for apex in ordered if names.is_at_or_below(name, apex)][-1:] or ordered
    return ordered[0]


def everywhere(
    seen: Sequence[ServerAddress], enrolled: Iterable[Sequence[ServerAddress]]
) -> tuple[ServerAddress, ...]:
    """The servers that a further nameserver is told of: those enrolled before it have no key of it, and need
    none, for it knows where they are. Of any two, the one that was enrolled later knows the other.
    """
    return tuple(dict.fromkeys((*seen, *(at for places in enrolled for at in places))))


def _secret(secret: bytes, server_id: str, serial: int) -> str:
    return base64.b64encode(key_of(secret, server_id, serial).secret).decode("ascii")

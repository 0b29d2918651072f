"""What the settings leave unsaid and the zones, the machine's addresses and its host name say.

Hides the search for the glue of a zone's nameservers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from appliance.addresses import Listen
from appliance.dns.names import to_text
from appliance.dns.zone import Zone
from appliance.tunnel.discovery import ServerAddress

MAX_LABEL_OCTETS = 63
_TYPE_A, _TYPE_NS, _TYPE_AAAA = 1, 2, 28

Zones = Mapping[Path, Zone]
"""Every zone by the file that it came from."""


def expanded(listen: Sequence[Listen], local: Sequence[str]) -> tuple[Listen, ...]:
    """Every address itself; a wildcard becomes each of the `local` addresses of its family."""
    return tuple(
        Listen(host, one.port)
        for one in listen
        for host in (local if ipaddress.ip_address(one.host).is_unspecified else (one.host,))
        if (":" in host) == (":" in one.host)
    )


def everywhere(port: int) -> tuple[Listen, ...]:
    """The wildcard of each family that this machine has."""
    families = ("0.0.0.0", "::") if Path("/proc/net/if_inet6").exists() else ("0.0.0.0",)
    return tuple(Listen(host, port) for host in families)


def addresses_from_glue(zones: Zones, local: Sequence[str], port: int) -> tuple[ServerAddress, ...]:
    """The addresses of the zones' own nameservers that are addresses of this machine."""
    here = (text for _, _, text in _glue(zones) if text in local or ipaddress.ip_address(text).is_loopback)
    return tuple(ServerAddress(text, port) for text in dict.fromkeys(here))


def why_no_address(zones: Zones, local: Sequence[str]) -> str:
    """What to say when `addresses_from_glue` found none."""
    glue = [f"{name} {address} ({path})" for path, name, address in _glue(zones)]
    found = f"the zones' nameservers are {', '.join(glue)}" if glue else "the zones' NS records have no glue"
    mine = ", ".join(local) or "loopback only"
    return f"no public address: {found}, and this machine is {mine}; give --public ADDRESS"


def server_id(host_name: str) -> str:
    """An id for a server out of the machine's host name."""
    label = re.sub(r"[^a-z0-9-]", "-", host_name.lower().partition(".")[0])
    return label.strip("-")[:MAX_LABEL_OCTETS].strip("-") or "server"


def _glue(zones: Zones) -> Iterator[tuple[Path, str, str]]:
    """(zone file, NS target, address) for every address of a zone's own nameservers."""
    for path, zone in zones.items():
        ns = zone.rrsets.get(zone.apex, {}).get(_TYPE_NS)
        for target in ns.rdatas if ns is not None else ():
            rrsets = zone.rrsets.get(target.lower(), {})
            for rtype in (_TYPE_A, _TYPE_AAAA):
                for rdata in rrsets[rtype].rdatas if rtype in rrsets else ():
                    yield path, to_text(target.lower()), str(ipaddress.ip_address(rdata))

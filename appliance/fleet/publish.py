"""Which records exist because of the fleet: the only file that knows.

For every known name in a served zone the TXT of every server and the A and AAAA of the servers where the name
has a session; at the discovery name the TXT of every server. Names outside the zones get nothing. What a
static record does to a live one is `dns.overlay`'s business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from functools import lru_cache

from appliance.dns.names import ROOT, from_text, parent
from appliance.dns.zone import RRset
from appliance.fleet.membership import Published
from appliance.tunnel.discovery import ServerAddress, write_txt

LIVE_TTL_SECONDS = 15
A, TXT, AAAA = 1, 16, 28
_NAMES_REMEMBERED = 65_536
"""Wire forms kept between two publications; a name that is not among them costs 3 us more."""


def may_be_published(address: ServerAddress, private_addresses: bool) -> bool:
    """Whether visitors can be sent there: globally routable addresses, others if the operator says so."""
    return private_addresses or ipaddress.ip_address(address.host).is_global


def live_records(
    published: Published,
    known: Iterable[str],
    apexes: Collection[bytes],
    discovery: str | None = None,
    ttl: int = LIVE_TTL_SECONDS,
) -> dict[tuple[bytes, int], RRset]:
    """All live rrsets, by name and type.

    `known` are host names and wildcards; `apexes` those of the zones served here, in wire form; `discovery`
    is the name that lists the servers: without it each apex does.
    """
    if not published.addresses:
        return {}
    zones = frozenset(apexes)
    wanted = (from_text(discovery),) if discovery is not None else tuple(zones)
    texts = _texts(published.addresses)
    hosts: dict[tuple[ServerAddress, ...], tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {}
    records = {(name, TXT): RRset(name, TXT, ttl, texts) for name in wanted if _is_in(name, zones)}
    for text in known:
        name = _wire(text)
        if not _is_in(name, zones):
            continue
        addresses = published.of_name(text)
        rdatas = hosts.get(addresses)
        if rdatas is None:
            rdatas = hosts[addresses] = _hosts(addresses)
        v4, v6 = rdatas
        records[name, TXT] = RRset(name, TXT, ttl, texts)
        if v4:
            records[name, A] = RRset(name, A, ttl, v4)
        if v6:
            records[name, AAAA] = RRset(name, AAAA, ttl, v6)
    return records


_wire = lru_cache(_NAMES_REMEMBERED)(from_text)


def _is_in(name: bytes, zones: Collection[bytes]) -> bool:
    while name not in zones:
        if name == ROOT:
            return False
        name = parent(name)
    return True


def _texts(addresses: Iterable[ServerAddress]) -> tuple[bytes, ...]:
    """TXT rdata: one character-string each (RFC 1035 3.3.14)."""
    texts = (write_txt(address).encode("ascii") for address in addresses)
    return tuple(bytes((len(text),)) + text for text in texts)


def _hosts(addresses: Iterable[ServerAddress]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The rdatas of A and of AAAA; two servers behind one address (on two ports) are one record."""
    hosts = [ipaddress.ip_address(host) for host in dict.fromkeys(address.host for address in addresses)]
    v4 = tuple(host.packed for host in hosts if host.version == 4)
    return v4, tuple(host.packed for host in hosts if host.version == 6)

"""Which records exist because of the fleet: the only file that knows.

For every known name in a served zone the TXT of every server and the A and AAAA of the servers where the name
has a session; at the discovery name the TXT of every server. Names outside the zones get nothing. What a
static record does to a live one is `dns.overlay`'s business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import chain

from appliance.dns.names import ROOT, from_text, parent
from appliance.dns.zone import RRset
from appliance.fleet.membership import Published
from appliance.tunnel.discovery import ServerAddress, write_txt

LIVE_TTL_SECONDS = 15
A, TXT, AAAA = 1, 16, 28
_Hosts = tuple[tuple[bytes, ...], tuple[bytes, ...]]
_NAMES_REMEMBERED = 65_536
"""Wire forms kept between two publications; a name that is not among them costs 3 us more."""


def may_be_published(address: ServerAddress, private_addresses: bool) -> bool:
    """Whether visitors can be sent there: globally routable addresses, others if the operator says so."""
    return private_addresses or ipaddress.ip_address(address.host).is_global


class Publication:
    """What follows from `published` for names in the zones `apexes` (in wire form).

    `discovery` is the name that lists the servers: without it each apex does.
    """

    def __init__(
        self,
        published: Published,
        apexes: Collection[bytes],
        discovery: str | None = None,
        ttl: int = LIVE_TTL_SECONDS,
    ) -> None:
        self._published = published
        self._zones = frozenset(apexes)
        self._ttl = ttl
        self._texts = _texts(published.addresses)
        self._hosts: dict[tuple[ServerAddress, ...], _Hosts] = {}
        wanted = (from_text(discovery),) if discovery is not None else tuple(self._zones)
        self.listing = frozenset(name for name in wanted if self._texts and _is_in(name, self._zones))
        """The names that list the servers."""

    def discovery(self) -> Iterator[RRset]:
        """What lists the servers."""
        return (RRset(name, TXT, self._ttl, self._texts) for name in self.listing)

    def of(self, text: str) -> Iterator[RRset]:
        """What a known name gets; nothing outside the zones."""
        name = _wire(text)
        if not self._texts or not _is_in(name, self._zones):
            return
        addresses = self._published.of_name(text)
        rdatas = self._hosts.get(addresses)
        if rdatas is None:
            rdatas = self._hosts[addresses] = _hosts(addresses)
        yield RRset(name, TXT, self._ttl, self._texts)
        for rtype, hosts in zip((A, AAAA), rdatas, strict=True):
            if hosts:
                yield RRset(name, rtype, self._ttl, hosts)

    def changes(
        self, names: Iterable[tuple[str, bool]], listing: Collection[bytes] = ()
    ) -> Iterator[tuple[tuple[bytes, int], RRset | None]]:
        """All that there is, or is no longer (None), at these names, each with whether it is known, and where
        the servers are listed, or were (`listing`); by name and type."""
        for listed in frozenset(listing) - self.listing:
            yield (listed, TXT), None
        for rrset in self.discovery():
            yield (rrset.name, rrset.rtype), rrset
        for text, is_known in names:
            found = {rrset.rtype: rrset for rrset in (self.of(text) if is_known else ())}
            name = _wire(text)
            for rtype in (TXT, A, AAAA):
                if rtype != TXT or rtype in found or name not in self.listing:
                    yield (name, rtype), found.get(rtype)


def live_records(
    published: Published,
    known: Iterable[str],
    apexes: Collection[bytes],
    discovery: str | None = None,
    ttl: int = LIVE_TTL_SECONDS,
) -> dict[tuple[bytes, int], RRset]:
    """All live rrsets, by name and type; `known` are host names and wildcards, the rest is Publication's."""
    publication = Publication(published, apexes, discovery, ttl)
    rrsets = chain(publication.discovery(), *map(publication.of, known))
    return {(rrset.name, rrset.rtype): rrset for rrset in rrsets}


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


def _hosts(addresses: Iterable[ServerAddress]) -> _Hosts:
    """The rdatas of A and of AAAA; two servers behind one address (on two ports) are one record."""
    hosts = [ipaddress.ip_address(host) for host in dict.fromkeys(address.host for address in addresses)]
    v4 = tuple(host.packed for host in hosts if host.version == 4)
    return v4, tuple(host.packed for host in hosts if host.version == 6)

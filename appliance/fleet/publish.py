"""Which records exist because of the fleet: the only file that knows.

For every known name in a served zone the TXT of every server and the A and AAAA of the servers where the name
has a session, and the CAA that the operator wants; at the discovery name the TXT of every server. Names
outside the zones get nothing. What a static record does to a live one is `dns.overlay`'s business.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache

from appliance.dns.names import ROOT, from_text, parent
from appliance.dns.zone import Shared
from appliance.fleet.mayissue import MayIssue
from appliance.fleet.membership import Group, Published
from appliance.tunnel.discovery import ServerAddress, write_txt

LIVE_TTL_SECONDS = 15
A, TXT, AAAA, CAA = 1, 16, 28, 257
_Hosts = tuple[tuple[bytes, ...], tuple[bytes, ...]]
_NAMES_REMEMBERED = 65_536
"""Wire forms kept between two publications; a name that is not among them costs 3 us more."""
_GROUPS_REMEMBERED = 1024


def may_be_published(address: ServerAddress, private_addresses: bool) -> bool:
    """Whether visitors can be sent there: globally routable addresses, others if the operator says so."""
    return private_addresses or ipaddress.ip_address(address.host).is_global


class Publication:
    """What follows from `published` for names in the zones `apexes` (in wire form).

    `discovery` is the name that lists the servers: without it each apex does. The rrsets of all names of a
    group are the same three sets, and what is said of a name is which.
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
        wanted = (from_text(discovery),) if discovery is not None else tuple(self._zones)
        self.listing = frozenset(name for name in wanted if _is_in(name, self._zones))
        """The names that list the servers."""

    def sets(self, groups: Iterable[Group]) -> dict[bytes, Shared]:
        """The sets of the names of these groups, and of those that list the servers."""
        found = {_LIST: Shared(self._ttl, _texts(self._published.addresses))}
        for group in groups:
            hosts = _hosts(self._published.of_group(group))
            for one, rdatas in zip(_ids(group), hosts, strict=True):
                found[one] = Shared(self._ttl, rdatas)
        return found

    def changes(
        self, names: Iterable[tuple[str, Group | None]], listing: Collection[bytes] = ()
    ) -> Iterator[tuple[tuple[bytes, int], bytes | None]]:
        """The set of each name and type, or that there is none any more (None): at these names, each with its
        group (None: it is not known), and where the servers are listed, or were (`listing`)."""
        for listed in frozenset(listing) - self.listing:
            yield (listed, TXT), None
        for listed in self.listing:
            yield (listed, TXT), _LIST
        for text, group in names:
            name = _wire(text)
            if group is None or not _is_in(name, self._zones):
                yield (name, TXT), _LIST if name in self.listing else None
                yield (name, A), None
                yield (name, AAAA), None
            else:
                v4, v6 = _ids(group)
                yield (name, TXT), _LIST
                yield (name, A), v4
                yield (name, AAAA), v6


class IssuersPublished:
    """The CAA records that are published, by where: owners with the same ones share a set."""

    def __init__(self) -> None:
        self._at: dict[str, bytes] = {}
        self._sets: dict[bytes, Shared] = {}
        self._owners: Counter[bytes] = Counter()  # of each set

    def changes(
        self, names: Iterable[str], may_issue: MayIssue
    ) -> Iterator[tuple[tuple[bytes, int], bytes | None]]:
        """The set of each owner at which something follows from one of these names; None: there is none."""
        for owner in dict.fromkeys(owner for name in names for owner in may_issue.owners(name)):
            rdatas = may_issue.records(owner)
            self._put(owner, rdatas)
            yield (_wire(owner), CAA), self._at.get(owner)

    def sets(self) -> Mapping[bytes, Shared]:
        """All of them."""
        return self._sets

    def _put(self, owner: str, rdatas: tuple[bytes, ...]) -> None:
        before = self._at.pop(owner, None)
        if rdatas:
            now = self._at[owner] = _caa_id(rdatas)
            self._sets.setdefault(now, Shared(LIVE_TTL_SECONDS, rdatas))
            self._owners[now] += 1
        if before is not None:
            self._owners[before] -= 1
            if not self._owners[before]:
                del self._owners[before], self._sets[before]


@lru_cache(_GROUPS_REMEMBERED)
def _caa_id(rdatas: tuple[bytes, ...]) -> bytes:
    said = b"".join(len(rdata).to_bytes(2) + rdata for rdata in rdatas)
    return b"CAA " + hashlib.sha256(said).digest()


_LIST = b"servers"
"""The set of the TXT of all servers: wherever there is one it is this."""


@lru_cache(_GROUPS_REMEMBERED)
def _ids(group: Group) -> tuple[bytes, bytes]:
    """What the sets of A and of AAAA of a group are known by."""
    servers = " ".join(map(str, group)).encode("ascii")
    return b"A of " + servers, b"AAAA of " + servers


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

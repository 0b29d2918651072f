"""One version of a zone: immutable, looked at by name and type, replaced whole by the next version.

Hidden here: what is known about a zone beyond its records, worked out once when it is built: which names
exist without having records (empty non-terminals), where it is cut, and which SOA goes into a negative
answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Final

from appliance.dns.numbers import DNAME, NS, SOA

_NO_RRSETS: Final[Mapping[int, RRset]] = {}


@dataclass(frozen=True, slots=True)
class RRset:
    """All records of one name and type. `ttl` in seconds; each rdata is in wire form without compression."""

    name: bytes
    rtype: int
    ttl: int
    rdatas: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Zone:
    """A version of the zone `apex`; `rrsets` is by name, then by type, and must hold an SOA at the apex.

    `serial` must be the SOA's. `base`, when given, is a zone whose names all have records here as well,
    with the same cuts and DNAMEs: then only new names are examined, and a change of live records is cheap
    in a large zone.
    """

    apex: bytes
    serial: int
    rrsets: Mapping[bytes, Mapping[int, RRset]]
    base: InitVar[Zone | None] = None
    # Empty non-terminals (RFC 4592 2.2.2); where child zones are delegated; where DNAMEs are.
    empty: frozenset[bytes] = field(init=False, repr=False, compare=False)
    cuts: frozenset[bytes] = field(init=False, repr=False, compare=False)
    dnames: frozenset[bytes] = field(init=False, repr=False, compare=False)
    # As it stands, and as it goes into a negative answer (RFC 2308 3: its TTL is min(TTL, MINIMUM)).
    soa: RRset = field(init=False, repr=False, compare=False)
    negative_soa: RRset = field(init=False, repr=False, compare=False)

    def __post_init__(self, base: Zone | None) -> None:
        soa = self.rrsets.get(self.apex, _NO_RRSETS).get(SOA)
        if soa is None:
            raise ValueError("a zone needs an SOA at its apex")
        if base is None:
            cuts = frozenset(name for name, node in self.rrsets.items() if NS in node and name != self.apex)
            dnames = frozenset(name for name, node in self.rrsets.items() if DNAME in node)
            empty = self._empty_above(self.rrsets)
        else:
            cuts, dnames = base.cuts, base.dnames
            fresh = [name for name in self.rrsets if name not in base.rrsets]
            empty = base.empty.difference(fresh) | self._empty_above(fresh)
        negative_ttl = min(soa.ttl, soa_minimum(soa))
        for name, value in (
            ("empty", empty),
            ("cuts", cuts),
            ("dnames", dnames),
            ("soa", soa),
            ("negative_soa", RRset(self.apex, SOA, negative_ttl, soa.rdatas)),
        ):
            object.__setattr__(self, name, value)

    def _empty_above(self, below: Iterable[bytes]) -> frozenset[bytes]:
        found: set[bytes] = set()
        for name in below:
            while len(name) > len(self.apex):
                name = name[1 + name[0] :]
                if name in self.rrsets or name in found:
                    break  # what is above it was or will be found from there
                found.add(name)
        return frozenset(found)

    def exists(self, name: bytes) -> bool:
        """Whether `name` is a node of this zone: it has records, or something below it has."""
        return name in self.rrsets or name in self.empty

    def node(self, name: bytes) -> Mapping[int, RRset]:
        """The rrsets at exactly `name`, by type; empty when there is none."""
        return self.rrsets.get(name, _NO_RRSETS)


def soa_serial(soa: RRset) -> int:
    """The SERIAL of an SOA rrset."""
    return int.from_bytes(soa.rdatas[0][-20:-16], "big")


def soa_minimum(soa: RRset) -> int:
    """The MINIMUM of an SOA rrset, in seconds: how long a "no" may be remembered (RFC 2308 4)."""
    return int.from_bytes(soa.rdatas[0][-4:], "big")


def soa_with(soa: RRset, *, serial: int, minimum: int) -> RRset:
    """The same SOA with another SERIAL and MINIMUM."""
    rdata = soa.rdatas[0]
    changed = rdata[:-20] + serial.to_bytes(4, "big") + rdata[-16:-4] + minimum.to_bytes(4, "big")
    return RRset(soa.name, soa.rtype, soa.ttl, (changed,))


def zone_of(apex: bytes, rrsets: Iterable[RRset]) -> Zone:
    """A zone of these rrsets; the serial is the SOA's."""
    nodes: dict[bytes, dict[int, RRset]] = {}
    for rrset in rrsets:
        nodes.setdefault(rrset.name, {})[rrset.rtype] = rrset
    soa = nodes.get(apex, {}).get(SOA)
    return Zone(apex, soa_serial(soa) if soa else 0, nodes)

"""One version of a zone: immutable, looked at by name and type; the next version shares what did not change.

Hidden here: what is known about a zone beyond its records: which names exist without having records (empty
non-terminals), where it is cut, and which SOA goes into a negative answer; and how a change of some names
keeps that right without a look at the others. And that thousands of names may have the same records: what
such a name holds is which sets these are, so that another content of a set is one replacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple, cast

from appliance.dns import names
from appliance.dns.layered import with_changes
from appliance.dns.numbers import AAAA, CNAME, DNAME, NS, SOA, TXT, A
from appliance.dns.touched import soa_of, standing

_NO_RRSETS: Final[Mapping[int, RRset]] = {}


class RRset(NamedTuple):
    """All records of one name and type. `ttl` in seconds; each rdata is in wire form without compression."""

    name: bytes
    rtype: int
    ttl: int
    rdatas: tuple[bytes, ...]


Node = Mapping[int, RRset]


class Shared(NamedTuple):
    """What the rrsets of one type at many names have in common: a set. It is known by some octets, its id."""

    ttl: int
    rdatas: tuple[bytes, ...]


Sets = Mapping[bytes, Shared]


class Placed(NamedTuple):
    """What a name holds that has nothing but what sets say: the id of one for each of its types.

    None of these is a type that decides about other names (NS, DNAME).
    """

    ids: tuple[tuple[int, bytes], ...]

    def at(self, name: bytes, sets: Sets) -> Node:
        """The rrsets of `name`."""
        return {rtype: RRset(name, rtype, *sets[one]) for rtype, one in self.ids}


_SOMETHING: Final[Node] = {TXT: RRset(b"", TXT, 0, ())}


class Nodes(Mapping[bytes, Node]):
    """The rrsets of a zone by name, some of them as `sets` say. Immutable."""

    __slots__ = ("sets", "stored")

    def __init__(self, stored: Mapping[bytes, Node | Placed], sets: Sets) -> None:
        self.stored = stored
        self.sets = sets

    def __getitem__(self, name: bytes) -> Node:
        node = self.stored[name]
        return node.at(name, self.sets) if isinstance(node, Placed) else node

    def get(self, name: bytes, default: Any = None) -> Any:
        node = self.stored.get(name)
        if node is None:
            return default
        return node.at(name, self.sets) if isinstance(node, Placed) else node

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True, slots=True)
class Shape:
    """What follows from the records of a zone.

    `children`: how many names exist directly below each name that has any; `nameservers`: in how many NS
    rrsets each name is (lower-cased); `cuts` and `dnames`: where child zones are delegated, and where DNAMEs
    are (mappings to True); `unaddressed`: which nameservers with a name in the zone have no address there, or
    a CNAME (to True): a wildcard or a child zone has to give it. Most zones have none.
    """

    children: Mapping[bytes, int]
    nameservers: Mapping[bytes, int]
    cuts: Mapping[bytes, bool]
    dnames: Mapping[bytes, bool]
    unaddressed: Mapping[bytes, bool]


@dataclass(frozen=True, slots=True)
class Zone:
    """A version of the zone `apex`; `rrsets` is by name, then by type, and must hold an SOA at the apex.

    `serial` must be the SOA's; `shape` is worked out when it is not known.
    """

    apex: bytes
    serial: int
    rrsets: Mapping[bytes, Node]
    shape: Shape = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    # As it stands, and as it goes into a negative answer (RFC 2308 3: its TTL is min(TTL, MINIMUM)).
    soa: RRset = field(init=False, repr=False, compare=False)
    negative_soa: RRset = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        soa = self.rrsets.get(self.apex, _NO_RRSETS).get(SOA)
        if soa is None:
            raise ValueError("a zone needs an SOA at its apex")
        negative = RRset(self.apex, SOA, min(soa.ttl, soa_minimum(soa)), soa.rdatas)
        object.__setattr__(self, "soa", soa)
        object.__setattr__(self, "negative_soa", negative)
        if self.shape is None:
            object.__setattr__(self, "shape", shape_of(self.apex, self.rrsets))

    def exists(self, name: bytes) -> bool:
        """Whether `name` is a node of this zone: it has records, or something below it has."""
        return name in self.rrsets or name in self.shape.children

    def node(self, name: bytes) -> Node:
        """The rrsets at exactly `name`, by type; empty when there is none."""
        return self.rrsets.get(name, _NO_RRSETS)

    def stored(self, name: bytes) -> Node | Placed:
        """The same, as it is held."""
        rrsets = self.rrsets
        return rrsets.stored.get(name, _NO_RRSETS) if isinstance(rrsets, Nodes) else self.node(name)

    @property
    def cuts(self) -> Mapping[bytes, bool]:
        """Where child zones are delegated."""
        return self.shape.cuts

    @property
    def dnames(self) -> Mapping[bytes, bool]:
        """Where DNAMEs are."""
        return self.shape.dnames

    @property
    def empty(self) -> frozenset[bytes]:
        """All empty non-terminals (RFC 4592 2.2.2). Walks the whole zone: of one name, ask `exists`."""
        return frozenset(name for name in self.shape.children if name not in self.rrsets)

    def changed(self, nodes: Mapping[bytes, Node]) -> tuple[Zone, frozenset[bytes]]:
        """The version in which each name of `nodes` has these rrsets, or none; and what that touched.

        The SOA of the new version must be in `nodes`; what it touches if only its serial is another is
        nothing. Costs what is changed, not what the zone holds.
        """
        change = Change(self)
        for name, node in nodes.items():
            change.put(name, node)
        return change.version(), frozenset(change.touched)


class Change:
    """`Zone.changed` in steps: puts nodes in the place of others, one at a time. `sets` are what is placed
    from now on; without them the zone's own.
    """

    def __init__(self, zone: Zone, sets: Sets | None = None) -> None:
        rrsets = zone.rrsets
        self._zone = zone
        self._stored: Mapping[bytes, Node | Placed] = rrsets.stored if isinstance(rrsets, Nodes) else rrsets
        self._sets = sets if sets is not None else rrsets.sets if isinstance(rrsets, Nodes) else {}
        self._nodes: dict[bytes, Node | Placed | None] = {}
        self._children: dict[bytes, int | None] = {}
        self._nameservers: dict[bytes, int | None] = {}
        self._cuts: dict[bytes, bool | None] = {}
        self._dnames: dict[bytes, bool | None] = {}
        self.touched: set[bytes] = set()

    def version(self) -> Zone:
        """The zone with all that was put."""
        zone, shape = self._zone, self._zone.shape
        stored = with_changes(self._stored, self._nodes)
        rrsets = Nodes(stored, self._sets) if self._sets else cast(Mapping[bytes, Node], stored)
        soa = rrsets.get(zone.apex, _NO_RRSETS).get(SOA)
        return Zone(
            zone.apex,
            soa_serial(soa) if soa else 0,
            rrsets,
            Shape(
                with_changes(shape.children, self._children),
                with_changes(shape.nameservers, self._nameservers),
                with_changes(shape.cuts, self._cuts),
                with_changes(shape.dnames, self._dnames),
                with_changes(shape.unaddressed, self._unaddressed()),
            ),
        )

    def put(self, name: bytes, node: Node | Placed) -> None:
        """Let `node` be what is at `name`; an empty one: nothing. A Placed never is at the apex."""
        there = self._node(name)
        if there == node:
            return
        self._nodes[name] = node or None
        before, node = _seen_by_others(there), _seen_by_others(node)
        if before.get(NS) != node.get(NS):
            self._count_nameservers(before.get(NS), -1)
            self._count_nameservers(node.get(NS), 1)
        if name == self._zone.apex:
            self._touch_apex(before, node)
        else:
            self.touched.add(name)
            for rtype, marked in ((NS, self._cuts), (DNAME, self._dnames)):
                if (rtype in before) is not (rtype in node):
                    marked[name] = True if rtype in node else None
                    self.touched.add(standing(name))
            if bool(before) is not bool(node) and not self.children(name):
                self._stands(name, 1 if node else -1)

    def _touch_apex(self, before: Node, node: Node) -> None:
        if (DNAME in before) is not (DNAME in node):
            self._dnames[self._zone.apex] = True if DNAME in node else None
            self.touched.add(standing(self._zone.apex))
        old, new = before.get(SOA), node.get(SOA)
        if old is None or new is None or not _is_same_but_serial(old, new):
            self.touched.add(soa_of(self._zone.apex))
        if {**before, SOA: None} != {**node, SOA: None}:
            self.touched.add(self._zone.apex)

    def _stands(self, name: bytes, step: int) -> None:
        """`name` begins (1) or ceases (-1) to exist, and the empty non-terminals above it with it."""
        self.touched.update((name, standing(name)))
        while name != self._zone.apex:
            name = name[1 + name[0] :]
            there = self.children(name)
            self._children[name] = (there + step) or None
            if self._node(name) or there + min(step, 0):
                return  # it exists with and without this child
            self.touched.update((name, standing(name)))

    def _node(self, name: bytes) -> Node | Placed:
        if name in self._nodes:
            return self._nodes[name] or _NO_RRSETS
        return self._stored.get(name, _NO_RRSETS)

    def children(self, name: bytes) -> int:
        """How many names exist directly below `name`."""
        if name in self._children:
            return self._children[name] or 0
        return self._zone.shape.children.get(name, 0)

    def _unaddressed(self) -> dict[bytes, bool | None]:
        """Which nameservers have lost their address, or (None) got one or are none any more."""
        shape = self._zone.shape
        found: dict[bytes, bool | None] = {}
        for name in chain(self._nodes, self._nameservers):
            in_use = self._nameservers[name] if name in self._nameservers else shape.nameservers.get(name)
            lacks = bool(in_use) and _lacks_address(name, self._node(name), self._zone.apex)
            if lacks is not (name in shape.unaddressed):
                found[name] = lacks or None
        return found

    def _count_nameservers(self, rrset: RRset | None, step: int) -> None:
        for rdata in rrset.rdatas if rrset is not None else ():
            target = rdata.lower()
            there = self._nameservers.get(target)
            if target not in self._nameservers:
                there = self._zone.shape.nameservers.get(target)
            self._nameservers[target] = ((there or 0) + step) or None


def shape_of(apex: bytes, rrsets: Mapping[bytes, Node]) -> Shape:
    """The shape of the zone `apex` of these records, from a look at all of them."""
    children: dict[bytes, int] = {}
    for name in rrsets:
        while len(name) > len(apex):
            name = name[1 + name[0] :]
            there = children.get(name, 0)
            children[name] = there + 1
            if there or name in rrsets:
                break  # it is itself counted among the children of the name above it
    nameservers: dict[bytes, int] = {}
    cuts: dict[bytes, bool] = {}
    dnames: dict[bytes, bool] = {}
    for name, node in rrsets.items():
        if NS in node:
            if name != apex:
                cuts[name] = True
            for rdata in node[NS].rdatas:
                target = rdata.lower()
                nameservers[target] = nameservers.get(target, 0) + 1
        if DNAME in node:
            dnames[name] = True
    unaddressed = {
        name: True for name in nameservers if _lacks_address(name, rrsets.get(name, _NO_RRSETS), apex)
    }
    return Shape(children, nameservers, cuts, dnames, unaddressed)


def _lacks_address(nameserver: bytes, node: Node | Placed, apex: bytes) -> bool:
    """Whether `node` does not say where the `nameserver` is, although it is named below `apex`."""
    rtypes = [rtype for rtype, _ in node.ids] if isinstance(node, Placed) else node
    if CNAME not in rtypes and (A in rtypes or AAAA in rtypes):
        return False
    return names.is_at_or_below(nameserver, apex)


def _seen_by_others(node: Node | Placed) -> Node:
    return _SOMETHING if isinstance(node, Placed) else node


def _is_same_but_serial(one: RRset, other: RRset) -> bool:
    return one.ttl == other.ttl and soa_with(one, serial=0, minimum=soa_minimum(one)) == soa_with(
        other, serial=0, minimum=soa_minimum(other)
    )


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

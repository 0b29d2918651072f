"""A zone file and what UPDATE made of it: amendments, each of one rrset, laid over the file that stays as it
is.

Hidden here: who wins when the operator then edits the file. An amendment remembers what the file said of its
rrset when it was made. As long as the file says the same, the amendment holds; once the file says something
else there, the operator has spoken last, and the file wins for that rrset. The same where both together would
be no zone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from appliance.dns import names
from appliance.dns.numbers import AAAA, CNAME, DNAME, NS, SOA, A
from appliance.dns.serial import is_newer
from appliance.dns.zone import RRset, Zone, soa_minimum, soa_serial, soa_with
from appliance.dns.zonecheck import Record, faults_at

# By UPDATE, in one zone. What a key's holder makes us keep has to end somewhere.
MAX_AMENDMENTS: Final = 100_000

# What can leave a nameserver without an address, or hide one.
_STRUCTURAL: Final = frozenset((A, AAAA, NS, CNAME, DNAME))

_U16: Final = Struct("!H")
_U32: Final = Struct("!I")

Rrsets = Mapping[tuple[bytes, int], RRset | None]
"""Rrsets by name and type; None: there is no such rrset."""


@dataclass(frozen=True, slots=True)
class Amendment:
    """The rrset `name` `rtype`: `was` in the file when it was amended, and `now` since; None: none."""

    name: bytes
    rtype: int
    was: RRset | None
    now: RRset | None

    @property
    def key(self) -> tuple[bytes, int]:
        return self.name, self.rtype


@dataclass(frozen=True, slots=True)
class Merged:
    """The zone of a file with its amendments; `dropped` are those that do not hold any more, each with the
    reason, which is empty where the file now says the same.
    """

    zone: Zone
    dropped: tuple[tuple[Amendment, str], ...]


def merge(file: Zone, amendments: Collection[Amendment]) -> Merged:
    """`amendments` laid over `file`, a zone without faults. (For a single change, `amended` is cheaper.)"""
    if not amendments:
        return Merged(file, ())
    dropped: list[tuple[Amendment, str]] = []
    holding: dict[tuple[bytes, int], Amendment] = {}
    for one in amendments:
        says = file.node(one.name).get(one.rtype)
        if _is_same(says, one.now):
            dropped.append((one, ""))
        elif _is_same(says, one.was):
            holding[one.key] = one
        else:
            dropped.append((one, "the zone file says something else there since"))
    while True:
        zone = amended(file, {key: _over(file, one) for key, one in holding.items()})
        blamed = {name: what for found, what in faults_among(zone, holding) for name in found}
        wrong = [key for key in holding if key[0] in blamed]
        if not wrong:
            return Merged(zone, tuple(dropped))
        dropped += [(holding.pop(key), f"with the zone file, {blamed[key[0]]}") for key in wrong]


def amend(
    file: Zone, before: Mapping[tuple[bytes, int], Amendment], changes: Rrsets
) -> dict[tuple[bytes, int], Amendment | None]:
    """What becomes of the amendments `before` by `changes`: new ones; None for those that are not needed any
    more, because the file says the same.
    """
    found: dict[tuple[bytes, int], Amendment | None] = {}
    for (name, rtype), now in changes.items():
        says = file.node(name).get(rtype)
        if not _is_same(says, now):
            found[name, rtype] = Amendment(name, rtype, says, now)
        elif (name, rtype) in before:
            found[name, rtype] = None
    return found


def amended(zone: Zone, changes: Rrsets) -> Zone:
    """`zone` with `changes`; its serial is that of its SOA."""
    nodes: dict[bytes, dict[int, RRset]] = {}
    for (name, rtype), rrset in changes.items():
        node = nodes.get(name)
        if node is None:
            node = nodes[name] = dict(zone.node(name))
        if rrset is not None:
            node[rtype] = rrset
        else:
            node.pop(rtype, None)
    return zone.changed(nodes)[0]


def faults_among(zone: Zone, changes: Iterable[tuple[bytes, int]]) -> Iterator[tuple[frozenset[bytes], str]]:
    """What is wrong with `zone`, of which only `changes` (names and types) can be wrong: the names that are
    to blame (of the changed ones all, of others not), and what a zone file would be refused with.
    """
    changes = tuple(changes)
    touched = frozenset(name for name, _ in changes)
    for name in touched:
        node = zone.node(name)
        records = {
            rtype: [Record(0, name, rtype, rrset.ttl, rdata) for rdata in rrset.rdatas]
            for rtype, rrset in node.items()
        }
        for fault in faults_at(name, records, zone.apex):
            yield frozenset((name,)), fault.what
    if zone.dnames:
        yield from _faults_below_dnames(zone, touched)
    if any(rtype in _STRUCTURAL for _, rtype in changes):
        yield from _faults_of_nameservers(zone, touched)


def _faults_below_dnames(zone: Zone, touched: frozenset[bytes]) -> Iterator[tuple[frozenset[bytes], str]]:
    is_new = not touched.isdisjoint(zone.dnames)
    for name in zone.rrsets if is_new else touched & zone.rrsets.keys():
        above = name
        while above != zone.apex:
            above = names.parent(above)
            if above in zone.dnames:
                what = f"{names.to_text(name)} would be below the DNAME record at {names.to_text(above)}"
                yield frozenset((name, above)), what


def _faults_of_nameservers(
    zone: Zone, touched: frozenset[bytes]
) -> Iterator[tuple[frozenset[bytes], str]]:
    """As zonecheck's: a nameserver that is in the zone must have an address in it.

    One with an address at its own name is right whatever else is in the zone: the others are few.
    """
    for target in zone.shape.unaddressed:
        cut = _cut_above(zone, target)
        node = zone.node(target)
        if cut is None and not zone.exists(target):
            node = _wildcard_node(zone, target)
        if CNAME in node:
            what = "would be a CNAME"
        elif A not in node and AAAA not in node:
            what = "would have no A or AAAA record"
        else:
            continue
        owners = _delegating(zone, target, touched if cut is None else _at_or_above(zone, target))
        # Below a cut, and of no zone that it is in: its address is another child zone's to give.
        if cut is None or owners:
            yield owners | {target}, f"the nameserver {names.to_text(target)} {what}"
    if NS not in zone.node(zone.apex):
        yield frozenset((zone.apex,)), "the zone would have no NS record at its apex"


def _delegating(zone: Zone, target: bytes, owners: Iterable[bytes]) -> frozenset[bytes]:
    """Those of `owners` with the nameserver `target`."""
    found = ((owner, zone.node(owner).get(NS)) for owner in owners)
    return frozenset(
        owner for owner, servers in found if servers and target in map(bytes.lower, servers.rdatas)
    )


def _at_or_above(zone: Zone, name: bytes) -> Iterator[bytes]:
    yield name
    while name != zone.apex:
        name = names.parent(name)
        yield name


def _cut_above(zone: Zone, name: bytes) -> bytes | None:
    while name != zone.apex:
        if name in zone.cuts:
            return name
        name = names.parent(name)
    return None


def _wildcard_node(zone: Zone, name: bytes) -> Mapping[int, RRset]:
    encloser = names.parent(name)
    while not zone.exists(encloser):
        encloser = names.parent(encloser)
    return zone.node(names.wildcard_of(encloser))


def _over(file: Zone, one: Amendment) -> RRset | None:
    """What holds, where `one` does. Of an SOA with the newer serial of the two: editing a file raises it."""
    if one.now is None or one.rtype != SOA or not is_newer(file.serial, soa_serial(one.now)):
        return one.now
    return soa_with(one.now, serial=file.serial, minimum=soa_minimum(one.now))


def _is_same(one: RRset | None, other: RRset | None) -> bool:
    """Whether both say the same, in whatever order; of an SOA whatever its serial."""
    if one is None or other is None:
        return one is other
    if one.rtype == SOA:
        one, other = (soa_with(soa, serial=0, minimum=soa_minimum(soa)) for soa in (one, other))
    return one.ttl == other.ttl and frozenset(one.rdatas) == frozenset(other.rdatas)


def encode(rrset: RRset) -> bytes:
    """TTL and data of `rrset` as octets, for the disk."""
    return _U32.pack(rrset.ttl) + b"".join(_U16.pack(len(rdata)) + rdata for rdata in rrset.rdatas)


def decode(name: bytes, rtype: int, octets: bytes) -> RRset:
    """The rrset of which `encode` made `octets`. Raises ValueError."""
    rdatas = []
    at = _U32.size
    while at < len(octets):
        end = at + _U16.size + int.from_bytes(octets[at : at + _U16.size], "big")
        if end > len(octets):
            raise ValueError("an rrset is cut off")
        rdatas.append(octets[at + _U16.size : end])
        at = end
    if not rdatas:
        raise ValueError("an rrset without records")
    return RRset(name, rtype, int.from_bytes(octets[: _U32.size], "big"), tuple(rdatas))

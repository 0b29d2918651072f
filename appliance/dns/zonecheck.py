"""Which records may stand together in a zone: the checks that nsd-checkzone and named-checkzone make
before they load one.

Hidden here: the rules of RFC 1034 3.6, 2181, 4592 and 6672 about names and types that exclude each other.
Input are records with the line that each was read from, so that a fault can name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Final, NamedTuple

from appliance.dns import names
from appliance.dns.numbers import (
    AAAA,
    CNAME,
    DNAME,
    DNSKEY,
    DS,
    MX,
    NS,
    NSEC,
    NSEC3,
    NSEC3PARAM,
    PTR,
    RRSIG,
    SOA,
    TXT,
    A,
)
from appliance.dns.zone import RRset, Zone, soa_serial

# An rrset has to fit a message over TCP with its question and the head of each record (RFC 1035 4.2.2:
# 65,535 octets).
MAX_RRSET_OCTETS: Final = 60_000
_RECORD_HEAD_OCTETS: Final = 12  # a compressed owner, type, class, TTL, length

_SIGNATURES: Final = {RRSIG: "RRSIG", NSEC: "NSEC", NSEC3: "NSEC3", NSEC3PARAM: "NSEC3PARAM"}
# Types without a rule of their own, and what many records of them are far from being too many in.
_ORDINARY: Final = frozenset((A, AAAA, TXT, MX, PTR))
_ORDINARY_OCTETS: Final = 512
_SINGLE: Final = {SOA: "SOA", CNAME: "CNAME", DNAME: "DNAME"}


class Fault(NamedTuple):
    """What is wrong, and in which line."""

    line: int
    what: str


class Record(NamedTuple):
    """One record as it was read: `name` lower-cased, `rdata` in wire form without compression, `ttl` in
    seconds."""

    line: int
    name: bytes
    rtype: int
    ttl: int
    rdata: bytes


_Nodes = Mapping[bytes, Mapping[int, Sequence[Record]]]


def apex_of(records: Sequence[Record]) -> bytes | None:
    """The owner of the first SOA, if there is one."""
    return next((record.name for record in records if record.rtype == SOA), None)


def faults_of(records: Sequence[Record], apex: bytes | None) -> list[Fault]:
    """Everything that keeps these records from being the zone `apex`; empty when nothing does."""
    if apex is None:
        return [Fault(1, "the zone has no SOA record")]
    nodes: dict[bytes, dict[int, list[Record]]] = {}
    faults: list[Fault] = []
    for record in records:
        node = nodes.get(record.name)
        if node is not None:
            node.setdefault(record.rtype, []).append(record)
        elif names.is_at_or_below(record.name, apex):
            nodes[record.name] = {record.rtype: [record]}
        else:
            faults.append(
                Fault(record.line, f"{names.to_text(record.name)} is outside the zone {names.to_text(apex)}")
            )
    for name, node in nodes.items():
        if not _is_ordinary(name, node):
            faults.extend(faults_at(name, node, apex))
    faults.extend(_faults_below_dnames(nodes))
    faults.extend(_faults_of_apex(nodes.get(apex, {}), apex))
    faults.extend(_faults_of_nameservers(nodes, apex))
    return faults


def zone_from(records: Iterable[Record], apex: bytes) -> Zone:
    """The zone of records without faults: duplicates are dropped, and an rrset has one TTL, the lowest
    written (RFC 2181 5)."""
    rrsets: dict[bytes, dict[int, RRset]] = {}
    further: dict[tuple[bytes, int], list[Record]] = {}
    for record in records:
        _, name, rtype, ttl, rdata = record
        node = rrsets.setdefault(name, {})
        if rtype in node:
            further.setdefault((name, rtype), []).append(record)
        else:
            node[rtype] = RRset(name, rtype, ttl, (rdata,))
    for (name, rtype), found in further.items():
        first = rrsets[name][rtype]
        rdatas = dict.fromkeys((*first.rdatas, *(record.rdata for record in found)))
        ttl = min(first.ttl, *(record.ttl for record in found))
        rrsets[name][rtype] = RRset(name, rtype, ttl, tuple(rdatas))
    return Zone(apex, soa_serial(rrsets[apex][SOA]), rrsets)


def _is_ordinary(name: bytes, node: Mapping[int, Sequence[Record]]) -> bool:
    """Whether nothing can be wrong at `name`, as at most names of a large zone."""
    return (
        _ORDINARY.issuperset(node)
        and not names.is_wildcard(name)
        and all(len(found) == 1 and len(found[0].rdata) <= _ORDINARY_OCTETS for found in node.values())
    )


def faults_at(name: bytes, node: Mapping[int, Sequence[Record]], apex: bytes) -> Iterator[Fault]:
    """What is wrong with the records at one name, looked at by themselves."""
    text = names.to_text(name)
    for rtype, found in node.items():
        if rtype in _SIGNATURES:
            yield Fault(
                found[0].line,
                f"{_SIGNATURES[rtype]} at {text}: signed zones are not served, give the unsigned one",
            )
        # The same CNAME twice is one CNAME; an SOA is written once.
        distinct = len(found) if rtype == SOA else len({record.rdata for record in found})
        if rtype in _SINGLE and distinct > 1:
            yield Fault(found[1].line, f"{text} has more than one {_SINGLE[rtype]} record")
        octets = sum(len(record.rdata) + _RECORD_HEAD_OCTETS for record in found)
        if octets > MAX_RRSET_OCTETS:
            yield Fault(
                found[-1].line,
                f"the records of one type at {text} are too many for one answer ({octets} octets)",
            )
    if SOA in node and name != apex:
        yield Fault(node[SOA][0].line, f"an SOA record at {text}, but the zone is {names.to_text(apex)}")
    alias = node.get(CNAME)
    if alias and len(node) > 1:
        other = min(record.line for rtype, found in node.items() if rtype != CNAME for record in found)
        yield Fault(max(alias[0].line, other), f"{text} has a CNAME record, so it can have no other records")
    if DNAME in node and NS in node and name != apex:
        yield Fault(node[DNAME][0].line, f"{text} has both DNAME and NS records")
    if DS in node and name == apex:
        yield Fault(node[DS][0].line, f"a DS record at the apex {text}: it belongs into the parent zone")
    if names.is_wildcard(name):
        for rtype, word in ((NS, "NS"), (DNAME, "DNAME")):
            if rtype in node:
                yield Fault(node[rtype][0].line, f"the wildcard {text} cannot have {word} records")
    if DNSKEY in node and name != apex:
        yield Fault(node[DNSKEY][0].line, f"a DNSKEY record at {text}, which is not the zone's apex")


def _faults_below_dnames(nodes: _Nodes) -> Iterator[Fault]:
    owners = {name for name, node in nodes.items() if DNAME in node}
    if not owners:
        return
    for name, node in nodes.items():
        above = name
        while above != names.ROOT:
            above = names.parent(above)
            if above in owners:
                line = min(record.line for found in node.values() for record in found)
                yield Fault(
                    line, f"{names.to_text(name)} is below the DNAME record at {names.to_text(above)}"
                )
                break


def _faults_of_apex(node: Mapping[int, Sequence[Record]], apex: bytes) -> Iterator[Fault]:
    if SOA not in node:
        yield Fault(1, f"the zone {names.to_text(apex)} has no SOA record at its apex")
    elif NS not in node:
        yield Fault(node[SOA][0].line, f"the zone {names.to_text(apex)} has no NS record at its apex")


def _faults_of_nameservers(nodes: _Nodes, apex: bytes) -> Iterator[Fault]:
    """A nameserver in the zone that has no address there can be found by nobody (RFC 1912 2.8, and
    TsuNAME's lesson)."""
    inner = cache(lambda: _inner(nodes, apex))
    for owner, node in nodes.items():
        for record in node.get(NS, ()):
            target = record.rdata.lower()
            if not names.is_at_or_below(target, apex):
                continue
            cut = _cut_above(nodes, target, apex)
            if cut is not None and not names.is_at_or_below(target, owner):
                continue  # another child zone's name: its address is that zone's to give
            at_target: Mapping[int, Sequence[Record]] = nodes.get(target, {})
            if not at_target and cut is None and target not in inner():
                at_target = _wildcard_node(nodes, target, inner())
            text = names.to_text(target)
            if CNAME in at_target:
                yield Fault(
                    record.line,
                    f"the nameserver {text} is a CNAME; it must have an address of its own (RFC 2181 10.3)",
                )
            elif A not in at_target and AAAA not in at_target:
                yield Fault(record.line, f"the nameserver {text} is in this zone and has no A or AAAA record")


def _cut_above(nodes: _Nodes, name: bytes, apex: bytes) -> bytes | None:
    while name != apex:
        if NS in nodes.get(name, {}):
            return name
        name = names.parent(name)
    return None


def _inner(nodes: _Nodes, apex: bytes) -> Set[bytes]:
    """All names with others below them, the empty non-terminals (RFC 4592 2.2.2) among them."""
    inner = {apex}
    for name in nodes:
        while name != apex and (name := names.parent(name)) not in inner:
            inner.add(name)
    return inner


def _wildcard_node(nodes: _Nodes, name: bytes, inner: Set[bytes]) -> Mapping[int, Sequence[Record]]:
    """What the wildcard below the closest encloser of a name that does not exist has (RFC 4592 3.3.1)."""
    encloser = names.parent(name)
    while encloser not in nodes and encloser not in inner:
        encloser = names.parent(encloser)
    return nodes.get(names.wildcard_of(encloser), {})

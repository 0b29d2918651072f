"""What an UPDATE asks for, and what comes of it (RFC 2136), on values: a zone in, amendments of it out.

Hidden here: the form of the message's sections, the prerequisites, the rules of 3.4.2 about SOA, NS and
CNAME, and what no key may do: touch live records, or make a zone that a zone file may not say either. All or
nothing: whatever refuses a part refuses the whole.

dnspython reads the data of records here, of a message whose signature was found right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.rdata

from appliance.dns import names
from appliance.dns.amendments import Rrsets, amended, faults_among
from appliance.dns.answer import refuse
from appliance.dns.numbers import (
    ANY,
    BADVERS,
    CNAME,
    DNAME,
    FORMERR,
    IN,
    MX,
    NS,
    NSEC,
    NSEC3,
    NSEC3PARAM,
    NXDOMAIN,
    OPT,
    PTR,
    REFUSED,
    RRSIG,
    SOA,
    TXT,
    YXDOMAIN,
    YXRRSET,
)
from appliance.dns.overlay import DISCOVERY_TEXT, LIVE_TYPES, Live, conflicts_at_load
from appliance.dns.policy import CHALLENGE_LABEL, Policy, allowed
from appliance.dns.question import Edns
from appliance.dns.rrtypes import text_of
from appliance.dns.sections import MessageError, Sections, Span, name_at, read_sections
from appliance.dns.serial import is_newer
from appliance.dns.tsig import Signed, Signer
from appliance.dns.updatelease import LeaseMalformed, lease_in
from appliance.dns.zone import RRset, Zone, soa_serial
from appliance.dns.zonefile import MAX_TTL_SECONDS

NXRRSET: Final = 8
NOTZONE: Final = 10
_CLASS_NONE: Final = 254
_CLASS_ANY: Final = 255
_SRV: Final = 33

# Signed zones are not served (zonecheck says so of files): what only they have.
_NEVER: Final = frozenset((RRSIG, NSEC, NSEC3, NSEC3PARAM))
# An rrset of one record: another one replaces it (3.4.2.2 for CNAME and SOA; RFC 6672 2.4).
_SINGLE: Final = frozenset((CNAME, SOA, DNAME))


# What changes the meaning of further names than its own (overlay).
_REACHING: Final = frozenset((CNAME, DNAME, NS))


class UpdateRefused(Exception):
    """This update is not done; nothing of it is. `rcode` answers it, the text is for the log. `edns` is the
    message's OPT, where only this error is known of the message: BADVERS cannot be said without one.
    """

    def __init__(self, rcode: int, what: str, edns: Edns | None = None) -> None:
        super().__init__(what)
        self.rcode = rcode
        self.edns = edns


@dataclass(frozen=True, slots=True)
class Clause:
    """One record of the message: a prerequisite or a change, as its class says. `rdata` is in wire form
    without compression, empty where the class needs none.
    """

    name: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes

    def __str__(self) -> str:
        return text_of(self.name, self.rtype)


@dataclass(frozen=True, slots=True)
class Update:
    """What a well-formed UPDATE of the zone `apex` asks for, and for how many seconds (`lease`; None: that is
    not said)."""

    apex: bytes
    prerequisites: tuple[Clause, ...]
    changes: tuple[Clause, ...]
    edns: Edns | None
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateAsked:
    """An UPDATE of one of our zones, signed with a key of ours. `head` is the message up to its zone."""

    signed: Signed
    update: Update
    head: bytes

    def answer(self, rcode: int, wall: float, options: bytes = b"") -> bytes:
        """The signed answer with `rcode`; `options` only where it has an OPT record."""
        answer = refuse(self.head, rcode, len(self.head), self.update.edns, options)
        return Signer(self.signed.key, self.signed.mac).sign(answer, int(wall))


# Reading


def read_update(message: bytes, apex: bytes) -> Update:
    """What `message`, an UPDATE of the zone `apex` without its signature, asks for. Raises UpdateRefused (RFC
    2136 3.1, the form of 3.2 and 3.4.1).
    """
    try:
        sections = read_sections(message)
        prerequisites = tuple(
            _clause(message, span, apex, _CLASS_ANY, _CLASS_NONE) for span in sections.answer
        )
        changes = tuple(_clause(message, span, apex, _CLASS_ANY) for span in sections.authority)
        lease = lease_in(message, sections)
    except MessageError as error:
        raise UpdateRefused(FORMERR, str(error)) from None
    except LeaseMalformed:
        raise UpdateRefused(FORMERR, "an OPT record without the form of one") from None
    edns = _edns(sections)
    for clause in prerequisites:
        if (
            clause.ttl != 0
            or (clause.rclass != IN and clause.rdata)
            or (clause.rclass == IN and _is_any(clause))
        ):
            raise UpdateRefused(FORMERR, f"a malformed prerequisite: {clause}")
    for clause in changes:
        is_add = clause.rclass == IN
        if (not is_add and clause.ttl != 0) or (clause.rclass == _CLASS_ANY and clause.rdata):
            raise UpdateRefused(FORMERR, f"a malformed deletion: {clause}")
        if clause.rclass != _CLASS_ANY and _is_any(clause):
            raise UpdateRefused(FORMERR, f"a change of type ANY: {clause}")
        if clause.ttl > MAX_TTL_SECONDS:
            raise UpdateRefused(FORMERR, f"a TTL above {MAX_TTL_SECONDS}: {clause}")
    return Update(apex, prerequisites, changes, edns, lease)


def _is_any(clause: Clause) -> bool:
    return clause.rtype == ANY


def _clause(message: bytes, span: Span, apex: bytes, *without_data: int) -> Clause:
    """The record at `span`. In the classes `without_data` there is none to be read."""
    name, _ = name_at(message, span.owner)
    if not names.is_at_or_below(name, apex):
        raise UpdateRefused(NOTZONE, f"{names.to_text(name)} is outside the zone")
    rtype, rclass = span.rtype, span.rclass
    if rclass not in (IN, _CLASS_NONE, _CLASS_ANY):
        raise UpdateRefused(FORMERR, f"class {rclass}")
    # 128 to 255 are types of questions and of signatures (RFC 6895 3.1), which no zone holds.
    if rtype in (0, OPT) or (128 <= rtype <= 255 and rtype != ANY):
        raise UpdateRefused(FORMERR, f"type {rtype} is not of records")
    if rclass in without_data or rtype == ANY:
        return Clause(name, rtype, rclass, span.ttl, message[span.rdata : span.end])
    return Clause(name, rtype, rclass, span.ttl, _uncompressed(message, span))


def _uncompressed(message: bytes, span: Span) -> bytes:
    """The data of a record, its names written out. Raises UpdateRefused where its type has other data."""
    try:
        read = dns.rdata.from_wire(IN, span.rtype, message, span.rdata, span.end - span.rdata)  # type: ignore[arg-type]
        rdata = read.to_wire()
    except dns.exception.DNSException as error:
        raise UpdateRefused(FORMERR, f"the data of a record of type {span.rtype}: {error}") from None
    except Exception as error:
        # dnspython has some ninety readers of data: one that trips is a mistake of the sender.
        raise UpdateRefused(FORMERR, f"the data of a record of type {span.rtype}: {error!r}") from None
    assert rdata is not None
    return rdata


def _edns(sections: Sections) -> Edns | None:
    opts = [span for span in sections.additional if span.rtype == OPT]
    if len(opts) > 1:
        raise UpdateRefused(FORMERR, "more than one OPT record")
    for span in opts:
        edns = Edns(span.rclass, span.ttl >> 16 & 0xFF, bool(span.ttl & 0x8000))
        if edns.version != 0:
            raise UpdateRefused(BADVERS, f"EDNS version {edns.version}", edns)
        return edns
    return None


# Prerequisites (RFC 2136 3.2)


def check_prerequisites(update: Update, merged: Zone) -> None:
    """Raises UpdateRefused unless `merged`, the zone as it is served, is as `update` supposes."""
    wanted: dict[tuple[bytes, int], set[bytes]] = {}
    for clause in update.prerequisites:
        node = merged.node(clause.name)
        is_there = bool(node) if _is_any(clause) else clause.rtype in node
        if clause.rclass == IN:
            key = clause.name, clause.rtype
            wanted.setdefault(key, set()).add(_canonical(clause.rtype, clause.rdata))
        elif clause.rclass == _CLASS_ANY and not is_there:
            raise UpdateRefused(NXDOMAIN if _is_any(clause) else NXRRSET, f"there is no {clause}")
        elif clause.rclass == _CLASS_NONE and is_there:
            raise UpdateRefused(YXDOMAIN if _is_any(clause) else YXRRSET, f"there is {clause}")
    for (name, rtype), rdatas in wanted.items():
        rrset = merged.node(name).get(rtype)
        if rrset is None or {_canonical(rtype, rdata) for rdata in rrset.rdatas} != rdatas:
            raise UpdateRefused(NXRRSET, f"{text_of(name, rtype)} is another")


# How many octets are before the names in the data of the types whose names compare without case (RFC 4034
# 6.2, of which the others are obsolete).
_BEFORE_NAMES: Final = {NS: 0, CNAME: 0, PTR: 0, DNAME: 0, MX: 2, _SRV: 6}


def _canonical(rtype: int, rdata: bytes) -> bytes:
    """What is equal for equal data (RFC 2136 1.1.1)."""
    if rtype == SOA:
        return rdata[:-20].lower() + rdata[-20:]
    before = _BEFORE_NAMES.get(rtype)
    return rdata if before is None else rdata[:before] + rdata[before:].lower()


# Changes (RFC 2136 3.4.2)


def changed(
    update: Update, *, merged: Zone, static: Zone, live: Live, policies: Iterable[Policy]
) -> tuple[Zone, Rrsets]:
    """What `static` becomes by `update`, and the rrsets that differ. Raises UpdateRefused.

    `live` are the live records laid over `static`, `merged` is both: what the rules of 3.4.2 look at. The
    prerequisites must have been checked.
    """
    work = _Work(merged, static, _live_in_force(update, static, live))
    policies = tuple(policies)
    for clause in update.changes:
        work.do(clause, policies)
    differing = work.differing()
    if not differing:
        return static, {}
    after = amended(static, differing)
    for _, fault in faults_among(after, differing):
        raise UpdateRefused(REFUSED, f"the zone would not be right: {fault}")
    _refuse_to_hide_live(differing, static, after, live)
    return after, differing


def _live_in_force(update: Update, static: Zone, live: Live) -> frozenset[tuple[bytes, int]]:
    """The live rrsets that are published at the names of `update` and are nobody's to change: none where the
    static record won, and no challenge, beside which those of other ACME clients may be.
    """
    owners = {clause.name for clause in update.changes}
    there = {
        key: rrset
        for key, rrset in _live_at(owners, live).items()
        if not (key[1] == TXT and key[0].startswith(CHALLENGE_LABEL))
    }
    conflicting = {(one.name, one.rtype) for one in conflicts_at_load(static, there)} if there else set()
    return frozenset(there) - conflicting


def _live_at(owners: Iterable[bytes], live: Live) -> Live:
    keys = ((name, rtype) for name in owners for rtype in LIVE_TYPES)
    return {key: live[key] for key in keys if key in live}


def _refuse_to_hide_live(differing: Rrsets, static: Zone, after: Zone, live: Live) -> None:
    """A live record yields to static ones; but not to those that come by UPDATE."""
    if not any(rtype in _REACHING for _, rtype in differing):
        live = _live_at({name for name, _ in differing}, live)
    before = set(conflicts_at_load(static, live)) if live else set()
    for conflict in conflicts_at_load(after, live) if live else ():
        if conflict not in before:
            raise UpdateRefused(REFUSED, f"would hide a live record: {conflict}")


class _Work:
    """The rrsets of a zone while an update is being done."""

    def __init__(self, merged: Zone, static: Zone, live: frozenset[tuple[bytes, int]]) -> None:
        self._merged = merged
        self._static = static
        self._live = live
        self._nodes: dict[bytes, dict[int, RRset]] = {}

    def differing(self) -> dict[tuple[bytes, int], RRset | None]:
        found: dict[tuple[bytes, int], RRset | None] = {}
        for name, node in self._nodes.items():
            before = self._static.node(name)
            for rtype in {*before, *node}:
                if before.get(rtype) != node.get(rtype):
                    found[name, rtype] = node.get(rtype)
        return found

    def do(self, clause: Clause, policies: tuple[Policy, ...]) -> None:
        node = self._node(clause.name)
        if clause.rclass == _CLASS_ANY and clause.rtype == ANY:
            types = [rtype for rtype in node if not self._is_kept(clause.name, rtype)]
            for rtype in types:
                self._permit(clause.name, rtype, policies)
                del node[rtype]
            return
        self._permit(clause.name, clause.rtype, policies)
        if (clause.name, clause.rtype) in self._live:
            raise UpdateRefused(REFUSED, f"{clause} is live")
        if clause.rclass == IN:
            self._add(node, clause)
        elif clause.rclass == _CLASS_ANY:
            if not self._is_kept(clause.name, clause.rtype):
                node.pop(clause.rtype, None)
        else:
            self._remove(node, clause)

    def _node(self, name: bytes) -> dict[int, RRset]:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = dict(self._static.node(name))
        return node

    def _permit(self, name: bytes, rtype: int, policies: tuple[Policy, ...]) -> None:
        if not allowed(policies, name, rtype):
            raise UpdateRefused(REFUSED, f"the key may not change {text_of(name, rtype)}")

    def _is_kept(self, name: bytes, rtype: int) -> bool:
        """Whether a deletion of a whole name or type leaves this (3.4.2.3, and live records)."""
        return (name == self._static.apex and rtype in (SOA, NS)) or (name, rtype) in self._live

    def _add(self, node: dict[int, RRset], clause: Clause) -> None:
        rtype = clause.rtype
        if rtype in _NEVER:
            raise UpdateRefused(REFUSED, f"signed zones are not served: {clause}")
        if rtype == TXT and clause.rdata[1:].startswith(DISCOVERY_TEXT):
            raise UpdateRefused(REFUSED, f"only live records say where a tunnel server is: {clause}")
        if self._is_ignored(node, clause):
            return
        there = node.get(rtype)
        rdatas: tuple[bytes, ...] = (clause.rdata,)
        if there is not None and rtype not in _SINGLE:
            new = _canonical(rtype, clause.rdata)
            is_there = any(_canonical(rtype, rdata) == new for rdata in there.rdatas)
            rdatas = there.rdatas if is_there else (*there.rdatas, clause.rdata)
        # One TTL for all (RFC 2181 5.2): the one said last.
        node[rtype] = RRset(clause.name, rtype, clause.ttl, rdatas)

    def _is_ignored(self, node: dict[int, RRset], clause: Clause) -> bool:
        """What 3.4.2.2 has silently ignored."""
        if clause.rtype == SOA:
            serial = soa_serial(RRset(clause.name, SOA, 0, (clause.rdata,)))
            return clause.name != self._static.apex or not is_newer(serial, self._merged.serial)
        if clause.rtype == CNAME:
            live = any((clause.name, rtype) in self._live for rtype in self._merged.node(clause.name))
            return live or any(rtype != CNAME for rtype in node)
        return CNAME in node

    def _remove(self, node: dict[int, RRset], clause: Clause) -> None:
        """One record (3.4.2.4): never the SOA, nor the last NS of the apex."""
        there = node.get(clause.rtype)
        if there is None or clause.rtype == SOA:
            return
        gone = _canonical(clause.rtype, clause.rdata)
        rdatas = tuple(rdata for rdata in there.rdatas if _canonical(clause.rtype, rdata) != gone)
        if rdatas:
            node[clause.rtype] = RRset(clause.name, clause.rtype, there.ttl, rdatas)
        elif not (clause.rtype == NS and clause.name == self._static.apex):
            del node[clause.rtype]

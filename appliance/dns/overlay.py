"""Live records laid over a static zone: what is served, and where the operator's file and the fleet disagree.

Hidden here: who wins. The zone file is the operator's and is never written; so TXT records are merged,
and for addresses, or at names whose meaning the file has settled, the static record wins and the conflict
is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from appliance.dns import names
from appliance.dns.numbers import AAAA, CNAME, SOA, TXT, A
from appliance.dns.zone import RRset, Zone, soa_minimum, soa_with

# A resolver that heard "no such name" must ask again soon, or a name that has just come to life stays
# dark; so negative answers live no longer than live records do.
NEGATIVE_TTL_SECONDS: Final = 15

# More servers than this in one rrset would not fit a UDP answer; BIND stops at 100 records a type
# (CVE-2024-1737).
MAX_LIVE_RECORDS: Final = 64

# How the TXT of a tunnel server begins. Written by hand beside live ones it sends clients to a server
# that nobody watches.
DISCOVERY_TEXT: Final = b"r=superprotocol"

LIVE_TYPES: Final = frozenset((A, AAAA, TXT))


class Reason(Enum):
    """Why a live record and the zone file conflict; the value is the sentence shown."""

    ADDRESS = "the zone file has an address here, which wins"
    CNAME = "the zone file has a CNAME at or above this name, which wins"
    DNAME = "the zone file has a DNAME at or above this name, which wins"
    DELEGATION = "the zone file delegates this name to other nameservers"
    NAMESERVER = (
        "the zone file names a nameserver at or above this name, and a nameserver's address is static"
    )
    DISCOVERY = "the zone file has a TXT r=superprotocol here, beside the live ones: remove it"
    OUTSIDE = "the name is outside the zone"
    TOO_MANY = f"more than {MAX_LIVE_RECORDS} live records: the rest is not published"


@dataclass(frozen=True, slots=True)
class Conflict:
    """The live rrset `name` `rtype` could not be published as it is."""

    name: bytes
    rtype: int
    reason: Reason

    @property
    def is_error(self) -> bool:
        """Whether the zone file should be refused for it, rather than only be told about."""
        return self.reason is Reason.DISCOVERY

    def __str__(self) -> str:
        word = {A: "A", AAAA: "AAAA", TXT: "TXT"}.get(self.rtype, f"TYPE{self.rtype}")
        return f"{names.to_text(self.name)} {word}: {self.reason.value}"


Live = Mapping[tuple[bytes, int], RRset]


def conflicts_at_load(static: Zone, live: Live) -> tuple[Conflict, ...]:
    """What of `live` conflicts with `static`, without making a zone. Refuse the file if any of it
    `is_error`."""
    return _Settled(static).sort(live)[1]


def lay(static: Zone, live: Live, serial: int) -> tuple[Zone, tuple[Conflict, ...]]:
    """`static` with `live` (A, AAAA and TXT rrsets by name and type) laid over it, as version `serial`.

    - TXT of both are merged, at the lower TTL. A live address set yields to any static A or AAAA at the name:
      half of each would be neither's.
    - At or under a static CNAME, DNAME, delegation or nameserver's name nothing live is published. (Where the
      apex is its own nameserver that holds for its addresses only, or nothing could be live in such a zone.)
    - An empty non-terminal below a live wildcard takes the wildcard's live records over: else the name that
      made it exist would hide the wildcard there (RFC 4592 2.2.2).
    - With any live record in it, the zone's SOA MINIMUM is at most NEGATIVE_TTL_SECONDS.
    """
    accepted, conflicts = _Settled(static).sort(live)
    nodes: dict[bytes, dict[int, RRset]] = {}
    for (name, rtype), rrset in accepted.items():
        node = nodes.get(name)
        if node is None:
            node = nodes[name] = dict(static.node(name))
        node[rtype] = _merged(node.get(rtype), rrset)
    apex = nodes.setdefault(static.apex, dict(static.node(static.apex)))
    minimum = soa_minimum(static.soa)
    if accepted:
        minimum = min(minimum, NEGATIVE_TTL_SECONDS)
    apex[SOA] = soa_with(static.soa, serial=serial, minimum=minimum)
    zone, _ = static.changed(nodes)
    filled = _filled(zone, accepted)
    if filled:
        zone, _ = zone.changed(filled)
    return zone, conflicts


class _Settled:
    """The names whose meaning a static zone has settled."""

    def __init__(self, static: Zone) -> None:
        self._static = static
        self._nameservers = static.shape.nameservers

    def sort(self, live: Live) -> tuple[dict[tuple[bytes, int], RRset], tuple[Conflict, ...]]:
        """What of `live` is published, and what conflicts."""
        accepted: dict[tuple[bytes, int], RRset] = {}
        conflicts: list[Conflict] = []
        for (name, rtype), rrset in sorted(live.items()):
            if rtype not in LIVE_TYPES:
                raise ValueError(f"type {rtype} is never live")
            if not rrset.rdatas:
                continue
            reason = self.above(name) or self._at(name, rtype)
            if reason is None or reason is Reason.DISCOVERY:
                if len(rrset.rdatas) > MAX_LIVE_RECORDS:
                    conflicts.append(Conflict(name, rtype, Reason.TOO_MANY))
                    rrset = RRset(name, rtype, rrset.ttl, tuple(sorted(rrset.rdatas)[:MAX_LIVE_RECORDS]))
                accepted[name, rtype] = rrset
            if reason is not None:
                conflicts.append(Conflict(name, rtype, reason))
        return accepted, tuple(conflicts)

    def above(self, name: bytes) -> Reason | None:
        """Why nothing live may be at `name`, whatever its type."""
        static = self._static
        if not names.is_at_or_below(name, static.apex):
            return Reason.OUTSIDE
        while True:
            if name in static.cuts:
                return Reason.DELEGATION
            if name in static.dnames:
                return Reason.DNAME
            if CNAME in static.node(name):
                return Reason.CNAME
            if name == static.apex:
                return None
            if name in self._nameservers:
                return Reason.NAMESERVER
            name = names.parent(name)

    def _at(self, name: bytes, rtype: int) -> Reason | None:
        node = self._static.node(name)
        if rtype == TXT:
            written = node[TXT].rdatas if TXT in node else ()
            return Reason.DISCOVERY if any(text[1:].startswith(DISCOVERY_TEXT) for text in written) else None
        if A in node or AAAA in node:
            return Reason.ADDRESS
        return Reason.NAMESERVER if name in self._nameservers else None


def _merged(static: RRset | None, live: RRset) -> RRset:
    """One rrset of both, at one TTL (RFC 2181 5.2), without duplicates; the static records first."""
    if static is None:
        return live
    rdatas = tuple(dict.fromkeys((*static.rdatas, *live.rdatas)))
    return RRset(live.name, live.rtype, min(static.ttl, live.ttl), rdatas)


def _filled(zone: Zone, accepted: Live) -> dict[bytes, dict[int, RRset]]:
    """The empty non-terminals of `zone` that hide a live wildcard, with the wildcard's live records."""
    wildcards: dict[bytes, list[RRset]] = {}
    for (name, _), rrset in accepted.items():
        if names.is_wildcard(name):
            wildcards.setdefault(name, []).append(rrset)
    if not wildcards:
        return {}
    settled = _Settled(zone)
    filled: dict[bytes, dict[int, RRset]] = {}
    for name in zone.empty:
        above = name
        while above != zone.apex:
            above = names.parent(above)
            source = wildcards.get(names.wildcard_of(above))
            if source is not None:
                if settled.above(name) is None:
                    filled[name] = {live.rtype: replace(live, name=name) for live in source}
                break
            if above in zone.rrsets:
                break  # it exists in its own right: the wildcard further up never reached below it
    return filled

"""What our zones hold for a name and a type: the algorithm of RFC 1034 4.3.2, with what later RFCs made
of it.

Hidden here: delegations, wildcards (RFC 4592), empty non-terminals, CNAME chains across our zones, DNAME
(RFC 6672) and negative answers (RFC 2308). The result is rrsets; how they become octets is answer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance.dns import names
from appliance.dns.numbers import (
    AAAA,
    ANY,
    CNAME,
    DNAME,
    DS,
    NOERROR,
    NS,
    NXDOMAIN,
    REFUSED,
    SOA,
    YXDOMAIN,
    A,
)
from appliance.dns.touched import soa_of, standing, zone_at
from appliance.dns.zone import Node, RRset, Zone

# How many CNAMEs are followed for one question: BIND's max-query-restarts. A resolver goes on by itself
# from the last.
MAX_CHAIN: Final = 11

Zones = Mapping[bytes, Zone]


@dataclass(slots=True)
class Found:
    """The answer to a question, as rrsets.

    `glue` must be in the message (RFC 9471: addresses of nameservers below the cut); `extra` is left out
    when it does not fit. `apexes`: the zones that it came from, the first being the one asked; empty when
    none of ours is. `touched` is all that was looked at on the way, `soa` the one SOA that an answer can
    have. `source` is what answers alike whatever was asked below it: the owner asked for, the wildcard or
    DNAME that stands for it, the cut that hides it, the apex where there is no such name.
    """

    rcode: int = NOERROR
    authoritative: bool = False
    answer: list[RRset] = field(default_factory=list)
    authority: list[RRset] = field(default_factory=list)
    glue: list[RRset] = field(default_factory=list)
    extra: list[RRset] = field(default_factory=list)
    apexes: list[bytes] = field(default_factory=list)
    touched: set[bytes] = field(default_factory=set)
    soa: RRset | None = None
    source: bytes = names.ROOT

    def came_from(self, source: bytes) -> None:
        """The first step of a chain was answered at `source`; others are not asked for by themselves."""
        if len(self.apexes) == 1:
            self.source = source

    def identity(self, qtype: int) -> bytes:
        """What all answers have in common that say the same of one source: to rate limiting they are one."""
        kind = qtype if self.answer else 0  # a "no" is the same for all types
        return bytes((self.rcode, kind >> 8, kind & 0xFF)) + self.source


def zone_for(zones: Zones, name: bytes, qtype: int) -> Zone | None:
    """The closest of `zones` at or above `name`. A DS is its parent's (RFC 4035 3.1.4.1), unless that is
    not ours."""
    child = zones.get(name) if qtype == DS else None
    at = name
    while at != names.ROOT:
        if (zone := zones.get(at)) is not None and zone is not child:
            return zone
        at = names.parent(at)
    zone = zones.get(names.ROOT)
    return child if zone is None else zone


def look_up(zones: Zones, name: bytes, qtype: int) -> Found:
    """What `zones` hold for `name` and `qtype` (class IN). Every chain ends: loops are cut where they
    would repeat."""
    found = Found()
    zone = zone_for(zones, name, qtype)
    if zone is None:
        found.rcode = REFUSED
        return found
    seen = {name}
    for _ in range(MAX_CHAIN + 1):
        found.apexes.append(zone.apex)
        found.touched.update((zone_at(zone.apex), name))
        target = _look_in(zone, name, qtype, found)
        if target is None or target in seen:
            break
        seen.add(target)
        following = zone_for(zones, target, qtype)
        if following is None:
            break
        zone, name = following, target
    return found


def _look_in(zone: Zone, name: bytes, qtype: int, found: Found) -> bytes | None:
    """Add what `zone` holds for `name` to `found`. The name to go on with when that is an alias."""
    if zone.cuts or zone.dnames:
        above = _topmost(zone, name, qtype)
        if above is not None:
            found.came_from(above)
            found.touched.add(above)
            _touch_above(zone, above, found)
            if above in zone.cuts:
                _refer(zone, above, found)
                return None
            target = _synthesise(zone.node(above)[DNAME], name, found)
            return None if qtype in (CNAME, ANY) else target  # then what was made is the answer
    found.authoritative = True
    node = zone.rrsets.get(name)
    if node is not None or zone.exists(name):
        found.came_from(name)
        _touch_above(zone, name, found)
    else:
        node = _wildcard(zone, name, found)
        if node is None:
            found.came_from(zone.apex)
            found.rcode = NXDOMAIN
            _deny(zone, found)
            return None
        found.came_from(next(iter(node.values())).name if node else name)
    if node:
        rrset = node.get(qtype)
        if rrset is None and qtype == ANY:
            rrset = node[min(node)]  # one of them will do (RFC 8482 4.1)
        if rrset is not None:
            found.answer.append(_at(rrset, name))
            if rrset.rtype == SOA:
                found.touched.add(soa_of(zone.apex))
                found.soa = rrset
            return None
        alias = node.get(CNAME)
        if alias is not None:
            found.answer.append(_at(alias, name))
            return alias.rdatas[0].lower()
    _deny(zone, found)
    return None


def _deny(zone: Zone, found: Found) -> None:
    """There is nothing of the kind (RFC 2308 2)."""
    found.authority.append(zone.negative_soa)
    found.touched.add(soa_of(zone.apex))
    found.soa = zone.negative_soa


def _touch_above(zone: Zone, name: bytes, found: Found) -> None:
    """The answer is true as long as the names between `name` and the apex stand as they do."""
    while len(name) > len(zone.apex):
        name = names.parent(name)
        found.touched.add(standing(name))


def _topmost(zone: Zone, name: bytes, qtype: int) -> bytes | None:
    """The highest cut at or above `name`, or DNAME above it: whatever is further down is hidden by it."""
    topmost = None
    at = name
    while True:
        if (at in zone.cuts and not (qtype == DS and at == name)) or (at in zone.dnames and at != name):
            topmost = at
        if at == zone.apex:
            return topmost
        at = names.parent(at)


def _refer(zone: Zone, cut: bytes, found: Found) -> None:
    """A referral: not our answer, unless an alias of ours led here."""
    found.authoritative = bool(found.answer)
    servers = zone.node(cut)[NS]
    found.authority.append(servers)
    for rdata in servers.rdatas:
        target = rdata.lower()
        if names.is_at_or_below(target, zone.apex):
            addresses = _addresses(zone, target, found)
            (found.glue if names.is_at_or_below(target, cut) else found.extra).extend(addresses)


def _addresses(zone: Zone, target: bytes, found: Found) -> list[RRset]:
    """The addresses of a nameserver, be they glue, ours to give, or a wildcard's."""
    node = zone.rrsets.get(target)
    found.touched.add(target)
    if node is None and not zone.exists(target):
        above = _topmost(zone, target, A)
        if above is None:
            node = _wildcard(zone, target, found)
        else:
            found.touched.add(standing(above))
            _touch_above(zone, above, found)
    return [_at(node[rtype], target) for rtype in (A, AAAA) if rtype in node] if node else []


def _synthesise(dname: RRset, name: bytes, found: Found) -> bytes | None:
    """The DNAME and the CNAME that it makes of `name` (RFC 6672 3.1)."""
    found.authoritative = True
    if dname not in found.answer:
        found.answer.append(dname)
    target = name[: -len(dname.name)] + dname.rdatas[0]
    if len(target) > names.MAX_NAME_OCTETS:
        found.rcode = YXDOMAIN
        return None
    found.answer.append(RRset(name, CNAME, dname.ttl, (target,)))
    if names.is_at_or_below(dname.rdatas[0].lower(), dname.name):
        return None  # it leads below itself: every step would only make the name longer
    return target.lower()


def _wildcard(zone: Zone, name: bytes, found: Found) -> Node | None:
    """The node of the wildcard that stands for `name`, which does not exist; None when there is none (RFC
    4592 3.3.1)."""
    closer, encloser = name, names.parent(name)
    while not zone.exists(encloser):
        closer, encloser = encloser, names.parent(encloser)
    source = names.wildcard_of(encloser)
    # It would be another if the name one label below the encloser existed, or anything above did not.
    found.touched.update((closer, source))
    _touch_above(zone, closer, found)
    return zone.node(source) if zone.exists(source) else None


def _at(rrset: RRset, name: bytes) -> RRset:
    return rrset if rrset.name == name else RRset(name, rrset.rtype, rrset.ttl, rrset.rdatas)

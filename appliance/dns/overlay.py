"""Live records laid over a static zone: what is served, and where the operator's file and the fleet disagree.

Hidden here: who wins. The zone file is the operator's and is never written; so TXT records are merged,
and for addresses, or at names whose meaning the file has settled, the static record wins and the conflict
is told. And how little of it has to be done again when some of the live records change: where many names have
the same ones, and these change, nothing at any of the names.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any, Final, cast

from appliance.dns import names
from appliance.dns.layered import differing, with_changes
from appliance.dns.numbers import AAAA, CAA, CNAME, DNAME, NS, SOA, TXT, A
from appliance.dns.steps import finish
from appliance.dns.touched import zone_at
from appliance.dns.zone import Change, Placed, RRset, Sets, Shared, Zone, soa_minimum, soa_with

# A resolver that heard "no such name" must ask again soon, or a name that has just come to life stays
# dark; so negative answers live no longer than live records do.
NEGATIVE_TTL_SECONDS: Final = 15

# More servers than this in one rrset would not fit a UDP answer; BIND stops at 100 records a type
# (CVE-2024-1737).
MAX_LIVE_RECORDS: Final = 64

# How the TXT of a tunnel server begins. Written by hand beside live ones it sends clients to a server
# that nobody watches.
DISCOVERY_TEXT: Final = b"r=superprotocol"

LIVE_TYPES: Final = (A, TXT, AAAA, CAA)


class Reason(Enum):
    """Why a live record and the zone file conflict; the value is the sentence shown."""

    ADDRESS = "the zone file has an address here, which wins"
    CAA = "the zone file has a CAA here, which wins"
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
        word = {A: "A", AAAA: "AAAA", TXT: "TXT", CAA: "CAA"}.get(self.rtype, f"TYPE{self.rtype}")
        return f"{names.to_text(self.name)} {word}: {self.reason.value}"


Key = tuple[bytes, int]
Live = Mapping[Key, RRset]


class LiveRecords(Mapping[Key, RRset]):
    """Live records of which many are those of a set: `entries` has its id in the place of the rrset.

    An entry of a set that is empty now is none.
    """

    __slots__ = ("entries", "sets")

    def __init__(self, entries: Mapping[Key, RRset | bytes], sets: Sets) -> None:
        self.entries = entries
        self.sets = sets

    def __getitem__(self, key: Key) -> RRset:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return cast(RRset, found)

    def get(self, key: Key, default: Any = None) -> Any:
        one = self.entries.get(key)
        if isinstance(one, bytes):
            ttl, rdatas = self.sets[one]
            return RRset(*key, ttl, rdatas) if rdatas else default
        return default if one is None else one

    def __contains__(self, key: object) -> bool:
        return self.get(cast(Key, key)) is not None

    def __iter__(self) -> Iterator[Key]:
        return (key for key in self.entries if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def places(self, name: bytes, rtypes: Iterable[int]) -> Placed | None:
        """Which sets the rrsets of these types at `name` are; None if one of them is its own."""
        ids = [(rtype, self.entries[name, rtype]) for rtype in rtypes]
        if any(isinstance(one, RRset) for _, one in ids):
            return None
        return Placed(tuple(cast(list[tuple[int, bytes]], ids)))

    def changed_since(self, before: Sets) -> frozenset[bytes]:
        """The ids of the sets that are others than `before`."""
        return frozenset(one for one, there in self.sets.items() if before.get(one) != there)


def conflicts_at_load(static: Zone, live: Live) -> tuple[Conflict, ...]:
    """What of `live` conflicts with `static`, without making a zone. Refuse the file if any of it
    `is_error`."""
    settled = _Settled(static)
    conflicts: list[Conflict] = []
    for name in sorted({name for name, _ in live}):
        conflicts += settled.accept(name, live)[1]
    return tuple(conflicts)


@dataclass(frozen=True, slots=True)
class Laid:
    """A static zone, the live records given for it, and the zone that they make.

    `accepted` is what of them is published and `conflicts` what is not, by name; `filled` are the empty
    non-terminals that took a wildcard's records over, `wildcards` the live wildcards. `touched` is what
    changed since the version that this one was made of (as Zone.changed says it), and `names` where; None:
    everything may have. Besides, all names with one of `renewed` have changed.
    """

    static: Zone
    live: Live
    zone: Zone
    accepted: Mapping[bytes, tuple[RRset, ...] | Placed]
    conflicts: Mapping[bytes, tuple[Conflict, ...]]
    filled: frozenset[bytes]
    wildcards: frozenset[bytes]
    touched: frozenset[bytes] | None
    names: frozenset[bytes] | None
    renewed: frozenset[Placed] = frozenset()

    def changed_names(self) -> Iterator[bytes] | None:
        """Where something may have changed since the version before; None: everywhere."""
        put, renewed = self.names, self.renewed
        if put is None:
            return None
        others = (
            name
            for name, there in (self.accepted.items() if renewed else ())
            if isinstance(there, Placed) and there in renewed and name not in put
        )
        return chain(put, others)


def lay(static: Zone, live: Live, serial: int) -> tuple[Zone, tuple[Conflict, ...]]:
    """`static` with `live` (A, AAAA, TXT and CAA rrsets by name and type) laid over it, as version `serial`.

    - TXT of both are merged, at the lower TTL. A live address set yields to any static A or AAAA at the name:
      half of each would be neither's. So does a live CAA to a static one.
    - At or under a static CNAME, DNAME, delegation or nameserver's name nothing live is published. (Where the
      apex is its own nameserver that holds for its addresses only, or nothing could be live in such a zone.)
    - An empty non-terminal below a live wildcard takes the wildcard's live records over: else the name that
      made it exist would hide the wildcard there (RFC 4592 2.2.2). A name that has nothing but a live CAA is
      as good as empty: it has one because a wildcard is below it.
    - With any live record in it, the zone's SOA MINIMUM is at most NEGATIVE_TTL_SECONDS.
    """
    for _, rtype in live:
        if rtype not in LIVE_TYPES:
            raise ValueError(f"type {rtype} is never live")
    laid = finish(laying(static, live, serial))
    return laid.zone, tuple(conflict for name in sorted(laid.conflicts) for conflict in laid.conflicts[name])


def laying(
    static: Zone, live: Live, serial: int, before: Laid | None = None, names: Iterable[bytes] = ()
) -> Generator[None, None, Laid]:
    """`lay` in steps of some 20 us, each a yield; what is laid is what the generator returns.

    `before` is the version before; `names` are all those of which `live` says something else since. What is
    the same in both then costs nothing.
    """
    amended: set[bytes] | None = None
    if before is not None:
        amended = differing(before.static.rrsets, static.rrsets)
        if amended is None or any(_settles(before.static, static, name) for name in amended):
            before = amended = None
    work = _Laying(static, live, before)
    if before is not None:
        names = {*names, *(amended or ()), *work.renew()}
    else:
        names = {name for name, _ in (live.entries if isinstance(live, LiveRecords) else live)}
    for name in names:
        work.put(name)
        yield
    for name in work.gaps():
        work.fill(name)
        yield
    return work.done(serial)


class _Laying:
    """The work of laying, name by name."""

    def __init__(self, static: Zone, live: Live, before: Laid | None) -> None:
        self._static = static
        self._live = live
        self._before = before
        self._settled = _Settled(static)
        sets = live.sets if isinstance(live, LiveRecords) else {}
        self._change = Change(static if before is None else before.zone, sets)
        self._places: dict[Placed, Placed] = {}  # so that equal ones are one
        self._renewed: frozenset[Placed] = frozenset()
        self._accepted: dict[bytes, tuple[RRset, ...] | Placed | None] = {}
        self._conflicts: dict[bytes, tuple[Conflict, ...] | None] = {}
        self._filled = set(() if before is None else before.filled)
        self._wildcards = set(() if before is None else before.wildcards)
        self._put: set[bytes] = set()
        self._flipped: set[bytes] = set()  # with names below: what reaches those is another wildcard, or none

    def renew(self) -> Iterable[bytes]:
        """Let the sets that are others now be what is at all names that hold nothing else; the names at
        which more is to be done.
        """
        before, live = self._before, self._live
        if before is None or not isinstance(live, LiveRecords):
            return ()
        old = before.live.sets if isinstance(before.live, LiveRecords) else {}
        changed = live.changed_since(old)
        if not changed:
            return ()
        reshaped = {one for one in changed if one in old and _shape(old[one]) != _shape(live.sets[one])}
        # Equal ones mostly are one, and to find that out is four times as quick.
        places = {id(there): there for there in before.accepted.values() if isinstance(there, Placed)}
        self._renewed = frozenset(
            there for there in places.values() if any(one in changed and one in old for _, one in there.ids)
        )
        names = {name for name, there in before.accepted.items() if not isinstance(there, Placed)}
        if reshaped:
            names.update(name for (name, _), one in live.entries.items() if one in reshaped)
        return names

    def put(self, name: bytes) -> None:
        """Publish what is static and live at `name`."""
        accepted, conflicts = self._settled.accept(name, self._live)
        placed = None if conflicts else self._placed(name, accepted)
        self._accepted[name] = placed or accepted or None
        if conflicts or (self._before is not None and name in self._before.conflicts):
            self._conflicts[name] = conflicts or None
        if names.is_wildcard(name):
            (self._wildcards.add if accepted else self._wildcards.discard)(name)
        self._filled.discard(name)
        self._put.add(name)
        if self._existed_itself(name) is not self._exists_itself(name) and self._change.children(name):
            self._flipped.add(name)
        if name != self._static.apex:
            self._change.put(name, placed or self._own(name))

    def _placed(self, name: bytes, accepted: tuple[RRset, ...]) -> Placed | None:
        """What `name` holds if that is only what sets say, and as they say it."""
        live, static = self._live, self._static
        if not accepted or not isinstance(live, LiveRecords):
            return None
        if name in static.rrsets or names.is_wildcard(name) or not _is_itself(accepted):
            return None
        placed = live.places(name, [rrset.rtype for rrset in accepted])
        return None if placed is None else self._places.setdefault(placed, placed)

    def gaps(self) -> list[bytes]:
        """What may be, or may have been, an empty non-terminal below a live wildcard, deepest first."""
        if not self._wildcards and not self._filled:
            return []
        found = {name for name in self._change.touched if name[0] <= names.MAX_LABEL_OCTETS}
        reaching = {names.parent(name) for name in self._put if names.is_wildcard(name)} | self._flipped
        if reaching:
            parents = self._change.version().shape.children
            found.update(one for one in {*parents, *self._filled} if self._is_below(one, reaching))
        for name in self._put:
            while name != self._static.apex and names.is_at_or_below(name, self._static.apex):
                name = names.parent(name)
                if name in self._filled:
                    found.add(name)
        found.discard(self._static.apex)
        found -= self._put
        found.update(name for name in self._put if not self._exists_itself(name))
        return sorted(found, key=lambda name: -len(names.labels(name)))

    def fill(self, name: bytes) -> None:
        """Give `name` the records of the live wildcard that it would hide, if it does."""
        if self._exists_itself(name):
            return
        self._filled.discard(name)
        node: dict[int, RRset] = {}
        own = self._own(name)
        if self._change.children(name) or own:
            source = self._source(name)
            if source and self._settled.above(name) is None:
                node = {live.rtype: live._replace(name=name) for live in source}
                self._filled.add(name)
        self._change.put(name, node | own)

    def done(self, serial: int) -> Laid:
        static, before = self._static, self._before
        accepted: Mapping[bytes, tuple[RRset, ...] | Placed] = {} if before is None else before.accepted
        conflicts: Mapping[bytes, tuple[Conflict, ...]] = {} if before is None else before.conflicts
        accepted = with_changes(accepted, self._accepted)
        minimum = soa_minimum(static.soa)
        if accepted:
            minimum = min(minimum, NEGATIVE_TTL_SECONDS)
        apex = {**self._own(static.apex), SOA: soa_with(static.soa, serial=serial, minimum=minimum)}
        self._change.put(static.apex, apex)
        touched = frozenset(self._change.touched)
        if self._renewed:
            touched |= {zone_at(static.apex)}
        return Laid(
            static,
            self._live,
            self._change.version(),
            accepted,
            with_changes(conflicts, self._conflicts),
            frozenset(self._filled),
            frozenset(self._wildcards),
            None if before is None else touched,
            None if before is None else frozenset(n for n in touched if n[0] <= names.MAX_LABEL_OCTETS),
            self._renewed,
        )

    def _own(self, name: bytes) -> dict[int, RRset]:
        node = dict(self._static.node(name))
        for rrset in self._accepted_at(name):
            node[rrset.rtype] = _merged(node.get(rrset.rtype), rrset)
        return node

    def _accepted_at(self, name: bytes) -> tuple[RRset, ...]:
        """What is accepted there and is not that of sets alone."""
        there = self._accepted_of(name)
        return () if isinstance(there, Placed) else there

    def _accepted_of(self, name: bytes) -> tuple[RRset, ...] | Placed:
        if name in self._accepted:
            return self._accepted[name] or ()
        return self._before.accepted.get(name, ()) if self._before is not None else ()

    def _exists_itself(self, name: bytes) -> bool:
        return name in self._static.rrsets or _is_itself(self._accepted_of(name))

    def _existed_itself(self, name: bytes) -> bool:
        before = self._before
        if before is None:
            return name in self._static.rrsets
        return name in before.static.rrsets or _is_itself(before.accepted.get(name, ()))

    def _is_below(self, name: bytes, reaching: Collection[bytes]) -> bool:
        while name != self._static.apex and len(name) > len(self._static.apex):
            name = names.parent(name)
            if name in reaching:
                return True
        return False

    def _source(self, name: bytes) -> tuple[RRset, ...]:
        """The live records of the closest wildcard above an empty non-terminal."""
        while name != self._static.apex:
            name = names.parent(name)
            source = self._accepted_at(names.wildcard_of(name))
            if source or self._exists_itself(name):
                return source  # a wildcard further up never reached below a name that exists in its own right
        return ()


def _settles(before: Zone, after: Zone, name: bytes) -> bool:
    """Whether what changed at a name decides what may be live elsewhere."""
    old, new = before.node(name), after.node(name)
    return any(old.get(rtype) != new.get(rtype) for rtype in (NS, CNAME, DNAME))


class _Settled:
    """The names whose meaning a static zone has settled."""

    def __init__(self, static: Zone) -> None:
        self._static = static
        self._nameservers = static.shape.nameservers

    def accept(self, name: bytes, live: Live) -> tuple[tuple[RRset, ...], tuple[Conflict, ...]]:
        """What of `live` is published at `name`, and what conflicts there."""
        accepted: list[RRset] = []
        conflicts: list[Conflict] = []
        above = self.above(name)
        for rtype in LIVE_TYPES:
            rrset = live.get((name, rtype))
            if rrset is None or not rrset.rdatas:
                continue
            reason = above or self._at(name, rtype)
            if reason is None or reason is Reason.DISCOVERY:
                if len(rrset.rdatas) > MAX_LIVE_RECORDS:
                    conflicts.append(Conflict(name, rtype, Reason.TOO_MANY))
                    rrset = RRset(name, rtype, rrset.ttl, tuple(sorted(rrset.rdatas)[:MAX_LIVE_RECORDS]))
                accepted.append(rrset)
            if reason is not None:
                conflicts.append(Conflict(name, rtype, reason))
        return tuple(accepted), tuple(conflicts)

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
        if rtype == CAA:
            return Reason.CAA if CAA in node else None
        if A in node or AAAA in node:
            return Reason.ADDRESS
        return Reason.NAMESERVER if name in self._nameservers else None


def _is_itself(accepted: tuple[RRset, ...] | Placed) -> bool:
    """Whether what is live at a name makes it one that a wildcard above it does not reach."""
    return isinstance(accepted, Placed) or any(one.rtype != CAA for one in accepted)


def _shape(shared: Shared) -> int:
    """What a set is like, as far as it matters to `accept`: empty, too large or neither."""
    return (len(shared.rdatas) > 0) + (len(shared.rdatas) > MAX_LIVE_RECORDS)


def _merged(static: RRset | None, live: RRset) -> RRset:
    """One rrset of both, at one TTL (RFC 2181 5.2), without duplicates; the static records first."""
    if static is None:
        return live
    rdatas = tuple(dict.fromkeys((*static.rdatas, *live.rdatas)))
    return RRset(live.name, live.rtype, min(static.ttl, live.ttl), rdatas)

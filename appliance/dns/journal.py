"""What changed from one version of a zone to the next, for who has an older one (IXFR, RFC 1995).

Hidden here: how a difference is found, and how far back they are kept. The journal is in memory: after a
restart it is empty, and who asks from an older version gets the whole zone. (What must survive a restart, the
changes that UPDATE made, is in amendments.)
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from appliance.dns.numbers import SOA
from appliance.dns.steps import finish
from appliance.dns.zone import Placed, RRset, Zone, soa_serial

# A secondary that missed a NOTIFY asks again after the SOA's REFRESH, an hour or so; live records change a
# few times a minute. (Knot keeps 20 and 100 MiB.)
MAX_CHANGES: Final = 1000
MAX_OCTETS: Final = 4 << 20

_RECORD_HEAD_OCTETS: Final = 10  # type, class, TTL, length


_Repeat = tuple[tuple[bytes, ...], tuple[RRset, ...]]


@dataclass(frozen=True, slots=True)
class Repeated(Collection[RRset]):
    """Many rrsets: `own`, and those of `rrsets`, whose names do not count, at each of `names`, made when they
    are asked for. (As so many objects the deaths of a few servers would be more to the garbage collector
    than all else in the process.)
    """

    own: tuple[RRset, ...]
    repeated: tuple[_Repeat, ...]

    def __iter__(self) -> Iterator[RRset]:
        yield from self.own
        for names, rrsets in self.repeated:
            for name in names:
                for _, rtype, ttl, rdatas in rrsets:
                    yield RRset(name, rtype, ttl, rdatas)

    def __len__(self) -> int:
        return len(self.own) + sum(len(names) * len(rrsets) for names, rrsets in self.repeated)

    def __contains__(self, rrset: object) -> bool:
        return any(rrset == one for one in self)

    @property
    def octets(self) -> int:
        """How large they are without compression."""
        found = sum(map(_octets_of, self.own))
        for names, rrsets in self.repeated:
            for rrset in rrsets:
                found += sum(map(len, names)) * len(rrset.rdatas) + len(names) * _octets_of(rrset, b"")
        return found


def _octets_of(rrset: RRset, name: bytes | None = None) -> int:
    owner = rrset.name if name is None else name
    return len(rrset.rdatas) * (len(owner) + _RECORD_HEAD_OCTETS) + sum(map(len, rrset.rdatas))


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between two versions of a zone: the SOA of each, and the records that only one has.

    An rrset in `removed` and `added` holds some records of that name and type, all of them where the TTL
    changed. The SOA is in neither.
    """

    old_soa: RRset
    new_soa: RRset
    removed: Repeated
    added: Repeated

    @property
    def old_serial(self) -> int:
        return soa_serial(self.old_soa)

    @property
    def new_serial(self) -> int:
        return soa_serial(self.new_soa)

    @property
    def octets(self) -> int:
        """How large the records are without compression: what it costs to send."""
        return (
            _octets_of(self.old_soa) + _octets_of(self.new_soa) + self.removed.octets + self.added.octets
        )


def difference(old: Zone, new: Zone, names: Iterable[bytes] | None = None) -> Change:
    """What leads from `old` to `new`, a later version of the same zone.

    `names`, when given, are the only ones at which anything can differ; without them every name is looked at.
    """
    return finish(finding_difference(old, new, names))


def finding_difference(
    old: Zone, new: Zone, names: Iterable[bytes] | None = None
) -> Generator[None, None, Change]:
    """`difference` in steps of some microseconds, each a yield."""
    removed: list[RRset] = []
    added: list[RRset] = []
    alike: dict[tuple[Placed | None, Placed | None], list[bytes]] = {}  # where the same has changed
    for name in old.rrsets.keys() | new.rrsets.keys() if names is None else names:
        was, there = old.stored(name) or None, new.stored(name) or None
        if (was is None or isinstance(was, Placed)) and (there is None or isinstance(there, Placed)):
            alike.setdefault((was, there), []).append(name)
        elif was is not there:
            before, after = old.node(name), new.node(name)
            removed += _missing(before, after)
            added += _missing(after, before)
        yield
    sides: tuple[list[_Repeat], list[_Repeat]] = [], []
    for at in map(tuple, alike.values()):
        before, after = old.node(at[0]), new.node(at[0])
        for side, rrsets in zip(sides, (_missing(before, after), _missing(after, before)), strict=True):
            if found := tuple(rrsets):
                side.append((at, found))
    return Change(
        old.soa, new.soa, Repeated(tuple(removed), tuple(sides[0])), Repeated(tuple(added), tuple(sides[1]))
    )


def _missing(node: Mapping[int, RRset], other: Mapping[int, RRset]) -> Iterator[RRset]:
    """What `node` has and `other` has not."""
    for rtype, rrset in node.items():
        there = other.get(rtype)
        if rrset is there or rtype == SOA:
            continue
        if there is None or there.ttl != rrset.ttl:
            yield rrset
        else:
            others = frozenset(there.rdatas)
            rdatas = tuple(rdata for rdata in rrset.rdatas if rdata not in others)
            if rdatas:
                yield RRset(rrset.name, rtype, rrset.ttl, rdatas)


class Journal:
    """The last changes of one zone, in a chain: each begins at the serial where the one before it ends."""

    def __init__(self, *, max_changes: int = MAX_CHANGES, max_octets: int = MAX_OCTETS) -> None:
        self._max_changes = max_changes
        self._max_octets = max_octets
        self._changes: dict[int, Change] = {}  # by the old serial, in order
        self._newest: int | None = None
        self.octets = 0

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change) -> None:
        """`change` leads to the newest version. What does not lead up to it, or is too old, is forgotten."""
        if self._newest != change.old_serial or change.old_serial in self._changes:
            self.clear()
        self._changes[change.old_serial] = change
        self._newest = change.new_serial
        self.octets += change.octets
        while self._changes and (len(self) > self._max_changes or self.octets > self._max_octets):
            oldest = next(iter(self._changes))
            self.octets -= self._changes.pop(oldest).octets

    def since(self, serial: int) -> tuple[Change, ...] | None:
        """The changes from version `serial` to the newest, in order; None when they are not known.

        Of the newest version itself nothing is known before the first change: None as well.
        """
        if serial == self._newest:
            return ()
        if serial not in self._changes:
            return None
        first = list(self._changes).index(serial)
        return tuple(islice(self._changes.values(), first, None))

    def clear(self) -> None:
        """Forget all changes."""
        self._changes.clear()
        self._newest = None
        self.octets = 0

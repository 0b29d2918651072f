"""Who has a place among the TCP connections of the nameserver, and whose place goes to a newcomer.

Hides how one source, or many, are kept from taking the places of everybody else. A connection earns its place
by completing queries whose answers are read. One source may have all places as long as its connections do,
and UNEARNED_PLACES that do not, once they had time to. Where no place is free the newcomer gets one of the
source that has most unearned ones; only if there are none, the one that was idle for longest. KEPT_PLACES are
for our own: tunnel servers, and the secondaries that follow our zones.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

PLACES = 100  # on all addresses together: NSD's tcp-count
KEPT_PLACES = 20
UNEARNED_PLACES = 10


class Holder(Protocol):
    """A connection that has, or wants, a place. `host` is its peer's address."""

    host: str

    def abort(self, why: str) -> None:
        """Its place is given away: end at once, with no further word to `Places`."""

    def is_earning(self) -> bool:
        """Whether it has completed a query, and its answers are read."""


Source = str | int


class _Place(NamedTuple):
    source: Source
    is_ours: bool


class Places:
    """The places of all listening sockets. `is_ours(host)`: whether one is kept for this address."""

    def __init__(self, is_ours: Callable[[str], bool] = lambda host: False) -> None:
        self._is_ours = is_ours
        # In the order of their last message: the first one has been idle for longest.
        self._holders: dict[Holder, _Place] = {}
        self._of_source: Counter[Source] = Counter()
        self._strangers = 0

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def sources(self) -> int:
        """How many sources have a place."""
        return len(self._of_source)

    def of(self, host: str) -> int:
        """How many places the source of `host` has."""
        return self._of_source[source_of(host)]

    def take(self, holder: Holder) -> None:
        """Give `holder` a place, if need be somebody else's."""
        place = _Place(source_of(holder.host), self._is_ours(holder.host))
        if not place.is_ours and self._strangers >= PLACES - KEPT_PLACES:
            self._give_away(self._held_by_strangers())
        elif len(self._holders) >= PLACES:
            self._give_away(self._held_by_strangers() or list(self._holders))
        self._holders[holder] = place
        self._of_source[place.source] += 1
        self._strangers += not place.is_ours

    def moved(self, holder: Holder) -> None:
        """`holder` has completed a message: all others have been idle for longer."""
        place = self._holders.pop(holder, None)
        if place is not None:
            self._holders[holder] = place

    def may_wait(self, holder: Holder) -> bool:
        """Whether `holder`, which has not earned its place in time, may go on trying to."""
        source = source_of(holder.host)
        return (
            sum(place.source == source and not one.is_earning() for one, place in self._holders.items())
            <= UNEARNED_PLACES
        )

    def leave(self, holder: Holder) -> None:
        """`holder` is gone."""
        place = self._holders.pop(holder, None)
        if place is None:
            return  # its place was given away already
        self._of_source[place.source] -= 1
        if not self._of_source[place.source]:
            del self._of_source[place.source]
        self._strangers -= not place.is_ours

    def _held_by_strangers(self) -> list[Holder]:
        return [one for one, place in self._holders.items() if not place.is_ours]

    def _give_away(self, candidates: Sequence[Holder]) -> None:
        """Free the place of one of these, who come in the order of their last message."""
        unearned = [one for one in candidates if not one.is_earning()]
        if unearned:
            of_source = Counter(self._holders[one].source for one in unearned)
            most = max(of_source.values())
            victim = next(one for one in unearned if of_source[self._holders[one].source] == most)
            why = "ended: had not earned its place when all were taken"
        else:
            victim = candidates[0]
            why = "ended: idle for longest when all places were taken"
        self.leave(victim)
        victim.abort(why)


def source_of(host: str) -> Source:
    """What is one source: an IPv4 address, or an IPv6 /64, which is what one household gets at least."""
    if ":" not in host:
        return host
    return int(ipaddress.IPv6Address(host.partition("%")[0])) >> 64

"""Response rate limiting: answers to a forged address must not become a flood there.

Hidden here: who is watched. A source that got few answers in this second is not even asked what they were;
from there on each identical answer (see `identity` in lookup) has a bucket of its own. Only what can be
forged is limited: no TCP, no holder of a valid cookie, no signed message.

A source is an IPv4 address, or an IPv6 /56 (what one household gets). What is limited is mostly dropped;
every `slip`th is answered with "come by TCP", which a real resolver can do and a forged one cannot, and
which is no larger than the question.

Memory: MAX_SOURCES counts (10 MB), as many prefixes of IPv6 addresses (16 MB), and MAX_BUCKETS buckets (20
MB), all emptied where a flood fills them: then what was counted counts anew, in that second.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Final

RATE_DEFAULT: Final = 50  # identical answers a second and source: Knot's and a quarter of NSD's default
SLIP_DEFAULT: Final = 2  # NSD's and BIND's
BURST_SECONDS: Final = 2.5  # of the rate: 125 by default, Knot's "instant limit"
TOTAL_FACTOR: Final = 40  # of the rate, whatever the answers: 2,000 by default

MAX_SOURCES: Final = 65_536
MAX_BUCKETS: Final = 65_536
WINDOW_SECONDS: Final = 1.0

_V6_HOST_BITS: Final = 128 - 56


class Limited(Enum):
    """What becomes of an answer that is over the limit."""

    SLIPPED = "answers over the rate limit: answered with TC or BADCOOKIE"
    DROPPED = "answers over the rate limit: dropped"


Prefix = str | int


@dataclass(slots=True)
class _Watched:
    """A source with more answers in a second than one identical answer may have."""

    total: int  # answers asked for in this window
    floor: float  # none of its buckets is empty before: nobody looked at the answers that made it watched
    drained_at: float  # when the fullest of its buckets is empty
    limited: int = 0  # in all: every slip-th slips


class RateLimit:
    """At most `rate` identical answers a second to a source. `slip`: 0 drops all that is more, 1 none."""

    def __init__(self, rate: int = RATE_DEFAULT, slip: int = SLIP_DEFAULT) -> None:
        if rate < 1 or slip < 0:
            raise ValueError("a rate limit is at least 1, a slip at least 0")
        self._rate = rate
        self._slip = slip
        self._total = TOTAL_FACTOR * rate
        self._window_ends = float("-inf")
        # Of this window: how many answers a source got, up to `rate`; then it is watched.
        self._counts: dict[Prefix, int] = {}
        self._prefixes: dict[str, int] = {}
        self._watched: dict[Prefix, _Watched] = {}
        # When each will be empty again, if it fills no further (GCRA: a leaky bucket in one number).
        self._buckets: dict[tuple[Prefix, bytes], float] = {}

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """How many counts, prefixes, watched sources and buckets there are."""
        return len(self._counts), len(self._prefixes), len(self._watched), len(self._buckets)

    def limited(self, source: str, identity: bytes, now: float) -> Limited | None:
        """What must become of an answer `identity` to `source`; None: it may go out. HOT."""
        if now >= self._window_ends:
            self._new_window(now)
        count = self._counts.get(source)
        if count is None:  # its first, or an IPv6 address
            return self._first(source, identity, now)
        if count < self._rate:
            self._counts[source] = count + 1
            return None
        return self._watch(source, identity, now)

    def _first(self, source: str, identity: bytes, now: float) -> Limited | None:
        prefix: Prefix = source
        if ":" in source:
            prefix = self._prefix(source)
        count = self._counts.get(prefix, 0)
        if count >= self._rate:
            return self._watch(prefix, identity, now)
        if len(self._counts) >= MAX_SOURCES:
            self._new_window(now)
        self._counts[prefix] = count + 1
        return None

    def _prefix(self, source: str) -> int:
        found = self._prefixes.get(source)
        if found is None:
            if len(self._prefixes) >= MAX_SOURCES:
                self._prefixes.clear()
            found = int(ipaddress.IPv6Address(source.partition("%")[0])) >> _V6_HOST_BITS
            self._prefixes[source] = found
        return found

    def _watch(self, prefix: Prefix, identity: bytes, now: float) -> Limited | None:
        """Account for one more answer to a source that had `rate` of them in this window, or is watched."""
        watched = self._watched.get(prefix)
        if watched is None:
            if len(self._watched) >= MAX_SOURCES:
                self._watched.clear()
            # The answers that nobody looked at may all have been one: they take a second to drain.
            floor = now + WINDOW_SECONDS
            watched = self._watched[prefix] = _Watched(self._rate, floor, floor)
        watched.total += 1
        if watched.total <= self._total:
            before = self._buckets.get((prefix, identity), 0.0)
            drained_at = max(before, watched.floor, now) + 1.0 / self._rate
            if drained_at <= now + BURST_SECONDS:
                if len(self._buckets) >= MAX_BUCKETS:
                    self._drop_empty(now)
                self._buckets[prefix, identity] = drained_at
                watched.drained_at = max(watched.drained_at, drained_at)
                return None
        watched.limited += 1
        if self._slip and watched.limited % self._slip == 0:
            return Limited.SLIPPED
        return Limited.DROPPED

    def _new_window(self, now: float) -> None:
        """Count from 0 again. Who has a bucket that is not empty is still watched."""
        self._window_ends = now + WINDOW_SECONDS
        self._watched = {
            prefix: watched for prefix, watched in self._watched.items() if watched.drained_at > now
        }
        if not self._watched:
            self._buckets.clear()
        self._counts = dict.fromkeys(self._watched, self._rate)
        for watched in self._watched.values():
            watched.total = 0

    def _drop_empty(self, now: float) -> None:
        self._buckets = {key: drained for key, drained in self._buckets.items() if drained > now}
        if len(self._buckets) > MAX_BUCKETS // 2:
            self._buckets.clear()

"""How a tunnel server leaves so that nobody notices: out of the DNS first, and gone when the caches know it.

Hides the order and the times. It tells the nameservers that watch it, and goes on serving while a resolver
may still give out its address; then it lets the visitors of that moment finish, up to a limit. Where no
nameserver has taken it out, for it is the only one or nobody watches it, waiting for the caches would help
nobody. `now` is monotonic seconds; visitors are the caller's to count.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Mapping

from appliance.fleet.publish import LIVE_TTL_SECONDS

ANSWER_SECONDS = 5.0
"""For the answers of the nameservers. They come within a round trip; one that does not answer by then is as
silent as makes it end the watch.
"""
LAST_SECONDS = LIVE_TTL_SECONDS + 5.0
"""From the answer on: resolvers may have been told just before it, they count a TTL in whole seconds, and a
visitor connects some time after he has asked.
"""
LOOK_SECONDS = 0.1
"""Between two looks at whether the last visitors are gone."""


class DrainState(enum.Enum):
    """How far a drain is."""

    TELLING = "telling the nameservers"
    LASTING = "out of the DNS, and serving whoever still comes"
    FINISHING = "the last visitors finish"
    OVER = "over"


class _Cause(enum.Enum):
    OUT = "taken out"
    ANSWERED = "all have answered, or had the time"
    NOTHING_TO_WAIT_FOR = "all have answered, and nobody has taken it out"
    FORGOTTEN = "the caches have forgotten it"
    FINISHED = "the visitors are gone, or had the time"


_NEXT: Mapping[tuple[DrainState, _Cause], DrainState] = {
    (DrainState.TELLING, _Cause.OUT): DrainState.TELLING,
    (DrainState.TELLING, _Cause.ANSWERED): DrainState.LASTING,
    (DrainState.TELLING, _Cause.NOTHING_TO_WAIT_FOR): DrainState.FINISHING,
    (DrainState.LASTING, _Cause.OUT): DrainState.LASTING,
    (DrainState.LASTING, _Cause.FORGOTTEN): DrainState.FINISHING,
    (DrainState.FINISHING, _Cause.OUT): DrainState.LASTING,
    (DrainState.FINISHING, _Cause.FINISHED): DrainState.OVER,
    (DrainState.OVER, _Cause.OUT): DrainState.OVER,
}


class Draining:
    """One drain, begun at `now`. `watchers` are to answer; `finish_seconds` is what the last visitors get."""

    def __init__(self, watchers: Iterable[Hashable], finish_seconds: float, now: float) -> None:
        self.state = DrainState.TELLING
        self._unanswered = set(watchers)
        self._finish_seconds = finish_seconds
        self._deadline = now + ANSWER_SECONDS
        self._out_at: float | None = None
        self._settle(now)

    def answered(self, watcher: Hashable, held: bool | None, now: float) -> None:
        """A nameserver has taken the server out, or not (`held`); with None its watch is over."""
        self._unanswered.discard(watcher)
        if held is False:
            self._out_at = now
            self._becomes(_Cause.OUT, now)
        self._settle(now)

    def tick(self, now: float, visitors: int) -> None:
        """To be called at `next_deadline`. `visitors`: how many of those are still there that were there when
        FINISHING began.
        """
        is_late = now >= self._deadline
        if self.state is DrainState.TELLING and is_late:
            if self._out_at is None:  # who does not answer may have done it
                self._out_at = now
            self._becomes(_Cause.ANSWERED, now)
        elif self.state is DrainState.LASTING and is_late:
            self._becomes(_Cause.FORGOTTEN, now)
        elif self.state is DrainState.FINISHING and (is_late or not visitors):
            self._becomes(_Cause.FINISHED, now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is to be called next."""
        if self.state is DrainState.OVER:
            return None
        if self.state is DrainState.FINISHING:
            return min(now + LOOK_SECONDS, self._deadline)
        return self._deadline

    @property
    def deadline(self) -> float:
        """When the state that it is in has taken too long."""
        return self._deadline

    def _settle(self, now: float) -> None:
        if self.state is DrainState.TELLING and not self._unanswered:
            nothing = self._out_at is None
            self._becomes(_Cause.NOTHING_TO_WAIT_FOR if nothing else _Cause.ANSWERED, now)

    def _becomes(self, cause: _Cause, now: float) -> None:
        before, self.state = self.state, _NEXT[self.state, cause]
        if self.state is DrainState.LASTING:
            assert self._out_at is not None
            self._deadline = self._out_at + LAST_SECONDS
        elif self.state is DrainState.FINISHING and before is not DrainState.FINISHING:
            self._deadline = now + self._finish_seconds

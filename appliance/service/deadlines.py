"""Many that wait equally long: one timer of the reactor for all of them.

A timer each costs more than most of what is waited for, and nearly all are cancelled. Who began first is late
first, so the oldest decides when to look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls ``late(one)`` for each that was added and not discarded within ``seconds``."""

    def __init__(self, clock: Any, seconds: float, late: Callable[[T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._late = late
        self._due: dict[T, float] = {}
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, one: T) -> None:
        """Its time begins now; one is added once."""
        self._due[one] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def discard(self, one: T) -> None:
        """It waits no longer, if it did."""
        self._due.pop(one, None)

    def oldest(self) -> T:
        """Who is late next. Raises StopIteration when nobody waits."""
        return next(iter(self._due))

    def newest(self) -> T:
        """Who is late last. Raises StopIteration when nobody waits."""
        return next(reversed(self._due))

    def all(self) -> list[T]:
        """All who wait, the oldest first."""
        return list(self._due)

    def stop(self) -> None:
        """Nobody waits any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._due:
            one = next(iter(self._due))
            wait = self._due[one] - now
            if wait > 0:
                self._timer = self._clock.callLater(wait, self._look)
                return
            del self._due[one]
            self._late(one)

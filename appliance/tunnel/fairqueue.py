"""Those who wait, each of a source: a source that has many waiting keeps only its own waiting."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter", bound=Hashable)


class FairQueue(Generic[Waiter]):
    """The sources have their turns one after the other, and in a source's turn its first one goes.

    Fair queueing with the longest queue dropped from (McKenney, "Stochastic Fairness Queueing", 1990), where
    each source has a queue of its own.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[Waiter, None]] = {}  # in the order of their turns
        self._source: dict[Waiter, Hashable] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._source

    def add(self, waiter: Waiter, source: Hashable) -> None:
        """He waits, behind those of his source."""
        self._of.setdefault(source, {})[waiter] = None
        self._source[waiter] = source

    def newest_of_most(self) -> Waiter:
        """Who is to go where there are too many: the last one of the source that has the most; of two, the
        one whose turn is later.
        """
        most = max(map(len, self._of.values()))
        return next(next(reversed(each)) for each in reversed(self._of.values()) if len(each) == most)

    def pop(self) -> Waiter:
        """Takes the first one out, of those who wait."""
        source = next(iter(self._of))
        first = next(iter(self._of[source]))
        self.remove(first)
        if source in self._of:  # it has had its turn
            self._of[source] = self._of.pop(source)
        return first

    def remove(self, waiter: Waiter) -> None:
        """Takes one who waits out, wherever he is."""
        source = self._source.pop(waiter)
        del self._of[source][waiter]
        if not self._of[source]:
            del self._of[source]

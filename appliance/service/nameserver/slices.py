"""Long work on the reactor, a few milliseconds at a time, so that questions are answered in between.

Hides the clock and the turns. One piece of work is under way at a time.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

SLICE_SECONDS = 0.005
"""A question waits no longer for the work than for a few hundred other questions."""

T = TypeVar("T")


class Slices:
    """Runs generators; each of their steps is to be much shorter than a slice."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._steps: Generator[None, None, Any] | None = None
        self._done: Deferred[Any] = Deferred()
        self._next: Any = None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._steps is not None

    def run(self, steps: Generator[None, None, T]) -> Deferred[T]:
        """Begin with the work at once, once what is under way is finished; fires with what it comes to."""
        self.finish()
        self._steps = steps
        done: Deferred[T] = Deferred()
        self._done = done
        self._slice()
        return done

    def finish(self) -> None:
        """Do the rest of what is under way now."""
        while self._steps is not None:
            self._step()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _slice(self) -> None:
        self._next = None
        until = self._reactor.seconds() + SLICE_SECONDS
        while self._steps is not None:
            self._step()
            if self._reactor.seconds() >= until:
                if self._steps is not None:
                    self._next = self._reactor.callLater(0, self._slice)
                return

    def _step(self) -> None:
        assert self._steps is not None
        try:
            next(self._steps)
        except StopIteration as end:
            self._steps = None
            self._done.callback(end.value)
        except Exception:
            self._steps = None
            self._done.errback(Failure())

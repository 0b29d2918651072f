"""Whether this process itself was asleep: who was cannot tell another's silence from its own deafness."""

from __future__ import annotations

from typing import Any

BEAT_SECONDS = 0.25
LAG_SECONDS = 1.0
"""A beat that comes so late. Less happens on any busy machine, and most of 2.5 s is still heard."""


class LoopLag:
    """Feels the reactor's pulse."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._beat: Any = None
        self._due = 0.0
        self._lagged_at = float("-inf")

    def start(self) -> None:
        """Begin to watch the clock."""
        self._due = self._reactor.seconds() + BEAT_SECONDS
        self._beat = self._reactor.callLater(BEAT_SECONDS, self._beaten)

    def stop(self) -> None:
        """No more beats."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def lagged_since(self, then: float) -> bool:
        """Whether the reactor stood still for more than a second at any time after `then` (monotonic)."""
        now = self._reactor.seconds()
        return self._lagged_at >= then or (self._beat is not None and now - self._due > LAG_SECONDS)

    def _beaten(self) -> None:
        now = self._reactor.seconds()
        if now - self._due > LAG_SECONDS:
            self._lagged_at = now
        self.start()

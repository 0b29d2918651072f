"""Whether the other end of a connection still lives: a ping with a nonce, which only a living program can
answer.

TCP does not know: the kernel of a stopped process accepts connections and answers keepalives.
"""

from __future__ import annotations

from collections.abc import Callable

PONG_SECONDS = 9.0
"""How long a pong may take: longer than a lossy path stutters, and a program that is stopped right behind a
pong is found within 15 s, the 5 s to the next ping included.
"""
HEARD_SLACK_SECONDS = 0.5
"""Who is pinged need not ping: he waits for the next one, and for its delay. So of two ends one pings."""
LATE_LOOK_SECONDS = 1.0
"""A look that comes so late is the fault of this program: the pong may lie in the socket, unread."""


class Liveness:
    """When to ping, and whether a pong is overdue. One ping at a time; `now` is monotonic seconds."""

    def __init__(
        self, nonce: Callable[[], str], now: float, *, ping_seconds: float, pong_seconds: float = PONG_SECONDS
    ) -> None:
        self._nonce = nonce
        self._ping_seconds = ping_seconds
        self._pong_seconds = pong_seconds
        self._asked: str | None = None
        self._asked_at = now
        self._deadline = now + ping_seconds

    def every(self, ping_seconds: float) -> None:
        """Ping so often, from the next ping on."""
        self._ping_seconds = ping_seconds

    def doubt(self, now: float) -> None:
        """The other end owes something for too long: the next ping is due now."""
        if self._asked is None:
            self._deadline = now

    def heard(self, now: float) -> None:
        """The other end has pinged, so it lives."""
        if self._asked is None:
            self._deadline = max(self._deadline, now + self._ping_seconds + HEARD_SLACK_SECONDS)

    def next_deadline(self) -> float:
        """When to look again: to send a ping, or because a pong is overdue."""
        return self._deadline

    def due(self, now: float) -> str | None:
        """The nonce of a ping to send now, if it is time for one."""
        if self._asked is not None or now < self._deadline:
            return None
        self._asked = self._nonce()
        self._asked_at = now
        self._deadline = now + self._pong_seconds
        return self._asked

    def overdue(self, now: float) -> bool:
        """Whether the other end is to be taken for dead. A look that comes late grants it one second more."""
        if self._asked is None or now < self._deadline:
            return False
        if now - self._deadline > LATE_LOOK_SECONDS:
            self._deadline = now + LATE_LOOK_SECONDS
            return False
        return True

    def answered(self, nonce: str, now: float) -> bool:
        """Takes a pong. False if no ping with this nonce waits for one."""
        if self._asked is None or nonce != self._asked:
            return False
        self._asked = None
        self._deadline = max(now, self._asked_at + self._ping_seconds)
        return True

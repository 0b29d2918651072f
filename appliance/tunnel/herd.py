"""How a thousand clients that lost their server at once come back to it: spread, and let in a few at a time.

Hides the numbers. `now` is monotonic seconds.
"""

from __future__ import annotations

PAUSE_SECONDS = 0.015
"""Between the beginnings of two link handshakes: 67 a second. A client that comes back costs 4 to 5 ms of the
server's CPU in all, so a third of a core; the rest is for the visitors of those who are in already. A
thousand are in after 15 s, and have 20. After a crash they come within 3 s, so 800 of them wait.
"""
LATE_SECONDS = 0.004
"""What a beginning was late by, as timers are, is taken off the next pause: up to that, so that any 100 ms
have at most ten.
"""
SPREAD_SHARE = 0.9
"""Of what is let in, the share that a spread fills: whoever dials by himself fits in beside it."""


class Turnstile:
    """When the next one may begin."""

    def __init__(self) -> None:
        self._opens_at = float("-inf")

    def opens_at(self, now: float) -> float:
        """The earliest time for the next one, not before `now`."""
        return max(now, self._opens_at)

    def passed(self, now: float) -> None:
        """One begins now."""
        self._opens_at = max(self._opens_at, now - LATE_SECONDS) + PAUSE_SECONDS


def spread_seconds(clients: int) -> float:
    """Over how many seconds so many clients are to come back, each at a random time."""
    return clients * PAUSE_SECONDS / SPREAD_SHARE

"""How a thousand clients that lost their server at once come back to it: spread, and let in a few at a time.

Hides the numbers. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections import deque

BEGUN_AT_MOST = 10
WINDOW_SECONDS = 0.1
"""So many link handshakes are begun in any window of that length: 100 a second, of the 387 a second that one
core does. The rest of it is for the visitors of those who are in already.
"""
SPREAD_SHARE = 0.8
"""Of what is let in, the share that a spread fills: whoever dials by himself fits in beside it."""


class Turnstile:
    """When the next one may begin."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=BEGUN_AT_MOST)

    def opens_at(self, now: float) -> float:
        """The earliest time for the next one, not before `now`."""
        if len(self._begun) < BEGUN_AT_MOST:
            return now
        return max(now, self._begun[0] + WINDOW_SECONDS)

    def passed(self, now: float) -> None:
        """One begins now."""
        self._begun.append(now)


def spread_seconds(clients: int) -> float:
    """Over how many seconds so many clients are to come back, each at a random time."""
    return clients * WINDOW_SECONDS / (BEGUN_AT_MOST * SPREAD_SHARE)

"""How often somebody may do something: so many a second, and as many at once.

A token bucket. `now` is monotonic seconds.
"""

from __future__ import annotations


class Pace:
    """At most `per_second`."""

    def __init__(self, per_second: float) -> None:
        self._most = self._left = self._per_second = per_second
        self._at = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether it may be done now; if so, it is."""
        if now > self._at:
            passed = min(now - self._at, 1.0)
            self._left = min(self._most, self._left + passed * self._per_second)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Paces:
    """At most `per_second` of each; of a bounded number, as of those who have a certificate."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._paces: dict[str, Pace] = {}

    def allows(self, who: str, now: float) -> bool:
        """Whether this one may do it now; if so, it is done."""
        return self._paces.setdefault(who, Pace(self._per_second)).allows(now)

    def forget(self, who: str) -> None:
        """He will not come again."""
        self._paces.pop(who, None)

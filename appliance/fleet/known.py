"""Which names are known, and until when: the difference between 404 and 503, and what is published.

Hides the expiry and the wildcards. A name is known from its invitation or its first verified registration
until its certificates have expired, or until somebody forgets it. `wall` is Unix time in seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from appliance.tunnel.names import wildcards_over

#: Entries of a heap that no longer hold, beside as many as there are names: then it is made anew. Who forgets
#: and knows by turns costs no more memory than that.
_PASSED_OVER = 1000


class KnownNames:
    """Names and wildcards with the time at which the last certificate for each expires."""

    def __init__(self) -> None:
        self._expires: dict[str, float] = {}
        self._soonest: list[tuple[float, str]] = []  # a heap; entries that no longer hold are passed over

    def know(self, name: str, expires: float) -> bool:
        """The name is known until `expires` at least. Whether that is later than what was known."""
        if expires <= self._expires.get(name, float("-inf")):
            return False
        self._expires[name] = expires
        if expires != float("inf"):
            heapq.heappush(self._soonest, (expires, name))
            if len(self._soonest) > 2 * len(self._expires) + _PASSED_OVER:
                self._soonest = [(when, each) for each, when in self._expires.items() if when != float("inf")]
                heapq.heapify(self._soonest)
        return True

    def forget(self, name: str) -> bool:
        """The name is not known any more. Whether it was."""
        return self._expires.pop(name, None) is not None

    def knows(self, host: str) -> bool:
        """Whether this normal name, or a wildcard over it, is known."""
        return self.known_as(host) is not None

    def known_as(self, host: str) -> str | None:
        """What a normal name is known as: itself, else the closest wildcard over it."""
        if host in self._expires:
            return host
        return next((wildcard for wildcard in wildcards_over(host) if wildcard in self._expires), None)

    def expire(self, wall: float, is_held: Callable[[str], bool] = lambda name: False) -> list[str]:
        """Forgets the names whose time has come, and says which. Those that are held stay for now."""
        gone, held = [], []
        while self._soonest and self._soonest[0][0] <= wall:
            expires, name = heapq.heappop(self._soonest)
            if self._expires.get(name) != expires:
                continue
            if is_held(name):
                held.append((expires, name))
                continue
            del self._expires[name]
            gone.append(name)
        for one in held:
            heapq.heappush(self._soonest, one)
        return gone

    def expires(self, name: str) -> float | None:
        """Until when exactly this name is known; None if it is not."""
        return self._expires.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._expires

    def __iter__(self) -> Iterator[str]:
        return iter(self._expires)

    def __len__(self) -> int:
        return len(self._expires)

"""Which challenges stand now: said by whom, and until when. A server has one, and a nameserver.

Hides that one may be said by several, as a nameserver hears it from every server; it stands until the last of
them has withdrawn it, or its time is over. `now` and `until` are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from appliance.tunnel.challenge import owner_of

EXPIRE_SECONDS = 1.0
"""Between two looks for what is over: each is at all that stands, and there may be ten thousand."""
MAX_OF_OWNER = 8
"""At one name at a time: a name and its wildcard of four clients. As TXT records they are 450 octets."""

S = TypeVar("S", bound=Hashable)
Challenge = tuple[str, str]
"""A certificate's name, and the value."""


class TooManyChallenges(Exception):
    """There are too many challenges already"""


class Noticeboard(Generic[S]):
    """The challenges that stand, S being whatever stands for who says them."""

    def __init__(self, most_of_source: int) -> None:
        self._most_of_source = most_of_source
        self._said: dict[Challenge, dict[S, float]] = {}
        self._owners: dict[str, dict[str, set[str]]] = {}  # owner -> value -> the names that it is for
        self._of_source: dict[S, set[Challenge]] = {}

    def say(self, source: S, name: str, value: str, until: float) -> None:
        """It stands until then, whatever was said of it before. Raises TooManyChallenges."""
        key = name, value
        of_source = self._of_source.get(source, set())
        if key not in of_source and len(of_source) >= self._most_of_source:
            raise TooManyChallenges(f"more than {self._most_of_source} challenges at a time")
        at_owner = self._owners.get(owner_of(name), {})
        if value not in at_owner and len(at_owner) >= MAX_OF_OWNER:
            raise TooManyChallenges(f"more than {MAX_OF_OWNER} challenges at {owner_of(name)} at a time")
        self._said.setdefault(key, {})[source] = until
        self._of_source.setdefault(source, set()).add(key)
        self._owners.setdefault(owner_of(name), {}).setdefault(value, set()).add(name)

    def withdraw(self, source: S, name: str, value: str) -> bool:
        """This source says it no more; whether that was the last one, and it stands no more."""
        key = name, value
        sources = self._said.get(key)
        if sources is None or source not in sources:
            return False
        del sources[source]
        self._of_source[source].discard(key)
        if not self._of_source[source]:
            del self._of_source[source]
        if sources:
            return False
        del self._said[key]
        owner = owner_of(name)
        at_owner = self._owners[owner]
        at_owner[value].discard(name)
        if not at_owner[value]:
            del at_owner[value]
        if not at_owner:
            del self._owners[owner]
        return True

    def withdraw_all(self, source: S) -> list[Challenge]:
        """This source says nothing any more; what stands no more."""
        return [one for one in list(self._of_source.get(source, ())) if self.withdraw(source, *one)]

    def expire(self, now: float) -> list[Challenge]:
        """What stands no more, as its time is over."""
        old = [
            (source, *challenge)
            for challenge, sources in self._said.items()
            for source, until in sources.items()
            if until <= now
        ]
        return [(name, value) for source, name, value in old if self.withdraw(source, name, value)]

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        return min((until for said in self._said.values() for until in said.values()), default=None)

    def standing(self) -> list[tuple[str, str, float]]:
        """What stands now, as name, value, and until when."""
        return [(*challenge, max(said.values())) for challenge, said in self._said.items()]

    def values(self, owner: str) -> tuple[str, ...]:
        """What is to be read at `owner`."""
        return tuple(self._owners.get(owner, ()))

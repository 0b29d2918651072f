"""Saying what is wrong once and not at every try; hides what was said already.

A client tries for ever, many times a minute. Its log has a line when something goes wrong, one when it goes
wrong in another way, and one when it is over.
"""

from __future__ import annotations

from collections.abc import Hashable

#: Things complained about at a time; past it the oldest may be said again. A stranger's choice of names must
#: not grow it.
MAX_REMEMBERED = 1024


class Complaints:
    """What was last said about each thing: an address, an origin, a name."""

    def __init__(self) -> None:
        self._said: dict[Hashable, str] = {}

    def new(self, about: Hashable, words: str) -> bool:
        """Whether this was not the last thing said about it. It is, from now on."""
        if self._said.get(about) == words:
            return False
        self._said.pop(about, None)
        self._said[about] = words
        if len(self._said) > MAX_REMEMBERED:
            del self._said[next(iter(self._said))]
        return True

    def over(self, about: Hashable) -> bool:
        """It works: whether there was a complaint, which is forgotten."""
        return self._said.pop(about, None) is not None

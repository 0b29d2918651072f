"""Two links to one server for a moment: a link that is to take the place of another, until it has.

Hides which of them lives on. Who is to be joined under another certificate gets a successor beside the link
that is there, which goes on until the server can be told that the same instance has come again: the next that
the server hears on the successor is the hello. A link that is lost before that needs no successor: dialled
again, it shows the new certificate itself.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.service.client.links import Link
from appliance.tunnel.discovery import ServerAddress


class Successors:
    """`make(address)` makes a link that is not dialled yet, `stop(link)` ends one."""

    def __init__(self, make: Callable[[ServerAddress], Link], stop: Callable[[Link], None]) -> None:
        self._make = make
        self._stop = stop
        self._coming: dict[Link, Link] = {}  # each successor, and the link whose place it is to take
        self._retiring: set[Link] = set()

    @property
    def coming(self) -> list[Link]:
        """Successors that have not taken a place yet."""
        return list(self._coming)

    @property
    def retiring(self) -> list[Link]:
        """Links whose place is taken, until they have ended."""
        return list(self._retiring)

    def call_for(self, old: Link) -> None:
        """Have a successor of this link dialled, unless there is one."""
        if old not in self._retiring and old not in self._coming.values():
            link = self._make(old.address)
            self._coming[link] = old
            link.startService()

    def predecessor(self, link: Link) -> Link | None:
        """The link whose place this one is to take, if it is a successor that has not done so."""
        return self._coming.get(link)

    def take_place(self, link: Link) -> None:
        """The server of its predecessor is at the other end of this one, and will hear of nobody else."""
        old = self._coming.pop(link)
        self._retiring.add(old)
        old.retire()

    def parted(self, link: Link) -> None:
        """This link is lost: its successor is needed no more, and it retires no longer."""
        self._retiring.discard(link)
        for successor in [one for one, old in self._coming.items() if old is link]:
            del self._coming[successor]
            self._stop(successor)

    def forget(self) -> None:
        """No place is to be taken any more."""
        coming, self._coming = self._coming, {}
        for link in coming:
            self._stop(link)

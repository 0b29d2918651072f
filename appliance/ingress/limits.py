"""How many connections a source may have open, and how many new ones a second: a machine over time.

Hides how little that takes: one number for each source that has a connection open, and one for each that had
a new one in this second, all of which are thrown away at its end. So memory is bounded by the connections
that there are, and nothing has to be swept.

A source is whatever the caller counts by: an IPv4 address, an IPv6 /64.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass

OPEN_AT_MOST = 1024
"""An office behind one address: 100 people with ten connections each."""

NEW_A_SECOND = 200
"""The same office when all of it opens a page at once; a browser opens 6 to a name."""

SOURCES_A_SECOND = 1 << 16
"""Sources that are counted in one second; further ones are let in. No machine of ours accepts as many."""


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

THIS_MACHINE: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
"""Who comes from here is a program of this machine, such as a proxy in front of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many visitors may be there at once, and come; 0 is no limit. ``exempt`` are the sources that have
    none of their own.
    """

    source_open: int = OPEN_AT_MOST
    source_new: int = NEW_A_SECOND
    name_open: int = 0
    all_open: int = 0
    exempt: tuple[Network, ...] = THIS_MACHINE


class Over(enum.Enum):
    """Which limit a connection is over."""

    SOURCE_OPEN = "source_open"
    SOURCE_NEW = "source_new"
    NAME_OPEN = "name_open"
    FULL = "full"


class Sources:
    """The connections of each source. Those that are sent away are not counted: they are not there."""

    def __init__(self, *, open_at_most: int, new_a_second: int) -> None:
        """0 is no limit."""
        self._open_at_most = open_at_most or 1 << 62
        self._new_a_second = new_a_second or 1 << 62
        self._open: dict[Hashable, int] = {}
        self._new: dict[Hashable, int] = {}
        self._second = 0

    def __len__(self) -> int:
        """The sources that have a connection open."""
        return len(self._open)

    def open(self, source: Hashable) -> int:
        """The connections that a source has open."""
        return self._open.get(source, 0)

    def take(self, source: Hashable, now: float) -> Over | None:
        """One more connection of this source. None: it is counted, and ``went`` follows."""
        here = self._open.get(source, 0)
        if here >= self._open_at_most:
            return Over.SOURCE_OPEN
        second = int(now)
        if second != self._second:
            self._second = second
            self._new = {}
        new = self._new.get(source, 0)
        if new >= self._new_a_second:
            return Over.SOURCE_NEW
        self._open[source] = here + 1
        if new or len(self._new) < SOURCES_A_SECOND:
            self._new[source] = new + 1
        return None

    def came(self, source: Hashable) -> None:
        """A connection that is let in though it is over a limit; ``went`` follows."""
        self._open[source] = self._open.get(source, 0) + 1

    def went(self, source: Hashable) -> None:
        """One of the source's connections is closed, or turned out to be none of a visitor."""
        left = self._open[source] - 1
        if left:
            self._open[source] = left
        else:
            del self._open[source]

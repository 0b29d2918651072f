"""Rrsets that begin with another record from answer to answer, for those who ask for it.

Hidden here: that finished answers can be rotated, too: there are SHIFTS of each, the query's ID says which,
and each has a table of its own. Resolvers rotate by themselves, so it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from appliance.dns.table import MAX_ENTRIES, Table
from appliance.dns.zone import RRset

# Even for 1, 2, 3, 4, 6 and 12 records, and nearly so for others.
SHIFTS: Final = 12


class Rotation:
    """Tables of rotated answers; together they hold as much as the one of the others."""

    def __init__(self) -> None:
        self._tables = tuple(Table(MAX_ENTRIES // SHIFTS) for _ in range(SHIFTS))

    def __iter__(self) -> Iterator[Table]:
        return iter(self._tables)

    def table(self, query: bytes) -> Table:
        """The table for this query."""
        return self._tables[_shift(query)]


def rotated(rrsets: Sequence[RRset], query: bytes) -> list[RRset]:
    """The same rrsets, each begun elsewhere."""
    return [_turned(rrset, _shift(query)) for rrset in rrsets]


def _turned(rrset: RRset, shift: int) -> RRset:
    at = shift * len(rrset.rdatas) // SHIFTS
    return rrset._replace(rdatas=rrset.rdatas[at:] + rrset.rdatas[:at]) if at else rrset


def _shift(query: bytes) -> int:
    return (query[0] << 8 | query[1]) % SHIFTS

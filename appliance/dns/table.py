"""Finished answers by question. HOT: every query comes by here first, and most go no further.

Hidden here: which part of a query decides its answer, and when an answer has ceased to be true.

An answer depends on the whole query but its ID and the case of the name; both are taken from the query
that is being answered. (The name ends at the first zero octet. Where that is really inside a label the
query just misses: what is cut off there is no whole name, and only whole names are keys.) Queries with
EDNS options are not kept as they come, for each would be another; the responder asks for the same query
without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from appliance.dns.question import HEADER_OCTETS

# A full table is emptied: what is asked often is back at once, at some 25 us a question. 32,768 answers
# are more than a fleet's names and types, and at 1,232 octets each bound the memory that random questions
# can cost at about 50 MB.
MAX_ENTRIES: Final = 32_768
MAX_ANSWER_OCTETS: Final = 1232

_TYPE_AND_CLASS_OCTETS: Final = 4
BARE_OPT_OCTETS: Final = 11  # an OPT record without options

# Answers over TCP differ (they are never truncated), so their keys do.
_OVER_TCP: Final = b"t"


class Table:
    """Octets of answers; `drop` those that a zone went into when it changes, `clear` when the set of
    zones does."""

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[bytes, bytes]] = {}
        self._get = self._entries.get
        # By the apex of each zone that an answer depends on; and the apexes of those that depend on several.
        # (A dict as the set: it is walked in the order of the entries, which is several times as fast.)
        self._keys: dict[bytes, dict[bytes, None]] = {}
        self._shared: dict[bytes, frozenset[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def answer(self, query: bytes, udp: bool) -> bytes | None:
        """The finished answer to `query`, or None."""
        root = query.find(0, 12)
        name = query[12:root]
        key = query[2:12] + name.lower() + query[root:]
        entry = self._get(key if udp else key + _OVER_TCP)
        if entry is None:
            return None
        head, rest = entry
        return query[:2] + head + name + rest

    def keep(self, query: bytes, udp: bool, end: int, answer: bytes, apexes: Iterable[bytes]) -> None:
        """Remember `answer` to `query`, whose question ends at `end`, until one of the zones `apexes`
        changes."""
        root = end - _TYPE_AND_CLASS_OCTETS - 1
        if (
            len(answer) > MAX_ANSWER_OCTETS
            or len(query) - end not in (0, BARE_OPT_OCTETS)
            or query.find(0, HEADER_OCTETS) != root
        ):
            return
        if len(self._entries) >= MAX_ENTRIES:
            self.clear()
        key = query[2:12] + query[12:root].lower() + query[root:]
        if not udp:
            key += _OVER_TCP
        self._entries[key] = (answer[2:12], answer[root:])
        sources = frozenset(apexes)
        for apex in sources:
            self._keys.setdefault(apex, {})[key] = None
        if len(sources) > 1:
            self._shared[key] = sources

    def drop(self, apex: bytes) -> None:
        """Forget what depends on the zone `apex`."""
        for key in self._keys.pop(apex, ()):
            del self._entries[key]
            for other in self._shared.pop(key, ()):
                if other != apex:
                    self._keys[other].pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._keys.clear()
        self._shared.clear()

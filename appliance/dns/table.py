"""Finished answers by question. HOT: every query comes by here first, and most go no further.

Hidden here: which part of a query decides its answer, and when an answer has ceased to be true: it is filed
under everything that it depends on (see touched). The serial of an SOA is left open in it, for every version
of a zone has another.

An answer depends on the whole query but its ID and the case of the name; both are taken from the query
that is being answered. So a query in lower case, as most are, is the key of its answer but for the ID. (The
name ends at the first zero octet. Where that is really inside a label the
query just misses: what is cut off there is no whole name, and only whole names are keys.) Queries with
EDNS options are not kept as they come, for each would be another; the responder asks for the same query
without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from appliance.dns.counts import Tally
from appliance.dns.lookup import Found
from appliance.dns.question import HEADER_OCTETS

# A full table is emptied: what is asked often is back at once, at some 25 us a question. 32,768 answers
# are more than a fleet's names and types, and at 1,232 octets each bound the memory that random questions
# can cost at about 50 MB.
MAX_ENTRIES: Final = 32_768
MAX_ANSWER_OCTETS: Final = 1232

FEW_ENTRIES: Final = 1000  # are forgotten one by one: 3 ms

_TYPE_AND_CLASS_OCTETS: Final = 4
SERIAL_OCTETS: Final = 4
HEAD_OCTETS: Final = HEADER_OCTETS - 2  # without the ID
_SOA_NUMBERS_OCTETS: Final = 20  # RFC 1035 3.3.13: the serial and four times
BARE_OPT_OCTETS: Final = 11  # an OPT record without options

Key = bytes | tuple[bytes]
"""Octets of a query by UDP, and the same in a tuple by TCP: those answers differ (they are never truncated),
and no octets that a stranger sends may be the key of one.
"""


class Serial:
    """The serial that a zone has now, in octets; one for all the answers that it is in."""

    __slots__ = ("octets",)

    def __init__(self, serial: int) -> None:
        self.octets = serial.to_bytes(SERIAL_OCTETS, "big")


class Finished(NamedTuple):
    """A finished answer from its third octet on, to a query in lower case: `octets`; with an SOA in it,
    `octets`, those of `serial`, and `tail`.

    `identity` is what rate limiting knows it by, `tally` where it is counted.
    """

    octets: bytes
    identity: bytes
    tally: Tally
    serial: Serial | None
    tail: bytes


class Table:
    """Octets of answers; `drop` those that depend on what was touched, `clear` when the set of zones
    changes."""

    def __init__(self, most: int = MAX_ENTRIES) -> None:
        self._most = most
        self._entries: dict[Key, Finished] = {}
        # The entry of a key. (The responder makes keys itself, as `find` does: one call less.)
        self.get = self._entries.get
        # The keys of all that depend on one thing, and what an answer depends on. (Dicts as the sets: of
        # octets alone, they are nothing to the garbage collector.)
        self._keys: dict[bytes, dict[Key, None]] = {}
        self._needs: dict[Key, tuple[bytes, ...]] = {}
        self._serials: dict[bytes, Serial] = {}  # by apex

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, query: bytes, udp: bool) -> tuple[bytes, Finished] | None:
        """The octets of the finished answer to `query`, and what it is; or None."""
        root = query.find(0, HEADER_OCTETS)
        name = query[HEADER_OCTETS:root]
        key = query[2:HEADER_OCTETS] + name.lower() + query[root:]
        entry = self.get(key if udp else (key,))
        if entry is None:
            return None
        octets = entry.octets
        answer = query[:2] + octets[:HEAD_OCTETS] + name + octets[HEAD_OCTETS + len(name) :]
        return answer if entry.serial is None else answer + entry.serial.octets + entry.tail, entry

    def keep(
        self, query: bytes, udp: bool, end: int, answer: bytes, found: Found, *, identity: bytes, tally: Tally
    ) -> None:
        """Remember `answer` to `query`, whose question ends at `end`, made of what was `found` now."""
        root = end - _TYPE_AND_CLASS_OCTETS - 1
        if (
            len(answer) > MAX_ANSWER_OCTETS
            or len(query) - end not in (0, BARE_OPT_OCTETS)
            or query.find(0, HEADER_OCTETS) != root
        ):
            return
        if len(self._entries) >= self._most:
            self.clear()
        octets = query[2:HEADER_OCTETS] + query[HEADER_OCTETS:root].lower() + query[root:]
        key: Key = octets if udp else (octets,)
        if key in self._entries:
            return
        rest, serial, tail = self._opened(answer[root:], found)
        octets = answer[2:HEADER_OCTETS] + answer[HEADER_OCTETS:root].lower() + rest
        self._entries[key] = Finished(octets, identity, tally, serial, tail)
        self._needs[key] = needs = tuple(found.touched)
        for need in needs:
            keys = self._keys.get(need)
            if keys is None:
                self._keys[need] = {key: None}
            else:
                keys[key] = None

    def turn(self, apex: bytes, serial: int) -> None:
        """The zone `apex` has another serial now."""
        there = self._serials.get(apex)
        if there is not None:
            there.octets = serial.to_bytes(SERIAL_OCTETS, "big")

    def drop(self, touched: Iterable[bytes]) -> None:
        """Forget what depends on any of this; everything, where that is most of it: that takes no look at
        each."""
        for one in touched:
            keys_of_it = self._keys.pop(one, {})
            if 2 * len(keys_of_it) > max(len(self._entries), FEW_ENTRIES):
                self.clear()
                return
            for key in keys_of_it:
                del self._entries[key]
                for need in self._needs.pop(key):
                    keys = self._keys.get(need)
                    if keys is not None:
                        keys.pop(key, None)
                        if not keys:
                            del self._keys[need]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._keys.clear()
        self._needs.clear()
        self._serials.clear()

    def _opened(self, rest: bytes, found: Found) -> tuple[bytes, Serial | None, bytes]:
        """`rest` around the serial of the SOA in it, if there is one."""
        if found.soa is None:
            return rest, None, b""
        # The five numbers of an SOA. It is the last record but for an OPT, which is too short to hold them.
        numbers = found.soa.rdatas[0][-_SOA_NUMBERS_OCTETS:]
        at = rest.rfind(numbers)
        if at < 0:
            return rest, None, b""  # the answer was too long, and everything left out of it
        serial = self._serials.get(found.soa.name)
        if serial is None:
            serial = self._serials[found.soa.name] = Serial(int.from_bytes(numbers[:SERIAL_OCTETS], "big"))
        return rest[:at], serial, rest[at + SERIAL_OCTETS :]

"""Where the records of a message are: the bounded walk of one that may have many of them.

Hidden here: counts, lengths and compression in octets that nobody has vouched for. The walk steps over every
record once and follows no pointer; `name_at` follows them for one name, backwards only and a bounded number
of times. So the cost is a bounded number of steps for each record, and the records are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from appliance.dns.names import MAX_LABEL_OCTETS, MAX_NAME_OCTETS
from appliance.dns.question import HEADER_OCTETS, QuestionError, read_zone_section

# What a message that may change something may have: external-dns sends 50 changes in one, nsupdate some tens,
# and dnspython needs about 1 us an octet for what we then give it.
MAX_CHANGE_OCTETS: Final = 16 * 1024
MAX_CHANGE_RECORDS: Final = 200

# A name compressed once has one pointer; a writer that points into compressed names makes a few more. 127
# labels are all that a name has.
MAX_POINTERS: Final = 32

_POINTER: Final = 0xC0
_RECORD_HEAD: Final = Struct("!HHIH")
_COUNTS: Final = Struct("!HHH")


class MessageError(Exception):
    """The records of this message cannot be found."""


@dataclass(frozen=True, slots=True)
class Span:
    """One record: `owner`, `rdata` and `end` are offsets into the message, the rest is as it says."""

    owner: int
    rtype: int
    rclass: int
    ttl: int
    rdata: int
    end: int


@dataclass(frozen=True, slots=True)
class Sections:
    """The question (UPDATE: the zone) and the records of each section of a message.

    `name` is lower-cased; the question ends at `end`. UPDATE calls `answer` its prerequisites and `authority`
    its changes (RFC 2136 2.1).
    """

    name: bytes
    qtype: int
    qclass: int
    end: int
    answer: tuple[Span, ...]
    authority: tuple[Span, ...]
    additional: tuple[Span, ...]


def read_sections(
    message: bytes,
    *,
    max_octets: int = MAX_CHANGE_OCTETS,
    max_records: int = MAX_CHANGE_RECORDS,
    needs_question: bool = True,
) -> Sections:
    """Where everything in `message` is, with no octets left over. Raises MessageError and nothing else.

    It must have exactly one question; unless `needs_question`, none will do (in the later messages of a
    transfer: `name` is then empty).
    """
    if len(message) > max_octets:
        raise MessageError(f"a message of more than {max_octets} octets")
    name, qtype, qclass, end = b"", 0, 0, HEADER_OCTETS
    try:
        if needs_question or len(message) < HEADER_OCTETS or message[4:6] != b"\x00\x00":
            name, qtype, qclass, end = read_zone_section(message)
    except QuestionError as error:
        raise MessageError(str(error)) from None
    counts = _COUNTS.unpack_from(message, 6)
    if sum(counts) > max_records:
        raise MessageError(f"more than {max_records} records")
    at = end
    sections = []
    for count in counts:
        spans = []
        for _ in range(count):
            span = _span(message, at)
            spans.append(span)
            at = span.end
        sections.append(tuple(spans))
    if at != len(message):
        raise MessageError("octets after the end of the message")
    return Sections(name, qtype, qclass, end, *sections)


def _span(message: bytes, owner: int) -> Span:
    at = _past_name(message, owner)
    rdata = at + _RECORD_HEAD.size
    if rdata > len(message):
        raise MessageError("a record is cut off")
    rtype, rclass, ttl, length = _RECORD_HEAD.unpack_from(message, at)
    if rdata + length > len(message):
        raise MessageError("a record is cut off")
    return Span(owner, rtype, rclass, ttl, rdata, rdata + length)


def _past_name(message: bytes, at: int) -> int:
    start = at
    size = len(message)
    while at < size:
        length = message[at]
        if length >= _POINTER:
            return at + 2
        if length > MAX_LABEL_OCTETS or at - start >= MAX_NAME_OCTETS:
            raise MessageError("the owner of a record is not a name")
        at += 1 + length
        if length == 0:
            return at
    raise MessageError("a record is cut off")


def name_at(message: bytes, at: int) -> tuple[bytes, int]:
    """The name that begins at `at`, lower-cased and without compression, and where it ends there.

    A pointer may only point to before the part of the name that it ends. Raises MessageError, nothing else.
    """
    parts: list[bytes] = []
    octets = 0
    end = 0  # where the name ends at `at`; known once a pointer was met
    start = at
    size = len(message)
    for _ in range(MAX_POINTERS + 1):
        while at < size and 0 < message[at] <= MAX_LABEL_OCTETS:
            label = message[at : at + 1 + message[at]]
            octets += len(label)
            if octets >= MAX_NAME_OCTETS:
                raise MessageError("a name is longer than 255 octets")
            parts.append(label)
            at += len(label)
        if at >= size:
            raise MessageError("a name is cut off")
        if message[at] == 0:
            return b"".join(parts).lower() + b"\x00", end or at + 1
        if message[at] < _POINTER or at + 2 > size:
            raise MessageError("an unknown kind of label")
        target = (message[at] & 0x3F) << 8 | message[at + 1]
        end = end or at + 2
        if not HEADER_OCTETS <= target < start:
            raise MessageError("a compression pointer that does not point backwards")
        at = start = target
    raise MessageError("too many compression pointers in one name")

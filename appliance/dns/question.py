"""The bounded walk of a message from the network: what is asked, and whether EDNS came with it.

Hidden here: where things are in a DNS message, and everything that a hostile one can do wrong. No
compression pointer is ever followed: a question needs none, and where one ends the owner of another
record it is stepped over. So the walk reads each octet at most once, and a question has at most 127
labels.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from appliance.dns.names import MAX_LABEL_OCTETS, MAX_NAME_OCTETS
from appliance.dns.numbers import COOKIE, DO, IXFR, NSID, OPT

HEADER_OCTETS: Final = 12

# OPT and one signature (TSIG, SIG(0)) are all that a query is known to carry.
MAX_ADDITIONAL: Final = 2

# A query carries a handful of options (IANA has assigned some twenty). 65 kB of empty ones would take 4
# ms to step over.
MAX_OPTIONS: Final = 32

_RECORD_HEAD_OCTETS: Final = 10  # type, class, TTL, length (RFC 1035 4.1.3)
_POINTER: Final = 0xC0
_RECORDS: Final = Struct("!HHH")  # how many there are in the sections behind the question
_RECORDS_AT: Final = 6


class QuestionError(Exception):
    """The message is not a DNS query that can be answered with more than FORMERR.

    `end` is where its question ends (HEADER_OCTETS when none could be read), `edns` what was understood
    of an OPT: enough for the refusal to echo the one and to answer the other (RFC 6891 7).
    """

    def __init__(self, what: str, end: int = HEADER_OCTETS, edns: Edns | None = None) -> None:
        super().__init__(what)
        self.end = end
        self.edns = edns


class Edns(NamedTuple):
    """What the OPT record of a query says (RFC 6891 6.1). Options but these two are checked for form and
    otherwise ignored."""

    payload: int  # octets of UDP that the sender can take
    version: int
    dnssec_ok: bool
    cookie: bytes | None = None  # the content of the first COOKIE option, whatever its size (RFC 7873 5.2)
    nsid: bool = False  # the server's name is asked for (RFC 5001)


class Question(NamedTuple):
    """The one question of a message: `name` lower-cased; the question is octets 12 to `end` of the
    message."""

    name: bytes
    qtype: int
    qclass: int
    end: int
    edns: Edns | None


def read_question(message: bytes) -> Question:
    """What `message`, with an opcode QUERY header, asks. Raises QuestionError and nothing else."""
    name, qtype, qclass, end = read_zone_section(message)
    answers, authorities, additional = _RECORDS.unpack_from(message, _RECORDS_AT)
    # Only an IXFR brings a record of its own: the SOA that the sender has (RFC 1995 3).
    if answers or authorities > (qtype == IXFR) or additional > MAX_ADDITIONAL:
        raise QuestionError("a query with records that queries do not have", end)
    if qtype == IXFR and not authorities:
        raise QuestionError("an IXFR without the SOA to start from", end)
    edns: Edns | None = None
    at = end
    for index in range(authorities + additional):
        at, found = _step_over(message, at, end, edns)
        if found is not None:
            if edns is not None or index < authorities:
                raise QuestionError(
                    "more than one OPT record, or one in the wrong section", end, edns or found
                )
            edns = found
    if at != len(message):
        raise QuestionError("octets after the end of the message", end, edns)
    return Question(name, qtype, qclass, end, edns)


def read_options_alone(message: bytes) -> Edns | None:
    """The OPT record of a message that asks nothing and holds nothing else, as one does that wants a cookie
    (RFC 7873 5.4). Anything else is None."""
    if message[4:HEADER_OCTETS] != b"\0\0\0\0\0\0\0\1":
        return None
    try:
        after, edns = _step_over(message, HEADER_OCTETS, HEADER_OCTETS, None)
    except QuestionError:
        return None
    return edns if after == len(message) else None


def read_zone_section(message: bytes) -> tuple[bytes, int, int, int]:
    """Name, type, class and end of the question, which UPDATE calls the zone section; the rest is not
    looked at.

    Raises QuestionError when there is not exactly one (RFC 9619), or it is malformed.
    """
    if len(message) < HEADER_OCTETS or _u16(message, 4) != 1:
        raise QuestionError("not exactly one question")
    at = HEADER_OCTETS
    size = len(message)
    while True:
        if at >= size:
            raise QuestionError("the question is cut off")
        length = message[at]
        if length == 0:
            break
        if length > MAX_LABEL_OCTETS:
            raise QuestionError("a compression pointer or an unknown kind of label in the question")
        at += 1 + length
        if at - HEADER_OCTETS >= MAX_NAME_OCTETS:
            raise QuestionError("the name asked for is longer than 255 octets")
    at += 1
    if at + 4 > size:
        raise QuestionError("the question is cut off")
    return message[HEADER_OCTETS:at].lower(), _u16(message, at), _u16(message, at + 2), at + 4


def _step_over(message: bytes, at: int, end: int, edns: Edns | None) -> tuple[int, Edns | None]:
    """Where the record at `at` ends, and what it says if it is an OPT."""
    owner = at
    size = len(message)
    while True:
        if at >= size:
            raise QuestionError("a record is cut off", end, edns)
        length = message[at]
        if length >= _POINTER:
            at += 2
            break
        if length > MAX_LABEL_OCTETS or at - owner >= MAX_NAME_OCTETS:
            raise QuestionError("a record's owner is not a name", end, edns)
        at += 1 + length
        if length == 0:
            break
    rdata = at + _RECORD_HEAD_OCTETS
    if rdata > size:
        raise QuestionError("a record is cut off", end, edns)
    after = rdata + _u16(message, at + 8)
    if _u16(message, at) != OPT:
        if after > size:
            raise QuestionError("a record is cut off", end, edns)
        return after, None
    found = Edns(_u16(message, at + 2), message[at + 5], bool(_u16(message, at + 6) & DO))
    if at - owner != 1:
        raise QuestionError("an OPT record whose owner is not the root", end, found)
    if after > size:
        raise QuestionError("the options of an OPT record are cut off", end, found)
    if rdata == after:
        return after, found
    options = _options(message, rdata, after)
    if options is None:
        raise QuestionError("the options of an OPT record are cut off, or too many", end, found)
    cookie = options.get(COOKIE)
    return after, Edns(found.payload, found.version, found.dnssec_ok, cookie, NSID in options)


def _options(message: bytes, at: int, after: int) -> dict[int, bytes] | None:
    """The content of the first option of each code; None when they do not end where they must."""
    options: dict[int, bytes] = {}
    for _ in range(MAX_OPTIONS):
        if at + 4 > after:
            break
        begin = at + 4
        end = begin + _u16(message, at + 2)
        options.setdefault(_u16(message, at), message[begin:end])
        at = end
    return options if at == after else None


def _u16(message: bytes, at: int) -> int:
    return message[at] << 8 | message[at + 1]

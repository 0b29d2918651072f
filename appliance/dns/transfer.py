"""Copies of a zone for those who follow us: AXFR (RFC 5936) and IXFR (RFC 1995).

Hidden here: which of the two is sent, how its records are cut into messages, and that every message is signed
(RFC 8945 5.3.1). A transfer holds one immutable version of the zone and the changes that lead to it, so what
is sent never mixes two versions, however often the zone changes meanwhile. Making one message costs a bounded
time: some 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import islice
from struct import Struct
from typing import Final

from appliance.dns.answer import Writer, opt_record, refuse, udp_limit
from appliance.dns.journal import Change, Journal
from appliance.dns.numbers import AA, IXFR, NS, QR, RD, SOA, TC
from appliance.dns.question import HEADER_OCTETS, Question
from appliance.dns.sections import MessageError, name_at, read_sections
from appliance.dns.serial import is_newer
from appliance.dns.tsig import Signed, Signer
from appliance.dns.zone import RRset, Zone

# Every name in a message of this length can be pointed to (14 bits); BIND's transfer-message-size is 20,480.
# Only a single record that is larger makes a larger message.
MAX_MESSAGE_OCTETS: Final = 16 * 1024
_PIECE_OCTETS: Final = 4 * 1024
"""Of an rrset that is written at once, so that little is written twice where a message ends."""

_LARGEST_SHARE: Final = 0.5
"""Of the zone: a longer way through the changes is not sent, for the whole zone is not much longer."""
_SAMPLE_NAMES: Final = 2000
"""Names whose size is looked at to know the zone's: exact for smaller ones, and under 1 ms."""

_HEAD: Final = Struct("!6H")
_SOA_NUMBERS_OCTETS: Final = 20
_RECORD_HEAD_OCTETS: Final = 10  # type, class, TTL, length


@dataclass(frozen=True, slots=True)
class Grant:
    """That zones (None: each) may be copied from these addresses (none: from anywhere)."""

    zones: frozenset[bytes] | None = None
    addresses: tuple[IPv4Network | IPv6Network, ...] = ()

    def allows(self, apex: bytes, source: str) -> bool:
        if self.zones is not None and apex not in self.zones:
            return False
        if not self.addresses:
            return True
        address = ip_address(source)
        return any(address in network for network in self.addresses)


@dataclass(frozen=True, slots=True)
class Receiver:
    """What the holder of a key may copy; grants add up. `is_peer`: he gets zones without their live records,
    for he has his own."""

    grants: tuple[Grant, ...]
    is_peer: bool = False

    def may_have(self, apex: bytes, source: str) -> bool:
        return any(grant.allows(apex, source) for grant in self.grants)


Receivers = Mapping[bytes, Receiver]
"""By the name of the key."""


@dataclass(frozen=True, slots=True)
class TransferAsked:
    """A zone of ours was asked for, with a good signature of a key that may have it.

    `question` is that of the query, as it came, behind its header. `serial` is that of the version that the
    asker has, and None for an AXFR. `limit` is how many octets a message may have. `is_peer` as of Receiver.
    """

    head: bytes
    question: bytes
    opt: bytes
    apex: bytes
    serial: int | None
    udp: bool
    limit: int
    signed: Signed
    source: str
    is_peer: bool = False

    @property
    def is_incremental(self) -> bool:
        return self.serial is not None

    def message(self, writer: Writer, count: int, *, is_first: bool, flags: int = 0) -> bytes:
        """`count` answer records as a message without a signature. Only the first has a question and an
        OPT."""
        asked = int.from_bytes(self.head[2:4], "big")
        opt = self.opt if is_first else b""
        head = _HEAD.pack(
            int.from_bytes(self.head[:2], "big"),
            QR | AA | (asked & RD) | flags,
            1 if is_first else 0,
            count,
            0,
            1 if opt else 0,
        )
        return head + bytes(writer.octets[HEADER_OCTETS:]) + opt

    def refusal(self, rcode: int, wall: int) -> bytes:
        """A signed answer that holds nothing but `rcode`."""
        query = self.head + self.question
        return self.signer().sign(refuse(query, rcode, len(query)), wall)

    def signer(self) -> Signer:
        return Signer(self.signed.key, self.signed.mac)


class TransferMalformed(Exception):
    """The request for a transfer does not say what it has to say."""


def read_transfer(
    query: bytes, question: Question, signed: Signed, *, udp: bool, source: str, is_peer: bool = False
) -> TransferAsked:
    """What `query` (as received, with the well-formed `question` of type AXFR or IXFR) asks for.

    Raises TransferMalformed.
    """
    serial = _serial_in(signed.message, question.name) if question.qtype == IXFR else None
    opt = opt_record(question.edns, 0)
    limit = udp_limit(question.edns) if udp else MAX_MESSAGE_OCTETS
    asked = query[HEADER_OCTETS : question.end]
    return TransferAsked(
        query[:HEADER_OCTETS], asked, opt, question.name, serial, udp, limit, signed, source, is_peer
    )


def _serial_in(message: bytes, apex: bytes) -> int:
    """The serial of the SOA in the authority section (RFC 1995 3)."""
    try:
        (soa,) = read_sections(message).authority
        owner, _ = name_at(message, soa.owner)
        _, at = name_at(message, soa.rdata)
        _, at = name_at(message, at)
    except (MessageError, ValueError):
        raise TransferMalformed("an IXFR with a malformed SOA") from None
    if soa.rtype != SOA or owner != apex or at + _SOA_NUMBERS_OCTETS != soa.end:
        raise TransferMalformed("an IXFR without the SOA of the zone")
    return int.from_bytes(message[at : at + 4], "big")


class Kind(Enum):
    """What is sent."""

    WHOLE = "AXFR"
    WHOLE_INSTEAD = "AXFR instead of IXFR"
    CHANGES = "IXFR"
    UP_TO_DATE = "IXFR: up to date"


class Transfer:
    """One answer: `next_message` until it gives None. What was asked, and `zone` as it is now.

    `kind` is what is sent; `records` and `messages` count what was made so far.
    """

    def __init__(self, asked: TransferAsked, zone: Zone, journal: Journal) -> None:
        self.asked = asked
        self.serial = zone.serial
        self.records = 0
        self.messages = 0
        self._signer = asked.signer()
        self._zone = zone
        changes = _changes(asked, zone, journal)
        if asked.serial is None:
            self.kind = Kind.WHOLE
        elif changes is None:
            self.kind = Kind.WHOLE_INSTEAD
        else:
            self.kind = Kind.CHANGES if changes else Kind.UP_TO_DATE
        self._messages = self._made(_whole(zone) if changes is None else _incremental(zone, changes))

    def next_message(self, wall: int) -> bytes | None:
        """The next message, signed at the Unix time `wall`; None after the last one."""
        message = next(self._messages, None)
        return None if message is None else self._signer.sign(message, wall)

    def datagram(self, wall: int) -> bytes:
        """The answer over UDP: all of it where it fits, else the SOA, and the asker comes again over TCP
        (RFC 1995 2)."""
        first = next(self._messages)
        if self._is_too_long(first) or next(self._messages, None) is not None:
            first = self._message((self._zone.soa,))
            if self._is_too_long(first):
                first = self._message((), TC)
            self.messages, self.records = 1, 1
        return self._signer.sign(first, wall)

    def _is_too_long(self, message: bytes) -> bool:
        return len(message) + self.asked.signed.key.record_octets > self.asked.limit

    def _message(self, rrsets: tuple[RRset, ...], flags: int = 0) -> bytes:
        writer = Writer(self.asked.question)
        return self.asked.message(writer, writer.write(rrsets), is_first=True, flags=flags)

    def _made(self, rrsets: Iterator[RRset]) -> Iterator[bytes]:
        """The messages without their signatures, one for each step."""
        asked = self.asked
        room = asked.limit - asked.signed.key.record_octets
        writer, left, count = Writer(asked.question), room - len(asked.opt), 0

        def finished() -> bytes:
            message = asked.message(writer, count, is_first=not self.messages)
            self.messages += 1
            self.records += count
            return message

        for piece in _pieces(rrsets):
            end = len(writer.octets)
            written = writer.write((piece,))
            if len(writer.octets) > left and count:
                del writer.octets[end:]
                yield finished()
                writer, left, count = Writer(b""), room, 0
                written = writer.write((piece,))
            count += written
        yield finished()


def _changes(asked: TransferAsked, zone: Zone, journal: Journal) -> tuple[Change, ...] | None:
    """The changes to send, none where the asker is up to date; None when he gets the whole zone."""
    if asked.serial is None:
        return None
    if asked.serial == zone.serial or is_newer(asked.serial, zone.serial):
        return ()
    changes = journal.since(asked.serial)
    # A serial that another nameserver of the zone gave out is never in our journal.
    if not changes or changes[-1].new_serial != zone.serial:
        return None
    octets = sum(change.octets for change in changes)
    return changes if octets <= _LARGEST_SHARE * _octets_of(zone) else None


def _octets_of(zone: Zone) -> float:
    """The size of the zone without compression; of a large one, estimated from the first of its names."""
    size = len(zone.rrsets)
    sample = sum(
        len(rrset.rdatas) * (len(rrset.name) + _RECORD_HEAD_OCTETS) + sum(map(len, rrset.rdatas))
        for node in islice(zone.rrsets.values(), _SAMPLE_NAMES)
        for rrset in node.values()
    )
    return sample * max(1.0, size / _SAMPLE_NAMES)


def _whole(zone: Zone) -> Iterator[RRset]:
    """The SOA, everything, and the SOA again (RFC 5936 2.2). NS comes second: it is short, so that the first
    message says to an asker of IXFR which kind of answer he gets."""
    soa, apex = zone.soa, zone.node(zone.apex)
    yield soa
    if NS in apex:
        yield apex[NS]
    yield from (rrset for rtype, rrset in apex.items() if rtype not in (SOA, NS))
    for name, node in zone.rrsets.items():
        if name != zone.apex:
            yield from node.values()
    yield soa


def _incremental(zone: Zone, changes: tuple[Change, ...]) -> Iterator[RRset]:
    """RFC 1995 4; the SOA alone where nothing has changed."""
    yield zone.soa
    for change in changes:
        yield change.old_soa
        yield from change.removed
        yield change.new_soa
        yield from change.added
    if changes:
        yield zone.soa


def _pieces(rrsets: Iterator[RRset]) -> Iterator[RRset]:
    """The rrsets, each cut into pieces of at most _PIECE_OCTETS or one record."""
    for rrset in rrsets:
        head = len(rrset.name) + _RECORD_HEAD_OCTETS
        if len(rrset.rdatas) == 1 or sum(map(len, rrset.rdatas)) + head * len(rrset.rdatas) <= _PIECE_OCTETS:
            yield rrset
            continue
        piece: list[bytes] = []
        octets = 0
        for rdata in rrset.rdatas:
            octets += head + len(rdata)
            if octets > _PIECE_OCTETS and piece:
                yield RRset(rrset.name, rrset.rtype, rrset.ttl, tuple(piece))
                piece, octets = [], head + len(rdata)
            piece.append(rdata)
        yield RRset(rrset.name, rrset.rtype, rrset.ttl, tuple(piece))

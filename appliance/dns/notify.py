"""Telling the secondaries that a zone has changed (RFC 1996): when to whom, and what they say to it.

Hidden here: the message, how often it is repeated, and that changes which come quickly are told together. A
NOTIFY is only a hint: a secondary that heard none asks by itself after the SOA's REFRESH.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from appliance.dns.answer import Writer
from appliance.dns.numbers import AA, IN, NOTIFY, SOA
from appliance.dns.question import HEADER_OCTETS, QuestionError, read_zone_section
from appliance.dns.tsig import Key, Signer, TsigRefused, Verifier
from appliance.dns.zone import RRset, soa_serial

APART_SECONDS: Final = 1.0
"""Between two notices of one zone to one secondary: what changes meanwhile is told with the next."""
REPEAT_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""How long each attempt waits for its answer. A minute outlasts the restart of a secondary; five repetitions
are RFC 1996's (3.6), who begins with a minute because nobody changed zones every second then. All of them are
the same octets, so their signature has to be good for as long."""

_HEAD: Final = Struct("!6H")
_QUESTION: Final = Struct("!HH")


@dataclass(frozen=True, slots=True)
class Secondary:
    """Who is told, and the key that it is told with."""

    host: str
    port: int
    key: Key | None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Noticed:
    """The secondary knows of version `serial` of the zone."""

    secondary: Secondary
    apex: bytes
    serial: int


@dataclass(frozen=True, slots=True)
class NoticeRefused:
    """The secondary does not want to hear of this zone, or not from us."""

    secondary: Secondary
    apex: bytes
    what: str


@dataclass(frozen=True, slots=True)
class NoticeGivenUp:
    """The secondary has not answered for about a minute: it will find out by itself."""

    secondary: Secondary
    apex: bytes
    serial: int


Event = Noticed | NoticeRefused | NoticeGivenUp


@dataclass(frozen=True, slots=True)
class ToSend:
    """A datagram, and to whom."""

    secondary: Secondary
    octets: bytes


@dataclass(slots=True)
class _Notice:
    """What one secondary has been told of one zone. `due`: when to send next, or to give up, or None."""

    secondary: Secondary
    soa: RRset
    due: float | None = None
    attempts: int = 0
    sent_at: float | None = None
    message: bytes = b""  # of the version `soa`; empty: not made yet
    mac: bytes = b""
    told: int | None = None


class Notices:
    """All notices of all zones to `secondaries`; `message_id` gives a random number of 16 bits."""

    def __init__(self, secondaries: Sequence[Secondary], message_id: Callable[[], int]) -> None:
        self._secondaries = tuple(secondaries)
        self._message_id = message_id
        self._notices: dict[tuple[Secondary, bytes], _Notice] = {}

    def published(self, soa: RRset, now: float) -> None:
        """A zone has a new version, with this SOA."""
        for secondary in self._secondaries:
            notice = self._notices.setdefault((secondary, soa.name), _Notice(secondary, soa))
            notice.soa = soa
            notice.message = b""
            notice.attempts = 0
            notice.due = now if notice.sent_at is None else max(now, notice.sent_at + APART_SECONDS)

    def removed(self, apex: bytes) -> None:
        """The zone is no longer served."""
        for secondary in self._secondaries:
            self._notices.pop((secondary, apex), None)

    def next_deadline(self) -> float | None:
        return min((notice.due for notice in self._notices.values() if notice.due is not None), default=None)

    def tick(self, now: float, wall: int) -> tuple[list[ToSend], list[Event]]:
        """What to send now, and what was given up."""
        to_send: list[ToSend] = []
        events: list[Event] = []
        for (secondary, apex), notice in self._notices.items():
            if notice.due is None or notice.due > now:
                continue
            if notice.attempts == len(REPEAT_SECONDS):
                notice.due = None
                events.append(NoticeGivenUp(secondary, apex, soa_serial(notice.soa)))
                continue
            if not notice.message:
                self._write(notice, wall)
            notice.due = now + REPEAT_SECONDS[notice.attempts]
            notice.attempts += 1
            notice.sent_at = now
            to_send.append(ToSend(secondary, notice.message))
        return to_send, events

    def received(self, octets: bytes, host: str, port: int, wall: int) -> Event | None:
        """A datagram came from there. None: it is not an answer to anything that was sent."""
        notice = self._answered(octets, host, port)
        if notice is None:
            return None
        secondary, apex = notice.secondary, notice.soa.name
        rcode = octets[3] & 0xF
        if secondary.key is not None:
            try:
                Verifier(secondary.key, notice.mac).check(octets, wall)
            except TsigRefused as refused:  # anybody can have sent it: it ends nothing
                return NoticeRefused(secondary, apex, str(refused))
        notice.due = None
        if rcode:
            return NoticeRefused(secondary, apex, f"the answer is rcode {rcode}")
        notice.told = soa_serial(notice.soa)
        return Noticed(secondary, apex, notice.told)

    def told(self) -> list[tuple[Secondary, bytes, int | None]]:
        """Of which version of which zone each secondary has answered that it heard."""
        return [(secondary, apex, notice.told) for (secondary, apex), notice in self._notices.items()]

    def _answered(self, octets: bytes, host: str, port: int) -> _Notice | None:
        """The notice that was sent last and that this answers."""
        if len(octets) < HEADER_OCTETS or octets[2] & 0xF8 != 0x80 | NOTIFY << 3:
            return None
        try:
            name, qtype, qclass, _ = read_zone_section(octets)
        except QuestionError:
            return None
        for secondary in self._secondaries:
            notice = self._notices.get((secondary, name))
            if (
                notice is not None
                and (secondary.host, secondary.port) == (host, port)
                and (qtype, qclass) == (SOA, IN)
                and notice.due is not None
                and notice.message[:2] == octets[:2]
            ):
                return notice
        return None

    def _write(self, notice: _Notice, wall: int) -> None:
        """The message (RFC 1996 3.7: with the SOA, that a secondary which has it already need not ask)."""
        question = notice.soa.name + _QUESTION.pack(SOA, IN)
        writer = Writer(question)
        count = writer.write((notice.soa,))
        head = _HEAD.pack(self._message_id(), NOTIFY << 11 | AA, 1, count, 0, 0)
        notice.message = head + bytes(writer.octets[HEADER_OCTETS:])
        if notice.secondary.key is not None:
            signer = Signer(notice.secondary.key)
            notice.message = signer.sign(notice.message, wall)
            notice.mac = signer.mac

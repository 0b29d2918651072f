"""A message in; an answer out, or why there is none.

Hidden here: which of the parts is asked in which order, and the refusal for everything that is not a
plain query. The cheapest comes first: a finished answer, then what needs no answer, then refusals, then
the zones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType

from appliance.dns.answer import MAX_TCP_OCTETS, compose, refuse, udp_limit
from appliance.dns.lookup import look_up
from appliance.dns.numbers import (
    AXFR,
    BADVERS,
    FORMERR,
    IN,
    IXFR,
    NOTAUTH,
    NOTIFY,
    NOTIMP,
    QUERY,
    REFUSED,
    SERVFAIL,
    SOA,
    UPDATE,
)
from appliance.dns.question import HEADER_OCTETS, Question, QuestionError, read_question, read_zone_section
from appliance.dns.table import BARE_OPT_OCTETS, Table
from appliance.dns.transfer import Receivers, TransferAsked, TransferMalformed, read_transfer
from appliance.dns.tsig import Keys, Signed, Signer, TsigError, check
from appliance.dns.zone import Zone


class Dropped(Enum):
    """Why a message gets no answer."""

    TOO_SHORT = "shorter than a header"
    RESPONSE = "a response: answering one would make two servers talk for ever"


class Counted(Enum):
    """What else is counted."""

    COMPOSED = "answers that were not in the table"
    FAULT = "messages on which our own code failed: answered SERVFAIL"
    BAD_SIGNATURE = "signatures that were not good"
    TRANSFER_REFUSED = "transfers that were refused"


class Responder:
    """Answers messages from a set of zones. Each zone is replaced whole; no answer mixes two versions of one.

    `keys` are those that a signature may be of, `receivers` which of them get transfers. `counters` counts
    by reason what was dropped, and what Counted names. `last_fault` is the exception of
    the last message on which our own code failed.
    """

    def __init__(self, zones: Iterable[Zone] = ()) -> None:
        self._zones = {zone.apex: zone for zone in zones}
        self._table = Table()
        self.keys: Keys = {}
        self.receivers: Receivers = {}
        self.counters: Counter[Dropped | Counted] = Counter()
        self.last_fault: Exception | None = None

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        """The version of each zone that is being served, by apex."""
        return MappingProxyType(self._zones)

    def replace(self, zone: Zone) -> None:
        """Serve this version of its zone from now on."""
        if zone.apex in self._zones:
            self._table.drop(zone.apex)
        else:
            self._table.clear()  # names that were refused, or another zone's, are this one's now
        self._zones[zone.apex] = zone

    def remove(self, apex: bytes) -> None:
        """Serve the zone `apex` no longer."""
        del self._zones[apex]
        self._table.clear()

    def respond(
        self, message: bytes, *, udp: bool, source: str, now: float, wall: float
    ) -> bytes | Dropped | TransferAsked:
        """The answer to `message`, which came from the address `source`. Never raises, whatever the octets.

        `now` is monotonic, `wall` the Unix time (which signatures and cookies go by), both in seconds.
        """
        answer = self._table.answer(message, udp)
        if answer is not None:
            return answer
        try:
            outcome = self._miss(message, udp, source, now, wall)
        except Exception as error:
            # A mistake of ours must cost one query, not the process that holds everybody's connections.
            self.counters[Counted.FAULT] += 1
            self.last_fault = error
            return refuse(message, SERVFAIL)
        if isinstance(outcome, Dropped):
            self.counters[outcome] += 1
        return outcome

    def _miss(
        self, message: bytes, udp: bool, source: str, now: float, wall: float
    ) -> bytes | Dropped | TransferAsked:
        if len(message) < HEADER_OCTETS:
            return Dropped.TOO_SHORT
        if message[2] & 0x80:
            return Dropped.RESPONSE
        opcode = message[2] >> 3 & 0xF
        if opcode != QUERY:
            return self._not_a_query(message, opcode)
        try:
            question = read_question(message)
        except QuestionError as error:
            return refuse(message, FORMERR, error.end, error.edns)
        edns = question.edns
        if _may_be_signed(message, question):
            checked = check(message, self.keys, int(wall))
            if isinstance(checked, TsigError):
                self.counters[Counted.BAD_SIGNATURE] += 1
                return checked.answer(refuse(message, checked.rcode, question.end, edns), int(wall))
            if isinstance(checked, Signed):
                return self._to_signed(message, question, checked, udp, source, int(wall))
        rcode = self._refusal(question)
        if rcode is None and question.qtype in (AXFR, IXFR):
            self.counters[Counted.TRANSFER_REFUSED] += 1
            rcode = NOTIMP if udp and question.qtype == AXFR else REFUSED
        if rcode is not None:
            return refuse(message, rcode, question.end, edns)
        plain = _without_options(message, question)
        if plain is not message:
            answer = self._table.answer(plain, udp)
            if answer is not None:
                return answer
        found = look_up(self._zones, question.name, question.qtype)
        answer = compose(message, question.end, found, edns, udp_limit(edns) if udp else MAX_TCP_OCTETS)
        self.counters[Counted.COMPOSED] += 1
        if found.apexes:
            self._table.keep(plain, udp, question.end, answer, found.apexes)
        return answer

    def _to_signed(
        self, message: bytes, question: Question, signed: Signed, udp: bool, source: str, wall: int
    ) -> bytes | TransferAsked:
        """The answer to a query with a good signature, itself signed (RFC 8945 5.4). Never from the table: it
        would have no room left for the signature."""
        edns = question.edns
        rcode = self._refusal(question)
        if rcode is None and question.qtype in (AXFR, IXFR):
            asked = self._transfer(message, question, signed, udp, source)
            if isinstance(asked, TransferAsked):
                return asked
            self.counters[Counted.TRANSFER_REFUSED] += 1
            rcode = asked
        if rcode is None:
            found = look_up(self._zones, question.name, question.qtype)
            limit = udp_limit(edns) if udp else MAX_TCP_OCTETS
            answer = compose(message, question.end, found, edns, limit - signed.key.record_octets)
            self.counters[Counted.COMPOSED] += 1
        else:
            answer = refuse(message, rcode, question.end, edns)
        return Signer(signed.key, signed.mac).sign(answer, wall)

    def _transfer(
        self, message: bytes, question: Question, signed: Signed, udp: bool, source: str
    ) -> TransferAsked | int:
        """The transfer asked for, or the rcode that refuses it."""
        if udp and question.qtype == AXFR:
            return NOTIMP  # RFC 5936 4.2
        receiver = self.receivers.get(signed.key.name)
        if receiver is None or not receiver.may_have(question.name, source):
            return REFUSED
        if question.name not in self._zones:
            return NOTAUTH
        try:
            return read_transfer(message, question, signed, udp=udp, source=source)
        except TransferMalformed:
            return FORMERR

    def _refusal(self, question: Question) -> int | None:
        """The rcode that ends a well-formed query without a look-up."""
        if question.edns is not None and question.edns.version != 0:
            return BADVERS
        if question.qclass != IN:
            return REFUSED  # CHAOS and its version.bind too
        return None

    def _not_a_query(self, message: bytes, opcode: int) -> bytes:
        """UPDATE and NOTIFY are understood and not taken; of other opcodes we do not even know the form."""
        if opcode not in (UPDATE, NOTIFY):
            return refuse(message, NOTIMP)
        try:
            name, qtype, qclass, end = read_zone_section(message)
        except QuestionError:
            return refuse(message, FORMERR)
        if opcode == UPDATE and qtype != SOA:
            return refuse(message, FORMERR)  # RFC 2136 3.1.1
        if qclass != IN or name not in self._zones:
            return refuse(message, NOTAUTH, end)
        return refuse(message, NOTIMP, end)


def _may_be_signed(message: bytes, question: Question) -> bool:
    """Whether a record follows that is not the OPT."""
    return message[11] > (question.edns is not None)  # a well-formed question has at most MAX_ADDITIONAL


def _without_options(message: bytes, question: Question) -> bytes:
    """The same query with an empty OPT, if the OPT is all that follows the question. We act on no option
    yet."""
    bare = question.end + BARE_OPT_OCTETS
    if question.edns is None or len(message) <= bare or message[10:12] != b"\x00\x01":
        return message
    return message[: bare - 2] + b"\x00\x00"

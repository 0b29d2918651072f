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
from typing import Final, NamedTuple, TypeVar

from appliance.dns.answer import (
    MAX_TCP_OCTETS,
    MIN_UDP_OCTETS,
    compose,
    refuse,
    udp_limit,
    with_options,
)
from appliance.dns.cookies import CLIENT_OCTETS, OPTION_OCTETS
from appliance.dns.counts import OTHER, Counts, Kind
from appliance.dns.followed import Followed, ForwardAsked, NotifyHeard, hear, pass_on
from appliance.dns.gate import Gate, MalformedCookie, Terms, explained, slip
from appliance.dns.lookup import Found, look_up
from appliance.dns.numbers import (
    AXFR,
    BADCOOKIE,
    BADVERS,
    FORMERR,
    IN,
    IXFR,
    NOERROR,
    NOT_AUTHORITATIVE,
    NOT_SUPPORTED,
    NOTAUTH,
    NOTIFY,
    NOTIMP,
    QUERY,
    REFUSED,
    SERVFAIL,
    SOA,
    UPDATE,
)
from appliance.dns.question import (
    HEADER_OCTETS,
    Question,
    QuestionError,
    read_options_alone,
    read_question,
    read_zone_section,
)
from appliance.dns.ratelimit import Limited
from appliance.dns.rotation import Rotation, rotated
from appliance.dns.table import BARE_OPT_OCTETS, HEAD_OCTETS, SERIAL_OCTETS, Table
from appliance.dns.touched import zone_at
from appliance.dns.transfer import Receivers, TransferAsked, TransferMalformed, read_transfer
from appliance.dns.tsig import BADKEY, Keys, Signed, Signer, TsigError, Unsigned, check
from appliance.dns.update import UpdateAsked, UpdateRefused, read_update
from appliance.dns.zone import Zone

# The RDLENGTH of an OPT record and the head of its only option, a client's cookie or the whole of one of
# ours; and the RDLENGTH without it.
_CLIENT_COOKIE: Final = b"\x00\x0c\x00\x0a\x00\x08"
_WHOLE_COOKIE: Final = b"\x00\x1c\x00\x0a\x00\x18"
_NO_OPTIONS: Final = b"\x00\x00"

# With a cookie this fits whatever size the query allows.
_SMALL_OCTETS: Final = MIN_UDP_OCTETS - 2 - OPTION_OCTETS - SERIAL_OCTETS  # without the ID

# All errors that a source causes are one answer to rate limiting.
_ERROR: Final = b"error"


class Dropped(Enum):
    """Why a message gets no answer."""

    TOO_SHORT = "shorter than a header"
    RESPONSE = "a response: answering one would make two servers talk for ever"
    OVER_LIMIT = "its answer was over the rate limit"


class Counted(Enum):
    """What else is counted."""

    __hash__ = object.__hash__  # Enum's own takes longer than the addition

    COMPOSED = "answers that were not in the table"
    SLIPPED = "answers over the rate limit: told to come by TCP, or with the cookie that was given"
    FAULT = "messages on which our own code failed: answered SERVFAIL"
    BAD_SIGNATURE = "signatures that were not good"
    TRANSFER_REFUSED = "transfers that were refused"


_Elsewhere = TypeVar("_Elsewhere", ForwardAsked, NotifyHeard)


class _Asker(NamedTuple):
    """How a message came, and when."""

    udp: bool
    source: str
    now: float
    wall: float


class Responder:
    """Answers messages from a set of zones. Each zone is replaced whole; no answer mixes two versions of one.

    `keys` are those that a signature may be of, `receivers` which of them get transfers; the zones of
    `followed` have their primary elsewhere. The UPDATEs of `introducers` are for this nameserver itself, also
    of those zones; the keys of `clients` are good where the zones are ours. `counters` counts
    by reason what was dropped, and what Counted names. `last_fault` is the exception of
    the last message on which our own code failed. `gate` says on what terms answers go out; `rotate`:
    rrsets begin with another record from answer to answer.
    """

    def __init__(self, zones: Iterable[Zone] = (), *, gate: Gate | None = None, rotate: bool = False) -> None:
        self._zones = {zone.apex: zone for zone in zones}
        self._gate = gate or Gate()
        self._cookies = self._gate.cookies
        self._rate_limit = self._gate.rate_limit
        self._counts = Counts()
        self._rotation = Rotation() if rotate else None
        self._table = Table()
        self._tables = (self._table, *(self._rotation or ()))
        self._entry = self._table.get
        self.keys: Keys = {}
        self.receivers: Receivers = {}
        self.followed: Followed = {}
        self.introducers: Keys = {}
        self.clients: Keys = {}
        self.counters: Counter[Dropped | Counted] = Counter()
        self.last_fault: Exception | None = None

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        """The version of each zone that is being served, by apex."""
        return MappingProxyType(self._zones)

    @property
    def answers(self) -> Mapping[Kind, int]:
        """How many answers of each kind were given."""
        return self._counts.read()

    def replace(self, zone: Zone, touched: Iterable[bytes] | None = None) -> None:
        """Serve this version of its zone from now on.

        `touched` is what `Zone.changed` said of the change from the version before; without it all answers
        from that one are forgotten.
        """
        for table in self._tables:
            if zone.apex not in self._zones:
                table.clear()  # names that were refused, or another zone's, are this one's now
            else:
                table.drop((zone_at(zone.apex),) if touched is None else touched)
                table.turn(zone.apex, zone.serial)
        self._zones[zone.apex] = zone

    def remove(self, apex: bytes) -> None:
        """Serve the zone `apex` no longer."""
        del self._zones[apex]
        for table in self._tables:
            table.clear()

    def respond(
        self, message: bytes, *, udp: bool, source: str, now: float, wall: float
    ) -> bytes | Dropped | TransferAsked | UpdateAsked | ForwardAsked | NotifyHeard:
        """The answer to `message`, which came from the address `source`. Never raises, whatever the octets.

        `now` is monotonic, `wall` the Unix time (which signatures and cookies go by), both in seconds.
        """
        # HOT, so all in one: a finished answer within the rate limit. As it came a query in lower case is the
        # key of its answer but for the ID (see Table), then without the cookie, then in lower case.
        asked = message[2:]
        entry = self._entry(asked if udp else (asked,))
        verdict = name = None
        if entry is None:
            if self._cookies is not None and (size := _cookie_octets(message)):
                verdict = self._cookies.verdict(source, message[-size:], wall)
                asked = asked[: -size - len(_CLIENT_COOKIE)] + _NO_OPTIONS
                entry = self._entry(asked if udp else (asked,))
            if entry is None:
                root = message.find(0, HEADER_OCTETS)
                name = message[HEADER_OCTETS:root]
                asked = asked[:HEAD_OCTETS] + name.lower() + asked[root - 2 :]
                entry = self._entry(asked if udp else (asked,))
        if entry is not None:
            octets, identity, tally, serial, after = entry
            if serial is not None:
                octets += serial.octets + after
            if verdict is None or len(octets) <= _SMALL_OCTETS:
                if udp and self._rate_limit is not None and (verdict is None or not verdict.valid):
                    over = self._rate_limit.limited(source, identity, now)
                    if over is not None:
                        return self._held_back(over, message, _Asker(udp, source, now, wall))
                tally.count += 1
                if name is not None:
                    octets = octets[:HEAD_OCTETS] + name + octets[HEAD_OCTETS + len(name) :]
                if verdict is None:
                    return message[:2] + octets
                return b"".join((message[:2], octets[: -len(_NO_OPTIONS)], verdict.rdata))
        try:
            outcome = self._miss(message, _Asker(udp, source, now, wall))
        except Exception as error:
            # A mistake of ours must cost one query, not the process that holds everybody's connections.
            self.counters[Counted.FAULT] += 1
            self.last_fault = error
            return refuse(message, SERVFAIL)
        if isinstance(outcome, Dropped):
            self.counters[outcome] += 1
        return outcome

    def _miss(
        self, message: bytes, asker: _Asker
    ) -> bytes | Dropped | TransferAsked | UpdateAsked | ForwardAsked | NotifyHeard:
        if len(message) < HEADER_OCTETS:
            return Dropped.TOO_SHORT
        if message[2] & 0x80:
            return Dropped.RESPONSE
        opcode = message[2] >> 3 & 0xF
        if opcode == UPDATE:
            return self._to_update(message, asker)
        if opcode != QUERY:
            return self._not_a_query(message, opcode, asker)
        try:
            question = read_question(message)
        except QuestionError as error:
            return self._error(self._to_malformed(message, error, asker), asker)
        edns = question.edns
        if _may_be_signed(message, question):
            checked = self._check(message, int(asker.wall))
            if isinstance(checked, TsigError):
                self.counters[Counted.BAD_SIGNATURE] += 1
                refusal = refuse(message, checked.rcode, question.end, edns)
                return self._error(checked.answer(refusal, int(asker.wall)), asker)
            if isinstance(checked, Signed):
                return self._to_signed(message, question, checked, asker)
        try:
            terms = self._gate.terms(edns, udp=asker.udp, source=asker.source, wall=asker.wall)
        except MalformedCookie:
            return self._error(refuse(message, FORMERR, question.end, edns), asker)
        rcode = self._refusal(question)
        if rcode is None and question.qtype in (AXFR, IXFR):
            self.counters[Counted.TRANSFER_REFUSED] += 1
            is_ours = question.name in self._zones
            rcode = NOTIMP if asker.udp and question.qtype == AXFR else REFUSED if is_ours else NOTAUTH
        if rcode is not None:
            options = b"" if rcode == BADVERS else explained(terms, NOT_SUPPORTED)
            return self._error(refuse(message, rcode, question.end, edns, options), asker, terms)
        return self._to_plain(message, question, terms, asker)

    def _to_plain(self, message: bytes, question: Question, terms: Terms, asker: _Asker) -> bytes | Dropped:
        """The answer to a query that the zones are asked."""
        plain = _without_options(message, question)
        done = self._table.find(plain, asker.udp)
        if done is None and self._rotation is not None:
            done = self._rotation.table(message).find(plain, asker.udp)
        if done is None:
            return self._compose(message, plain, question, terms, asker)
        answer, entry = done
        tally = entry.tally
        over = self._gate.limited(terms, asker.source, entry.identity, asker.now)
        if over is not None:
            return self._instead(over, message, question, terms)
        tally.count += 1
        if len(answer) + len(terms.options) <= _limit(question, asker):
            return with_options(answer, terms.options) if terms.options else answer
        return self._octets(message, question, self._found(message, question), terms.options, asker)

    def _compose(
        self, message: bytes, plain: bytes, question: Question, terms: Terms, asker: _Asker
    ) -> bytes | Dropped:
        """The same, made of records; `plain` is the query without its options, under which it is kept."""
        found = self._found(message, question)
        if not found.apexes:
            options = explained(terms, NOT_AUTHORITATIVE)
            refusal = refuse(message, found.rcode, question.end, question.edns, options)
            return self._error(refusal, asker, terms)
        identity = found.identity(question.qtype)
        over = self._gate.limited(terms, asker.source, identity, asker.now)
        if over is not None:
            return self._instead(over, message, question, terms)
        tally = self._counts.tally(found.apexes[0], question.qtype, found.rcode, asker.udp)
        tally.count += 1
        answer = self._octets(message, question, found, b"", asker)
        table = self._table
        if self._rotation is not None and any(len(rrset.rdatas) > 1 for rrset in found.answer):
            table = self._rotation.table(message)
        table.keep(plain, asker.udp, question.end, answer, found, identity=identity, tally=tally)
        if not terms.options:
            return answer
        if len(answer) + len(terms.options) <= _limit(question, asker):
            return with_options(answer, terms.options)
        return self._octets(message, question, found, terms.options, asker)

    def _found(self, message: bytes, question: Question) -> Found:
        found = look_up(self._zones, question.name, question.qtype)
        if self._rotation is not None:
            found.answer = rotated(found.answer, message)
        return found

    def _octets(
        self, message: bytes, question: Question, found: Found, options: bytes, asker: _Asker
    ) -> bytes:
        self.counters[Counted.COMPOSED] += 1
        return compose(message, question.end, found, question.edns, _limit(question, asker), options)

    def _error(self, answer: bytes, asker: _Asker, terms: Terms | None = None) -> bytes | Dropped:
        """An answer that says no more than what is wrong: all of them are one to rate limiting. What slips is
        the error itself, which is no larger than what could be said in its place."""
        terms = terms or Terms(proven=not asker.udp)
        over = self._gate.limited(terms, asker.source, _ERROR, asker.now)
        if over is Limited.DROPPED:
            return Dropped.OVER_LIMIT
        self._counts.tally(None, OTHER, answer[3] & 0xF, asker.udp).count += 1
        return answer

    def _held_back(self, over: Limited, message: bytes, asker: _Asker) -> bytes | Dropped:
        """What becomes of a query whose finished answer is over the rate limit."""
        if over is Limited.DROPPED:
            self.counters[Dropped.OVER_LIMIT] += 1
            return Dropped.OVER_LIMIT
        question = read_question(message)
        terms = self._gate.terms(question.edns, udp=True, source=asker.source, wall=asker.wall)
        return self._instead(over, message, question, terms)

    def _instead(self, over: Limited, message: bytes, question: Question, terms: Terms) -> bytes | Dropped:
        if over is Limited.DROPPED:
            return Dropped.OVER_LIMIT
        self.counters[Counted.SLIPPED] += 1
        return slip(message, question.end, question.edns, terms)

    def _to_malformed(self, message: bytes, error: QuestionError, asker: _Asker) -> bytes:
        """FORMERR, unless it is a message that asks nothing but wants a cookie (RFC 7873 5.4)."""
        edns = read_options_alone(message)
        if self._cookies is None or edns is None or edns.cookie is None or edns.version != 0:
            return refuse(message, FORMERR, error.end, error.edns)
        try:
            terms = self._gate.terms(edns, udp=True, source=asker.source, wall=asker.wall)
        except MalformedCookie:
            return refuse(message, FORMERR, error.end, edns)
        is_good = terms.proven or len(edns.cookie) == CLIENT_OCTETS
        return refuse(message, NOERROR if is_good else BADCOOKIE, HEADER_OCTETS, edns, terms.options)

    def _to_signed(
        self, message: bytes, question: Question, signed: Signed, asker: _Asker
    ) -> bytes | TransferAsked:
        """The answer to a query with a good signature, itself signed (RFC 8945 5.4). Never from the table: it
        would have no room left for the signature."""
        edns = question.edns
        rcode = self._refusal(question)
        if rcode is None and question.qtype in (AXFR, IXFR):
            asked = self._transfer(message, question, signed, asker.udp, asker.source)
            if isinstance(asked, TransferAsked):
                return asked
            self.counters[Counted.TRANSFER_REFUSED] += 1
            rcode = asked
        if rcode is None:
            found = look_up(self._zones, question.name, question.qtype)
            limit = _limit(question, asker) - signed.key.record_octets
            answer = compose(message, question.end, found, edns, limit)
            self.counters[Counted.COMPOSED] += 1
        else:
            answer = refuse(message, rcode, question.end, edns)
        return Signer(signed.key, signed.mac).sign(answer, int(asker.wall))

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
            is_peer = receiver.is_peer
            return read_transfer(message, question, signed, udp=udp, source=source, is_peer=is_peer)
        except TransferMalformed:
            return FORMERR

    def _refusal(self, question: Question) -> int | None:
        """The rcode that ends a well-formed query without a look-up."""
        if question.edns is not None and question.edns.version != 0:
            return BADVERS
        if question.qclass != IN:
            return REFUSED  # CHAOS and its version.bind too
        return None

    def _to_update(self, message: bytes, asker: _Asker) -> bytes | Dropped | UpdateAsked | ForwardAsked:
        """Only from who has signed it with a key of ours it is asked any further what an UPDATE wants."""
        wall = int(asker.wall)
        try:
            name, qtype, qclass, end = read_zone_section(message)
        except QuestionError:
            return self._error(refuse(message, FORMERR), asker)
        if qtype != SOA:
            return self._error(refuse(message, FORMERR), asker)  # RFC 2136 3.1.1
        is_followed = qclass == IN and name in self.followed
        is_ours = is_followed or (qclass == IN and name in self._zones)
        if is_followed:
            checked = check(message, self.introducers, wall)
            if not isinstance(checked, Signed) and not _is_of_a_key(checked):
                found = pass_on(message, name, end, self.keys, source=asker.source, wall=wall)
                return self._elsewhere(found, message, end, asker)
        else:
            checked = self._check(message, wall)
        if isinstance(checked, TsigError):
            self.counters[Counted.BAD_SIGNATURE] += 1
            return self._error(checked.answer(refuse(message, checked.rcode, end), wall), asker)
        if not isinstance(checked, Signed):
            return self._error(refuse(message, REFUSED if is_ours else NOTAUTH, end), asker)
        try:
            if not is_ours:
                raise UpdateRefused(NOTAUTH, "not a zone of ours")
            return UpdateAsked(checked, read_update(checked.message, name), message[:end])
        except UpdateRefused as refused:
            refusal = refuse(message, refused.rcode, end, refused.edns)
            return Signer(checked.key, checked.mac).sign(refusal, wall)

    def _check(self, message: bytes, wall: int) -> Signed | Unsigned | TsigError:
        """Who sent `message`, by all keys that there are."""
        checked = check(message, self.keys, wall)
        for keys in (self.introducers, self.clients):
            if isinstance(checked, TsigError) and checked.error == BADKEY:
                checked = check(message, keys, wall)
        return checked

    def _elsewhere(
        self, found: _Elsewhere | TsigError | bytes, message: bytes, end: int, asker: _Asker
    ) -> _Elsewhere | bytes | Dropped:
        """What comes about a zone that has its primary elsewhere."""
        if isinstance(found, TsigError):
            self.counters[Counted.BAD_SIGNATURE] += 1
            wall = int(asker.wall)
            return self._error(found.answer(refuse(message, found.rcode, end), wall), asker)
        if isinstance(found, bytes):
            return self._error(found, asker)
        if isinstance(found, ForwardAsked) and found.signed is None:
            # Anybody can have made it, so that it costs its sender as much as an error does.
            over = self._gate.limited(Terms(proven=not asker.udp), asker.source, _ERROR, asker.now)
            if over is not None:
                return Dropped.OVER_LIMIT
        return found

    def _not_a_query(self, message: bytes, opcode: int, asker: _Asker) -> bytes | Dropped | NotifyHeard:
        """NOTIFY of a zone that has its primary here is understood and not taken; of other opcodes we do not
        even know the form."""
        if opcode != NOTIFY:
            return self._error(refuse(message, NOTIMP), asker)
        try:
            name, _, qclass, end = read_zone_section(message)
        except QuestionError:
            return self._error(refuse(message, FORMERR), asker)
        if qclass == IN and name in self.followed:
            heard = hear(message, name, end, self.followed[name], int(asker.wall))
            return self._elsewhere(heard, message, end, asker)
        rcode = NOTIMP if qclass == IN and name in self._zones else NOTAUTH
        return self._error(refuse(message, rcode, end), asker)


def _cookie_octets(message: bytes) -> int:
    """How many octets the cookie has that `message` seems to end with."""
    if message[-14:-8] == _CLIENT_COOKIE:
        return 8
    return 24 if message[-30:-24] == _WHOLE_COOKIE else 0


def _is_of_a_key(checked: Unsigned | TsigError) -> bool:
    """Whether it is a signature, good or not, of one of the keys that were looked among."""
    return isinstance(checked, TsigError) and checked.error not in (0, BADKEY)


def _may_be_signed(message: bytes, question: Question) -> bool:
    """Whether a record follows that is not the OPT."""
    return message[11] > (question.edns is not None)  # a well-formed question has at most MAX_ADDITIONAL


def _limit(question: Question, asker: _Asker) -> int:
    return udp_limit(question.edns) if asker.udp else MAX_TCP_OCTETS


def _without_options(message: bytes, question: Question) -> bytes:
    """The same query with an empty OPT, if the OPT is all that follows the question: what we do about options
    is not in the table."""
    bare = question.end + BARE_OPT_OCTETS
    if question.edns is None or len(message) <= bare or message[10:12] != b"\x00\x01":
        return message
    return message[: bare - 2] + b"\x00\x00"

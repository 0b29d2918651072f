"""A copy of a zone from its primary: what is asked, what the answer must be (AXFR, RFC 5936; IXFR, RFC 1995),
and when to ask again (RFC 1034 4.3.5, RFC 1996).

Hidden here: how the two kinds of answers are told apart, and that nothing of a transfer counts before its
final SOA has come in a message with a good signature: a cut one is never taken for a whole one. Every message
has passed the bounded walk and its signature before dnspython reads the data of its records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from struct import Struct
from typing import Final

import dns.exception
import dns.rdata

from appliance.dns import names
from appliance.dns.amendments import Rrsets, amended, faults_among
from appliance.dns.numbers import AXFR, IN, IXFR, OPT, QR, SOA, TC
from appliance.dns.sections import MessageError, Span, name_at, read_sections
from appliance.dns.serial import is_newer
from appliance.dns.tsig import MAX_STREAM_OCTETS, Key, Signer, TsigRefused, Verifier
from appliance.dns.zone import RRset, Zone
from appliance.dns.zonecheck import Record, faults_of, zone_from
from appliance.dns.zonefile import MAX_TTL_SECONDS

MAX_TRANSFER_RECORDS: Final = 250_000
MAX_TRANSFER_OCTETS: Final = 32 << 20
"""Of one transfer: some 100 MB of memory while it is read, and a second to make a zone of it. A static zone
that is larger is better followed by a server of another kind."""

MIN_REFRESH_SECONDS: Final = 30.0
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
"""A failure is followed by another attempt after 1 s, 2 s and so on, up to the SOA's RETRY, or to this where
that is longer or not known: one small message a minute, and the primary's records are back a minute after it
is."""

_HEAD: Final = Struct("!6H")
_QUESTION: Final = Struct("!HH")
_RECORD: Final = Struct("!HHIH")
_TIMERS: Final = Struct("!4I")  # of an SOA: REFRESH, RETRY, EXPIRE, MINIMUM
_MAX_STREAM_RECORDS: Final = MAX_STREAM_OCTETS // 11


class TransferFailed(Exception):
    """The zone was not copied; the text says why. `contradicts`: the changes do not go with the version that
    we have, so the whole zone must be asked for."""

    def __init__(self, what: str, *, contradicts: bool = False) -> None:
        super().__init__(what)
        self.contradicts = contradicts


class _Phase(Enum):
    FIRST = "the SOA of the newest version comes first"
    SECOND = "the record that tells a whole zone from changes"
    WHOLE = "records of a whole zone"
    REMOVING = "records that a change removes"
    ADDING = "records that a change adds"
    DONE = "the final SOA has come"


class Incoming:
    """One transfer of the zone `apex`, of which we have `current` (None: nothing).

    `query` is what is sent; `receive` takes the messages of the answer. `message_id` is a random number of 16
    bits.
    """

    def __init__(self, apex: bytes, current: Zone | None, key: Key, message_id: int, wall: int) -> None:
        signer = Signer(key)
        self.query = signer.sign(_query(apex, current, message_id), wall)
        self.changes: Rrsets | None = None
        """After the end: every rrset in which the new version differs; None for a whole zone."""
        self.octets = 0
        self._apex = apex
        self._current = current
        self._qtype = AXFR if current is None else IXFR
        self._message_id = message_id
        self._verifier = Verifier(key, signer.mac)
        self._phase = _Phase.FIRST
        self._is_first = True
        self._records: list[Record] = []
        self._count = 0
        self._final = b""
        self._is_incremental = False
        self._serial = 0  # of the version that the changes so far lead to
        self._changed: dict[tuple[bytes, int], RRset | None] = {}
        self._steps: Mapping[_Phase, Callable[[Record], None]] = {
            _Phase.FIRST: self._first,
            _Phase.SECOND: self._second,
            _Phase.WHOLE: self._whole,
            _Phase.REMOVING: self._removing,
            _Phase.ADDING: self._adding,
            _Phase.DONE: self._after_the_end,
        }

    def receive(self, message: bytes, wall: int) -> Zone | None:
        """The new version (the current one itself, where there is none newer), or None: more is to come.

        Raises TransferFailed, after which nothing more may be given.
        """
        self.octets += len(message)
        if self.octets > MAX_TRANSFER_OCTETS:
            raise TransferFailed(f"the transfer has more than {MAX_TRANSFER_OCTETS >> 20} MiB")
        try:
            plain = self._verifier.check(message, wall)
        except TsigRefused as refused:
            raise TransferFailed(str(refused)) from None
        for record in self._read(plain):
            self._steps[self._phase](record)
        if self._is_up_to_date():
            return self._settled(self._current)
        return self._settled(self._version()) if self._phase is _Phase.DONE else None

    def _settled(self, zone: Zone | None) -> Zone | None:
        if not self._verifier.is_settled:
            raise TransferFailed("the last message of the transfer is not signed")
        return zone

    def _is_up_to_date(self) -> bool:
        """An answer to IXFR of nothing but an SOA that is not newer (RFC 1995 2)."""
        current = self._current
        return (
            self._phase is _Phase.SECOND
            and current is not None
            and not is_newer(_serial(self._final), current.serial)
        )

    # Octets to records

    def _read(self, message: bytes) -> list[Record]:
        try:
            sections = read_sections(
                message,
                max_octets=MAX_STREAM_OCTETS,
                max_records=_MAX_STREAM_RECORDS,
                needs_question=self._is_first,
            )
            message_id, flags = _HEAD.unpack_from(message)[:2]
            if message_id != self._message_id or not flags & QR or flags & TC or flags >> 11 & 0xF:
                raise TransferFailed("the answer is not one to our question")
            if flags & 0xF:
                raise TransferFailed(f"the primary refuses the transfer: rcode {flags & 0xF}")
            asked = sections.name, sections.qtype, sections.qclass
            if sections.name and asked != (self._apex, self._qtype, IN):
                raise TransferFailed("the answer is to another question")
            self._is_first = False
            self._count += len(sections.answer)
            if self._count > MAX_TRANSFER_RECORDS:
                raise TransferFailed(f"the transfer has more than {MAX_TRANSFER_RECORDS} records")
            return [self._record(message, span) for span in sections.answer]
        except MessageError as error:
            raise TransferFailed(f"the answer is malformed: {error}") from None

    def _record(self, message: bytes, span: Span) -> Record:
        name, _ = name_at(message, span.owner)
        if not names.is_at_or_below(name, self._apex):
            raise TransferFailed(f"{names.to_text(name)} is outside the zone")
        # 128 to 255 are types of questions and of signatures (RFC 6895 3.1), which no zone holds.
        if span.rclass != IN or span.rtype in (0, OPT) or 128 <= span.rtype <= 255:
            raise TransferFailed(f"class {span.rclass} and type {span.rtype} are not of records of a zone")
        if span.ttl > MAX_TTL_SECONDS:
            raise TransferFailed(f"a TTL above {MAX_TTL_SECONDS}")
        return Record(0, name, span.rtype, span.ttl, _uncompressed(message, span))

    # One record after the other

    def _first(self, record: Record) -> None:
        if record.rtype != SOA or record.name != self._apex:
            raise TransferFailed("the answer does not begin with the SOA of the zone")
        self._final = record.rdata
        self._records.append(record)
        self._phase = _Phase.SECOND

    def _second(self, record: Record) -> None:
        if self._is_up_to_date():
            raise TransferFailed("the answer holds records although its version is not newer")
        current = self._current
        if current is not None and record.rtype == SOA and _serial(record.rdata) == current.serial:
            self._is_incremental = True
            self._serial = current.serial
            self._phase = _Phase.REMOVING
        else:
            self._phase = _Phase.WHOLE
            self._whole(record)

    def _whole(self, record: Record) -> None:
        if record.rtype != SOA:
            self._records.append(record)
        elif record.name == self._apex and record.rdata == self._final:
            self._phase = _Phase.DONE
        else:
            raise TransferFailed("the answer ends with another SOA than it begins with")

    def _removing(self, record: Record) -> None:
        if record.rtype == SOA:
            serial = _serial(record.rdata)
            if not is_newer(serial, self._serial):
                raise _contradiction(f"a change leads from {self._serial} back to {serial}")
            self._serial = serial
            self._phase = _Phase.ADDING
            return
        there = self._now(record)
        if there is None or record.rdata not in there.rdatas or record.ttl != there.ttl:
            raise _contradiction(f"a change removes what is not at {names.to_text(record.name)}")
        left = tuple(rdata for rdata in there.rdatas if rdata != record.rdata)
        self._put(record, RRset(record.name, record.rtype, there.ttl, left) if left else None)

    def _adding(self, record: Record) -> None:
        if record.rtype == SOA:
            if _serial(record.rdata) != self._serial:
                raise _contradiction(f"a change ends at {self._serial} and the next begins elsewhere")
            self._phase = _Phase.DONE if record.rdata == self._final else _Phase.REMOVING
            return
        there = self._now(record)
        if there is None:
            self._put(record, RRset(record.name, record.rtype, record.ttl, (record.rdata,)))
        elif record.rdata in there.rdatas or record.ttl != there.ttl:
            raise _contradiction(f"a change adds what does not go with {names.to_text(record.name)}")
        else:
            rdatas = (*there.rdatas, record.rdata)
            self._put(record, RRset(record.name, record.rtype, there.ttl, rdatas))

    def _after_the_end(self, record: Record) -> None:
        raise TransferFailed("there are records after the final SOA")

    def _now(self, record: Record) -> RRset | None:
        key = record.name, record.rtype
        if key in self._changed:
            return self._changed[key]
        assert self._current is not None
        return self._current.node(record.name).get(record.rtype)

    def _put(self, record: Record, rrset: RRset | None) -> None:
        self._changed[record.name, record.rtype] = rrset

    # The end

    def _version(self) -> Zone:
        """The version that the primary has sent. Raises TransferFailed where it is no zone."""
        if not self._is_incremental:
            faults = faults_of(self._records, self._apex)
            if faults:
                raise TransferFailed(f"what the primary sent is no zone: {faults[0].what}")
            return zone_from(self._records, self._apex)
        assert self._current is not None
        soa = self._records[0]
        self._changed[self._apex, SOA] = RRset(soa.name, SOA, soa.ttl, (soa.rdata,))
        zone = amended(self._current, self._changed)
        for _, what in faults_among(zone, self._changed):
            raise _contradiction(f"with the changes, {what}")
        self.changes = self._changed
        return zone


class Timers:
    """When one zone is asked for, and until when it may be served; all times are monotonic.

    `soa` is that of the version that we have from before the start, `checked_at` when the primary last said
    that it is the newest (which is before 0 for one that was read from the disk).
    """

    def __init__(self, now: float, soa: RRset | None = None, checked_at: float = 0.0) -> None:
        self.due = now
        """When to ask next."""
        self.expires: float | None = None
        """When the version that we have is too old to be served (the SOA's EXPIRE)."""
        self._soa = soa
        self._failures = 0
        if soa is not None:
            self.expires = checked_at + _timers(soa)[2]

    def succeeded(self, soa: RRset, now: float) -> None:
        """The primary has said that this is the SOA of the newest version, and we have it."""
        refresh, _, expire = _timers(soa)
        self._soa = soa
        self._failures = 0
        self.due = now + max(refresh, MIN_REFRESH_SECONDS)
        self.expires = now + max(expire, refresh)

    def failed(self, now: float) -> None:
        """It could not be asked, or did not answer as it should."""
        longest = MAX_RETRY_SECONDS
        if self._soa is not None:
            longest = min(longest, max(_timers(self._soa)[1], FIRST_RETRY_SECONDS))
        self.due = now + min(FIRST_RETRY_SECONDS * 2**self._failures, longest)
        self._failures = min(self._failures + 1, 16)

    def notified(self, now: float) -> None:
        """The primary says that there is a newer version."""
        self._failures = 0
        self.due = now


def _contradiction(what: str) -> TransferFailed:
    return TransferFailed(what, contradicts=True)


def _query(apex: bytes, current: Zone | None, message_id: int) -> bytes:
    """AXFR, or IXFR with the SOA that we have (RFC 1995 3)."""
    is_whole = current is None
    head = _HEAD.pack(message_id, 0, 1, 0, 0 if is_whole else 1, 0)
    question = apex + _QUESTION.pack(AXFR if is_whole else IXFR, IN)
    if current is None:
        return head + question
    soa = current.soa.rdatas[0]
    return head + question + apex + _RECORD.pack(SOA, IN, 0, len(soa)) + soa


def _uncompressed(message: bytes, span: Span) -> bytes:
    """The data of a record, its names written out."""
    try:
        read = dns.rdata.from_wire(IN, span.rtype, message, span.rdata, span.end - span.rdata)  # type: ignore[arg-type]
        rdata = read.to_wire()
    except dns.exception.DNSException as error:
        raise TransferFailed(f"the data of a record of type {span.rtype}: {error}") from None
    except Exception as error:  # as in dns/update
        raise TransferFailed(f"the data of a record of type {span.rtype}: {error!r}") from None
    assert rdata is not None
    return rdata


def _serial(soa_rdata: bytes) -> int:
    return int.from_bytes(soa_rdata[-20:-16], "big")


def _timers(soa: RRset) -> tuple[int, int, int]:
    refresh, retry, expire, _ = _TIMERS.unpack_from(soa.rdatas[0], len(soa.rdatas[0]) - _TIMERS.size)
    return refresh, retry, expire

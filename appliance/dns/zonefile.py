"""The text of a master file (RFC 1035 5, with the usual $ORIGIN and $TTL) becomes a zone, or the lines
that are wrong.

Hidden here: the grammar of entries and directives, dnspython, which reads the data of each type of
record, and what has to be done around it so that an error names the exact line and says what to change.
Which records may stand together in a zone is zonecheck's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tokenizer
import dns.ttl

from appliance.dns import numbers
from appliance.dns.plainlines import PlainLines
from appliance.dns.tokens import Tokens, Wrong, first_lower, plain
from appliance.dns.zone import Zone
from appliance.dns.zonecheck import Fault, Record, apex_of, faults_of, zone_from

# TTLs are 31 bits (RFC 2181 8); larger ones are read as 0 by some resolvers and as 2^32 by others.
MAX_TTL_SECONDS: Final = (1 << 31) - 1

# Enough to repair a file by; the rest is usually the same mistake again.
MAX_ERRORS_SHOWN: Final = 20

_UNSUPPORTED: Final = {
    "$INCLUDE": "$INCLUDE is not supported: a zone is one file",
    "$GENERATE": "$GENERATE is not supported: write the records out",
    "$UNICODE": "$UNICODE is not supported: write names as A-labels ('xn--…')",
}


class ZoneFileError(Exception):
    """The zone file cannot be used; each line of this text is one mistake: file, line number, what is wrong.

    `line` and `what` are the first mistake; str() has all that were found, one a line.
    """

    def __init__(self, filename: str, line: int, what: str, more: Sequence[Fault] = ()) -> None:
        shown = [Fault(line, what), *more]
        super().__init__("\n".join(f"{filename}:{fault.line}: {fault.what}" for fault in shown))
        self.filename = filename
        self.line = line
        self.what = what


def read_zone(text: str, *, filename: str, apex: bytes | None = None) -> Zone:
    """The zone that `text` writes. `filename` is only for the error text; `apex`, when not given, is the
    SOA's owner.

    Relative names need an $ORIGIN before them when `apex` is not given. Raises ZoneFileError and nothing
    else.
    """
    reader = _Reader(text, apex)
    reader.read()
    faults = reader.faults
    if not faults:
        apex = apex_of(reader.records) if apex is None else apex
        faults = faults_of(reader.records, apex)
    if faults:
        first, *more = sorted(set(faults))[:MAX_ERRORS_SHOWN]
        raise ZoneFileError(filename, first.line, first.what, more)
    assert apex is not None
    return zone_from(reader.records, apex)


class _Reader:
    """Reads one file; afterwards `records` and `faults` hold what was found."""

    def __init__(self, text: str, apex: bytes | None) -> None:
        self.records: list[Record] = []
        self.faults: list[Fault] = []
        self._tokens = Tokens(text)
        self._plain = PlainLines(self._tokens.text)
        self._line_at: int | None = None  # where the line that the whole grammar reads begins
        self._origin = None if apex is None else dns.name.from_wire(apex, 0)[0]
        self._owner: bytes | None = None
        self._default_ttl: int | None = None  # of $TTL, or of an SOA that came before any
        self._last_ttl: int | None = None

    def read(self) -> None:
        while len(self.faults) < MAX_ERRORS_SHOWN:
            try:
                self._plain_lines()
                if not self._entry():
                    return
            except Wrong as error:
                self.faults.append(Fault(self._tokens.line, str(error)))
                if not self._tokens.skip_line():
                    return

    def _plain_lines(self) -> None:
        """All plain lines from here to the first one that is not."""
        tokens, plain = self._tokens, self._plain
        plain.set_origin(None if self._origin is None else self._origin.to_wire())
        start = at = tokens.line_starts_at()
        if at is None:
            return
        line = tokens.line_number
        read, records = plain.read, self.records
        while (found := read(at)) is not None:
            owner, ttl, rtype, rdata, at_next = found
            if owner is not None:
                self._owner = owner
            if ttl is None:
                ttl = self._default_ttl
            else:
                self._last_ttl = ttl
            if self._owner is None or ttl is None:
                break
            records.append(Record(line, self._owner, rtype, ttl, rdata))
            at = at_next
            line += 1
        if at != start:
            tokens.go_to(at, line)
        self._line_at = at

    def _entry(self) -> bool:
        """One entry of the file (RFC 1035 5.1). False at its end."""
        tokens = self._tokens
        token = tokens.get(want_leading=True)
        if token.is_eof():
            return False
        if token.is_eol():
            return True
        if token.is_whitespace():
            token = tokens.get()
            if token.is_eol_or_eof():
                return not token.is_eof()
            line = tokens.line
            if self._owner is None:
                raise Wrong("this record has no name, and there is none before it to take over")
        elif token.is_identifier() and token.value.startswith("$"):
            self._directive(token.value.upper())
            return True
        else:
            line = tokens.line
            self._owner = self._name(token)
            token = tokens.get()
        self._record(line, self._owner, token)
        return True

    def _directive(self, word: str) -> None:
        token = self._tokens.get()
        if word in _UNSUPPORTED:
            raise Wrong(_UNSUPPORTED[word])
        if word not in ("$ORIGIN", "$TTL"):
            raise Wrong(f"there is no directive '{word}'")
        if token.is_eol_or_eof():
            raise Wrong(f"{word} needs a value")
        if word == "$TTL":
            self._default_ttl = _ttl(token)
        else:
            self._origin = dns.name.from_wire(self._name(token), 0)[0]
        self._end_of_line(word)

    def _record(self, line: int, owner: bytes, token: dns.tokenizer.Token) -> None:
        """What follows the owner: [TTL] [class] type data, the first two in either order."""
        tokens = self._tokens
        ttl: int | None = None
        classed = False
        while True:
            if token.is_eol_or_eof():
                raise Wrong("this record ends before its type and data")
            word = token.value.upper()
            if not token.is_identifier():
                raise Wrong(f"a record type is expected here, not '{token.value}'")
            if ttl is None and token.value[:1].isdigit():
                ttl = _ttl(token)
            elif not classed and _is_class(word):
                classed = True
            else:
                break
            token = tokens.get()
        rtype = _record_type(word)
        try:
            read = dns.rdata.from_text(dns.rdataclass.IN, rtype, tokens, self._origin, relativize=False)
            rdata = read.to_wire()
        except dns.name.NeedAbsoluteNameOrOrigin:
            raise Wrong(f"a name in this {word} record is relative, and no $ORIGIN says to what") from None
        except Wrong:
            raise
        except dns.ttl.BadTTL:
            raise Wrong(
                f"'{tokens.last.value}' in this {word} record is not a time (seconds, or as 1h30m)"
            ) from None
        except dns.exception.DNSException as error:
            raise Wrong(plain(str(error), tokens, f"{word} record")) from None
        except Exception as error:
            # dnspython has some ninety readers of data; one that trips is a mistake in the file, not in us.
            raise Wrong(f"the data of this {word} record cannot be read: {error}") from None
        assert rdata is not None
        if len(rdata) > 0xFFFF:
            raise Wrong(f"the data of this {word} record is longer than 65535 octets")
        self.records.append(
            Record(line, owner, int(rtype), self._ttl_of(ttl, int(rtype), rdata, line), rdata)
        )
        end = tokens.line_starts_at()
        if self._line_at is not None and end is not None:
            self._plain.learn(self._line_at, end, int(rtype), rdata)

    def _ttl_of(self, ttl: int | None, rtype: int, rdata: bytes, line: int) -> int:
        if ttl is not None:
            self._last_ttl = ttl
            return ttl
        if self._default_ttl is None and rtype == numbers.SOA:
            # As BIND does where no $TTL is: RFC 1035 3.3.13 called MINIMUM the default TTL.
            self._default_ttl = min(int.from_bytes(rdata[-4:], "big"), MAX_TTL_SECONDS)
        known = self._default_ttl if self._default_ttl is not None else self._last_ttl
        if known is None:
            self.faults.append(Fault(line, "this record has no TTL, and there is no $TTL before it"))
            return 0
        return known

    def _name(self, token: dns.tokenizer.Token) -> bytes:
        """The name that `token` writes, completed by the origin."""
        if not token.is_identifier():
            raise Wrong(f"a name is expected here, not '{token.value}'")
        try:
            name = dns.name.from_text(token.value, self._origin, self._tokens.idna_codec)
        except Wrong:
            raise
        except dns.exception.DNSException as error:
            shown = token.value if len(token.value) <= 40 else token.value[:40] + "…"
            raise Wrong(f"'{shown}' is not a name: {first_lower(str(error))}") from None
        if not name.is_absolute():
            raise Wrong(f"the name '{token.value}' is relative, and no $ORIGIN says to what")
        wire = name.to_wire()
        assert wire is not None
        return wire.lower()

    def _end_of_line(self, after: str) -> None:
        token = self._tokens.get()
        if not token.is_eol_or_eof():
            raise Wrong(f"unexpected '{token.value}' after {after}")


def _ttl(token: dns.tokenizer.Token) -> int:
    try:
        seconds = dns.ttl.from_text(token.value)
    except dns.exception.DNSException:
        raise Wrong(f"'{token.value}' is not a TTL (seconds, or units as in 1h30m)") from None
    if seconds > MAX_TTL_SECONDS:
        raise Wrong(f"the TTL {token.value} is above the largest there is, {MAX_TTL_SECONDS}")
    return seconds


def _is_class(word: str) -> bool:
    if word in ("IN", "CLASS1"):
        return True
    if word in ("CH", "HS", "CS", "ANY", "NONE") or (word.startswith("CLASS") and word[5:].isdigit()):
        raise Wrong(f"only class IN is served, not {word}")
    return False


def _record_type(word: str) -> dns.rdatatype.RdataType:
    try:
        rtype = dns.rdatatype.from_text(word)
    except (dns.exception.DNSException, ValueError):
        raise Wrong(
            f"there is no record type '{word}' (one without a name is written TYPE65280 \\# 2 0a0b)"
        ) from None
    if dns.rdatatype.is_metatype(rtype) or rtype == 0:
        raise Wrong(f"{word} is a type of questions, not of records")
    return rtype

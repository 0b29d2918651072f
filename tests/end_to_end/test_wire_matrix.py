"""The hard-wire matrix live: what our nameserver says to each odd message is what NSD, Knot or BIND says,
or the reason why not stands beside the row."""

from __future__ import annotations

import base64
import hashlib
import hmac
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.dns.asking import HEAD, opt, question
from tests.dns.test_responder import MATRIX, message
from tests.end_to_end.primaries import ALL, KEY_FILE
from tests.end_to_end.test_dns_tools import Nameserver

APEX = "example.test"
LINES = "www A 192.0.2.7\n*.apps A 192.0.2.8\nsub NS ns.sub\nns.sub A 192.0.2.9\nbig TXT "
ZONE = f"$ORIGIN {APEX}.\n{HEAD}{LINES}" + " ".join(f'"{"x" * 200}{number}"' for number in range(8)) + "\n"
SERIAL = 7  # of HEAD
KEY = "all.test"
SECRET = bytes(range(32))
SILENCE_SECONDS = 1.0  # after which nothing more is expected
OURS = "ours"
AT_ONCE = 32

# ---- what is sent

SOA = question(APEX, "SOA")
WWW = question("www.example.test")
QUERY, NOTIFY, UPDATE = 0x0000, 0x2400, 0x2800
IN, CH, NONE, ANY = 1, 3, 254, 255


def record(owner: str, rtype: str | int, rclass: int = IN, ttl: int = 0, rdata: bytes = b"") -> bytes:
    return question(owner, rtype, rclass) + struct.pack("!IH", ttl, len(rdata)) + rdata


def soa(serial: int, owner: str = APEX) -> bytes:
    return record(owner, "SOA", rdata=b"\0\0" + struct.pack("!5I", serial, 1, 1, 1, 1))


@dataclass(frozen=True)
class Signing:
    """How a message is signed when it is sent; without arguments: as it should be (RFC 8945 4.3)."""

    key: str = KEY
    secret: bytes = SECRET
    algorithm: str = "hmac-sha256"
    late: int = 0
    fudge: int = 300
    octets: int = 32  # of the MAC that are sent
    rclass: int = ANY
    ttl: int = 0
    error: int = 0
    times: int = 1
    after: bytes = b""  # a record behind it
    bad: bool = False  # a bit of what was signed is changed on the way
    sent_id: int | None = None

    def sign(self, octets: bytes, wall: int) -> bytes:
        algorithm = question(self.algorithm)[:-4]
        when = struct.pack("!Q", wall - self.late)[2:] + struct.pack("!H", self.fudge)
        ending = struct.pack("!2H", self.error, 0)
        variables = question(self.key)[:-4] + struct.pack("!HI", ANY, 0) + algorithm + when + ending
        mac = hmac.new(self.secret, octets + variables, hashlib.sha256).digest()[: self.octets]
        rdata = algorithm + when + struct.pack("!H", len(mac)) + mac + octets[:2] + ending
        tsig = record(self.key, "TSIG", self.rclass, self.ttl, rdata)
        additional = struct.unpack_from("!H", octets, 10)[0] + self.times + bool(self.after)
        octets = octets[:10] + struct.pack("!H", additional) + octets[12:] + tsig * self.times + self.after
        if self.bad:
            octets = octets[:2] + bytes((octets[2] ^ 1,)) + octets[3:]
        return octets if self.sent_id is None else struct.pack("!H", self.sent_id) + octets[2:]


@dataclass(frozen=True)
class Row:
    """A message, and how it is sent."""

    octets: bytes
    signing: Signing | None = None
    tcp: bool = False

    def sent(self, wall: int) -> bytes:
        return self.octets if self.signing is None else self.signing.sign(self.octets, wall)


def update(
    prerequisites: Sequence[bytes] = (), changes: Sequence[bytes] = (), zone: bytes = SOA, zones: int = 1
) -> bytes:
    body = zone + b"".join((*prerequisites, *changes))
    return message(UPDATE, zones, body, len(prerequisites), len(changes))


SIGNED = Signing()
A1 = bytes((192, 0, 2, 1))
QUERY_WWW = message()
NOT_OURS = question("other.invalid", "SOA")

ROWS: Mapping[str, Row] = {
    # TSIG
    "TSIG good": Row(QUERY_WWW, SIGNED),
    "TSIG good, TCP": Row(QUERY_WWW, SIGNED, tcp=True),
    "TSIG unknown key": Row(QUERY_WWW, Signing(key="nobodys.test")),
    "TSIG unknown key, TCP": Row(QUERY_WWW, Signing(key="nobodys.test"), tcp=True),
    "TSIG another secret": Row(QUERY_WWW, Signing(secret=bytes(32))),
    "TSIG another algorithm": Row(QUERY_WWW, Signing(algorithm="hmac-sha1")),
    "TSIG of MD5": Row(QUERY_WWW, Signing(algorithm="hmac-md5.sig-alg.reg.int")),
    "TSIG unknown algorithm": Row(QUERY_WWW, Signing(algorithm="hmac-nothing")),
    "TSIG too late": Row(QUERY_WWW, Signing(late=301)),
    "TSIG too early": Row(QUERY_WWW, Signing(late=-310)),
    "TSIG late within its own fudge": Row(QUERY_WWW, Signing(late=900, fudge=1000)),
    "TSIG late beyond its own fudge": Row(QUERY_WWW, Signing(late=20, fudge=10)),
    "TSIG MAC of 16 octets": Row(QUERY_WWW, Signing(octets=16)),
    "TSIG MAC of 15 octets": Row(QUERY_WWW, Signing(octets=15)),
    "TSIG MAC of 8 octets": Row(QUERY_WWW, Signing(octets=8)),
    "TSIG MAC of 0 octets": Row(QUERY_WWW, Signing(octets=0)),
    "TSIG class IN": Row(QUERY_WWW, Signing(rclass=IN)),
    "TSIG TTL 1": Row(QUERY_WWW, Signing(ttl=1)),
    "TSIG twice": Row(QUERY_WWW, Signing(times=2)),
    "TSIG before OPT": Row(QUERY_WWW, Signing(after=opt())),
    "TSIG behind OPT": Row(message(additional=1) + opt(), SIGNED),
    "TSIG over a changed message": Row(QUERY_WWW, Signing(bad=True)),
    "TSIG of a forwarded message: another ID": Row(QUERY_WWW, Signing(sent_id=0x4321)),
    "TSIG good, not our zone": Row(message(body=NOT_OURS), SIGNED),
    "TSIG good, name that is not": Row(message(body=question("nosuch.example.test")), SIGNED),
    "TSIG good, class CH": Row(message(body=question("version.bind", "TXT", CH)), SIGNED),
    "TSIG good, EDNS version 1": Row(message(additional=1) + opt(version=1), SIGNED),
    # UPDATE
    "UPDATE unsigned": Row(update()),
    "UPDATE unsigned, TCP": Row(update(), tcp=True),
    "UPDATE unsigned, with a change": Row(update([], [record("new.example.test", "A", ttl=60, rdata=A1)])),
    "UPDATE unknown key": Row(update(), Signing(key="nobodys.test")),
    "UPDATE another secret": Row(update(), Signing(secret=bytes(32))),
    "UPDATE of nothing": Row(update(), SIGNED),
    "UPDATE of nothing, TCP": Row(update(), SIGNED, tcp=True),
    "UPDATE of another's zone, signed": Row(update(zone=NOT_OURS), SIGNED),
    "UPDATE of a name that is no apex": Row(update(zone=question("www.example.test", "SOA")), SIGNED),
    "UPDATE of type A as zone": Row(update(zone=question(APEX, "A")), SIGNED),
    "UPDATE of class CH, signed": Row(update(zone=question(APEX, "SOA", CH)), SIGNED),
    "UPDATE of class ANY as zone": Row(update(zone=question(APEX, "SOA", ANY)), SIGNED),
    "UPDATE of two zones": Row(update(zone=SOA * 2, zones=2), SIGNED),
    "UPDATE prerequisite: name is not, but it is": Row(
        update([record("www.example.test", "ANY", NONE)]), SIGNED
    ),
    "UPDATE prerequisite: name is, but it is not": Row(
        update([record("nosuch.example.test", "ANY", ANY)]), SIGNED
    ),
    "UPDATE prerequisite: rrset is not, but it is": Row(
        update([record("www.example.test", "A", NONE)]), SIGNED
    ),
    "UPDATE prerequisite: rrset is, but it is not": Row(
        update([record("www.example.test", "AAAA", ANY)]), SIGNED
    ),
    "UPDATE prerequisite: rrset is another": Row(
        update([record("www.example.test", "A", IN, rdata=A1)]), SIGNED
    ),
    "UPDATE prerequisite: an empty non-terminal is no name in use": Row(
        update([record("apps.example.test", "ANY", ANY)]), SIGNED
    ),
    "UPDATE prerequisite with a TTL": Row(update([record("www.example.test", "A", ANY, 60)]), SIGNED),
    "UPDATE prerequisite of class ANY with data": Row(
        update([record("www.example.test", "A", ANY, rdata=A1)]), SIGNED
    ),
    "UPDATE prerequisite outside the zone": Row(update([record("www.other.invalid", "A", ANY)]), SIGNED),
    "UPDATE prerequisite of class CH": Row(update([record("www.example.test", "A", CH)]), SIGNED),
    "UPDATE adds outside the zone": Row(
        update([], [record("www.other.invalid", "A", ttl=60, rdata=A1)]), SIGNED
    ),
    "UPDATE adds type ANY": Row(update([], [record("new.example.test", "ANY", ttl=60)]), SIGNED),
    "UPDATE adds type AXFR": Row(update([], [record("new.example.test", "AXFR", ttl=60)]), SIGNED),
    "UPDATE adds type OPT": Row(update([], [record("new.example.test", "OPT", ttl=60)]), SIGNED),
    "UPDATE adds an A of 3 octets": Row(
        update([], [record("new.example.test", "A", ttl=60, rdata=A1[:3])]), SIGNED
    ),
    "UPDATE deletes with a TTL": Row(update([], [record("www.example.test", "A", ANY, 60)]), SIGNED),
    "UPDATE deletes an rrset with data": Row(
        update([], [record("www.example.test", "A", ANY, rdata=A1)]), SIGNED
    ),
    "UPDATE deletes a record of type ANY": Row(update([], [record("www.example.test", "ANY", NONE)]), SIGNED),
    "UPDATE of class CH in a change": Row(update([], [record("www.example.test", "A", CH, 60, A1)]), SIGNED),
    "UPDATE deletes what is not there": Row(update([], [record("nosuch.example.test", "A", ANY)]), SIGNED),
    "UPDATE deletes the SOA": Row(update([], [record(APEX, "SOA", ANY)]), SIGNED),
    "UPDATE deletes the NS of the apex": Row(update([], [record(APEX, "NS", ANY)]), SIGNED),
    "UPDATE counts more than there is": Row(message(UPDATE, 1, SOA, 0, 3), SIGNED),
    "UPDATE with octets after its end": Row(update() + b"xx"),
    "UPDATE with EDNS": Row(message(UPDATE, 1, SOA + opt(), additional=1), SIGNED),
    "UPDATE unsigned, with EDNS": Row(message(UPDATE, 1, SOA + opt(), additional=1)),
    "UPDATE unknown key, with EDNS": Row(
        message(UPDATE, 1, SOA + opt(), additional=1), Signing(key="nobodys.test")
    ),
    "UPDATE with EDNS version 1": Row(message(UPDATE, 1, SOA + opt(version=1), additional=1), SIGNED),
    # NOTIFY
    "NOTIFY of our zone, with a serial": Row(message(NOTIFY, 1, SOA + soa(9), 1)),
    "NOTIFY of our zone, signed": Row(message(NOTIFY, 1, SOA + soa(9), 1), SIGNED),
    "NOTIFY of our zone, TCP": Row(message(NOTIFY, 1, SOA), tcp=True),
    "NOTIFY of another's zone": Row(message(NOTIFY, 1, NOT_OURS)),
    "NOTIFY of type A": Row(message(NOTIFY, 1, question(APEX, "A"))),
    "NOTIFY of class CH": Row(message(NOTIFY, 1, question(APEX, "SOA", CH))),
    "NOTIFY without a question": Row(message(NOTIFY, 0, b"")),
    "NOTIFY of two zones": Row(message(NOTIFY, 2, SOA * 2)),
    # AXFR
    "AXFR unsigned, TCP": Row(message(body=question(APEX, "AXFR")), tcp=True),
    "AXFR signed, UDP": Row(message(body=question(APEX, "AXFR")), SIGNED),
    "AXFR signed, TCP": Row(message(body=question(APEX, "AXFR")), SIGNED, tcp=True),
    "AXFR another secret, TCP": Row(
        message(body=question(APEX, "AXFR")), Signing(secret=bytes(32)), tcp=True
    ),
    "AXFR unknown key, TCP": Row(message(body=question(APEX, "AXFR")), Signing(key="nobodys.test"), tcp=True),
    "AXFR too late, TCP": Row(message(body=question(APEX, "AXFR")), Signing(late=900), tcp=True),
    "AXFR of a name that is no apex": Row(
        message(body=question("www.example.test", "AXFR")), SIGNED, tcp=True
    ),
    "AXFR of another's zone": Row(message(body=question("other.invalid", "AXFR")), SIGNED, tcp=True),
    "AXFR of class CH": Row(message(body=question(APEX, "AXFR", CH)), SIGNED, tcp=True),
    "AXFR of another's zone, unsigned": Row(message(body=question("other.invalid", "AXFR")), tcp=True),
    # IXFR
    "IXFR unsigned": Row(message(body=question(APEX, "IXFR") + soa(SERIAL), authorities=1)),
    "IXFR unsigned, TCP": Row(message(body=question(APEX, "IXFR") + soa(SERIAL), authorities=1), tcp=True),
    "IXFR without SOA, signed": Row(message(body=question(APEX, "IXFR")), SIGNED),
    "IXFR without SOA, TCP": Row(message(body=question(APEX, "IXFR")), SIGNED, tcp=True),
    "IXFR from far ahead": Row(
        message(body=question(APEX, "IXFR") + soa(2**31 - 1), authorities=1), SIGNED, tcp=True
    ),
    "IXFR from an unknown serial": Row(
        message(body=question(APEX, "IXFR") + soa(1), authorities=1), SIGNED, tcp=True
    ),
    "IXFR from far ahead, UDP": Row(
        message(body=question(APEX, "IXFR") + soa(2**31 - 1), authorities=1), SIGNED
    ),
    "IXFR from an unknown serial, UDP": Row(
        message(body=question(APEX, "IXFR") + soa(1), authorities=1), SIGNED
    ),
    "IXFR of another's zone, unsigned": Row(
        message(body=question("other.invalid", "IXFR") + soa(1, "other.invalid"), authorities=1)
    ),
    "IXFR with the SOA of another zone": Row(
        message(body=question(APEX, "IXFR") + soa(1, "other.invalid"), authorities=1), SIGNED, tcp=True
    ),
    "IXFR with an A for a SOA": Row(
        message(body=question(APEX, "IXFR") + record(APEX, "A", rdata=A1), authorities=1), SIGNED, tcp=True
    ),
    # Cookies
    "COOKIE of the client": Row(message(additional=1) + opt(options=b"\0\x0a\0\x08" + b"c" * 8)),
    "COOKIE of 9 octets": Row(message(additional=1) + opt(options=b"\0\x0a\0\x09" + b"c" * 9)),
    "COOKIE of 41 octets": Row(message(additional=1) + opt(options=b"\0\x0a\0\x29" + b"c" * 41)),
    "COOKIE of 0 octets": Row(message(additional=1) + opt(options=b"\0\x0a\0\0")),
    "COOKIE with a wrong server part": Row(
        message(additional=1) + opt(options=b"\0\x0a\0\x18" + b"c" * 8 + b"\1\0\0\0" + bytes(12))
    ),
    "COOKIE with a wrong server part, TCP": Row(
        message(additional=1) + opt(options=b"\0\x0a\0\x18" + b"c" * 8 + b"\1\0\0\0" + bytes(12)), tcp=True
    ),
    "COOKIE twice": Row(message(additional=1) + opt(options=(b"\0\x0a\0\x08" + b"c" * 8) * 2)),
    "COOKIE and no question": Row(message(0, 0, opt(options=b"\0\x0a\0\x08" + b"c" * 8), additional=1)),
    "COOKIE for a name not ours": Row(
        message(body=NOT_OURS + opt(options=b"\0\x0a\0\x08" + b"c" * 8), additional=1)
    ),
    # Classes and opcodes
    "opcode IQUERY": Row(message(0x0800)),
    "opcode 3": Row(message(0x1800)),
    "opcode DSO": Row(message(0x3000, 0, b"")),
    "opcode DSO, TCP": Row(message(0x3000, 0, b""), tcp=True),
    "opcode 7 with EDNS": Row(message(0x3800, additional=1) + opt()),
    "opcode STATUS, TCP": Row(message(0x1000), tcp=True),
    "class 0": Row(message(body=question("www.example.test", "A", 0))),
    "class HS": Row(message(body=question("www.example.test", "A", 4))),
    "class 65535": Row(message(body=question("www.example.test", "A", 65535))),
    "class ANY of another's zone": Row(message(body=question("other.invalid", "A", ANY))),
    "class CH id.server": Row(message(body=question("id.server", "TXT", CH))),
    # Header bits
    "RD, AD, CD and Z": Row(message(0x0170)),
    "AA in a query": Row(message(0x0400)),
    "TC in a query": Row(message(0x0200)),
    "RA in a query": Row(message(0x0080)),
    "an rcode in a query": Row(message(0x0003)),
    "QR=1 over TCP": Row(message(0x8400), tcp=True),
    "TYPE SIG as the last record": Row(message(additional=1) + record(".", 24, ANY, 0, b"\0" * 30)),
    "an A in the additional section": Row(message(additional=1) + record(".", "A", rdata=A1)),
    "truncation at 512": Row(message(body=question("big.example.test", "TXT"))),
    "large, over TCP": Row(message(body=question("big.example.test", "TXT")), tcp=True),
    "a delegation": Row(message(body=question("x.sub.example.test"))),
}

# One after the other, each at a zone that the one before has changed.
LAST: Mapping[str, Row] = {
    "UPDATE adds": Row(update([], [record("new.example.test", "A", ttl=60, rdata=A1)]), SIGNED),
    "what the UPDATE added": Row(message(body=question("new.example.test"))),
    "UPDATE adds with a prerequisite, TCP": Row(
        update(
            [record("new.example.test", "A", rdata=A1)], [record("*.new.example.test", "A", ttl=60, rdata=A1)]
        ),
        SIGNED,
        tcp=True,
    ),
    "a wildcard that the UPDATE added": Row(message(body=question("x.y.new.example.test"))),
    "UPDATE adds a CNAME beside an A: ignored": Row(
        update([], [record("new.example.test", "CNAME", ttl=60, rdata=b"\0")]), SIGNED
    ),
    "UPDATE changes the TTL": Row(update([], [record("new.example.test", "A", ttl=90, rdata=A1)]), SIGNED),
    "the TTL that the UPDATE changed": Row(message(body=question("new.example.test"))),
    "UPDATE deletes the last NS: ignored": Row(
        update([], [record(APEX, "NS", NONE, rdata=b"\3ns1\x07example\4test\0")]), SIGNED
    ),
    "the NS after it": Row(message(body=question(APEX, "NS"))),
    "UPDATE deletes all at a name": Row(update([], [record("new.example.test", "ANY", ANY)]), SIGNED),
    "what the UPDATE deleted, above a wildcard": Row(message(body=question("new.example.test"))),
    "UPDATE deletes the wildcard": Row(update([], [record("*.new.example.test", "ANY", ANY)]), SIGNED),
    "what is nothing any more": Row(message(body=question("new.example.test"))),
    "the zone afterwards": Row(message(body=question(APEX, "AXFR")), SIGNED, tcp=True),
}

OPT_BACK = "who asked with EDNS is told FORMERR with EDNS (RFC 6891 7); the three forget it where they fail"
NOTIFIED = "we are the primary: NSD refuses, Knot wants a key, BIND says yes and does nothing"
OTHER_CLASS = "there is no such zone here (RFC 2136 3.1.2), whatever the class"
UNSIGNED = "the three fail before they have looked at the signature; ours was good, so the answer is signed"
SHORT_MAC = "RFC 8945 5.2.2.1 says FORMERR, and no more"
BARE = "without a good signature an UPDATE is not looked through for its OPT"

# Why our answer is that of none of the three.
REASONS: Mapping[str, str] = {
    "NOTIFY of our zone": NOTIFIED,
    "NOTIFY of our zone, with a serial": NOTIFIED,
    "NOTIFY of our zone, signed": NOTIFIED,
    "NOTIFY of our zone, TCP": NOTIFIED,
    "NOTIFY of type A": NOTIFIED,
    "NOTIFY of class CH": OTHER_CLASS,
    "UPDATE of class CH": OTHER_CLASS,
    "UPDATE of class CH, signed": OTHER_CLASS,
    "UPDATE of class ANY as zone": OTHER_CLASS,
    "class ANY": "only IN is served; NSD and Knot answer as in IN, BIND says FORMERR",
    "IXFR without SOA": "FORMERR for who has no key too: form comes first; the three say REFUSED or NOTAUTH",
    "trailing octets behind OPT": OPT_BACK + "; NSD and BIND take no notice of them",
    "two OPT": OPT_BACK,
    "OPT in the authority section": OPT_BACK,
    "OPT with 3 octets of options": OPT_BACK,
    "OPT option longer than OPT": OPT_BACK,
    "OPT whose owner is not the root": OPT_BACK,
    "OPT length beyond the end": OPT_BACK,
    "OPT and malformed TSIG": OPT_BACK,
    "TSIG before OPT": OPT_BACK,
    "TSIG late within its own fudge": "for how long a replay is good, we say: 300 s",
    "TSIG MAC of 15 octets": SHORT_MAC,
    "TSIG MAC of 8 octets": SHORT_MAC,
    "TSIG MAC of 0 octets": SHORT_MAC,
    "UPDATE adds type OPT": UNSIGNED,
    "UPDATE adds an A of 3 octets": UNSIGNED,
    "UPDATE with EDNS version 1": UNSIGNED,
    "UPDATE unsigned, with EDNS": BARE,
    "UPDATE unknown key, with EDNS": BARE,
    "IXFR from an unknown serial, UDP": "the SOA alone, as Knot and BIND, but with AA, as RFC 1995 2 has it",
}

# ---- what comes back


class Seen(NamedTuple):
    """An answer, as far as it should be alike."""

    rcode: str
    flags: str = ""
    asked: bool = False
    answer: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    edns: str = ""
    tsig: str = ""


NOTHING = Seen("no answer")


def read(messages: Sequence[bytes]) -> Seen:
    """What a server said to one message; an AXFR's records are those of all of its messages."""
    if not messages:
        return NOTHING
    seen = [_read(octets) for octets in messages]
    first, last = seen[0], seen[-1]
    answer = tuple(sorted(line for one in seen for line in one.answer))
    return first._replace(answer=answer, tsig=last.tsig)


def _read(octets: bytes) -> Seen:
    try:
        found = dns.message.from_wire(octets, keyring=False)
    except dns.exception.DNSException:  # what is echoed of a malformed question is malformed
        flags = int.from_bytes(octets[2:4], "big")
        rcode = dns.rcode.to_text(dns.rcode.from_flags(flags, 0))
        return Seen(rcode, _flags(flags), octets[4:6] != b"\0\0")
    edns = ""
    if found.edns >= 0:
        cookies = [len(option.to_wire() or b"") for option in found.options if option.otype == 10]
        edns = f"version {found.edns} flags {found.ednsflags & 0xFFFF:x} cookies {cookies}"
    tsig = ""
    if found.tsig is not None:
        (said,) = found.tsig
        tsig = f"{dns.rcode.to_text(dns.rcode.Rcode(said.error), tsig=True)}, {len(said.mac)} octets"
    rcode = dns.rcode.to_text(found.rcode())
    sections = _lines(found.answer), _lines(found.authority)
    return Seen(rcode, _flags(found.flags), bool(found.question), *sections, edns, tsig)


def _flags(flags: int) -> str:
    return dns.flags.to_text(flags & (dns.flags.AA | dns.flags.TC | dns.flags.RD | dns.flags.RA | 0x70))


def alike(ours: Seen, theirs: Seen) -> bool:
    """Whether the two say the same. What was not understood need not be echoed, and often is not."""
    if ours.rcode in ("FORMERR", "NOTIMP"):
        theirs = theirs._replace(asked=ours.asked)
    return ours == theirs


def _lines(section: Sequence[dns.rrset.RRset]) -> tuple[str, ...]:
    """Without serials, which are each server's own."""
    return tuple(
        sorted(
            f"{rrset.name} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} "
            + ("" if rrset.rdtype == dns.rdatatype.SOA else rdata.to_text())
            for rrset in section
            for rdata in rrset
        )
    )


def ask(port: int, octets: bytes, tcp: bool) -> Seen:
    if tcp:
        return read(_over_tcp(port, octets))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.connect(("127.0.0.1", port))
        peer.settimeout(SILENCE_SECONDS)
        peer.send(octets)
        try:
            return read([peer.recv(65535)])
        except TimeoutError:
            return NOTHING


def _over_tcp(port: int, octets: bytes) -> list[bytes]:
    got = b""
    with socket.create_connection(("127.0.0.1", port), SILENCE_SECONDS) as peer:
        peer.sendall(struct.pack("!H", len(octets)) + octets)
        while select.select([peer], [], [], SILENCE_SECONDS if not got else 0.2)[0]:
            try:
                more = peer.recv(65535)
            except ConnectionResetError:
                break
            if not more:
                break
            got += more
    messages = []
    while got:
        end = 2 + struct.unpack_from("!H", got)[0]
        messages.append(got[2:end])
        got = got[end:]
    return messages


# ---- the four


class Ours(Nameserver):
    """The appliance, with the zone and the key."""

    def start(self) -> None:
        text = self.settings.read_text()
        for kind in ("update", "transfer"):
            text += f'[[nameserver.keys]]\nfile = "key"\nkind = "{kind}"\n'
        self.settings.write_text(text)
        key = self.base / "key"
        key.write_text(KEY_FILE.format(name=KEY, secret=base64.b64encode(SECRET).decode()))
        key.chmod(0o600)
        self.write("example.zone", ZONE)
        super().start()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, int]]:
    """Where each of the four is asked."""
    base = tmp_path_factory.mktemp("matrix")
    with ExitStack() as running:
        ours = Ours(base)
        running.callback(ours.process.kill)
        found = {OURS: ours.port}
        for made in ALL:
            theirs = made(base / made.__name__, {APEX: ZONE}, key=(KEY, base64.b64encode(SECRET).decode()))
            running.callback(theirs.kill)
            theirs.serves(APEX)
            found[theirs.program] = theirs.port
        yield found
        assert "Traceback" not in ours.process.output


@pytest.fixture(scope="module")
def answers(ports: Mapping[str, int]) -> Mapping[str, Mapping[str, Seen]]:
    """What each said, by row."""
    rows = {name: Row(octets) for name, (octets, _) in MATRIX.items()} | dict(ROWS)
    # Knot answers updates that come together together: SERVFAIL to all where one is odd.
    in_turn = {name: row for name, row in rows.items() if name.startswith("UPDATE")} | dict(LAST)

    def said(server: str, row: Row) -> Seen:
        return ask(ports[server], row.sent(int(time.time())), row.tcp)

    def said_in_turn(server: str) -> Mapping[str, Seen]:
        return {name: said(server, row) for name, row in in_turn.items()}

    with ThreadPoolExecutor(AT_ONCE) as together:
        at_once = {
            (name, server): together.submit(said, server, row)
            for name, row in rows.items()
            for server in ports
            if name not in in_turn
        }
    with ThreadPoolExecutor(len(ports)) as together:
        later = {server: together.submit(said_in_turn, server) for server in ports}
    return {
        name: {
            server: later[server].result()[name] if name in in_turn else at_once[name, server].result()
            for server in ports
        }
        for name in {**rows, **in_turn}
    }


@pytest.mark.parametrize("row", [*MATRIX, *ROWS, *LAST])
def test_our_answer_is_that_of_another_or_there_is_a_reason(
    answers: Mapping[str, Mapping[str, Seen]], row: str
) -> None:
    theirs = dict(answers[row])
    ours = theirs.pop(OURS)
    same = [server for server, answer in theirs.items() if alike(ours, answer)]
    text = "\n".join(f"{server}: {tuple(answer)}" for server, answer in answers[row].items())
    if row in REASONS:
        assert not same, f"the reason is one no more\n{text}"
    else:
        assert same, text


def test_reasons_are_of_rows() -> None:
    assert not set(REASONS) - {*MATRIX, *ROWS, *LAST}
    assert len(ROWS) + len(LAST) >= 15
    assert not set(ROWS) & set(MATRIX)

"""Queries to send, and answers read back by dnspython: an oracle that shares no code with what is tested."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from appliance.dns import names
from appliance.dns.followed import Asked
from appliance.dns.responder import Dropped, Responder
from appliance.dns.transfer import TransferAsked
from appliance.dns.zone import Zone
from appliance.dns.zonefile import ZoneFileError, read_zone

HEAD = """\
$TTL 300
@ SOA ns1 hostmaster 7 7200 3600 1209600 60
@ NS ns1
ns1 A 192.0.2.1
"""


def zone(text: str, apex: str = "example.test", head: str = HEAD) -> Zone:
    """The zone of a head (SOA, NS, ns1) and these lines."""
    return read_zone(head + text, filename="test.zone", apex=names.from_text(apex))


def opt(
    payload: int = 1232, version: int = 0, flags: int = 0, options: bytes = b"", owner: bytes = b"\0"
) -> bytes:
    """An OPT record."""
    return owner + struct.pack("!HHBBHH", 41, payload, 0, version, flags, len(options)) + options


def question(name: str | bytes, qtype: int | str = "A", qclass: int = 1) -> bytes:
    """The octets of a question; a str keeps its case."""
    if isinstance(name, str):
        labels = [label.encode("latin-1") for label in name.split(".") if label]
        name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    number = qtype if isinstance(qtype, int) else int(dns.rdatatype.from_text(qtype))
    return name + struct.pack("!HH", number, qclass)


def query(
    name: str | bytes,
    qtype: int | str = "A",
    *,
    qclass: int = 1,
    flags: int = 0x0100,
    ident: int = 0x1234,
    edns: bytes = b"",
) -> bytes:
    """A query; `edns` are the octets of its OPT record."""
    head = struct.pack("!6H", ident, flags, 1, 0, 0, 1 if edns else 0)
    return head + question(name, qtype, qclass) + edns


SOURCE = "192.0.2.1"
WALL = 1_800_000_000.0


def outcome(
    responder: Responder,
    message: bytes,
    *,
    udp: bool = True,
    source: str = SOURCE,
    now: float = 1000.0,
    wall: float = WALL,
) -> bytes | Dropped | TransferAsked | Asked:
    """What the responder makes of a message from somewhere."""
    return responder.respond(message, udp=udp, source=source, now=now, wall=wall)


def answered(responder: Responder, message: bytes, *, udp: bool = True) -> bytes:
    """The answer, which there must be."""
    response = outcome(responder, message, udp=udp)
    assert isinstance(response, bytes), response
    return response


def ask(
    zones: Responder | Zone, name: str | bytes, qtype: int | str = "A", *, udp: bool = True, edns: bytes = b""
) -> Reply:
    """Ask and read the reply."""
    responder = zones if isinstance(zones, Responder) else Responder([zones])
    return reply(answered(responder, query(name, qtype, edns=edns), udp=udp))


@dataclass(frozen=True)
class Reply:
    """An answer as text lines without order: ``name ttl TYPE data``."""

    rcode: str
    aa: bool
    tc: bool
    answer: list[str]
    authority: list[str]
    additional: list[str]
    octets: bytes = field(repr=False, compare=False)


def reply(octets: bytes) -> Reply:
    """Read an answer strictly."""
    message = dns.message.from_wire(octets)
    return Reply(
        dns.rcode.to_text(message.rcode()),
        bool(message.flags & dns.flags.AA),
        bool(message.flags & dns.flags.TC),
        _lines(message.answer),
        _lines(message.authority),
        _lines(message.additional),
        octets,
    )


def _lines(section: list[dns.rrset.RRset]) -> list[str]:
    return sorted(
        f"{rrset.name.to_text(True)} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} {rdata.to_text()}"
        for rrset in section
        for rdata in rrset
    )


_OWNERS = (
    "@",
    "a",
    "b",
    "c",
    "*",
    "a.a",
    "b.a",
    "*.a",
    "a.b",
    "*.b",
    "a.a.a",
    "c.b.a",
    "a.*",
    "c.c.c",
    "ns1",
    "a.c",
    "*.c.c",
)
_TARGETS = (
    "a",
    "b",
    "c",
    "a.a",
    "b.a",
    "x.a",
    "x.b",
    "x.c",
    "x.y.a",
    "nothing",
    "@",
    "a.b",
    "x.c.c",
    "elsewhere.invalid.",
)


def zone_lines(choose: random.Random, more_targets: tuple[str, ...] = ()) -> list[str]:
    """Lines for a small zone in which names are near each other: wildcards, aliases, cuts and gaps meet
    often."""
    targets = _TARGETS + more_targets
    lines = []
    for _ in range(choose.randint(1, 14)):
        owner = choose.choice(_OWNERS)
        kind = choose.choice(("A", "A", "AAAA", "TXT", "CNAME", "CNAME", "MX", "NS", "DNAME", "DS", "SRV"))
        target = choose.choice(targets)
        ttl = choose.choice((60, 300))
        data = {
            "A": f"192.0.2.{choose.randint(1, 9)}",
            "AAAA": f"2001:db8::{choose.randint(1, 9)}",
            "TXT": f'"t{choose.randint(1, 9)}"',
            "MX": f"10 {target}",
            "SRV": f"0 0 53 {target}",
            "DS": "1 13 2 " + "ab" * 32,
        }.get(kind, target)
        lines.append(f"{owner} {ttl} {kind} {data}")
        if kind == "NS" and choose.random() < 0.8 and not target.endswith("."):
            lines.append(f"{target} {ttl} A 192.0.2.{choose.randint(1, 9)}")
    return lines


def valid_zone(lines: list[str], apex: str, head: str = HEAD) -> tuple[Zone, str]:
    """The zone of those lines that can stand together, and its text."""
    lines = list(dict.fromkeys(lines))
    ttls: Mapping[tuple[str, str], str]
    while True:
        ttls = {}
        text = head
        for line in lines:
            owner, ttl, kind, data = line.split(" ", 3)
            ttl = ttls.setdefault(
                (owner, kind), ttl
            )  # one TTL an rrset, as servers differ in which they take
            text += f"{owner} {ttl} {kind} {data}\n"
        try:
            return read_zone(text, filename="z", apex=names.from_text(apex)), text
        except ZoneFileError as error:
            wrong = {int(fault.split(":")[1]) - head.count("\n") - 1 for fault in str(error).splitlines()}
            if min(wrong) < 0:
                wrong = {len(lines) - 1}  # something made the head wrong: take lines away until it is right
            lines = [line for at, line in enumerate(lines) if at not in wrong]

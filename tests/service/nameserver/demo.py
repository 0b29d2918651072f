"""A small zone in a responder, and questions for it."""

from __future__ import annotations

import struct

from appliance.dns import names
from appliance.dns.responder import Responder
from appliance.dns.zonefile import read_zone

ZONE = """\
$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 300
@ NS ns1
ns1 A 192.0.2.53
www A 192.0.2.80
large TXT {}
""".format(" ".join(f'"{number:0250}"' for number in range(80)))
LARGE_OCTETS = 80 * 250  # of the TXT at large.demo.test, at least

_A, _TXT, _IN = 1, 16, 1


def responder() -> Responder:
    return Responder([read_zone(ZONE, filename="demo.zone")])


def question(number: int = 1, name: str = "www.demo.test", rtype: int = _A) -> bytes:
    """A query message with the ID `number`."""
    head = struct.pack("!6H", number, 0, 1, 0, 0, 0)
    return head + names.from_text(name) + struct.pack("!2H", rtype, _IN)


def large_question(number: int = 1) -> bytes:
    return question(number, "large.demo.test", _TXT)


def framed(*messages: bytes) -> bytes:
    """The messages as TCP carries them (RFC 1035 4.2.2)."""
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def unframed(octets: bytes) -> list[bytes]:
    """The messages of a whole TCP stream."""
    found = []
    while octets:
        length = int.from_bytes(octets[:2], "big")
        assert len(octets) >= 2 + length
        found.append(octets[2 : 2 + length])
        octets = octets[2 + length :]
    return found


def number_of(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def answers_in(message: bytes) -> int:
    """ANCOUNT."""
    return int.from_bytes(message[6:8], "big")

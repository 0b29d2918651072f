"""The longest that one message can hold the reactor: what made other servers slow, up to 65,535 octets.

For `make bench-dns`. Each is a query, and once more an UPDATE with a signature that is not good. CPU time of
the best of some rounds, so that what else runs here does not count; said is the worst message of all.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from appliance.dns.numbers import UPDATE
from appliance.dns.responder import Responder
from appliance.dns.tsig import Key
from tests.dns.asking import question, zone
from tests.dns.test_question import hostile

MAX_OCTETS = 65_535
ROUNDS = 7
KEY = Key(b"\3key\0", b"\x0bhmac-sha256\0", bytes(32))


def messages() -> Iterator[tuple[str, bytes]]:
    """What each is, and its octets."""
    # RFC 8945 4.2: time and fudge, the MAC, original ID, error and no other data.
    rdata = KEY.algorithm + (1_800_000_000).to_bytes(6, "big") + struct.pack("!HH", 300, 32) + bytes(38)
    tsig = KEY.name + struct.pack("!HHIH", 250, 255, 0, len(rdata)) + rdata
    for size in (512, 4096, 16_384, MAX_OCTETS):
        for what, octets in hostile(size).items():
            whole = octets[:size]
            yield f"{what}, {size}", whole
            body = question("example.test", "SOA") + whole[12 : size - 18 - len(tsig)]
            for records in (1, 199, 0xFFFF):
                head = struct.pack("!6H", 1, UPDATE << 11, 1, 0, records, 1)
                yield f"an UPDATE of {what}, {records} records, {size}", head + body + tsig


def seconds(responder: Responder, octets: bytes) -> float:
    """The CPU time of an answer to it, at best."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        responder.respond(octets, udp=False, source="192.0.2.1", now=0.0, wall=1.8e9)
        taken.append(time.process_time() - began)
    return min(taken)


def worst() -> tuple[float, str]:
    """The longest, in seconds, and of which message."""
    responder = Responder([zone("www A 192.0.2.7")])
    responder.keys = {KEY.name: KEY}
    return max((seconds(responder, octets), what) for what, octets in messages())

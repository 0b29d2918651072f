"""The octets of an answer.

Hidden here: header bits, name compression (only where RFC 3597 4 allows it, and only to offsets that a
pointer can hold), OPT, and what is left out when an answer does not fit: first what is optional, then
everything, with TC set (RFC 2181 9; an rrset is never cut in two). What is given must fit 65,535 octets,
which zonecheck sees to.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

from appliance.dns.lookup import Found
from appliance.dns.names import ROOT, end_of
from appliance.dns.numbers import AA, CNAME, DO, IN, MX, NOERROR, NS, OPT, PTR, QR, RD, SOA, TC
from appliance.dns.question import HEADER_OCTETS, Edns
from appliance.dns.zone import RRset

# What fits every path unfragmented (DNS flag day 2020, RFC 9715), and what NSD, Knot, BIND and gdnsd send
# at most.
MAX_UDP_OCTETS: Final = 1232
MIN_UDP_OCTETS: Final = 512  # RFC 1035 4.2.1; a smaller EDNS size counts as this (RFC 6891 6.2.3)
MAX_TCP_OCTETS: Final = 0xFFFF

# A compression pointer has 14 bits (RFC 1035 4.1.4). What is further in cannot be pointed to.
_POINTABLE: Final = 0x4000

_HEAD: Final = Struct("!HHHHHH")
_RECORD: Final = Struct("!HHI")
_OPT: Final = Struct("!xHHBBHH")
_OPTION: Final = Struct("!HH")
_U16: Final = Struct("!H")

# Where names are in the data of the types whose names may be compressed: octets before, and how many names.
_NAMES_IN: Final = {NS: (0, 1), CNAME: (0, 1), PTR: (0, 1), MX: (2, 1), SOA: (0, 2)}


def udp_limit(edns: Edns | None) -> int:
    """How many octets an answer over UDP may have."""
    if edns is None:
        return MIN_UDP_OCTETS
    return min(max(edns.payload, MIN_UDP_OCTETS), MAX_UDP_OCTETS)


def compose(
    query: bytes, end: int, found: Found, edns: Edns | None, limit: int, options: bytes = b""
) -> bytes:
    """The answer `found` to `query`, whose question ends at `end`, in at most `limit` octets.

    `options` go into the OPT record, if there is one; it is the last record.
    """
    flags = AA if found.authoritative else 0
    opt = opt_record(edns, found.rcode, options)
    room = limit - len(opt)
    writer = Writer(query[HEADER_OCTETS:end])
    answers = writer.write(found.answer)
    authorities = writer.write(found.authority)
    glue = writer.write(found.glue)
    if len(writer.octets) > room:
        return _message(query, query[HEADER_OCTETS:end], flags | TC, found.rcode, (0, 0, 0), opt)
    for rrset in found.extra:
        before = len(writer.octets)
        count = writer.write((rrset,))
        if len(writer.octets) > room:
            del writer.octets[before:]
            break
        glue += count
    body = bytes(writer.octets[HEADER_OCTETS:])
    return _message(query, body, flags, found.rcode, (answers, authorities, glue), opt)


def refuse(
    query: bytes, rcode: int, end: int = HEADER_OCTETS, edns: Edns | None = None, options: bytes = b""
) -> bytes:
    """An answer that holds nothing but `rcode`; the question is echoed when it ends beyond the header.

    `query` must have a whole header. The opcode is its own.
    """
    return _message(query, query[HEADER_OCTETS:end], 0, rcode, (0, 0, 0), opt_record(edns, rcode, options))


def defer(query: bytes, end: int, edns: Edns | None, options: bytes = b"") -> bytes:
    """An answer that holds nothing but the advice to ask again over TCP."""
    opt = opt_record(edns, NOERROR, options)
    return _message(query, query[HEADER_OCTETS:end], TC, NOERROR, (0, 0, 0), opt)


def with_options(answer: bytes, options: bytes) -> bytes:
    """A finished `answer`, which ends with an OPT record that has none, with these `options` in it."""
    return answer[:-2] + _U16.pack(len(options)) + options


def _message(
    query: bytes, body: bytes, flags: int, rcode: int, counts: tuple[int, int, int], opt: bytes
) -> bytes:
    asked = query[2] << 8
    answers, authorities, additional = counts
    head = _HEAD.pack(
        query[0] << 8 | query[1],
        QR | (asked & (0x7800 | RD)) | flags | (rcode & 0xF),
        1 if body else 0,
        answers,
        authorities,
        additional + (1 if opt else 0),
    )
    return head + body + opt


def option(code: int, content: bytes) -> bytes:
    """One option of an OPT record (RFC 6891 6.1.2)."""
    return _OPTION.pack(code, len(content)) + content


def opt_record(edns: Edns | None, rcode: int, options: bytes = b"") -> bytes:
    """Our OPT record, sent exactly when one came (RFC 6891 6.1.1, 7); DO is copied (RFC 3225 3)."""
    if edns is None:
        return b""
    flags = DO if edns.dnssec_ok else 0
    return _OPT.pack(OPT, MAX_UDP_OCTETS, rcode >> 4, 0, flags, len(options)) + options


class Writer:
    """Writes rrsets behind a header and a question (or none), and knows where each name has been written.

    `octets` is the message so far; the place of the header is empty.
    """

    def __init__(self, question: bytes) -> None:
        self.octets = bytearray(HEADER_OCTETS) + question
        self._offsets: dict[bytes, int] = {}
        name = question[:-4].lower() or ROOT
        at = 0
        while length := name[at]:
            self._offsets[name[at:]] = HEADER_OCTETS + at
            at += 1 + length

    def write(self, rrsets: Iterable[RRset]) -> int:
        """Append `rrsets`; how many records that were."""
        octets = self.octets
        count = 0
        for rrset in rrsets:
            head = _RECORD.pack(rrset.rtype, IN, rrset.ttl)
            names_in = _NAMES_IN.get(rrset.rtype)
            for rdata in rrset.rdatas:
                self._name(rrset.name)
                octets += head
                if names_in is None:
                    octets += _U16.pack(len(rdata)) + rdata
                else:
                    self._compressed(rdata, *names_in)
            count += len(rrset.rdatas)
        return count

    def _compressed(self, rdata: bytes, at: int, names: int) -> None:
        octets = self.octets
        length_at = len(octets)
        octets += b"\x00\x00" + rdata[:at]
        for _ in range(names):
            end = end_of(rdata, at)
            self._name(rdata[at:end])
            at = end
        octets += rdata[at:]
        _U16.pack_into(octets, length_at, len(octets) - length_at - 2)

    def _name(self, name: bytes) -> None:
        octets, offsets = self.octets, self._offsets
        key = name.lower()
        at = 0
        while length := name[at]:
            suffix = key[at:]
            offset = offsets.get(suffix)
            if offset is not None:
                octets += _U16.pack(0xC000 | offset)
                return
            if len(octets) < _POINTABLE:
                offsets[suffix] = len(octets)
            octets += name[at : at + 1 + length]
            at += 1 + length
        octets.append(0)

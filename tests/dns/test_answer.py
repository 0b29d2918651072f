"""Octets of answers: compression, sizes, and what is left out. dnspython reads them back."""

from __future__ import annotations

import random

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.answer import MAX_TCP_OCTETS, compose, refuse, udp_limit
from appliance.dns.lookup import Found, look_up
from appliance.dns.numbers import FORMERR, NS, REFUSED, TXT, A
from appliance.dns.question import Edns
from appliance.dns.zone import RRset
from tests.dns.asking import ask, opt, query, reply, valid_zone, zone, zone_lines
from tests.effort import examples

NAME = names.from_text("www.example.test")
QUERY = query("www.example.test", edns=opt())
END = 12 + len(NAME) + 4
EDNS = Edns(1232, 0, False)


def texts(count: int, size: int = 250, name: bytes = NAME) -> RRset:
    return RRset(
        name, TXT, 60, tuple(bytes((size,)) + f"{n:05}".encode().ljust(size, b"x") for n in range(count))
    )


def test_names_in_known_types_are_compressed() -> None:
    read = ask(zone("@ MX 10 mail\nmail A 192.0.2.1\nal CNAME mail.sub.mail\n"), "example.test", "MX")
    # The question's name serves the owner; its last labels serve the data.
    assert read.octets.endswith(b"\xc0\x0c\x00\x0f\x00\x01\x00\x00\x01\x2c\x00\x09\x00\x0a\x04mail\xc0\x0c")
    read = ask(zone("al CNAME x.mail\nx.mail A 192.0.2.1\n"), "al.example.test", "A")
    assert read.octets.endswith(
        b"\x00\x09\x01x\x04mail\xc0\x0f\xc0\x2d\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\xc0\x00\x02\x01"
    )


def test_names_in_later_types_are_not_compressed() -> None:
    read = ask(zone("s SRV 0 0 53 t\nd DNAME e\n"), "s.example.test", "SRV")
    assert read.octets.endswith(b"\x01t\x07example\x04test\x00")
    read = ask(zone("s SRV 0 0 53 t\nd DNAME e\n"), "d.example.test", "DNAME")
    assert read.octets.endswith(b"\x01e\x07example\x04test\x00")


def test_the_case_of_data_is_kept_and_matched_without_it() -> None:
    read = ask(zone("a CNAME MaIl.Example.TEST.\n"), "a.example.test", "CNAME")
    assert read.answer == ["a.example.test 300 CNAME MaIl.example.test."]


def test_no_pointer_beyond_14_bits() -> None:
    """Names that first occur past 16 KiB are written out; the message stays readable."""
    found = Found(authoritative=True)
    found.answer.append(texts(80))
    for number in range(40):
        name = names.from_text(f"n{number}.late{number}.other.test")
        found.answer.append(RRset(name, NS, 60, (names.from_text(f"ns.n{number}.late{number}.other.test"),)))
    octets = compose(QUERY, END, found, EDNS, MAX_TCP_OCTETS)
    assert len(octets) > 0x5000
    read = dns.message.from_wire(octets)
    assert len(read.answer) == 41
    assert read.answer[-1].name.to_text() == "n39.late39.other.test."
    assert read.answer[-1][0].to_text() == "ns.n39.late39.other.test."


@pytest.mark.parametrize("count", range(6))
def test_an_rrset_is_whole_or_not_there(count: int) -> None:
    found = Found(authoritative=True, answer=[texts(count)])
    octets = compose(QUERY, END, found, EDNS, 1232)
    read = reply(octets)
    assert len(octets) <= 1232
    assert (len(read.answer), read.tc) == ((count, False) if count <= 4 else (0, True))


def test_optional_addresses_go_first_then_tc() -> None:
    def referral(glue: int, extra: int) -> bytes:
        found = Found(authority=[texts(1)], glue=[texts(glue)] if glue else [])
        found.extra = [texts(1, name=names.from_text(f"e{n}.test")) for n in range(extra)]
        return compose(QUERY, END, found, EDNS, 1232)

    read = reply(referral(2, 1))
    assert (read.tc, len(read.additional)) == (False, 3)
    read = reply(referral(2, 5))
    assert (read.tc, len(read.additional)) == (False, 3)
    read = reply(referral(5, 0))
    assert (read.tc, len(read.additional), len(read.authority)) == (True, 0, 0)


def test_a_referral_without_room_for_its_glue_is_truncated() -> None:
    """RFC 9471: a resolver that did not get the glue could not go on."""
    lines = "".join(
        f"sub NS ns{n}.sub\nns{n}.sub A 192.0.2.1\nns{n}.sub AAAA 2001:db8::1\n" for n in range(13)
    )
    delegating = zone(lines)
    assert ask(delegating, "x.sub.example.test").tc
    read = ask(delegating, "x.sub.example.test", edns=opt())
    assert (read.tc, len(read.additional)) == (False, 26)


@pytest.mark.parametrize(
    ("edns", "limit"),
    [(None, 512), (Edns(0, 0, False), 512), (Edns(700, 0, True), 700), (Edns(65535, 0, False), 1232)],
)
def test_udp_limit(edns: Edns | None, limit: int) -> None:
    assert udp_limit(edns) == limit


def test_refusals() -> None:
    assert refuse(QUERY, FORMERR) == b"\x12\x34\x81\x01" + bytes(8)
    octets = refuse(QUERY, REFUSED, END, EDNS)
    assert octets == b"\x12\x34\x81\x05\0\1\0\0\0\0\0\1" + QUERY[12:END] + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def test_one_of_each_type_as_octets() -> None:
    """A whole answer by hand, octet for octet."""
    octets = ask(zone("www A 192.0.2.7\n"), "wWw.example.test", edns=opt(flags=0x8000)).octets
    assert octets == bytes.fromhex(
        "1234 8500 0001 0001 0000 0001"
        "03775777 076578616d706c65 0474657374 00 0001 0001"
        "c00c 0001 0001 0000012c 0004 c0000207"
        "00 0029 04d0 00 00 8000 0000"
    )


@settings(max_examples=examples(35), deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_what_is_composed_reads_back(choose: random.Random, edns: bool) -> None:
    made, _ = valid_zone(zone_lines(choose), "example.test")
    for _ in range(8):
        name = choose.choice(list(made.rrsets))
        name = choose.choice((name, b"\x01x" + name))
        qtype = choose.choice((A, NS, TXT, 5, 6, 15, 39, 43, 255))
        found = look_up({made.apex: made}, name, qtype)
        sent = query(name, qtype, edns=opt() if edns else b"")
        octets = compose(sent, 12 + len(name) + 4, found, EDNS if edns else None, MAX_TCP_OCTETS)
        read = dns.message.from_wire(octets)
        for section, wanted in ((read.answer, found.answer), (read.authority, found.authority)):
            got = {
                (rrset.name.to_wire(), int(rrset.rdtype), rrset.ttl, rdata.to_wire())
                for rrset in section
                for rdata in rrset
            }
            assert got == {
                (rrset.name, rrset.rtype, rrset.ttl, rdata) for rrset in wanted for rdata in rrset.rdatas
            }

"""A message in, an answer out: the hard-wire matrix, and that nothing a stranger sends makes the
responder fail."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names, responder
from appliance.dns.lookup import Found
from appliance.dns.responder import Counted, Dropped, Responder
from tests.dns.asking import answered, ask, opt, outcome, query, question, reply, zone
from tests.effort import examples

ZONE = zone(
    "www A 192.0.2.7\n*.apps A 192.0.2.8\nbig TXT " + " ".join(f'"{"x" * 200}{n}"' for n in range(8)) + "\n"
)
WWW = question("www.example.test")


def message(
    flags: int = 0,
    questions: int = 1,
    body: bytes = WWW,
    answers: int = 0,
    authorities: int = 0,
    additional: int = 0,
) -> bytes:
    return struct.pack("!6H", 0x1234, flags, questions, answers, authorities, additional) + body


SOA_RECORD = b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x16\x00\x00" + bytes(20)
TSIG_RECORD = b"\x03key\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x04abcd"
APEX_AXFR = question("example.test", "AXFR")
APEX_IXFR = question("example.test", "IXFR")

# What is sent, the rcode, whether the question is echoed, whether OPT is there.
MATRIX: Mapping[str, tuple[bytes, Dropped | tuple[str, bool, bool]]] = {
    "QR=1": (message(0x8400), Dropped.RESPONSE),
    "5 octets": (b"\x12\x34\x01\x00\x00", Dropped.TOO_SHORT),
    "nothing": (b"", Dropped.TOO_SHORT),
    "12 zero octets": (bytes(12), ("FORMERR", False, False)),
    "QDCOUNT=0": (message(questions=0, body=b""), ("FORMERR", False, False)),
    "QDCOUNT=2": (message(questions=2, body=WWW * 2), ("FORMERR", False, False)),
    "opcode STATUS": (message(0x1000), ("NOTIMP", False, False)),
    "opcode 15": (message(0x7800), ("NOTIMP", False, False)),
    "opcode 15, header only": (message(0x7800, 0, b""), ("NOTIMP", False, False)),
    "NOTIFY of a name that is no zone": (message(0x2000), ("NOTAUTH", True, False)),
    "NOTIFY of our zone": (message(0x2400, body=question("example.test", "SOA")), ("NOTIMP", True, False)),
    "UPDATE whose zone is no SOA": (message(0x2800), ("FORMERR", False, False)),
    "UPDATE without a zone": (message(0x2800, 0, b""), ("FORMERR", False, False)),
    "UPDATE of another's zone": (
        message(0x2800, body=question("x.invalid", "SOA")),
        ("NOTAUTH", True, False),
    ),
    "UPDATE of class CH": (
        message(0x2800, body=question("example.test", "SOA", 3)),
        ("NOTAUTH", True, False),
    ),
    "UPDATE of our zone": (message(0x2800, body=question("example.test", "SOA")), ("REFUSED", True, False)),
    "class ANY": (message(body=question("www.example.test", 1, 255)), ("REFUSED", True, False)),
    "class CH": (message(body=question("version.bind", 16, 3)), ("REFUSED", True, False)),
    "class CH with EDNS": (
        message(body=question("version.bind", 16, 3) + opt(), additional=1),
        ("REFUSED", True, True),
    ),
    "class NONE": (message(body=question("www.example.test", 1, 254)), ("REFUSED", True, False)),
    "not our name": (message(body=question("www.example.org")), ("REFUSED", True, False)),
    "the root": (message(body=question(".", "NS")), ("REFUSED", True, False)),
    "question cut in its name": (message(body=WWW[:9]), ("FORMERR", False, False)),
    "question cut in its class": (message(body=WWW[:-1]), ("FORMERR", False, False)),
    "AXFR": (message(body=APEX_AXFR), ("NOTIMP", True, False)),
    "IXFR without SOA": (message(body=APEX_IXFR), ("FORMERR", True, False)),
    "IXFR": (message(body=APEX_IXFR + SOA_RECORD, authorities=1), ("REFUSED", True, False)),
    "IXFR of another's zone": (
        message(body=question("x.invalid", "IXFR") + SOA_RECORD, authorities=1),
        ("NOTAUTH", True, False),
    ),
    "IXFR with EDNS": (
        message(body=APEX_IXFR + SOA_RECORD + opt(), authorities=1, additional=1),
        ("REFUSED", True, True),
    ),
    "SOA in a plain query": (message(body=WWW + SOA_RECORD, authorities=1), ("FORMERR", True, False)),
    "QTYPE OPT": (message(body=question("www.example.test", 41)), ("NOERROR", True, False)),
    "QTYPE 0": (message(body=question("www.example.test", 0)), ("NOERROR", True, False)),
    "QTYPE MAILB": (message(body=question("www.example.test", 253)), ("NOERROR", True, False)),
    "QTYPE 65535": (message(body=question("www.example.test", 65535)), ("NOERROR", True, False)),
    "trailing octets": (message() + b"xxxx", ("FORMERR", True, False)),
    "trailing octets behind OPT": (message(additional=1) + opt() + b"x", ("FORMERR", True, True)),
    "two OPT": (message(additional=2) + opt() * 2, ("FORMERR", True, True)),
    "OPT in the authority section": (
        message(body=APEX_IXFR + opt(), authorities=1),
        ("FORMERR", True, True),
    ),
    "OPT with 3 octets of options": (
        message(additional=1) + opt(options=b"\0\x0a\0"),
        ("FORMERR", True, True),
    ),
    "OPT option longer than OPT": (
        message(additional=1) + opt(options=b"\0\x0a\0\x09abc"),
        ("FORMERR", True, True),
    ),
    "OPT whose owner is not the root": (message(additional=1) + opt(owner=b"\1x\0"), ("FORMERR", True, True)),
    "OPT cut off": (message(additional=1) + opt()[:-3], ("FORMERR", True, False)),
    "OPT length beyond the end": (message(additional=1) + opt()[:-2] + b"\0\x09", ("FORMERR", True, True)),
    "OPT version 1": (message(additional=1) + opt(version=1), ("BADVERS", True, True)),
    "OPT version 1 for a name not ours": (
        message(body=question("x.invalid") + opt(version=1), additional=1),
        ("BADVERS", True, True),
    ),
    "OPT unknown flags": (message(additional=1) + opt(flags=0x7FFF), ("NOERROR", True, True)),
    "OPT unknown option": (message(additional=1) + opt(options=b"\xfd\xe9\0\2ab"), ("NOERROR", True, True)),
    "OPT size 0": (message(additional=1) + opt(payload=0), ("NOERROR", True, True)),
    "COOKIE of 7 octets": (
        message(additional=1) + opt(options=b"\0\x0a\0\7abcdefg"),
        ("NOERROR", True, True),
    ),
    "malformed TSIG": (message(additional=1) + TSIG_RECORD, ("FORMERR", True, False)),
    "OPT and malformed TSIG": (message(additional=2) + opt() + TSIG_RECORD, ("FORMERR", True, True)),
    "three additional": (message(additional=3) + TSIG_RECORD * 3, ("FORMERR", True, False)),
    "additional that is not there": (message(additional=1), ("FORMERR", True, False)),
    "name of 255 octets, the longest there is": (
        message(body=(b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0\0\1\0\1"),
        ("REFUSED", True, False),
    ),
    "name of 256 octets": (
        message(body=(b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0\0\1\0\1"),
        ("FORMERR", False, False),
    ),
    "name of 320 octets": (
        message(body=(b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1"),
        ("FORMERR", False, False),
    ),
    "name that is a pointer to itself": (message(body=b"\xc0\x0c\0\1\0\1"), ("FORMERR", False, False)),
    "name that ends in a pointer": (message(body=b"\1a\xc0\x0c\0\1\0\1"), ("FORMERR", False, False)),
    "label type 0x40": (message(body=b"\x41" + b"a" * 65 + b"\0\0\1\0\1"), ("FORMERR", False, False)),
    "label type 0x80": (message(body=b"\x80\0\0\1\0\1"), ("FORMERR", False, False)),
    "ANCOUNT=1": (message(answers=1) + SOA_RECORD, ("FORMERR", True, False)),
    "counts of 65535": (message(0, 0xFFFF, WWW, 0xFFFF, 0xFFFF, 0xFFFF), ("FORMERR", False, False)),
    "labels that are no text": (
        message(body=question(b"\3\xff\0.\x07example\x04test\0")),
        ("NXDOMAIN", True, False),
    ),
}


@pytest.mark.parametrize("case", MATRIX)
def test_hard_wire_matrix(case: str) -> None:
    sent, expected = MATRIX[case]
    served = Responder([ZONE])
    found = outcome(served, sent)
    if isinstance(expected, Dropped):
        assert found is expected
        assert served.counters[expected] == 1
        return
    assert isinstance(found, bytes)
    rcode, echoed, edns = expected
    read = dns.message.from_wire(found)
    assert dns.rcode.to_text(read.rcode()) == rcode
    assert bool(read.question) is echoed or read.opcode() == 5
    if echoed:
        assert found[12:].startswith(
            sent[12 : sent.index(b"\0", 12) + 5] if case != "labels that are no text" else b"\3"
        )
    assert found[4:6] == (b"\0\1" if echoed else b"\0\0")
    assert (read.edns == 0) is edns
    if edns:
        assert read.payload == 1232
        assert read.ednsflags & 0x7FFF & 0xFFFF == 0, "unknown flags come back clear"
        assert not read.options
    assert found[:2] == sent[:2]
    assert found[2] & 0x80, "a response"
    assert found[2] & 0x78 == sent[2] & 0x78, "of the opcode that was asked"
    assert found[3] & 0xF0 == 0, "RA, Z, AD and CD are clear"
    assert Counted.FAULT not in served.counters


@pytest.mark.parametrize("asked", [APEX_AXFR, APEX_IXFR + SOA_RECORD])
def test_transfers_over_tcp_are_refused(asked: bytes) -> None:
    sent = message(body=asked, authorities=int(asked is not APEX_AXFR))
    assert reply(answered(Responder([ZONE]), sent, udp=False)).rcode == "REFUSED"


def test_flags_of_an_answer() -> None:
    served = Responder([ZONE])
    for sent, expected in ((0x0000, 0x8400), (0x0100, 0x8500), (0x0130, 0x8500), (0x07F0, 0x8500)):
        for _ in range(2):  # composed, then from the table
            assert answered(served, query("www.example.test", flags=sent))[2:4] == expected.to_bytes(2, "big")


def test_the_case_of_the_question_is_echoed_composed_or_not() -> None:
    served = Responder([ZONE])
    for name in ("wWw.eXample.TEST", "WWW.example.test", "wWw.eXample.TEST", "WWW.EXAMPLE.TEST"):
        octets = answered(served, query(name))
        assert octets[12:].startswith(question(name))
        assert dns.message.from_wire(octets).answer[0].name.to_text(True) == name
    assert served.counters[Counted.COMPOSED] == 1


def test_do_is_copied_and_other_flags_are_not() -> None:
    octets = answered(Responder([ZONE]), query("www.example.test", edns=opt(flags=0xFFFF)))
    assert octets[-4:-2] == b"\x80\x00"


@pytest.mark.parametrize(
    ("payload", "limit"),
    [(None, 512), (0, 512), (512, 512), (1000, 1000), (1232, 1232), (4096, 1232), (65535, 1232)],
)
def test_an_answer_over_udp_fits_or_is_empty_and_truncated(payload: int | None, limit: int) -> None:
    edns = b"" if payload is None else opt(payload)
    octets = answered(Responder([ZONE]), query("big.example.test", "TXT", edns=edns))
    read = reply(octets)
    assert len(octets) <= limit
    assert read.tc
    assert not read.answer
    assert (read.octets[-11:-8] == b"\0\0\x29") is bool(edns), (
        "OPT is there exactly when it came, truncated or not"
    )


def test_no_octets_over_udp_get_what_was_answered_over_tcp() -> None:
    served = Responder([zone("mid TXT " + " ".join(4 * ["x" * 250]))])
    sent = query("mid.example.test", "TXT")
    whole = answered(served, sent, udp=False)
    for more in range(256):
        assert len(answered(served, sent + bytes((more,)))) <= 512 < len(whole)


def test_an_answer_over_tcp_is_whole() -> None:
    served = Responder([ZONE])
    for udp in (True, False, True, False):  # the table keeps the two apart
        read = ask(served, "big.example.test", "TXT", udp=udp, edns=opt())
        assert read.tc is udp
        assert len(read.answer) == (not udp)


def test_options_do_not_multiply_what_is_composed() -> None:
    served = Responder([ZONE])
    for cookie in (b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"):
        read = reply(answered(served, query("www.example.test", edns=opt(options=b"\0\x0a\0\x08" + cookie))))
        assert read.answer == ["www.example.test 300 A 192.0.2.7"]
    assert served.counters[Counted.COMPOSED] == 1


def test_a_replaced_zone_is_answered_from_at_once() -> None:
    served = Responder([ZONE])
    assert ask(served, "www.example.test").answer == ["www.example.test 300 A 192.0.2.7"]
    assert ask(served, "new.example.test").rcode == "NXDOMAIN"
    served.replace(zone("www A 192.0.2.99\nnew A 192.0.2.1\n"))
    assert ask(served, "www.example.test").answer == ["www.example.test 300 A 192.0.2.99"]
    assert ask(served, "new.example.test").rcode == "NOERROR"


def test_a_chain_is_told_anew_when_a_later_zone_of_it_changes() -> None:
    served = Responder([zone("www CNAME www.other.test.\n"), zone("www A 192.0.2.1\n", "other.test")])
    assert "www.other.test 300 A 192.0.2.1" in ask(served, "www.example.test").answer
    served.replace(zone("www A 192.0.2.2\n", "other.test"))
    assert "www.other.test 300 A 192.0.2.2" in ask(served, "www.example.test").answer


def test_zones_come_and_go() -> None:
    served = Responder([ZONE])
    assert ask(served, "a.sub.example.test").rcode == "NXDOMAIN"
    assert ask(served, "www.other.test").rcode == "REFUSED"
    served.replace(zone("a A 192.0.2.1\n", "sub.example.test"))
    served.replace(zone("www A 192.0.2.1\n", "other.test"))
    assert ask(served, "a.sub.example.test").rcode == "NOERROR"
    assert ask(served, "www.other.test").rcode == "NOERROR"
    served.remove(names.from_text("sub.example.test"))
    served.remove(names.from_text("other.test"))
    assert ask(served, "a.sub.example.test").rcode == "NXDOMAIN"
    assert ask(served, "www.other.test").rcode == "REFUSED"
    assert list(served.zones) == [names.from_text("example.test")]


def test_a_fault_of_ours_costs_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Found:
        raise RuntimeError("a mistake")

    served = Responder([ZONE])
    with monkeypatch.context() as patched:
        patched.setattr(responder, "look_up", fail)
        octets = answered(served, query("www.example.test", edns=opt()))
    assert reply(octets).rcode == "SERVFAIL"
    assert served.counters[Counted.FAULT] == 1
    assert isinstance(served.last_fault, RuntimeError)
    assert ask(served, "www.example.test").rcode == "NOERROR"


def test_every_prefix_and_every_flipped_octet_is_survived() -> None:
    whole = query("www.example.test", edns=opt(options=b"\0\x0a\0\x08abcdefgh"))
    served = Responder([ZONE])
    for end in range(len(whole)):
        outcome(served, whole[:end])
        for value in (0, 1, 0x3F, 0x40, 0xC0, 0xFF):
            outcome(served, whole[:end] + bytes((value,)) + whole[end + 1 :])
    assert Counted.FAULT not in served.counters


HEADERS = st.tuples(
    st.integers(0, 0xFFFF), st.sampled_from((0, 0x100, 0x2800, 0x2000)), st.just(1), st.just(0), st.just(0)
)
PIECES = st.sampled_from(
    (WWW, APEX_AXFR, opt(), SOA_RECORD, TSIG_RECORD, b"\xc0\x0c", b"\0", b"\x03www", b"\0\x01\0\x01")
)
NEARLY = st.builds(
    lambda head, count, pieces, junk: struct.pack("!6H", *head, count) + b"".join(pieces) + junk,
    HEADERS,
    st.integers(0, 3),
    st.lists(PIECES, max_size=5),
    st.binary(max_size=4),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.one_of(st.binary(max_size=80), NEARLY), st.booleans())
def test_no_octets_make_it_fail(octets: bytes, udp: bool) -> None:
    served = Responder([ZONE])
    first = outcome(served, octets, udp=udp)
    assert Counted.FAULT not in served.counters
    assert outcome(served, octets, udp=udp) == first, "asked again it says the same"
    if isinstance(first, Dropped):
        return
    assert isinstance(first, bytes), "without keys nobody gets a transfer"
    assert len(first) <= (1232 if udp else 65535)
    assert first[:2] == octets[:2]
    assert first[2] & 0x80
    if octets[2] & 0x78 != 0x28:  # dnspython takes no class but IN in an UPDATE's echo
        dns.message.from_wire(first)

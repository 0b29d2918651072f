"""Master files: what is read, and which line is wrong in what way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.numbers import MX, NS, SOA, TXT, A
from appliance.dns.zonefile import ZoneFileError, read_zone
from tests.dns.asking import HEAD, zone, zone_lines
from tests.effort import examples

APEX = names.from_text("example.test")
LINES = HEAD.count("\n")


def rdatas(text: str, name: str, rtype: int) -> tuple[bytes, ...]:
    return zone(text).node(names.from_text(f"{name}.example.test"))[rtype].rdatas


ADDRESS = (b"\xc0\x00\x02\x01",)

RIGHT: dict[str, tuple[str, str, int, tuple[bytes, ...]]] = {
    "TTL then class": ("w 60 IN A 192.0.2.1", "w", A, ADDRESS),
    "class then TTL": ("w IN 60 A 192.0.2.1", "w", A, ADDRESS),
    "neither": ("w A 192.0.2.1", "w", A, ADDRESS),
    "lower case": ("w in a 192.0.2.1", "w", A, ADDRESS),
    "CLASS1 TYPE1": ("w CLASS1 TYPE1 192.0.2.1", "w", A, ADDRESS),
    "TTL units": ("w 1h30m A 192.0.2.1", "w", A, ADDRESS),
    "parentheses": ("w A (\n 192.0.2.1 ) ; end", "w", A, ADDRESS),
    "parenthesis without a space": ("w A (192.0.2.1)", "w", A, ADDRESS),
    "blank owner": ("w A 192.0.2.1\n\t IN TXT t", "w", TXT, (b"\x01t",)),
    "blank lines and comments": (
        'w A 192.0.2.1\n\n   \n ; it\'s "one\n; two\n  TXT t ; say "hi',
        "w",
        TXT,
        (b"\x01t",),
    ),
    "owner like a type": ("a A 192.0.2.1", "a", A, ADDRESS),
    "owner like a class": ("in A 192.0.2.1", "in", A, ADDRESS),
    "owner like a TTL": ("60 A 192.0.2.1", "60", A, ADDRESS),
    "upper-case owner": ("WWW A 192.0.2.1", "www", A, ADDRESS),
    "absolute owner": ("w.example.test. A 192.0.2.1", "w", A, ADDRESS),
    "escaped dot": ("a\\.b A 192.0.2.1", r"a\.b", A, ADDRESS),
    "escaped blank": ("a\\032b A 192.0.2.1", r"a\032b", A, ADDRESS),
    "wildcard": ("* A 192.0.2.1", "*", A, ADDRESS),
    "relative $ORIGIN": ("$ORIGIN sub\nw A 192.0.2.1", "w.sub", A, ADDRESS),
    "@ after $ORIGIN": ("$ORIGIN sub.example.test.\n@ A 192.0.2.1", "sub", A, ADDRESS),
    "@ as a target": ("w CNAME @", "w", 5, (APEX,)),
    "relative target": ("w MX 10 m", "w", MX, (b"\x00\x0a\x01m" + APEX,)),
    "generic data of a known type": ("w A \\# 4 C0000201", "w", A, ADDRESS),
    "unknown type": ("w TYPE65280 \\# 4 0A000001", "w", 65280, (b"\x0a\x00\x00\x01",)),
    "quoted semicolon": (
        'w TXT "r=superprotocol;ip=10.5.0.5"',
        "w",
        TXT,
        (b"\x1br=superprotocol;ip=10.5.0.5",),
    ),
    "escaped semicolon": ("w TXT r=x\\;ip=1", "w", TXT, (b"\x08r=x;ip=1",)),
    "decimal escapes": ('w TXT "a\\065b\\255"', "w", TXT, (b"\x04aAb\xff",)),
    "escaped quote": ('w TXT "a\\"b"', "w", TXT, (b'\x03a"b',)),
    "several texts": ('w TXT "a" b ""', "w", TXT, (b"\x01a\x01b\x00",)),
    "UTF-8 text": ('w TXT "ü"', "w", TXT, (b"\x02\xc3\xbc",)),
    "texts over lines": ('w TXT ( "a"\n  "b" )', "w", TXT, (b"\x01a\x01b",)),
    "CRLF": ("w A 192.0.2.1\r\nv A 192.0.2.1\r", "v", A, ADDRESS),
    "duplicates": ("w A 192.0.2.1\nw A 192.0.2.1", "w", A, ADDRESS),
    "CAA": ('w CAA 0 issue "ca.test; x=y"', "w", 257, (b"\x00\x05issueca.test; x=y",)),
    "SRV": ("w SRV 0 5 443 h", "w", 33, (b"\x00\x00\x00\x05\x01\xbb\x01h" + APEX,)),
    "HTTPS": ('w HTTPS 1 . alpn="h2"', "w", 65, (b"\x00\x01\x00\x00\x01\x00\x03\x02h2",)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right(case: str) -> None:
    text, name, rtype, expected = RIGHT[case]
    assert rdatas(text, name, rtype) == expected


# What is written behind the head, in which line of it the mistake is, and what is said.
WRONG: dict[str, tuple[str, int, str]] = {
    "bad IPv4": ("w A 192.0.2.256", 1, "'192.0.2.256' is not an IPv4 address"),
    "bad IPv6": ("w AAAA 192.0.2.1", 1, "'192.0.2.1' is not an IPv6 address"),
    "no data": ("w A\nv A 192.0.2.1", 1, "this A record ends too early"),
    "no data at the end": ("v A 192.0.2.1\nw A", 2, "this A record ends too early"),
    "no type": ("w 60 IN\n", 1, "ends before its type"),
    "nothing behind a name": ("w\nv A 192.0.2.1\n", 1, "ends before its type"),
    "too much data": ("w A 192.0.2.1 garbage", 1, "unexpected 'garbage' after the end of this A record"),
    "too much in a later line": ("w A (\n192.0.2.1\n\ngarbage )", 4, "unexpected 'garbage'"),
    "unknown type": ("w BOGUS 1", 1, "there is no record type 'BOGUS'"),
    "class CH": ("w CH A 192.0.2.1", 1, "only class IN"),
    "class by number": ("w CLASS3 A 192.0.2.1", 1, "only class IN"),
    "a type of questions": ("w ANY x", 1, "only class IN"),
    "OPT": ("w OPT x", 1, "type of questions"),
    "TYPE0": ("w TYPE0 \\# 0", 1, "type of questions"),
    "large TTL": ("w 2147483648 A 192.0.2.1", 1, "above the largest"),
    "TTL without a unit": ("w 1x A 192.0.2.1", 1, "'1x' is not a TTL"),
    "$TTL without a value": ("$TTL\n", 1, r"\$TTL needs a value"),
    "$TTL with more": ("$TTL 60 70\n", 1, "unexpected '70'"),
    "$ORIGIN that is no name": ("$ORIGIN a..b\n", 1, "'a..b' is not a name"),
    "$INCLUDE": ("$INCLUDE other.zone", 1, r"\$INCLUDE is not supported"),
    "$GENERATE": ("$GENERATE 1-3 h$ A 192.0.2.$", 1, r"\$GENERATE is not supported"),
    "$GENERATE alone": ("$GENERATE\nw A 192.0.2.1", 1, r"\$GENERATE is not supported"),
    "unknown directive": ("$FOO bar", 1, r"no directive '\$FOO'"),
    "raw U-label": ("bücher A 192.0.2.1", 1, "write 'xn--bcher-kva'"),
    "raw U-label as a target": ("w CNAME bücher", 1, "write 'xn--bcher-kva'"),
    "raw U-label behind others": ("a.b.bücher A 192.0.2.1", 1, "write 'xn--bcher-kva'"),
    "data of 65536 octets": ("w TYPE65280 \\# 65536 " + "00" * 65536, 1, "longer than 65535"),
    "data that only its type knows": ("w LOC 51 N x E 0m", 1, "LOC record"),
    "raw U-label in $ORIGIN": ("$ORIGIN bücher\n", 1, "write 'xn--bcher-kva'"),
    "long label": ("a" * 64 + " A 192.0.2.1", 1, "is not a name"),
    "long name": (".".join(["a" * 63] * 4) + ". A 192.0.2.1", 1, "is not a name"),
    "empty label": ("a..b A 192.0.2.1", 1, "'a..b' is not a name"),
    "empty label in data": ("w CNAME a..b", 1, "label is empty"),
    "quoted owner": ('"w" A 192.0.2.1', 1, "a name is expected here"),
    "quoted type": ('w "A" 192.0.2.1', 1, "a record type is expected"),
    "open quote": ('w TXT "abc\nv A 192.0.2.1', 1, "quote is missing"),
    "open quote at the end": ('v A 192.0.2.1\nw TXT "abc', 2, "quote is missing"),
    "long text": (f'w TXT "{"x" * 256}"', 1, "longer than 255"),
    "closing parenthesis": ("w A 192.0.2.1 )\nv A 192.0.2.1", 1, r"'\)' without"),
    "opening parenthesis": ("w A ( 192.0.2.1\nv A 192.0.2.1\n", 2, r"a '\(' before it is still open"),
    "opening parenthesis at the end": ("w TXT ( a\n\n", 3, r"a '\(' is never closed"),
    "a line ends in a backslash": ("w TXT a\\\n", 1, "backslash"),
    "not a number": ("w MX ten m", 1, "'ten' is not a number"),
    "a missing name": ("w MX 10", 1, "this MX record ends too early"),
    "bad hexadecimal": ("w DS 1 1 1 zz", 1, "hexadecimal"),
    "short generic data": ("w TYPE65280 \\# 4 00", 1, "wrong length"),
    "mistake in a multi-line SOA": ("x SOA a b (\n1\n2\nthree\n4 5 )", 4, "'three'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case: str) -> None:
    text, line, what = WRONG[case]
    with pytest.raises(ZoneFileError, match=what) as caught:
        zone(text)
    assert caught.value.line == LINES + line
    assert str(caught.value).startswith(f"test.zone:{LINES + line}: ")
    assert caught.value.what in str(caught.value)


def test_all_mistakes_at_once_in_order() -> None:
    with pytest.raises(ZoneFileError) as caught:
        zone('a A x\nb A 192.0.2.1\nc TXT "y\nd TXT )\ne MX 10\nf TXT t\\\ng A z\nh\n$TTL\ni A x')
    lines = [int(line.split(":")[1]) - LINES for line in str(caught.value).splitlines()]
    assert lines == [1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_mistakes_are_shown_in_bounded_number() -> None:
    with pytest.raises(ZoneFileError) as caught:
        zone("a A x\n" * 1000)
    assert len(str(caught.value).splitlines()) == 20


NO_TTL = "@ SOA ns1 h 1 2 3 4 77\n@ NS ns1\nns1 A 192.0.2.1\n"


@pytest.mark.parametrize(
    ("text", "ttls"),
    [
        (NO_TTL, {77}),  # as BIND: MINIMUM, where there is nothing else
        ("$TTL 60\n" + NO_TTL, {60}),
        ("@ 60 SOA ns1 h 1 2 3 4 77\n@ NS ns1\nns1 A 192.0.2.1\n", {60}),
        ("@ 60 SOA ns1 h 1 2 3 4 77\n@ 70 NS ns1\n$TTL 80\nns1 A 192.0.2.1\n", {60, 70, 80}),
    ],
)
def test_default_ttls(text: str, ttls: set[int]) -> None:
    made = read_zone(text, filename="z", apex=APEX)
    assert {rrset.ttl for node in made.rrsets.values() for rrset in node.values()} == ttls


def test_no_ttl_anywhere() -> None:
    with pytest.raises(ZoneFileError, match="z:1: this record has no TTL"):
        read_zone("@ NS ns1\n" + NO_TTL, filename="z", apex=APEX)


def test_an_rrset_has_its_lowest_ttl() -> None:
    node = zone("w 60 A 192.0.2.1\nw 30 A 192.0.2.2\nw 90 A 192.0.2.3\n").node(
        names.from_text("w.example.test")
    )
    assert (node[A].ttl, len(node[A].rdatas)) == (30, 3)


def test_the_apex_is_the_soas_owner() -> None:
    made = read_zone("$ORIGIN Example.test.\n" + HEAD, filename="z")
    assert (made.apex, made.serial) == (APEX, 7)
    assert set(made.node(APEX)) == {SOA, NS}


@pytest.mark.parametrize(
    ("text", "apex", "what"),
    [
        ("w A 192.0.2.1", None, "z:1: the name 'w' is relative, and no \\$ORIGIN"),
        ("$TTL 1\nw. CNAME v", None, "z:2: a name in this CNAME record is relative"),
        ("", APEX, "z:1: the zone example.test has no SOA"),
        ("", None, "z:1: the zone has no SOA"),
        ("@ 1 SOA ns. h. 1 2 3 4 5\n", APEX, "z:1: the zone example.test has no NS"),
        ("x.invalid. 1 SOA ns. h. 1 2 3 4 5\n", APEX, "z:1: x.invalid is outside the zone example.test"),
        (" 1 A 192.0.2.1\n", APEX, "z:1: this record has no name"),
    ],
)
def test_files_that_are_no_zone(text: str, apex: bytes | None, what: str) -> None:
    with pytest.raises(ZoneFileError, match=what):
        read_zone(text, filename="z", apex=apex)


def test_a_byte_order_mark_is_nothing() -> None:
    assert read_zone("\ufeff" + HEAD, filename="z", apex=APEX).apex == APEX


WORDS = (
    'a @ 60 IN A TXT MX SOA 192.0.2.1 "q" " ( ) ; $TTL $ORIGIN $INCLUDE ü \\065 \\300 \\# 4 HTTPS alpn=h2 LOC'
)
TOKENS = st.sampled_from([*WORDS.split(), "\n", " ", "\t", "\r", "\\", "x" * 64])


@settings(max_examples=examples(300), deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(TOKENS, max_size=25).map(" ".join)))
def test_any_text_is_a_zone_or_a_zone_file_error(text: str) -> None:
    failed: ZoneFileError | None = None
    try:
        zone(text)
    except ZoneFileError as error:
        failed = error
    if failed is not None:
        assert 1 <= failed.line <= LINES + text.count("\n") + text.count("\r") + 1
        assert failed.what


@settings(max_examples=examples(60), deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(("w A x", "w MX 10", "w A 192.0.2.1 y", "w TXT )", "w 1x A 192.0.2.1")),
)
def test_a_mistake_is_found_in_its_line_wherever_it_is(choose: random.Random, mistake: str) -> None:
    lines = [
        choose.choice((line, f"{line} ; c", line.replace(" ", " (\n", 1) + "\n)", ""))
        for line in zone_lines(choose)
    ]
    at = choose.randrange(len(lines) + 1)
    before = "".join(f"{line}\n" for line in lines[:at])
    with pytest.raises(ZoneFileError) as caught:
        zone(before + mistake + "\n" + "\n".join(lines[at:]))
    assert caught.value.line == LINES + before.count("\n") + 1

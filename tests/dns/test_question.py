"""The walk of a message: right about what is well-formed, and bounded in steps about everything else."""

from __future__ import annotations

import struct
from typing import Any, SupportsIndex

import dns.exception
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.names import from_text
from appliance.dns.question import (
    MAX_OPTIONS,
    Edns,
    Question,
    QuestionError,
    read_options_alone,
    read_question,
    read_zone_section,
)
from tests.dns.asking import opt, query, question
from tests.effort import examples


class Walked(bytes):
    """Octets that count how often they are looked at."""

    steps: int

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        return super().__getitem__(at)


def test_a_plain_question() -> None:
    asked = read_question(query("WWW.Example.test", "AAAA"))
    assert asked == Question(from_text("www.example.test"), 28, 1, 12 + 18 + 4, None)


@pytest.mark.parametrize(
    ("octets", "edns"),
    [
        (opt(4096), Edns(4096, 0, False)),
        (opt(1232, flags=0x8000), Edns(1232, 0, True)),
        (opt(0, version=7), Edns(0, 7, False)),
        (opt(options=b"\0\x0a\0\x08abcdefgh\0\x03\0\0"), Edns(1232, 0, False, b"abcdefgh", True)),
        (opt(options=b"\0\x0a\0\x01a\0\x0a\0\x01b"), Edns(1232, 0, False, b"a")),  # the first one counts
        (opt(options=b"\0\x0a\0\0"), Edns(1232, 0, False, b"")),
    ],
)
def test_edns(octets: bytes, edns: Edns) -> None:
    assert read_question(query("a.test", edns=octets)).edns == edns


@pytest.mark.parametrize(
    ("octets", "edns"),
    [
        (bytes(11) + b"\1" + opt(options=b"\0\x0a\0\x02ab"), Edns(1232, 0, False, b"ab")),
        (bytes(11) + b"\1" + opt() + b"x", None),
        (bytes(11) + b"\1" + opt()[:-1], None),
        (bytes(11) + b"\2" + opt() + opt(), None),
        (query("a.test", edns=opt()), None),
    ],
)
def test_options_alone(octets: bytes, edns: Edns | None) -> None:
    assert read_options_alone(octets) == edns


def test_an_error_knows_how_far_it_understood() -> None:
    with pytest.raises(QuestionError) as caught:
        read_question(query("a.test", edns=opt()) + b"x")
    assert (caught.value.end, caught.value.edns) == (12 + 8 + 4, Edns(1232, 0, False))
    with pytest.raises(QuestionError) as caught:
        read_question(query("a.test")[:-1])
    assert (caught.value.end, caught.value.edns) == (12, None)


def test_a_zone_section_is_read_whatever_follows() -> None:
    octets = struct.pack("!6H", 1, 0x2800, 1, 0, 9, 9) + question("Zone.test", "SOA") + b"\xff" * 40
    assert read_zone_section(octets) == (from_text("zone.test"), 6, 1, 12 + 11 + 4)


def hostile(size: int) -> dict[str, bytes]:
    """Messages up to `size` octets that made parsers of others slow (compression chains, long names, many
    records)."""
    head = struct.pack("!6H", 1, 0, 1, 0, 0, 2)
    asked = question("a.test")
    chain = b"".join(b"\xc0" + bytes((at & 0xFF,)) for at in range(12, size, 2))
    return {
        "pointers to pointers in the question": head + chain,
        "pointers to pointers in an owner": head + asked + chain,
        "labels of one octet in the question": head + b"\x01a" * (size // 2),
        "labels of one octet in an owner": head + asked + b"\x01a" * (size // 2),
        "owners that are pointers": struct.pack("!6H", 1, 0, 1, 0, 0, 0xFFFF)
        + asked
        + (b"\xc0\x0c" + bytes(10)) * (size // 12),
        "a record as long as it can be": head + asked + b"\0\0\x10\0\1\0\0\0\0\xff\xff" + bytes(size),
        "empty options": head + asked + opt(options=bytes(min(size, 65532) // 4 * 4)),
        "zeros": bytes(size),
        "length octets": head + b"\x3f" * size,
    }


@pytest.mark.parametrize("case", hostile(100))
def test_steps_are_bounded_by_the_size(case: str) -> None:
    octets = Walked(hostile(65_000)[case])
    try:
        read_question(octets)
    except QuestionError:
        pass
    assert octets.steps <= 700


def test_options_are_bounded() -> None:
    assert read_question(query("a.test", edns=opt(options=bytes(4 * MAX_OPTIONS)))).edns
    with pytest.raises(QuestionError, match="too many"):
        read_question(query("a.test", edns=opt(options=bytes(4 * MAX_OPTIONS + 4))))


@settings(max_examples=examples(200), deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60), st.binary(max_size=40).map(lambda junk: query("a.test", edns=opt()) + junk)
    )
)
def test_only_question_errors(octets: bytes) -> None:
    walked = Walked(octets)
    asked: Question | None = None
    failed: QuestionError | None = None
    try:
        asked = read_question(walked)
    except QuestionError as error:
        failed = error
    if failed is not None:
        assert 12 <= failed.end <= max(12, len(octets))
    if asked is not None:
        assert octets[12 : asked.end].lower().startswith(asked.name)
        assert len(asked.name) <= 255
    assert getattr(walked, "steps", 0) <= 60 + len(octets)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=4),
    st.integers(0, 65535),
    st.one_of(
        st.none(), st.tuples(st.integers(0, 65535), st.integers(0, 255), st.booleans(), st.binary(max_size=8))
    ),
)
def test_it_reads_what_dnspython_reads(
    labels: list[bytes], qtype: int, edns: tuple[int, int, bool, bytes] | None
) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    record = b""
    if edns is not None:
        payload, version, dnssec_ok, option = edns
        options = struct.pack("!HH", 65001, len(option)) + option
        record = opt(payload, version, 0x8000 if dnssec_ok else 0, options)
    octets = query(name, qtype, flags=0, edns=record)
    try:
        read = dns.message.from_wire(octets)
    except dns.exception.DNSException:
        return
    if qtype == 251:
        return  # IXFR must bring its SOA
    if len(name) > 255:
        with pytest.raises(QuestionError):
            read_question(octets)
        return
    asked = read_question(octets)
    (theirs,) = read.question
    wire = theirs.name.to_wire()
    assert wire is not None
    assert wire.lower() == asked.name
    assert (int(theirs.rdtype), int(theirs.rdclass)) == (asked.qtype, asked.qclass)
    if edns is None:
        assert asked.edns is None
    else:
        assert asked.edns == Edns(edns[0], edns[1], edns[2])

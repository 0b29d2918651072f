from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress import peek
from appliance.ingress.clienthello import ClientHello, HelloRefused
from appliance.ingress.peek import LanePreface, Peek
from appliance.tunnel import lane
from tests.effort import examples
from tests.ingress.hellos import NAME, alpn, body, message, pieces, record, server_name

HELLO = record(message(body(server_name(NAME), alpn(b"tunnel/1"))))
PREFACE = peek.LANE_MAGIC + b"s" * 8 + b"c" * 8 + b"a" * 16


def outcome(segments: list[bytes]) -> object:
    """What was found, with what was not read any more behind it."""
    reader = Peek()
    for at, segment in enumerate(segments):
        try:
            found = reader.feed(segment)
        except HelloRefused as refused:
            return refused.alert
        unread = b"".join(segments[at + 1 :])
        if isinstance(found, ClientHello):
            return found.server_name, found.alpn, found.octets, found.rest + unread
        if isinstance(found, LanePreface):
            return LanePreface(found.octets40, found.rest + unread)
    return None


def test_a_hello() -> None:
    assert outcome([HELLO + b"rest"]) == ("www.example.org", (b"tunnel/1",), HELLO, b"rest")


def test_a_lane() -> None:
    assert outcome([PREFACE]) == LanePreface(PREFACE, b"")
    assert outcome([PREFACE + b"rest"]) == LanePreface(PREFACE, b"rest")


@pytest.mark.parametrize(
    "octets",
    [
        b"\xf5tunnel\x02",
        b"\xf5tX",
        b"\xf6",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00",
        b"PROXY TCP4",
        b"\xf5tunnel\x16",
    ],
)
def test_neither(octets: bytes) -> None:
    assert isinstance(outcome([octets]), int)


def test_nothing_is_clear_before_all_is_there() -> None:
    for octets in (HELLO, PREFACE):
        for end in range(len(octets)):
            assert outcome([octets[:end]]) is None


def test_the_constants_are_those_of_lanes() -> None:
    assert peek.LANE_MAGIC == lane.MAGIC
    assert peek.LANE_PREFACE_OCTETS == lane.PREFACE_OCTETS


@settings(max_examples=examples(100), deadline=None)
@given(
    st.sampled_from([HELLO + b"rest", PREFACE + b"rest", PREFACE[:7] + b"\x02", HELLO[:-1]])
    | st.binary(max_size=60),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_cut(octets: bytes, cuts: list[int]) -> None:
    assert outcome(pieces(octets, cuts)) == outcome([octets])

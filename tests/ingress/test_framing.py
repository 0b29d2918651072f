from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress import framing
from appliance.ingress.framing import body_of
from appliance.ingress.httphead import HeadRefused
from tests.effort import examples
from tests.ingress.hellos import pieces

Outcome = tuple[bytes, bool] | None


def outcome(length: int | None, segments: list[bytes]) -> Outcome:
    """The octets that were taken, and whether they were the whole body; None if it was refused."""
    body = body_of(length)
    waiting, taken = b"", b""
    for segment in segments:
        waiting += segment
        try:
            count = body.take(waiting)
        except HeadRefused:
            return None
        taken, waiting = taken + waiting[:count], waiting[count:]
        if not body.ended:
            assert len(waiting) <= framing.TRAILER_OCTETS_MAX
    return taken, body.ended


def test_counted() -> None:
    assert outcome(0, [b"abc"]) == (b"", True)
    assert outcome(3, [b"ab"]) == (b"ab", False)
    assert outcome(3, [b"ab", b"", b"cd"]) == (b"abc", True)


WHOLE = [
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b'00A\r\n0123456789\r\n1;a=b;c="d e"\r\nx\r\n000\r\nTrailer: a\r\nAnother:\r\n\r\n',
    b"2\r\n\r\n\r\n5;x\r\n0\r\n\r\n\r\n0;y\r\n\r\n",
    b"f\r\n" + b"x" * 15 + b"\r\n0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
]


@pytest.mark.parametrize("octets", WHOLE)
def test_chunked(octets: bytes) -> None:
    assert outcome(None, [octets + b"GET"]) == (octets, True)
    for end in range(len(octets)):
        taken = outcome(None, [octets[:end]])
        assert taken is not None
        assert not taken[1]
        assert octets.startswith(taken[0])


def test_what_is_certain_goes_on_at_once() -> None:
    """A chunk's data and its end are passed on before the next chunk is there."""
    assert outcome(None, [b"3\r\nab"]) == (b"3\r\nab", False)
    assert outcome(None, [b"3\r\nabc\r\n5\r"]) == (b"3\r\nabc\r\n", False)
    assert outcome(None, [b"0\r\nA: b\r\nC"]) == (b"0\r\nA: b\r\n", False)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1 ;a\r\n",
        b"1\n",
        b"\n",
        b"1;a\n\r\n",
        b"1;a\rb\r\n",
        b"1;a\x00b\r\n",
        b"1,a\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"0000000000000001\r\n",
        b"1\r\nabc",
        b"1\r\na\n",
        b"1\r\na\r\r",
        b"2\r\na\r\n0\r\n\r\n",  # the CR is the chunk's
        b"1\r\na0\r\n\r\n",  # CVE-2025-43859 of h11
        b"0\r\nA: b\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\r\nA: b\x00\r\n\r\n",
        b"0\r\nA: b\rc\r\n\r\n",
        b"0\r\nHost: b.example\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\nTransfer_Encoding: chunked\r\n\r\n",
        b"0\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
        b"0\r\nx_forwarded_proto: https\r\n\r\n",
        b"0\r\nForwarded: for=192.0.2.1\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n" + b"A: b\r\n" * 101,
        b"0\r\nA: " + b"b" * framing.TRAILER_OCTETS_MAX,
        b"0\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 17,
        b"1;" + b"a" * framing.CHUNK_LINE_OCTETS_MAX,
        b"1;" + b"a" * (framing.CHUNK_LINE_OCTETS_MAX - 3) + b"\r\n",
    ],
)
def test_chunked_refused(octets: bytes) -> None:
    assert outcome(None, [octets]) is None
    assert outcome(None, [octets[at : at + 1] for at in range(len(octets))]) is None


_CHUNKS = st.lists(
    st.sampled_from(
        [b"3\r\nabc\r\n", b"0\r\n", b"\r\n", b"A: b\r\n", b"1;x\r\n", b"a", b"\n", b"\r", b"0", b" "]
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=examples(200), deadline=None)
@given(st.sampled_from(WHOLE) | _CHUNKS | st.binary(max_size=30), st.lists(st.integers(0, 60), max_size=6))
def test_any_cut_and_h11_agrees(octets: bytes, cuts: list[int]) -> None:
    whole = outcome(None, [octets])
    assert outcome(None, pieces(octets, cuts)) == whole
    if whole is not None and whole[1]:
        reader = h11.Connection(h11.SERVER)
        reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + octets)
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Request | h11.Data)
        assert whole[0] + reader.trailing_data[0] == octets

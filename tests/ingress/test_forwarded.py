from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress.forwarded import forwarded, is_forwarding
from appliance.ingress.httphead import HeadReader, HeadRefused, RequestHead
from tests.effort import examples
from tests.ingress.test_httphead import PROBES, head

ADDED = (
    b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: www.example.org\r\n"
    b"Forwarded: for=192.0.2.1;host=www.example.org;proto=http\r\n\r\n"
)


def altered(octets: bytes, source: str = "192.0.2.1", proto: str = "http") -> bytes:
    return forwarded(octets, source=source, proto=proto)


def fields(octets: bytes) -> list[tuple[bytes, bytes]]:
    """As h11 reads them."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(octets)
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    return [(bytes(name), bytes(value)) for name, value in request.headers]


def test_the_fields_come_last() -> None:
    octets = head(b"Accept: */*", line=b"GET /a HTTP/1.1")
    assert altered(octets) == octets[:-2] + ADDED


@pytest.mark.parametrize(
    ("host", "source", "proto", "expected"),
    [
        (b"Host: www.example.org:8080", "192.0.2.1", "http",
         b'for=192.0.2.1;host="www.example.org:8080";proto=http'),
        (b"host:WWW.Example.org \t", "2001:db8::1", "https",
         b'for="[2001:db8::1]";host=WWW.Example.org;proto=https'),
    ],
)  # fmt: skip
def test_what_is_quoted(host: bytes, source: str, proto: str, expected: bytes) -> None:
    found = dict(fields(altered(head(host=host), source, proto)))
    assert found[b"forwarded"] == expected
    assert found[b"x-forwarded-for"] == source.encode()
    assert found[b"x-forwarded-proto"] == proto.encode()
    assert found[b"x-forwarded-host"] == found[b"host"]


@pytest.mark.parametrize(
    "line",
    [
        b"X-Forwarded-For: 198.51.100.7",
        b"x-forwarded-for:198.51.100.7, 198.51.100.8",
        b"X_Forwarded_For: 198.51.100.7",
        b"X-Forwarded_Proto: https",
        b"X-FORWARDED-HOST: b.example",
        b"X-Forwarded-Port: 443",
        b"X-Forwarded-Ssl: on",
        b"X-Forwarded-:",
        b"Forwarded: for=198.51.100.7",
        b"FORWARDED:",
    ],
)
def test_what_the_visitor_says_of_himself_is_taken_out(line: bytes) -> None:
    assert altered(head(line, b"A: b", line)) == head(b"A: b")[:-2] + ADDED


@pytest.mark.parametrize("line", [b"X-Forwarded: a", b"A: x-forwarded-for: b", b"Not-Forwarded: a"])
def test_nothing_else_is(line: bytes) -> None:
    assert altered(head(line)) == head(line)[:-2] + ADDED


def test_names() -> None:
    assert is_forwarding(b"forwarded")
    assert is_forwarding(b"X_Forwarded-For")
    assert not is_forwarding(b"x-forwarded")
    assert not is_forwarding(b"forwarded-for")


@pytest.mark.parametrize("name", [name for name, (_, status) in PROBES.items() if status is None])
def test_a_head_that_may_pass_is_read_as_before(name: str) -> None:
    octets = PROBES[name][0]
    before, after = HeadReader().feed(octets), _read(altered(octets))
    assert before is not None
    if after is None:
        # 100 fields and four more, or 16 KiB and more: whoever reads it next has to have room for them.
        assert name in ("100 fields", "a head of 16 KiB")
        return
    for what in ("method", "target", "host", "version", "length", "bodiless", "upgrade", "closing"):
        assert getattr(after, what) == getattr(before, what)


def _read(octets: bytes) -> RequestHead | None:
    try:
        return HeadReader().feed(octets)
    except HeadRefused:
        return None


_FIELD = st.builds(
    lambda name, colon, value: name + colon + value,
    st.sampled_from([b"A", b"X-Forwarded-For", b"x_forwarded_host", b"Forwarded", b"XForwarded-For", b"Via"]),
    st.sampled_from([b":", b": "]),
    st.binary(max_size=20).map(lambda octets: bytes(octet for octet in octets if 32 <= octet != 127)),
)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(_FIELD, max_size=8))
def test_all_but_ours_stays_as_it_was_and_in_order(lines: list[bytes]) -> None:
    read = fields(altered(head(*lines)))
    assert [pair for pair in read if not is_forwarding(pair[0])] == [
        pair for pair in fields(head(*lines)) if not is_forwarding(pair[0])
    ]
    assert [value for name, value in read if is_forwarding(name)] == [
        b"192.0.2.1", b"http", b"www.example.org", b"for=192.0.2.1;host=www.example.org;proto=http"
    ]  # fmt: skip

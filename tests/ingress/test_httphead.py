from __future__ import annotations

import dataclasses

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress import httphead
from appliance.ingress.httphead import HeadReader, HeadRefused, RequestHead, read_field
from tests.effort import examples
from tests.ingress.hellos import pieces

Outcome = RequestHead | int | None


def outcome(segments: list[bytes]) -> Outcome:
    """The head with all that followed as its rest; or the status of the refusal."""
    reader = HeadReader()
    for at, segment in enumerate(segments):
        try:
            head = reader.feed(segment)
        except HeadRefused as refused:
            return refused.status
        if head is not None:
            assert bytes(reader.octets) == b"".join(segments[: at + 1])
            return dataclasses.replace(head, rest=head.rest + b"".join(segments[at + 1 :]))
    return None


def read(octets: bytes) -> Outcome:
    return outcome([octets])


def head(
    *fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes | None = b"Host: www.example.org"
) -> bytes:
    hosts = [] if host is None else [host]
    return b"".join(part + b"\r\n" for part in [line, *hosts, *fields, b""])


def accepted(octets: bytes) -> RequestHead:
    found = read(octets)
    assert isinstance(found, RequestHead), found
    assert found.octets + found.rest == octets
    return found


def test_a_head() -> None:
    octets = head(b"Accept: */*", line=b"GET /a?b=c HTTP/1.1")
    assert read(octets + b"rest") == RequestHead(
        method="GET",
        target="/a?b=c",
        host="www.example.org",
        version="1.1",
        length=0,
        bodiless=True,
        upgrade=False,
        closing=False,
        octets=octets,
        rest=b"rest",
    )


# Every rule on the reading of heads, by its name.

PROBES: dict[str, tuple[bytes, int | None]] = {
    "a plain request": (head(), None),
    "two Hosts": (head(b"Host: www.example.org"), 400),
    "two other Hosts": (head(b"Host: b.example"), 400),
    "no Host in 1.1": (head(host=None), 400),
    "absolute-form on another host": (head(line=b"GET http://b.example/ HTTP/1.1"), 400),
    "obs-fold": (head(b"A: b\r\n c"), 400),
    "obs-fold with a tab": (head(b"A: b\r\n\tc"), 400),
    "space before the colon": (head(b"A : b"), 400),
    "empty field name": (head(b": b"), 400),
    "NUL in a value": (head(b"A: b\x00c"), 400),
    "bare CR in a value": (head(b"A: b\rHost: b.example"), 400),
    "bare LF in a value": (head(b"A: b\nHost: b.example"), 400),
    "bare-LF line ends": (b"GET / HTTP/1.1\nHost: www.example.org\n\n", 400),
    "Content-Length and Transfer-Encoding": (head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400),
    "two Content-Lengths": (head(b"Content-Length: 3", b"Content-Length: 4"), 400),
    "the same Content-Length twice": (head(b"Content-Length: 3", b"Content-Length: 3"), 400),
    "a list of Content-Lengths": (head(b"Content-Length: 3, 3"), 400),
    "signed Content-Length": (head(b"Content-Length: +3"), 400),
    "negative Content-Length": (head(b"Content-Length: -3"), 400),
    "empty Content-Length": (head(b"Content-Length:"), 400),
    "hexadecimal Content-Length": (head(b"Content-Length: 0x3"), 400),
    "Transfer-Encoding other than chunked": (head(b"Transfer-Encoding: gzip, chunked"), 400),
    "Transfer-Encoding in 1.0": (head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"), 400),
    "an underscore twin of Content-Length": (head(b"Content_Length: 3"), 400),
    "a version that is neither 1.0 nor 1.1": (head(line=b"GET / HTTP/1.2"), 400),
    # and further ones
    "an underscore twin of Transfer-Encoding": (head(b"Transfer_Encoding: chunked"), 400),
    "chunked twice": (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "chunked, spelled otherwise": (head(b"Transfer-Encoding: \x0bchunked"), 400),
    "a tab before chunked": (head(b"Transfer-Encoding:\tchunked"), 400),
    "a tab behind a Content-Length": (head(b"Content-Length: 5\t"), 400),
    "a tab before a host": (head(host=b"Host:\twww.example.org"), 400),
    "xchunked": (head(b"Transfer-Encoding: xchunked"), 400),
    "identity": (head(b"Transfer-Encoding: identity"), 400),
    "empty Transfer-Encoding": (head(b"Transfer-Encoding:"), 400),
    "a Content-Length that overflows": (head(b"Content-Length: 18446744073709551617"), 400),
    "Content-Length with an underscore": (head(b"Content-Length: 1_0"), 400),
    "Content-Length in other digits": (head("Content-Length: \u0663".encode()), 400),
    "no Host in 1.0": (head(host=None, line=b"GET / HTTP/1.0"), 400),
    "empty Host": (head(host=b"Host:"), 400),
    "Host is an address": (head(host=b"Host: 127.0.0.1"), 400),
    "Host is an IPv6 address": (head(host=b"Host: [::1]:80"), 400),
    "Host with userinfo": (head(host=b"Host: a@www.example.org"), 400),
    "Host is a list": (head(host=b"Host: www.example.org, b.example"), 400),
    "Host with a path": (head(host=b"Host: www.example.org/b"), 400),
    "Host with an empty port": (head(host=b"Host: www.example.org:"), 400),
    "Host with a wrong port": (head(host=b"Host: www.example.org:65536"), 400),
    "Host with port 0": (head(host=b"Host: www.example.org:0"), 400),
    "Host with two ports": (head(host=b"Host: www.example.org:80:81"), 400),
    "Host in a URL": (head(host=b"Host: http://www.example.org"), 400),
    "Host with a blank": (head(host=b"Host: www.example.org b.example"), 400),
    "absolute-form on another port": (head(line=b"GET http://www.example.org:81/ HTTP/1.1"), 400),
    "absolute-form with userinfo": (head(line=b"GET http://a@www.example.org/ HTTP/1.1"), 400),
    "absolute-form of https": (head(line=b"GET https://www.example.org/ HTTP/1.1"), 400),
    "absolute-form without Host": (head(line=b"GET http://www.example.org/ HTTP/1.1", host=None), 400),
    "an underscore in the letters of Host": (head(b"HOST_: b", b"Ho_st: b"), None),
    "a target that is no path": (head(line=b"GET www.example.org HTTP/1.1"), 400),
    "asterisk for GET": (head(line=b"GET * HTTP/1.1"), 400),
    "a fragment": (head(line=b"GET /a#b HTTP/1.1"), 400),
    "a target that is not ASCII": (head(line="GET /\u00e9 HTTP/1.1".encode()), 400),
    "no target": (head(line=b"GET HTTP/1.1"), 400),
    "two blanks": (head(line=b"GET  / HTTP/1.1"), 400),
    "a tab": (head(line=b"GET\t/ HTTP/1.1"), 400),
    "a blank in the target": (head(line=b"GET /a b HTTP/1.1"), 400),
    "a blank behind": (head(line=b"GET / HTTP/1.1 "), 400),
    "a blank in front": (head(line=b" GET / HTTP/1.1"), 400),
    "an empty line in front": (b"\r\n" + head(), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "http in small letters": (head(line=b"GET / http/1.1"), 400),
    "HTTP/1.10": (head(line=b"GET / HTTP/1.10"), 400),
    "HTTP/2": (head(line=b"GET / HTTP/2.0"), 400),
    "HTTP/2 with its preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "PRI in 1.1": (head(line=b"PRI * HTTP/1.1"), 400),
    "CONNECT": (head(line=b"CONNECT www.example.org:80 HTTP/1.1"), 400),
    "connect": (head(line=b"connect / HTTP/1.1"), 400),
    "Upgrade: h2c": (head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), 400),
    "Upgrade: h2c among others": (head(b"Upgrade: websocket", b"Upgrade: a/1 , H2C"), 400),
    "a method with a separator": (head(line=b"GE(T / HTTP/1.1"), 400),
    "a field without a colon": (head(b"A"), 400),
    "a field name with a separator": (head(b"A/b: c"), 400),
    "a field name with an octet of 128 and more": (head(b"A\xff: c"), 400),
    "a control octet in a value": (head(b"A: \x1b[0m"), 400),
    "DEL in a value": (head(b"A: \x7f"), 400),
    "a vertical tab in a value": (head(b"A: b\x0bc"), 400),
    "Connection: Host": (head(b"Connection: close, Host"), 400),
    "Connection: content-length": (head(b"Content-Length: 3", b"Connection: content-length"), 400),
    "Connection: X-Forwarded-For": (head(b"Connection: X-Forwarded-For"), 400),
    "Connection: forwarded": (head(b"Connection: close, forwarded"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", 400),
    "100 fields": (head(*[b"A: b"] * 99), None),
    "101 fields": (head(*[b"A: b"] * 100), 431),
    "a head of 16 KiB": (head(b"A: " + b"b" * (16 * 1024 - len(head(b"A: ")))), None),
    "a head of more": (head(b"A: " + b"b" * (16 * 1024 - len(head(b"A: ")) + 1)), 431),
    "a head without an end": (head()[:-2] + b"A: " + b"b" * 16 * 1024, 431),
    "a request line of 8 KiB": (head(line=b"GET /" + b"a" * (8 * 1024 - 14) + b" HTTP/1.1"), None),
    "a request line of more": (head(line=b"GET /" + b"a" * (8 * 1024 - 13) + b" HTTP/1.1"), 414),
    "a request line without an end": (b"GET /" + b"a" * 8 * 1024, 414),
}


@pytest.mark.parametrize(("octets", "status"), PROBES.values(), ids=PROBES.keys())
def test_probe(octets: bytes, status: int | None) -> None:
    found = read(octets)
    assert (None if isinstance(found, RequestHead) else found) == status
    assert isinstance(found, RequestHead) == (status is None)
    assert outcome([octets[at : at + 1] for at in range(len(octets))]) == found


def test_a_visitor_who_does_not_speak_http_is_not_waited_for() -> None:
    for octets in (b"\x16", b"GET / HTTP/1.1\nH", b"GET / HTTP/1.1\r\nA: \x00", b"\r", b"GET / HTTP/1.1\rH"):
        assert read(octets) == 400


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (b"Host: WWW.Example.ORG", "www.example.org"),
        (b"HOST:www.example.org.:8080  ", "www.example.org"),
        (b"host:   _a.b-c.example:80", "_a.b-c.example"),
    ],
)
def test_host_is_made_comparable(host: bytes, wanted: str) -> None:
    assert accepted(head(host=host)).host == wanted


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://www.example.org/ HTTP/1.1",
        b"GET HTTP://WWW.EXAMPLE.ORG.:80?a HTTP/1.1",
        b"GET http://www.example.org HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET //b.example/ HTTP/1.1",
        b"GET /http://b.example/ HTTP/1.0",
        b"X-METHOD /%00/../%2e%2e;a=b?c=d?e HTTP/1.1",
    ],
)
def test_targets(line: bytes) -> None:
    found = accepted(head(line=line))
    assert found.host == "www.example.org"
    assert found.target.encode() == line.split(b" ")[1]


@pytest.mark.parametrize(
    ("octets", "length", "bodiless"),
    [
        (head(), 0, True),
        (head(line=b"HEAD / HTTP/1.1"), 0, True),
        (head(line=b"OPTIONS / HTTP/1.0"), 0, True),
        (head(b"Content-Length: 0"), 0, True),
        (head(b"Content-Length: 007"), 7, False),
        (head(b"Content-Length: 999999999999999999"), 10**18 - 1, False),
        (head(b"Transfer-Encoding: Chunked"), None, False),
        (head(line=b"POST / HTTP/1.1"), 0, False),
        (head(line=b"DELETE / HTTP/1.1"), 0, False),
        (head(line=b"get / HTTP/1.1"), 0, False),
    ],
)
def test_body(octets: bytes, length: int | None, bodiless: bool) -> None:
    found = accepted(octets)
    assert (found.length, found.bodiless) == (length, bodiless)


@pytest.mark.parametrize(
    ("octets", "closing"),
    [
        (head(), False),
        (head(b"Connection: keep-alive"), False),
        (head(b"Connection: a", b"Connection: b, Close"), True),
        (head(b"Connection: closed"), False),
        (head(line=b"GET / HTTP/1.0"), True),
        (head(b"Connection: Keep-Alive", line=b"GET / HTTP/1.0"), False),
        (head(b"Connection: Keep-Alive, close", line=b"GET / HTTP/1.0"), True),
    ],
)
def test_closing(octets: bytes, closing: bool) -> None:
    assert accepted(octets).closing is closing


def test_upgrade() -> None:
    assert accepted(head(b"Connection: Upgrade", b"Upgrade: websocket")).upgrade
    assert accepted(head(b"Upgrade: xh2c/1")).upgrade
    assert not accepted(head(b"Upgrade:")).upgrade
    assert not accepted(head(b"Connection: Upgrade", b"Upgrade-Insecure-Requests: 1")).upgrade


def test_a_field() -> None:
    assert read_field(b"Some-Name:\t a b\xff \t") == (b"some-name", b"a b\xff")
    assert read_field(b"A_B:") == (b"a_b", b"")


# h11 as the oracle, and anything at all

_LINES = [
    b"GET / HTTP/1.1",
    b"POST /a HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET http://www.example.org/ HTTP/1.1",
    b"Host: www.example.org",
    b"Host: b.example",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"A: b \xff",
    b"A:",
    b" folded",
    b"A : b",
]
_HEADS = st.builds(
    lambda first, lines, ends, octet, at: (lambda whole: whole[:at] + octet + whole[at:] if octet else whole)(
        b"".join(line + end for line, end in zip([*first, *lines, b""], ends, strict=False))
    ),
    st.sampled_from(
        [[b"GET / HTTP/1.1", b"Host: www.example.org"], [b"POST / HTTP/1.0", b"Host: www.example.org"], []]
    ),
    st.lists(st.sampled_from(_LINES), max_size=3),
    st.lists(st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r"]), min_size=8, max_size=8),
    st.sampled_from([b""] * 4 + [bytes((octet,)) for octet in range(256)]),
    st.integers(0, 80),
)


def h11_reads(octets: bytes) -> tuple[bytes, bytes, bytes] | None:
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(octets)
    try:
        request = reader.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request):
        return None
    return request.method, request.target, dict(iter(request.headers)).get(b"host", b"")


@settings(max_examples=examples(300), deadline=None)
@given(_HEADS, st.lists(st.integers(0, 120), max_size=6))
def test_what_is_read_is_read_the_same_by_h11_and_in_any_cut(octets: bytes, cuts: list[int]) -> None:
    found = read(octets)
    assert outcome(pieces(octets, cuts)) == found
    if isinstance(found, RequestHead):
        theirs = h11_reads(found.octets)
        assert theirs is not None
        assert (found.method.encode(), found.target.encode()) == theirs[:2]
        assert theirs[2].decode("ascii").lower().partition(":")[0].rstrip(".") == found.host
    elif h11_reads(octets) is None and b"\r\n\r\n" in octets:
        assert found is not None


@settings(max_examples=examples(150), deadline=None)
@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_only_our_error(octets: bytes, cuts: list[int]) -> None:
    assert outcome(pieces(octets, cuts)) == read(octets)


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from([14, 8190, 8193, 16380, 16390]),
    st.sampled_from([b"\x00", b"\n", b"\r", b"\r\n", b"\r\n\r\n", b"x"]),
    st.lists(st.integers(0, 16400), max_size=4),
)
def test_bounds_in_any_cut(at: int, octet: bytes, cuts: list[int]) -> None:
    for start in (b"GET /", head()[:-2] + b"A: "):
        octets = (start + b"a" * 20000)[:at] + octet + b"a" * 9000
        assert outcome(pieces(octets, cuts)) == read(octets)


def test_the_bounds_are_those_that_the_probes_have() -> None:
    assert (httphead.HEAD_OCTETS_MAX, httphead.REQUEST_LINE_OCTETS_MAX, httphead.FIELDS_MAX) == (
        16384,
        8192,
        100,
    )


@pytest.mark.parametrize(
    ("scheme", "target", "passed"),
    [
        ("http", b"http://www.example.org/", True),
        ("http", b"https://www.example.org/", False),
        ("https", b"https://www.example.org/a?b", True),
        ("https", b"HTTPS://www.example.org:443/", True),
        ("https", b"https://www.example.org:80/", False),
        ("https", b"http://www.example.org/", False),
        ("https", b"https:/www.example.org/", False),
        ("https", b"www.example.org://", False),
    ],
)
def test_a_target_names_the_scheme_it_came_by(scheme: str, target: bytes, passed: bool) -> None:
    reader = HeadReader(scheme)
    octets = head(line=b"GET %s HTTP/1.1" % target)
    if passed:
        made = reader.feed(octets)
        assert made is not None
        assert made.host == "www.example.org"
        return
    with pytest.raises(HeadRefused) as refused:
        reader.feed(octets)
    assert refused.value.status == 400

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress import requests as module
from appliance.ingress.forwarded import forwarded
from appliance.ingress.framing import body_of
from appliance.ingress.httphead import HeadReader, RequestHead
from appliance.ingress.requests import HELD_OCTETS_MAX, Requests
from tests.effort import examples
from tests.ingress.hellos import pieces
from tests.ingress.test_httphead import PROBES

HOST = "www.example.org"


def request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, body: bytes = b"", host: str = HOST) -> bytes:
    return b"".join(part + b"\r\n" for part in [line, b"Host: " + host.encode(), *fields, b""]) + body


GET = request()
POST = request(b"POST /a HTTP/1.1", b"Content-Length: 5", body=b"hello")
CHUNKED = request(b"PUT /b HTTP/1.1", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nA: b\r\n\r\n")
OTHER = request(host="b.example")
UPGRADE = request(b"GET /ws HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket")
LAST = request(b"GET / HTTP/1.1", b"Connection: close")

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
NOT_SWITCHED = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n...."


def status(requests: Requests) -> int | None:
    return None if requests.refusal is None else int(requests.refusal.split(b" ")[1])


def run(octets: bytes) -> tuple[bytes, int | None]:
    requests = Requests(HOST)
    return requests.from_visitor(octets), status(requests)


def test_requests_pass_unaltered() -> None:
    octets = GET + POST + CHUNKED + request(host="WWW.Example.Org.:8080") + GET
    requests = Requests(HOST)
    assert requests.from_visitor(octets) == octets
    assert requests.refusal is None
    assert requests.heads == 5


def say_who(octets: bytes) -> bytes:
    return forwarded(octets, source="192.0.2.1", proto="http")


def test_each_request_says_who_the_visitor_is_and_nothing_else_is_altered() -> None:
    lies = request(b"GET /lies HTTP/1.1", b"X-Forwarded-For: 198.51.100.7", b"A: b", b"Forwarded: for=x")
    body = b"X-Forwarded-For: a body\r\n"
    post = request(b"POST /a HTTP/1.1", b"Content-Length: %d" % len(body))
    chunked, behind = CHUNKED.split(b"\r\n\r\n", 1)
    requests = Requests(HOST)
    requests.forwarded_for = "192.0.2.1"
    octets = GET + lies + post + body + CHUNKED + GET
    passed = b"".join(requests.from_visitor(octets[at : at + 7]) for at in range(0, len(octets), 7))
    assert requests.refusal is None
    assert passed == b"".join(
        [
            say_who(GET),
            say_who(request(b"GET /lies HTTP/1.1", b"A: b")),
            say_who(post) + body,
            say_who(chunked + b"\r\n\r\n") + behind,
            say_who(GET),
        ]
    )
    assert b"198.51.100.7" not in passed


def test_with_the_option_no_less_is_refused() -> None:
    for name, (octets, expected) in PROBES.items():
        requests = Requests(HOST)
        requests.forwarded_for = "192.0.2.1"
        passed = say_who(GET) + (b"" if expected else say_who(octets))
        assert requests.from_visitor(GET + octets) == passed, name
        assert status(requests) == expected, name


@pytest.mark.parametrize("before", [b"", GET, POST, CHUNKED])
def test_another_host_is_refused_before_an_octet_of_it_is_passed_on(before: bytes) -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(before + OTHER + GET) == before
    assert status(requests) == 421
    assert requests.from_visitor(GET) == b""
    assert requests.from_origin(SWITCHED) == b""


@pytest.mark.parametrize("before", [b"", GET, CHUNKED])
def test_a_later_head_is_read_as_strictly_as_the_first(before: bytes) -> None:
    for name, (octets, expected) in PROBES.items():
        passed, refused = run(before + octets)
        assert refused == expected, name
        assert passed == (before if expected else before + octets), name


@pytest.mark.parametrize(
    "octets",
    [
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5;a\rb\r\nhello\r\n"),
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"0\r\nHost: b.example\r\n\r\n"),
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5\r\nhelloXY"),
    ],
)
def test_a_malformed_body(octets: bytes) -> None:
    passed, refused = run(octets)
    assert refused == 400
    assert octets.startswith(passed)


def test_a_body_that_looks_like_a_request_is_a_body() -> None:
    octets = request(b"POST / HTTP/1.1", b"Content-Length: %d" % len(OTHER), body=OTHER) + GET
    assert run(octets) == (octets, None)


def test_a_head_refused_gets_no_body() -> None:
    requests = Requests(HOST)
    requests.from_visitor(request(b"HEAD / HTTP/1.1", host="b.example"))
    assert requests.refusal is not None
    assert requests.refusal.endswith(b"\r\n\r\n")
    requests = Requests(HOST)
    requests.from_visitor(request(b"HEAD / HTTP/1.1") + OTHER)
    assert requests.refusal is not None
    assert requests.refusal.endswith(b"</html>\n")
    requests = Requests(HOST)
    requests.from_visitor(request(b"HEAD / HTTP/1.1") + b"\r\n")
    assert requests.refusal is not None
    assert requests.refusal.endswith(b"</html>\n")


@pytest.mark.parametrize("wrong", [4, 6])
def test_two_readers_must_agree_where_a_body_ends(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    monkeypatch.setattr(module, "body_of", lambda length: body_of(length and wrong))
    passed, refused = run(GET + POST + GET)
    assert refused == 400
    assert (GET + POST).startswith(passed)


def test_two_readers_must_agree_on_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(HeadReader):
        def feed(self, octets: bytes) -> RequestHead | None:
            head = super().feed(octets)
            return head and dataclasses.replace(head, target="/b")

    monkeypatch.setattr(module, "HeadReader", Other)
    assert run(GET) == (b"", 400)


def test_what_is_certain_goes_on_at_once() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(POST[:10]) == b""
    assert requests.from_visitor(POST[10:-3]) == POST[:-3]
    assert requests.from_visitor(POST[-3:] + GET[:4]) == POST[-3:]
    assert requests.from_visitor(GET[4:]) == GET


@pytest.mark.parametrize(
    "last", [LAST, request(b"GET / HTTP/1.0"), request(b"POST / HTTP/1.0", b"Content-Length: 0")]
)
def test_nothing_follows_the_last_request(last: bytes) -> None:
    assert run(GET + last) == (GET + last, None)
    assert run(GET + last + b"G") == (GET + last, 400)


def test_keep_alive_in_http_1_0() -> None:
    octets = request(b"GET / HTTP/1.0", b"Connection: keep-alive")
    assert run(octets * 3) == (octets * 3, None)


def test_memory_is_bounded() -> None:
    requests = Requests(HOST)
    requests.from_visitor(request(b"POST / HTTP/1.1", b"Content-Length: 99999999"))
    for _ in range(100):
        assert requests.from_visitor(b"x" * 65536) == b"x" * 65536
        assert len(requests._unread) == 0
    many = GET * 1000
    requests = Requests(HOST)
    assert requests.from_visitor(many + GET[:-1]) == many
    assert requests.refusal is None


# Upgrade


def test_after_101_everything_passes() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(UPGRADE) == UPGRADE
    assert requests.from_origin(SWITCHED) == b""
    assert requests.from_visitor(b"\x81\x05hello" + OTHER) == b"\x81\x05hello" + OTHER
    assert requests.from_origin(NOT_SWITCHED) == b""
    assert requests.from_visitor(b"\x00") == b"\x00"


def test_what_follows_an_upgrade_waits_for_the_answer() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(UPGRADE + b"\x81\x05") == UPGRADE
    assert requests.from_visitor(b"hello") == b""
    assert requests.from_origin(SWITCHED[:12]) == b""
    assert requests.from_origin(SWITCHED[12:] + b"\x81\x00") == b"\x81\x05hello"


def test_what_follows_a_refused_upgrade_is_examined() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(UPGRADE + GET + OTHER) == UPGRADE
    assert requests.from_origin(NOT_SWITCHED) == GET
    assert status(requests) == 421


@pytest.mark.parametrize(
    "answer",
    [
        NOT_SWITCHED,
        b"HTTP/1.1 426 Upgrade Required\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n" + SWITCHED,
        b"HTTP/2.0 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 1011 Switching\r\n\r\n",
        b"ICY 101 OK\r\n\r\n" + SWITCHED,
        b"<html>HTTP/1.1 101 </html>",
        b"HTTP/1.1 103 Early Hints\r\nA: " + b"b" * 16384 + b"\r\n\r\n" + SWITCHED,
    ],
)
def test_no_other_answer_switches(answer: bytes) -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(UPGRADE + OTHER) == UPGRADE
    assert requests.from_origin(answer) == b""
    assert requests.from_origin(SWITCHED) == b""
    assert status(requests) == 421


def test_an_interim_answer_is_not_the_answer() -> None:
    requests = Requests(HOST)
    requests.from_visitor(UPGRADE + b"frames")
    assert requests.from_origin(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n") == b""
    assert requests.from_origin(SWITCHED) == b"frames"


def test_an_upgrade_behind_another_request_is_refused() -> None:
    """The 101 might be the visitor's own, in the body of the answer before."""
    assert run(GET + UPGRADE) == (GET, 400)
    requests = Requests(HOST)
    requests.from_visitor(GET)
    requests.from_origin(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert requests.from_visitor(UPGRADE) == b""
    assert status(requests) == 400


def test_a_101_that_nobody_asked_for_changes_nothing() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(GET) == GET
    assert requests.from_origin(SWITCHED) == b""
    assert requests.from_visitor(OTHER) == b""
    assert status(requests) == 421


def test_an_upgrade_with_a_body() -> None:
    octets = request(b"POST / HTTP/1.1", b"Upgrade: a", b"Content-Length: 5", body=b"hello")
    requests = Requests(HOST)
    assert requests.from_visitor(octets[:-2]) == octets[:-2]
    assert requests.from_origin(SWITCHED) == b""
    assert requests.from_visitor(b"lo" + OTHER) == b"lo" + OTHER


def test_what_waits_for_an_answer_is_bounded() -> None:
    requests = Requests(HOST)
    assert requests.from_visitor(UPGRADE + b"x" * HELD_OCTETS_MAX) == UPGRADE
    assert requests.refusal is None
    assert requests.from_visitor(b"x") == b""
    assert status(requests) == 400
    assert requests.from_origin(SWITCHED) == b""


# any cut, any sequence

_PARTS = st.lists(
    st.sampled_from([GET, POST, CHUNKED, OTHER, UPGRADE, LAST, b"G", b"\r\n", b"x: y\r\n\r\n", GET[:-2]]),
    max_size=5,
)


def outcome(segments: list[bytes], answers: list[bytes]) -> tuple[bytes, bytes | None]:
    """All that was passed on and the refusal; the answers come when all of the visitor's octets are there."""
    requests = Requests(HOST)
    passed = b"".join([requests.from_visitor(segment) for segment in segments])
    passed += b"".join([requests.from_origin(answer) for answer in answers])
    return passed, requests.refusal


@settings(max_examples=examples(150), deadline=None)
@given(
    _PARTS,
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(
        [b"", SWITCHED, NOT_SWITCHED, b"HTTP/1.1 100 Continue\r\n\r\n" + SWITCHED, SWITCHED[:11]]
    ),
    st.lists(st.integers(0, 80), max_size=3),
)
def test_any_cut(parts: list[bytes], cuts: list[int], answer: bytes, answer_cuts: list[int]) -> None:
    octets = b"".join(parts)
    whole = outcome([octets], [answer])
    assert outcome(pieces(octets, cuts), pieces(answer, answer_cuts)) == whole
    assert octets.startswith(whole[0])
    blind = octets.startswith(UPGRADE) and SWITCHED in answer
    assert blind or b"b.example" not in whole[0]


@settings(max_examples=examples(150), deadline=None)
@given(st.sampled_from([b"", GET, CHUNKED, UPGRADE]), st.binary(max_size=60), st.binary(max_size=60))
def test_no_error_at_all(before: bytes, octets: bytes, answer: bytes) -> None:
    requests = Requests(HOST)
    passed = requests.from_visitor(before + octets) + requests.from_origin(answer)
    assert (before + octets).startswith(passed)


def test_the_table_of_states_is_reachable() -> None:
    states = {state for state, _ in module._NEXT} | set(module._NEXT.values())
    assert states == set(module._State)
    assert {seen for _, seen in module._NEXT} == set(module._Seen)


def test_heads_say_who_the_visitor_is_and_bodies_do_not_change() -> None:
    requests = Requests(HOST, "https")
    requests.forwarded_for = "2001:db8::7"
    said = (
        b"X-Forwarded-For: 2001:db8::7\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: www.example.org\r\n"
        b'Forwarded: for="[2001:db8::7]";host=www.example.org;proto=https\r\n'
    )
    lied = request(b"PUT /b HTTP/1.1", b"X-Forwarded-For: 10.0.0.1", b"Content-Length: 5", body=b"a\r\n\r\n")
    true = request(b"PUT /b HTTP/1.1", b"Content-Length: 5")[:-2] + said + b"\r\na\r\n\r\n"
    passed = requests.from_visitor(lied + CHUNKED + GET)
    head, _, body = CHUNKED.partition(b"\r\n\r\n")
    assert passed == true + head + b"\r\n" + said + b"\r\n" + body + GET[:-2] + said + b"\r\n"


def test_a_request_is_whole_when_its_body_is() -> None:
    requests = Requests(HOST)
    assert not requests.whole
    assert requests.first_method == ""
    for octet in POST[:-1]:
        requests.from_visitor(bytes([octet]))
        assert not requests.whole
    requests.from_visitor(POST[-1:])
    assert requests.whole
    requests.from_visitor(GET)
    assert requests.whole
    assert requests.first_method == "POST"


def test_how_many_octets_are_in_the_middle_of_a_body() -> None:
    requests = Requests(HOST)
    assert requests.certain == 0
    requests.from_visitor(POST[:-5])
    assert requests.certain == 5
    requests.from_visitor(b"hel")
    assert requests.certain == 2
    requests.from_visitor(b"lo")
    assert requests.certain == 0
    head = request(b"PUT /b HTTP/1.1", b"Transfer-Encoding: chunked")
    requests.from_visitor(head + b"100")
    assert requests.certain <= 0
    requests.from_visitor(b"\r\nabc")
    assert requests.certain == 0x100 - 3
    requests.from_visitor(b"x" * (0x100 - 3) + b"\r")
    assert requests.certain <= 0
    requests.from_visitor(b"\n0\r\n\r\n" + UPGRADE[:10])
    assert requests.certain == 0


def test_a_head_that_is_too_slow() -> None:
    requests = Requests(HOST)
    assert not requests.head_begun
    requests.from_visitor(GET + request(b"HEAD / HTTP/1.1")[:9])
    assert requests.head_begun
    requests.too_slow()
    assert status(requests) == 408
    assert requests.from_visitor(GET) == b""
    assert not requests.head_begun
    requests = Requests(HOST)
    requests.from_visitor(POST[:-1])
    assert not requests.head_begun


@pytest.mark.parametrize("wrong", [-70_000, -1, 1, 70_000])
def test_two_readers_must_agree_where_a_large_body_ends(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    """Whatever the pieces in which the second one gets it."""
    size = 100_000
    octets = request(b"PUT / HTTP/1.1", b"Content-Length: %d" % size, body=b"x" * size)
    assert run(octets + GET) == (octets + GET, None)
    monkeypatch.setattr(module, "body_of", lambda length: body_of(length and length + wrong))
    for cut in (len(octets) - 99_000, len(octets) - 10, len(octets)):
        requests = Requests(HOST)
        passed = requests.from_visitor(octets[:cut]) + requests.from_visitor(octets[cut:] + GET * 3000)
        assert status(requests) == 400
        assert (octets + GET * 3000).startswith(passed)


@given(st.binary(min_size=1, max_size=70_000), st.lists(st.integers(1, 66_000), max_size=6), st.booleans())
@settings(max_examples=examples(60), deadline=None)
def test_a_large_body_in_any_cut(body: bytes, cuts: list[int], chunked: bool) -> None:
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        octets = request(b"PUT / HTTP/1.1", b"Transfer-Encoding: chunked", body=body) + GET
    else:
        octets = request(b"PUT / HTTP/1.1", b"Content-Length: %d" % len(body), body=body) + GET
    requests = Requests(HOST)
    passed, rest = b"", octets
    for cut in cuts:
        passed += requests.from_visitor(rest[:cut])
        rest = rest[cut:]
    passed += requests.from_visitor(rest)
    assert (passed, requests.refusal, requests.heads) == (octets, None, 2)

"""Visitors whose TLS ends at the client: between a lane, seen from the server, and a plain origin."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.addresses import Origin
from appliance.service.client import terminating as module
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.tickets import Tickets
from appliance.service.client.visits import LEAVE_SECONDS
from appliance.service.examined import LINGER_SECONDS, SILENT_SECONDS
from appliance.tunnel.lane import Status
from appliance.tunnel.proxyheader import Kind, ProxyHeader, read_proxy_header
from tests.certificates import issue
from tests.effort import examples
from tests.ingress.test_httphead import PROBES
from tests.service.client.test_visits import Ends, header, status
from tests.service.client.visiting import Visitor, visitor_context
from tests.service.turning import turning

HOST = "www.example.com"
CA = trustme.CA()
PAIR = issue(CA, HOST).pair
GET = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
IDENTITY = (
    b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: www.example.com\r\n"
    b"Forwarded: for=203.0.113.7;host=www.example.com;proto=https\r\n"
)


def passed(request: bytes) -> bytes:
    """A request as the origin gets it."""
    head, _, body = request.partition(b"\r\n\r\n")
    return head + b"\r\n" + IDENTITY + b"\r\n" + body


class Terminated(Ends):
    """The visitor speaks TLS over the server's end of the lane."""

    def __init__(self, reactor: Any, readiness: Any, **settings: Any) -> None:
        settings = {"tls_origin": None, "certificate": Path("c"), "key": Path("k"), **settings}
        super().__init__(reactor, readiness, **settings)
        tickets = Tickets(Path("/nonexistent"))
        tickets.renew(datetime.now(UTC))
        self.visits.keypairs = Keypairs(tickets)
        self.visits.keypairs.put(HOST, PAIR)
        self.visitor = Visitor(self.server, visitor_context(CA), HOST)
        self.visitor.skip = 1

    def hello(self) -> bytes:
        """The visitor's ClientHello, as the server has read it."""
        hello = self.visitor._unsent + self.visitor._out.read()
        if not hello:
            with pytest.raises(ssl.SSLWantReadError):
                self.visitor.tls.do_handshake()
            hello = self.visitor._out.read()
        return hello

    def arrive(self, visitor: ProxyHeader | None = None) -> socket.socket:
        """Up to the end of the handshake; the origin's end."""
        self.begin(visitor or header(HOST), self.hello())
        origin = self.accept()
        self.until(lambda: self.visitor.ready)
        self.until(lambda: not self.visits.waiting)
        return origin

    def until(self, condition: Callable[[], object]) -> None:
        def reached() -> bool:
            self.visitor.go_on()
            return bool(condition())

        self.reactor.until(reached)

    def until_left(self) -> None:
        self.reactor.until(lambda: not self.visits.waiting)

    def ended(self) -> bytes:
        """What the visitor got, up to the end of TLS."""
        self.until(lambda: self.visitor.ended)
        return self.visitor.got


@pytest.fixture
def ends() -> Iterator[Callable[..., Terminated]]:
    with turning() as (reactor, readiness):
        made: list[Terminated] = []

        def make(**settings: Any) -> Terminated:
            made.append(Terminated(reactor, readiness, **settings))
            return made[-1]

        yield make
        for each in made:
            each.close()


def test_requests_and_answers(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    origin = joined.arrive()
    assert joined.visitor.seen[0] == Status.JOINED
    assert joined.visitor.tls.version() == "TLSv1.3"
    for number in range(3):
        joined.visitor.say(GET)
        assert joined.receive(origin, len(passed(GET))) == passed(GET)
        origin.send(ANSWER)
        joined.until(lambda: len(joined.visitor.got) == len(ANSWER) * (number + 1))  # noqa: B023
    # The end, from the visitor.
    with pytest.raises(ssl.SSLWantReadError):
        joined.visitor.tls.unwrap()
    joined.until(lambda: True)
    assert joined.receive(origin, 1) == b""
    origin.close()
    joined.until(lambda: not joined.relay.joined)
    joined.until(lambda: joined.visitor.cut)
    joined.visits.stop()
    assert not joined.reactor.getDelayedCalls()


def test_what_the_visitor_says_of_himself_is_taken_out(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    origin = joined.arrive()
    lies = b"X-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nx-forwarded-proto: http\r\n"
    joined.visitor.say(GET[:-2] + lies + b"\r\n")
    assert joined.receive(origin, len(passed(GET))) == passed(GET)


def test_the_origin_is_dialled_before_the_visitor_is_told_anything(ends: Callable[..., Terminated]) -> None:
    refused = ends()
    refused.listener.close()
    refused.begin(header(HOST), refused.hello())
    assert status(refused) is Status.ORIGIN_REFUSED


def test_without_a_certificate_the_next_client_is_tried(ends: Callable[..., Terminated]) -> None:
    awaiting = ends()
    awaiting.visits.keypairs = Keypairs(Tickets(Path("/nonexistent")))
    awaiting.begin(header(HOST), awaiting.hello())
    assert status(awaiting) is Status.NO_CERTIFICATE
    with pytest.raises(BlockingIOError):
        awaiting.listener.accept()


def test_a_hello_octet_by_octet(ends: Callable[..., Terminated]) -> None:
    slow = ends()
    hello = slow.hello()
    slow.begin(header(HOST), hello[:1])
    origin = slow.accept()
    for octet in hello[1:]:
        slow.server.send(bytes([octet]))
        slow.turns(1)
    slow.until(lambda: slow.visitor.ready)
    slow.visitor.say(GET)
    assert slow.receive(origin, len(passed(GET))) == passed(GET)


def test_the_proxy_header_says_what_is_spoken(ends: Callable[..., Terminated]) -> None:
    joined = ends(proxy_protocol=True)
    origin = joined.arrive()
    joined.visitor.say(GET)
    spoken = ProxyHeader(("203.0.113.7", 50000), ("198.51.100.1", 443), HOST, b"http/1.1", b"visit-1", None)
    octets = joined.receive(origin, len(spoken.octets()) + len(passed(GET)))
    assert octets.endswith(passed(GET))
    assert read_proxy_header(octets.removesuffix(passed(GET))) == spoken


def test_a_visitor_who_says_nothing_is_not_waited_for(ends: Callable[..., Terminated]) -> None:
    silent = ends()
    silent.begin(header(HOST))
    origin = silent.accept()
    assert silent.receive(silent.server, 1) == bytes([Status.JOINED])
    silent.reactor.advance(module.HANDSHAKE_SECONDS + 0.1)
    assert silent.receive(silent.server, 1) == b""
    with pytest.raises(ConnectionResetError):
        silent.receive(origin, 1)
    assert not silent.visits.waiting


def test_a_failed_handshake_is_told(ends: Callable[..., Terminated]) -> None:
    failed = ends()
    failed.begin(header(HOST), b"\x17\x03\x03\x00\x04junk")
    origin = failed.accept()
    octets = failed.receive(failed.server, 8)
    assert (octets[0], octets[1], octets[6:]) == (Status.JOINED, 21, b"\x02\x0a")  # unexpected_message
    with pytest.raises(ConnectionResetError):
        failed.receive(origin, 1)
    failed.server.close()
    failed.until_left()


def test_another_name_in_the_sni_is_told(ends: Callable[..., Terminated]) -> None:
    """The server has routed him wrongly."""
    wrong = ends()
    wrong.visitor = Visitor(wrong.server, visitor_context(CA), "other.example.com")
    wrong.visitor.skip = 1
    wrong.begin(header(HOST), wrong.hello())
    wrong.accept()
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        wrong.until(lambda: False)
    wrong.reactor.advance(LEAVE_SECONDS)
    assert not wrong.visits.waiting


REFUSED = {name: probe for name, probe in PROBES.items() if probe[1]}
# Here it is the other scheme that is another site.
OCTETS, _ = REFUSED.pop("absolute-form of https")
REFUSED["absolute-form of http"] = (OCTETS.replace(b"https:", b"http:"), 400)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_smuggling_probes_are_refused_inside_tls(ends: Callable[..., Terminated], name: str) -> None:
    octets, expected = REFUSED[name]
    joined = ends()
    origin = joined.arrive()
    joined.visitor.say(octets.replace(b"www.example.org", HOST.encode()))
    assert joined.receive(origin, 1) == b""  # the end, and not an octet
    origin.close()
    page = joined.ended()
    assert page.startswith(f"HTTP/1.1 {expected} ".encode()), page[:100]


def test_a_request_for_another_site_is_told_so_behind_the_answers(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    origin = joined.arrive()
    joined.visitor.say(GET + GET.replace(b"www.", b"other."))
    assert joined.receive(origin, len(passed(GET)) + 1) == passed(GET)
    origin.send(ANSWER)
    origin.close()
    answered, _, page = joined.ended().partition(ANSWER)
    assert (answered, page[:13]) == (b"", b"HTTP/1.1 421 ")


def test_a_visitor_gets_the_refusal_though_the_origin_says_nothing(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    joined.arrive()
    joined.visitor.say(GET + b"\x00")
    joined.turns()
    joined.reactor.advance(SILENT_SECONDS + 0.1)
    assert joined.ended().startswith(b"HTTP/1.1 400 ")
    joined.reactor.advance(LINGER_SECONDS + 0.1)
    joined.until(lambda: not joined.relay.joined)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("reset", [False, True])
def test_an_origin_that_breaks_off_without_an_answer_is_a_502(
    ends: Callable[..., Terminated], method: bytes, reset: bool
) -> None:
    joined = ends()
    origin = joined.arrive()
    joined.visitor.say(GET.replace(b"GET", method))
    joined.turns()
    if reset:
        origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    else:
        joined.receive(origin, len(passed(GET.replace(b"GET", method))))
    origin.close()
    page = joined.ended()
    assert page.startswith(b"HTTP/1.1 502 ")
    assert page.endswith(b"\r\n\r\n") is (method == b"HEAD")


def test_an_origin_that_ends_before_a_request_is_no_fault(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    joined.arrive().close()
    assert joined.ended() == b""


def test_an_origin_that_ends_behind_an_answer_is_no_fault_that_we_know_of(
    ends: Callable[..., Terminated],
) -> None:
    joined = ends()
    origin = joined.arrive()
    joined.visitor.say(GET)
    joined.receive(origin, len(passed(GET)))
    origin.send(ANSWER[:30])
    origin.close()
    assert joined.ended() == ANSWER[:30]


def test_an_origin_that_gives_no_answer_is_a_504(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    origin = joined.arrive()
    # As long as the visitor has not said all, it owes no answer.
    post = GET.replace(b"GET", b"POST")[:-2] + b"Content-Length: 3\r\n\r\nab"
    joined.visitor.say(post)
    assert joined.receive(origin, len(passed(post))) == passed(post)
    joined.reactor.pump([module.ANSWER_SECONDS / 4] * 9)
    joined.turns()
    joined.visitor.go_on()
    assert joined.visitor.got == b""
    joined.visitor.say(b"c")
    assert joined.receive(origin, 1) == b"c"
    joined.reactor.pump([module.ANSWER_SECONDS / 4] * 6)
    assert joined.ended().startswith(b"HTTP/1.1 504 ")
    joined.visitor.say(GET)
    joined.turns()
    joined.reactor.advance(LINGER_SECONDS + 0.1)
    joined.until(lambda: not joined.relay.joined)
    with pytest.raises(ConnectionResetError):
        joined.receive(origin, 1)


def test_an_origin_that_has_answered_may_be_silent(ends: Callable[..., Terminated]) -> None:
    joined = ends()
    origin = joined.arrive()
    joined.visitor.say(GET)
    joined.receive(origin, len(passed(GET)))
    origin.send(ANSWER)
    joined.until(lambda: joined.visitor.got == ANSWER)
    joined.visitor.say(GET)
    joined.reactor.pump([module.ANSWER_SECONDS] * 20)
    origin.send(ANSWER)
    joined.until(lambda: joined.visitor.got == ANSWER * 2)
    assert not joined.reactor.getDelayedCalls()


def test_a_server_with_a_revoked_certificate_is_cut_in_the_handshake(ends: Callable[..., Terminated]) -> None:
    cut = ends()
    cut.begin(header(HOST), cut.hello()[:50])
    origin = cut.accept()
    cut.turns()
    cut.visits.cut({4711})
    assert not cut.visits.waiting
    with pytest.raises(ConnectionResetError):
        cut.receive(origin, 1)


def test_plain_http_of_the_same_name_is_passed_on(ends: Callable[..., Terminated]) -> None:
    plain = ends(http="serve")
    plain.begin(header(HOST, Kind.HTTP), GET)
    assert plain.receive(plain.accept(), len(GET)) == GET
    assert plain.receive(plain.server, 1) == bytes([Status.JOINED])


def test_tls_on_a_lane_that_is_tls_already_is_no_visitor(ends: Callable[..., Terminated]) -> None:
    """Lanes of TLS are for plain HTTP."""

    class Lane:
        """Stands in front of the socket, as a TlsWire does."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    refused = ends()
    refused.visits.begin(Lane(refused.lane), header(HOST), refused.hello(), 4711)
    assert status(refused) is Status.NO_ORIGIN


def test_an_origin_on_a_unix_socket(ends: Callable[..., Terminated], tmp_path: Path) -> None:
    path = str(tmp_path / "web")
    joined = ends(http_origin=Origin(path=path))
    joined.listener.close()
    joined.listener = socket.socket(socket.AF_UNIX)
    joined.listener.bind(path)
    joined.listener.listen(1)
    joined.listener.setblocking(False)
    origin = joined.arrive()
    joined.visitor.say(GET)
    assert joined.receive(origin, len(passed(GET))) == passed(GET)


BODIES = st.one_of(
    st.binary(max_size=3000).map(lambda body: (b"Content-Length: %d" % len(body), body)),
    st.lists(st.binary(min_size=1, max_size=900), max_size=4).map(
        lambda chunks: (
            b"Transfer-Encoding: chunked",
            b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n",
        )
    ),
)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(BODIES, min_size=1, max_size=4),
    st.lists(st.integers(1, 4000), max_size=10),
    st.binary(max_size=40_000),
)
def test_any_requests_in_any_cut_arrive_as_they_are(
    bodies: list[tuple[bytes, bytes]], cuts: list[int], answer: bytes
) -> None:
    """And say who the visitor is, each; and whatever the origin answers arrives as it is."""
    asked = [
        b"PUT /%d HTTP/1.1\r\nHost: www.example.com\r\n%s\r\n\r\n" % (number, field) + body
        for number, (field, body) in enumerate(bodies)
    ]
    octets = b"".join(asked)
    with turning() as (reactor, readiness):
        joined = Terminated(reactor, readiness)
        origin = joined.arrive()
        for cut in cuts:
            joined.visitor.say(octets[:cut])
            octets = octets[cut:]
            joined.turns(1)
            if not octets:
                break
        if octets:
            joined.visitor.say(octets)
        expected = b"".join(map(passed, asked))
        assert joined.receive(origin, len(expected)) == expected
        origin.setblocking(True)
        origin.sendall(answer)
        origin.close()
        assert joined.ended() == answer or not answer
        joined.close()

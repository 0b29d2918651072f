"""Visitors between two real sockets each: the lane's far end (the server) and the origin's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from appliance.addresses import Origin
from appliance.service.client import visits as module
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.origins import Origins
from appliance.service.client.tickets import Tickets
from appliance.service.client.visits import Visits
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay
from appliance.settings import ClientSettings
from appliance.tunnel.lane import Status
from appliance.tunnel.proxyheader import Kind, ProxyHeader, read_proxy_header
from tests.service.turning import Turning, tcp_pair, turning

SERVER = 4711
HELLO = b"\x16\x03\x01 a ClientHello"


def header(host: str = "www.example.com", kind: Kind = Kind.TLS) -> ProxyHeader:
    return ProxyHeader(("203.0.113.7", 50000), ("198.51.100.1", 443), host, b"h2", b"visit-1", kind)


@contextmanager
def log_of(namespace: str) -> Iterator[list[str]]:
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith(namespace):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


class Ends:
    """A lane that was taken for a visitor, seen from the server, and the origin that waits for him."""

    def __init__(self, reactor: Turning, readiness: Readiness, **settings: Any) -> None:
        self.reactor = reactor
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(8)
        self.listener.setblocking(False)
        origin = Origin("127.0.0.1", self.listener.getsockname()[1])
        made = ClientSettings(invitation=Path("i"), tls_origin=origin, http_origin=origin)
        made = attrs.evolve(made, **settings)
        self.relay = Relay(readiness)
        self.visits = Visits(
            reactor,
            readiness,
            self.relay,
            Origins(made, ("www.example.com",), reactor),
            Keypairs(Tickets(Path("unused"))),
        )
        self.server, self.lane = tcp_pair()
        readiness.register(self.lane, lambda events: None)
        self.origin: socket.socket | None = None

    def begin(self, visitor: ProxyHeader, early: bytes = b"") -> None:
        self.visits.begin(self.lane, visitor, early, SERVER)

    def accept(self) -> socket.socket:
        accepted: list[socket.socket] = []

        def accepts() -> bool:
            try:
                accepted.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.reactor.until(accepts)
        accepted[0].setblocking(False)
        self.origin = accepted[0]
        return accepted[0]

    def receive(self, sock: socket.socket, count: int) -> bytes:
        """``count`` octets, fewer at the end of the stream."""
        got = bytearray()

        def enough() -> bool:
            while len(got) < count:
                try:
                    octets = sock.recv(count - len(got))
                except BlockingIOError:
                    return False
                if not octets:
                    return True
                got.extend(octets)
            return True

        self.reactor.until(enough)
        return bytes(got)

    def turns(self, number: int = 20) -> None:
        for _ in range(number):
            self.reactor.turn(1)

    def close(self) -> None:
        self.visits.stop()
        self.relay.stop()
        for sock in (self.server, self.listener, self.origin):
            if sock is not None:
                sock.close()


@dataclass
class Making:
    reactor: Turning
    readiness: Readiness
    made: list[Ends]

    def __call__(self, **settings: Any) -> Ends:
        self.made.append(Ends(self.reactor, self.readiness, **settings))
        return self.made[-1]


@pytest.fixture
def ends() -> Iterator[Making]:
    with turning() as (reactor, readiness):
        making = Making(reactor, readiness, [])
        yield making
        for each in making.made:
            each.close()


def status(ends: Ends) -> Status:
    """The status octet, behind which the lane ends."""
    octets = ends.receive(ends.server, 2)
    assert len(octets) == 1
    return Status(octets[0])


def test_joined_goes_in_front_of_the_origins_first_octets(ends: Making) -> None:
    joined = ends()
    joined.begin(header(), HELLO)
    origin = joined.accept()
    assert joined.receive(origin, len(HELLO)) == HELLO
    joined.turns()
    with pytest.raises(BlockingIOError):
        joined.server.recv(1)
    origin.send(b"ServerHello")
    assert joined.receive(joined.server, 12) == bytes([Status.JOINED]) + b"ServerHello"
    joined.server.send(b"more")
    assert joined.receive(origin, 4) == b"more"
    # Half-close, both ways in turn.
    joined.server.shutdown(socket.SHUT_WR)
    assert joined.receive(origin, 1) == b""
    origin.send(b"last words")
    origin.close()
    assert joined.receive(joined.server, 11) == b"last words"
    joined.turns()
    assert not joined.relay.joined
    assert not joined.visits.waiting


def test_without_descriptors_he_goes_to_another_client_and_who_is_joined_stays(ends: Making) -> None:
    joined, busy = ends(), ends()
    joined.begin(header(), HELLO)
    joined.accept().send(b"ServerHello")
    joined.receive(joined.server, 12)
    with log_of(module.__name__) as lines:
        for each in (busy, ends()):
            each.visits.origins_below = 0
            each.begin(header(), HELLO)
            assert status(each) is Status.BUSY
    assert ["no file descriptor is left" in line for line in lines] == [True, True]
    joined.server.send(b"more")
    assert joined.origin is not None
    assert joined.receive(joined.origin, len(HELLO) + 4) == HELLO + b"more"


def test_whoever_came_from_a_revoked_server_is_cut(ends: Making) -> None:
    joined, waiting = ends(), ends()
    joined.begin(header(), HELLO)
    joined.accept().send(b"ServerHello")
    joined.receive(joined.server, 12)
    joined.visits.cut({SERVER + 1})
    assert joined.relay.joined
    joined.visits.cut({SERVER})
    assert not joined.relay.joined
    assert not joined.visits.joined[SERVER]
    waiting.begin(header(), HELLO)
    waiting.accept()
    waiting.visits.cut({SERVER})
    assert not waiting.visits.waiting


def test_a_hello_that_comes_in_pieces(ends: Making) -> None:
    joined = ends()
    joined.begin(header(), HELLO[:3])
    joined.server.send(HELLO[3:7])
    origin = joined.accept()
    assert joined.receive(origin, 7) == HELLO[:7]
    joined.server.send(HELLO[7:])
    assert joined.receive(origin, len(HELLO) - 7) == HELLO[7:]


def test_plain_http_is_joined_at_the_connect(ends: Making) -> None:
    joined = ends()
    joined.begin(header(kind=Kind.HTTP), b"GET / HTTP/1.1\r\n")
    origin = joined.accept()
    assert joined.receive(joined.server, 1) == bytes([Status.JOINED])
    assert joined.receive(origin, 16) == b"GET / HTTP/1.1\r\n"
    joined.server.send(b"Host: x\r\n\r\n")
    assert joined.receive(origin, 11) == b"Host: x\r\n\r\n"


@pytest.mark.parametrize("kind", list(Kind))
def test_the_origin_gets_a_proxy_header_if_it_is_to(ends: Making, kind: Kind) -> None:
    joined = ends(proxy_protocol=True)
    joined.begin(header(kind=kind), HELLO)
    origin = joined.accept()
    expected = header(kind=kind).for_origin()
    octets = joined.receive(origin, len(expected.octets()) + len(HELLO))
    assert octets.endswith(HELLO)
    assert read_proxy_header(octets.removesuffix(HELLO)) == expected


def test_a_unix_socket_as_origin(ends: Making, tmp_path: Path) -> None:
    path = str(tmp_path / "web")
    joined = ends(tls_origin=Origin(path=path))
    joined.listener.close()
    joined.listener = socket.socket(socket.AF_UNIX)
    joined.listener.bind(path)
    joined.listener.listen(1)
    joined.listener.setblocking(False)
    joined.begin(header(), HELLO)
    origin = joined.accept()
    assert joined.receive(origin, len(HELLO)) == HELLO
    origin.send(b"S")
    assert joined.receive(joined.server, 2) == bytes([Status.JOINED]) + b"S"


@pytest.mark.parametrize("visitor", [header("other.example.com"), header("example.com", Kind.HTTP)])
def test_no_origin_for_the_name(ends: Making, visitor: ProxyHeader) -> None:
    refused = ends()
    refused.begin(visitor, HELLO)
    assert status(refused) is Status.NO_ORIGIN


def test_names_that_a_stranger_chooses_do_not_fill_the_log(ends: Making) -> None:
    with log_of("appliance.service.client.visits") as lines:
        for number in range(5):
            refused = ends()
            if number:
                refused.visits.complaints = ends.made[0].visits.complaints
            refused.begin(header(f"n{number}.other.test"), HELLO)
            assert status(refused) is Status.NO_ORIGIN
    assert lines == ["TLS: there is no origin here for n0.other.test"]


def test_no_origin_for_the_kind(ends: Making) -> None:
    refused = ends(http_origin=None)
    refused.begin(header(kind=Kind.HTTP))
    assert status(refused) is Status.NO_ORIGIN


def test_an_origin_that_refuses(ends: Making) -> None:
    refused = ends()
    refused.listener.close()
    refused.begin(header(), HELLO)
    assert status(refused) is Status.ORIGIN_REFUSED


@pytest.mark.parametrize("reset", [False, True])
def test_an_origin_that_closes_without_an_answer(ends: Making, reset: bool) -> None:
    refused = ends()
    refused.begin(header(), HELLO)
    origin = refused.accept()
    if not reset:
        refused.receive(origin, len(HELLO))
    refused.turns()
    origin.close()
    assert status(refused) is Status.ORIGIN_REFUSED


def test_an_origin_that_says_nothing(ends: Making) -> None:
    silent = ends()
    silent.begin(header(), HELLO)
    silent.accept()
    silent.turns()
    silent.reactor.advance(module.ANSWER_SECONDS - 0.1)
    silent.turns()
    with pytest.raises(BlockingIOError):
        silent.server.recv(1)
    silent.reactor.advance(0.2)
    assert status(silent) is Status.ORIGIN_SILENT


def test_an_origin_that_does_not_take_the_connection(ends: Making) -> None:
    hanging = ends()
    hanging.listener.listen(0)
    filling = []
    for _ in range(2):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(hanging.listener.getsockname())
        filling.append(sock)
    hanging.begin(header(), HELLO)
    hanging.turns()
    hanging.reactor.advance(module.CONNECT_SECONDS + 0.1)
    assert status(hanging) is Status.ORIGIN_SILENT
    for sock in filling:
        sock.close()


def test_a_refused_lane_is_closed_when_the_server_has_closed_it_or_after_a_while(ends: Making) -> None:
    for waits in (False, True):
        refused = ends()
        refused.begin(header("other.test"), HELLO)
        assert refused.receive(refused.server, 2) == bytes([Status.NO_ORIGIN])
        assert refused.visits.waiting
        if waits:
            refused.reactor.advance(module.LEAVE_SECONDS)
        else:
            refused.server.close()
            refused.turns()
        assert not refused.visits.waiting
        assert refused.lane.fileno() == -1


@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_gives_the_lane_up_ends_the_visit(ends: Making, reset: bool) -> None:
    given_up = ends()
    given_up.begin(header(), HELLO)
    origin = given_up.accept()
    assert given_up.receive(origin, len(HELLO)) == HELLO
    if reset:
        given_up.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    given_up.server.close()
    assert given_up.receive(origin, 1) == b""
    assert not given_up.visits.waiting
    given_up.visits.stop()
    assert not given_up.reactor.getDelayedCalls()


def test_what_comes_early_is_bounded_and_not_lost(ends: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EARLY_OCTETS", 8)
    monkeypatch.setattr(module, "_READ_OCTETS", 8)
    joined = ends()
    early = bytes(range(100))
    joined.server.send(early[4:])
    joined.begin(header(kind=Kind.HTTP), early[:4])
    (visit,) = joined.visits.waiting
    joined.turns(1)
    assert len(getattr(visit, "_early")) <= 16  # noqa: B009
    origin = joined.accept()
    assert joined.receive(origin, 100) == early


def test_stopping_ends_those_that_are_under_way(ends: Making) -> None:
    stopped = ends()
    stopped.begin(header(), HELLO)
    origin = stopped.accept()
    stopped.turns()
    stopped.visits.stop()
    assert stopped.receive(origin, len(HELLO) + 1) == HELLO
    assert stopped.receive(stopped.server, 1) == b""
    assert not stopped.reactor.getDelayedCalls()

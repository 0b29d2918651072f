"""A visitor's way: from client to client until one says joined, and what he is told where none does."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from appliance.ingress.accessline import AccessLine
from appliance.ingress.clienthello import ClientHello
from appliance.ingress.forwarded import forwarded as forwarded_head
from appliance.ingress.httphead import HeadReader
from appliance.ingress.limits import Limits, Over
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.relay import Joined, Relay
from appliance.service.server import visitors
from appliance.service.server.gate import Gate
from appliance.service.server.lanes import TLS, Lane, Lanes, SessionLanes
from appliance.service.server.ledger import Ledger
from appliance.service.server.links import Session
from appliance.service.server.parting import Parting
from appliance.service.server.visitors import Visitors
from appliance.tunnel.certificates import Peer, read_peer
from appliance.tunnel.lane import SealedHeader, Status, lane_keys, read_preface, write_preface
from appliance.tunnel.proxyheader import Kind, ProxyHeader, read_proxy_header
from appliance.tunnel.routes import Routes
from appliance.tunnel.session import Offer
from tests.service.test_tlswire import CLIENT
from tests.service.turning import Turning, tcp_pair, turning

NAME = "www.example.com"
TLS_ONLY = Offer(True, "redirect")
HELLO = b"a ClientHello"
REST = b"early data"
UNRECOGNIZED_NAME = bytes.fromhex("15030300020270")
INTERNAL_ERROR = bytes.fromhex("15030300020250")


@dataclass(eq=False)
class LinkedClient:
    """A client as the server sees it (``lanes`` and ``joined`` of a session), and as it is itself."""

    number: int
    lanes: SessionLanes
    peer: Peer = field(default_factory=lambda: read_peer(CLIENT.certificate))
    joined: set[Joined] = field(default_factory=set)
    doubts: int = 0

    def doubt(self) -> None:
        self.doubts += 1

    @property
    def session_id(self) -> bytes:
        return b"session%d" % self.number


class OneLane:
    """A lane, from the client's end."""

    def __init__(self, sock: socket.socket, preface: bytes, client: LinkedClient) -> None:
        self.sock = sock
        self._sealed = SealedHeader(client.lanes.keys, read_preface(preface))
        self.header: ProxyHeader | None = None
        self.got = b""
        self.ended = False

    def read(self) -> bool:
        try:
            octets = self.sock.recv(65536)
        except BlockingIOError:
            return self.header is not None
        except ConnectionResetError:
            octets = b""
        if not octets:
            self.ended = True
        elif self.header is None:
            opened = self._sealed.feed(octets)
            if opened is not None:
                self.header = read_proxy_header(opened[0])
                self.got = opened[1]
        else:
            self.got += octets
        return self.header is not None


class Ground:
    """A server's visitors, with as many clients of the name as a test wants."""

    def __init__(self, reactor: Turning, readiness: Readiness, *, name_open: int = 0) -> None:
        self.reactor = reactor
        self.readiness = readiness
        self.known: set[str] = set()
        self.routes: Routes[LinkedClient] = Routes()
        self.relay = Relay(readiness)
        self.parting = Parting(readiness, reactor)
        self.clients: dict[bytes, LinkedClient] = {}
        self.doors = Lanes(readiness, reactor, self.clients)
        self.lines: list[LogEvent] = []
        log = Logger(observer=provider(ILogObserver)(lambda event: self.lines.append(event)))
        complaints = FewLines(reactor, log)
        self.gate = Gate(reactor, Limits(), linked=lambda address: False, complaints=complaints)
        self.said: list[AccessLine] = []
        self.ledger = Ledger(
            reactor, lambda: 1.5, self.gate, name_open=name_open, say=self.said.append
        )
        self.visitors = Visitors(
            readiness,
            reactor,
            self.relay,
            self.parting,
            routes=cast("Routes[Session]", self.routes),
            known=self.known.__contains__,
            known_as=lambda host: host if host in self.known else None,
            https_port=8443,
            unique_id=lambda: b"unique",
            ledger=self.ledger,
        )
        self._counter = 0
        self._open: list[socket.socket] = []

    def client(self, offer: Offer = TLS_ONLY, *, lanes: int = 1, name: str = NAME) -> LinkedClient:
        number = len(self.clients)
        keys = lane_keys(os.urandom(64))
        made = LinkedClient(number, SessionLanes(keys, self.readiness, self.reactor, lambda *asked: None))
        self.clients[made.session_id] = made
        self.own = [self.lane(made) for _ in range(lanes)]
        self.routes.add(name, made, offer)
        return made

    def lane(self, client: LinkedClient) -> OneLane:
        self._counter += 1
        near, far = tcp_pair()
        self._open.append(near)
        self.readiness.register(far, lambda events: None)
        preface = write_preface(client.lanes.keys, client.session_id, self._counter)
        self.doors.plain_arrived(far, preface, b"")
        return OneLane(near, preface, client)

    def came(self, sock: socket.socket) -> None:
        """What the entry does before it hands a visitor over."""
        self.gate.came(sock.getpeername()[0])

    def visit(self, host: str = NAME, *, hello: bytes = HELLO) -> socket.socket:
        near, far = tcp_pair()
        self._open.append(near)
        self.readiness.register(far, lambda events: None)
        self.came(far)
        said = ClientHello(host, (b"h2", b"http/1.1"), True, octets=hello, rest=REST)
        self.visitors.tls_arrived(far, near.getsockname(), host, said)
        return near

    def ask(self, request: bytes) -> socket.socket:
        near, far = tcp_pair()
        self._open.append(near)
        self.readiness.register(far, lambda events: None)
        head = HeadReader().feed(request)
        assert head is not None
        self.came(far)
        self.visitors.http_arrived(far, near.getsockname(), head, request)
        return near

    def parted(self) -> socket.socket:
        """A socket of whom nothing is known."""
        near, far = tcp_pair()
        self._open.append(near)
        self.readiness.register(far, lambda events: None)
        return far

    def told(self, visitor: socket.socket) -> bytes:
        got = bytearray()

        def ended() -> bool:
            try:
                octets = visitor.recv(65536)
            except BlockingIOError:
                return False
            got.extend(octets)
            return not octets

        self.reactor.until(ended)
        return bytes(got)

    def receive(self, sock: socket.socket, count: int) -> bytes:
        got = bytearray()

        def enough() -> bool:
            try:
                got.extend(sock.recv(65536))
            except BlockingIOError:
                return False
            return len(got) >= count

        self.reactor.until(enough)
        return bytes(got)

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self.visitors.stop()
        for client in self.clients.values():
            client.lanes.close()
        self.doors.stop()
        self.relay.stop()
        self.parting.stop()


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with turning() as (reactor, readiness):
        made = Ground(reactor, readiness, name_open=getattr(request, "param", 0))
        yield made
        made.close()


def test_joined_and_the_rest_only_then(ground: Ground) -> None:
    client = ground.client()
    (lane,) = ground.own
    visitor = ground.visit()
    ground.reactor.until(lane.read)
    header = lane.header
    assert header is not None
    assert (header.authority, header.alpn) == (NAME, b"h2")
    assert (header.unique_id, header.kind) == (b"unique", Kind.TLS)
    assert header.source == visitor.getsockname()
    assert header.destination == visitor.getpeername()
    for _ in range(5):
        ground.reactor.turn()
        lane.read()
    assert lane.got == HELLO  # early data may not be repeated, so it waits
    lane.sock.send(bytes([Status.JOINED]) + b"ServerHello")
    assert ground.receive(visitor, 11) == b"ServerHello"
    ground.reactor.until(lambda: lane.read() and lane.got == HELLO + REST)
    assert len(client.joined) == 1
    visitor.close()
    lane.sock.close()
    ground.reactor.until(lambda: not client.joined)


@pytest.mark.parametrize("status", [each for each in Status if each is not Status.JOINED] + [99])
def test_a_refusal_sends_him_to_the_next_client(ground: Ground, status: int) -> None:
    lanes = {}
    for _ in range(2):
        client = ground.client()
        lanes[client.number] = ground.own[0]
    visitor = ground.visit()
    ground.reactor.until(lanes[0].read)
    lanes[0].sock.send(bytes([status]))
    ground.reactor.until(lanes[1].read)
    assert lanes[1].got == HELLO
    lanes[1].sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: lanes[1].read() and lanes[1].got == HELLO + REST)
    assert visitor.fileno() >= 0
    ground.reactor.until(lambda: lanes[0].read() and lanes[0].ended)


def test_a_slow_client_loses_him_after_a_second_if_another_is_left(ground: Ground) -> None:
    first = ground.client()
    (slow,) = ground.own
    second = ground.client()
    (quick,) = ground.own
    ground.visit()
    ground.reactor.until(slow.read)
    ground.reactor.advance(0.9)
    quick.read()
    assert quick.header is None
    assert first.doubts == 0
    ground.reactor.advance(0.2)
    ground.reactor.until(quick.read)
    assert (first.doubts, second.doubts) == (1, 0)
    for _ in range(60):
        ground.reactor.advance(0.1)
    quick.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: quick.read() and quick.got == HELLO + REST)


def test_the_last_client_has_ten_seconds(ground: Ground) -> None:
    ground.client()
    (lane,) = ground.own
    visitor = ground.visit()
    ground.reactor.until(lane.read)
    for _ in range(98):
        ground.reactor.advance(0.1)
    with pytest.raises(BlockingIOError):
        visitor.recv(1)
    for _ in range(4):
        ground.reactor.advance(0.1)
    assert ground.told(visitor) == INTERNAL_ERROR


def test_three_clients_and_no_more(ground: Ground) -> None:
    lanes = []
    for _ in range(4):
        ground.client()
        lanes += ground.own
    visitor = ground.visit()
    for lane in lanes[:3]:
        ground.reactor.until(lane.read)
        lane.sock.send(bytes([Status.ORIGIN_REFUSED]))
    assert ground.told(visitor) == INTERNAL_ERROR
    lanes[3].read()
    assert lanes[3].header is None


def test_a_dead_lane_costs_another_lane_not_another_client(ground: Ground) -> None:
    """The lane's end comes in answer to the visitor: a NAT, say, that forgot it."""
    client = ground.client(lanes=2)
    first, second = ground.own
    ground.visit()
    ground.reactor.until(second.read)  # the newest is taken first
    reset(second)
    ground.reactor.until(first.read)
    first.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: client.joined)


def test_who_goes_on_to_another_client_waits_for_no_lane_of_the_first(ground: Ground) -> None:
    """The lane was reset, and no event has told it yet: so it dies in the hand of whom it is given to."""
    first = ground.client()
    (lane,) = ground.own
    reset(lane)
    ground.client()
    (quick,) = ground.own
    ground.visit()
    ground.reactor.advance(1.1)
    ground.reactor.until(quick.read)
    ground.lane(first)
    assert first.lanes.held("plain") == 1
    quick.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: quick.read() and quick.got == HELLO + REST)


def test_joined_by_who_has_not_read_all(ground: Ground) -> None:
    client = ground.client()
    (lane,) = ground.own
    hello = os.urandom(8_000_000)  # more than the buffers of a socket take
    ground.visit(hello=hello)
    lane.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: client.joined)
    ground.reactor.until(lambda: lane.read() and len(lane.got) == len(hello + REST))
    assert lane.got == hello + REST
    (joined,) = client.joined
    joined.end(None)
    assert ground.said[-1].octets_in == len(hello + REST)


def test_a_client_that_takes_his_name_off_while_he_waits_does_not_get_him(ground: Ground) -> None:
    """Only the offer says whether a head is to tell where it comes from, so without one it is not sent."""
    client = ground.client(Offer(True, "serve", True), lanes=0)
    visitor = ground.ask(GET)
    ground.routes.remove(NAME, client)
    near, far = tcp_pair()
    ground._open.append(near)
    ground.readiness.register(far, lambda events: None)
    preface = write_preface(client.lanes.keys, client.session_id, 1)
    client.lanes.add(Lane(far, client.lanes.keys, read_preface(preface)), TLS)
    lane = OneLane(near, preface, client)
    ground.reactor.until(lambda: lane.read() or lane.ended)
    assert lane.header is None
    assert ground.told(visitor).startswith(b"HTTP/1.1 503 ")


def reset(lane: OneLane) -> None:
    lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    lane.sock.close()


@pytest.mark.parametrize("comes", [True, False])
def test_after_three_dead_lanes_of_the_only_client_he_waits_for_a_new_one(
    ground: Ground, comes: bool
) -> None:
    """As when the network was away: the client has given up the link and all lanes, and the server knows
    nothing of that.
    """
    client = ground.client(lanes=5)
    lanes = ground.own
    visitor = ground.visit()
    for lane in lanes[:1:-1]:
        ground.reactor.until(lane.read)
        reset(lane)
    ground.reactor.turn(20)
    assert [lane.read() for lane in lanes[:2]] == [False, False]
    fresh = ground.lane(client)
    ground.reactor.until(fresh.read)
    if comes:
        fresh.sock.send(bytes([Status.JOINED]))
        ground.reactor.until(lambda: fresh.read() and fresh.got == HELLO + REST)
    else:
        reset(fresh)
        assert ground.told(visitor) == INTERNAL_ERROR


def test_after_three_dead_lanes_another_client_is_next(ground: Ground) -> None:
    ground.client(lanes=4)
    dead = ground.own
    ground.client()
    (quick,) = ground.own
    ground.visit()
    for lane in dead[:0:-1]:
        ground.reactor.until(lane.read)
        reset(lane)
    ground.reactor.until(quick.read)


def test_the_only_client_comes_back_in_a_new_session(ground: Ground) -> None:
    first = ground.client(lanes=0)
    ground.known.add(NAME)
    visitor = ground.visit()
    ground.routes.remove_session(first)
    first.lanes.close()
    ground.visitors.session_ended(cast(Session, first))
    ground.reactor.advance(1)
    ground.client()
    (lane,) = ground.own
    ground.visitors.name_served(NAME)
    ground.reactor.until(lane.read)
    lane.sock.send(bytes([Status.ORIGIN_REFUSED]))
    assert ground.told(visitor) == INTERNAL_ERROR


def test_without_a_lane_he_waits_for_one(ground: Ground) -> None:
    client = ground.client(lanes=0)
    ground.visit()
    for _ in range(5):
        ground.reactor.advance(0.1)
    lane = ground.lane(client)
    ground.reactor.until(lane.read)
    assert lane.got == HELLO


def test_a_lane_that_he_waited_for_has_its_time_too(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A far client's kernel has not yet acknowledged anything when the lane was taken this moment."""
    monkeypatch.setattr(visitors, "_unacknowledged", lambda wire: True)
    client = ground.client(lanes=0)
    ground.visit()
    for _ in range(5):
        ground.reactor.advance(0.1)
    lane = ground.lane(client)
    for _ in range(2):
        ground.reactor.advance(0.1)
        ground.reactor.until(lane.read)
        assert not lane.ended
    for _ in range(2):
        ground.reactor.advance(0.1)
    ground.reactor.until(lambda: lane.read() and lane.ended)


def test_a_session_that_ends_sends_him_on_at_once(ground: Ground) -> None:
    first = ground.client(lanes=0)
    ground.client()
    (lane,) = ground.own
    ground.visit()
    ground.routes.remove_session(first)
    first.lanes.close()
    ground.visitors.session_ended(cast(Session, first))
    ground.reactor.until(lane.read)


def test_never_known(ground: Ground) -> None:
    assert ground.told(ground.visit("never.example.com")) == UNRECOGNIZED_NAME


def test_known_and_parked(ground: Ground) -> None:
    ground.known.add(NAME)
    visitor = ground.visit()
    ground.reactor.advance(3)
    client = ground.client()
    ground.visitors.name_served(NAME)
    (lane,) = ground.own
    ground.reactor.until(lane.read)
    lane.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: client.joined)
    assert visitor.fileno() >= 0


def test_known_and_parked_in_vain(ground: Ground) -> None:
    ground.known.add(NAME)
    visitor = ground.visit()
    for _ in range(52):
        ground.reactor.advance(0.1)
    assert ground.told(visitor) == INTERNAL_ERROR


def test_a_visitor_who_is_reset_frees_his_lane(ground: Ground) -> None:
    ground.client()
    (lane,) = ground.own
    visitor = ground.visit()
    ground.reactor.until(lane.read)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    ground.reactor.until(lambda: lane.read() and lane.ended)
    assert not ground.visitors._waiting


GET = b"GET /path?q HTTP/1.1\r\nHost: www.example.com\r\n\r\n"


def test_http_is_redirected_where_nobody_serves_it(ground: Ground) -> None:
    ground.client()
    answer = ground.told(ground.ask(GET))
    assert answer.startswith(b"HTTP/1.1 308 ")
    assert b"Location: https://www.example.com:8443/path?q\r\n" in answer


def test_the_client_that_gets_him_says_whether_requests_tell_who_he_is(ground: Ground) -> None:
    lanes = []
    for forwarded in (False, True):
        ground.client(Offer(True, "serve", forwarded), lanes=0)
        client = list(ground.clients.values())[-1]
        near, far = tcp_pair()
        ground._open.append(near)
        ground.readiness.register(far, lambda events: None)
        preface = write_preface(client.lanes.keys, client.session_id, 1)
        client.lanes.add(Lane(far, client.lanes.keys, read_preface(preface)), TLS)
        lanes.append(OneLane(near, preface, client))
    visitor = ground.ask(GET + GET)
    ground.reactor.until(lambda: lanes[0].read() and lanes[0].got)
    assert lanes[0].got == GET
    lanes[0].sock.send(bytes([Status.ORIGIN_REFUSED]))
    ground.reactor.until(lambda: lanes[1].read() and lanes[1].got)
    said = forwarded_head(GET, source=visitor.getsockname()[0], proto="http")
    assert lanes[1].got == said
    lanes[1].sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: lanes[1].read() and len(lanes[1].got) > len(said))
    assert lanes[1].got == said * 2


def test_a_first_head_that_the_second_reader_refuses_reaches_nobody(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.client(Offer(True, "serve"))
    head = HeadReader().feed(GET)
    assert head is not None
    other = dataclasses.replace(head, octets=GET.replace(b"/path", b"/other"))
    near, far = tcp_pair()
    ground._open.append(near)
    ground.readiness.register(far, lambda events: None)
    monkeypatch.setattr(HeadReader, "feed", lambda reader, octets: other)
    ground.came(far)
    ground.visitors.http_arrived(far, near.getsockname(), other, GET)
    assert ground.told(near).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("known", "status"), [(False, b"HTTP/1.1 404 "), (True, b"HTTP/1.1 503 ")])
def test_http_without_a_client(ground: Ground, known: bool, status: bytes) -> None:
    if known:
        ground.known.add(NAME)
    visitor = ground.ask(GET)
    for _ in range(52):
        ground.reactor.advance(0.1)
    answer = ground.told(visitor)
    assert answer.startswith(status)
    assert (b"Retry-After" in answer) == known


def test_one_visitor_too_many_is_told_at_once(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.service.server.visitors._WAITING_AT_MOST", 2)
    ground.known.add(NAME)
    waiting = [ground.visit(), ground.ask(GET)]
    assert ground.told(ground.visit()) == INTERNAL_ERROR
    assert ground.told(ground.ask(GET)).startswith(b"HTTP/1.1 503 ")
    for sock in waiting:
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize("http", [False, True])
def test_a_name_that_is_away_is_not_the_wildcards(ground: Ground, http: bool) -> None:
    """A wildcard's client gets what nobody else is known for, never another client's visitors."""
    ground.known.add(NAME)
    ground.client(Offer(True, "serve"), name="*.example.com")
    (wildcards,) = ground.own
    ground.visit("else.example.com")
    ground.reactor.until(wildcards.read)
    away = ground.ask(GET) if http else ground.visit()
    for _ in range(20):
        ground.reactor.advance(0.1)
    with pytest.raises(BlockingIOError):
        away.recv(1)
    ground.client()
    (own,) = ground.own
    ground.visitors.name_served(NAME)
    if http:
        assert ground.told(away).startswith(b"HTTP/1.1 308 ")
    else:
        ground.reactor.until(own.read)


# What becomes of them


def test_a_visitor_is_in_the_books(ground: Ground) -> None:
    ground.known.add(NAME)
    client = ground.client()
    (lane,) = ground.own
    visitor = ground.visit()
    where = visitor.getsockname()
    ground.reactor.until(lane.read)
    lane.sock.send(bytes([Status.JOINED]) + b"ServerHello")
    assert ground.receive(visitor, 11) == b"ServerHello"
    ground.reactor.until(lambda: lane.read() and lane.got == HELLO + REST)
    (row,) = ground.ledger.status()
    assert (row["name"], row["client"], row["open"], row["joined"]) == (NAME, client.peer.id, 1, 1)
    ground.reactor.advance(30)
    visitor.close()
    lane.sock.close()
    ground.reactor.until(lambda: ground.said)
    (line,) = ground.said
    assert line == AccessLine(
        1.5, NAME, where, client.peer.id, len(HELLO + REST), 11, line.seconds, "ended", b"unique"
    )
    assert 30 <= line.seconds < 40
    (row,) = ground.ledger.status()
    assert (row["open"], row["octets_in"], row["octets_out"]) == (0, len(HELLO + REST), 11)
    assert (row["durations"], row["ends"]) == ([0, 0, 0, 0, 1, 0, 0, 0], {"ended": 1})
    assert ground.gate.inside == 0


def test_a_reset_is_told_from_an_end(ground: Ground) -> None:
    ground.client()
    (lane,) = ground.own
    visitor = ground.visit()
    ground.reactor.until(lane.read)
    lane.sock.send(bytes([Status.JOINED]))
    ground.reactor.until(lambda: lane.read() and lane.got == HELLO + REST)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    ground.reactor.until(lambda: ground.said)
    assert ground.said[0].how == "reset"
    assert ground.gate.inside == 0


def test_who_is_not_joined_is_in_the_books_too(ground: Ground) -> None:
    ground.told(ground.visit("never.example.com"))
    ground.client()
    ground.told(ground.ask(GET))
    (lane,) = ground.own
    visitor = ground.visit()
    ground.reactor.until(lane.read)
    lane.sock.send(bytes([Status.ORIGIN_REFUSED]))
    ground.told(visitor)
    assert [(line.name, line.client, line.how) for line in ground.said] == [
        ("never.example.com", "", "never_known"),
        (NAME, "", "redirected"),
        (NAME, "", "origin_failed"),
    ]
    assert {(row["name"], row["client"]): row["ends"] for row in ground.ledger.status()} == {
        ("", ""): {"never_known": 1},
        (NAME, ""): {"redirected": 1, "origin_failed": 1},
    }
    ground.visitors.refuse(ground.parted(), b"", "bad_hello")
    assert ground.ledger.status()[0]["ends"] == {"never_known": 1, "bad_hello": 1}
    assert ground.gate.inside == 0


def test_who_leaves_before_he_is_joined_has_left(ground: Ground) -> None:
    ground.known.add(NAME)
    visitor = ground.visit()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()
    ground.reactor.until(lambda: ground.said)
    assert ground.said[0].how == "left"
    assert ground.gate.inside == 0


@pytest.mark.parametrize("ground", [2], indirect=True)
def test_a_name_has_only_so_many(ground: Ground) -> None:
    ground.known.update((NAME, "else.example.com"))
    inside = [ground.visit(), ground.visit()]
    assert ground.told(ground.visit()) == INTERNAL_ERROR
    assert b"too many visitors" in ground.told(ground.ask(GET))
    ground.visit("else.example.com")
    for _ in range(5):
        ground.reactor.turn()
    assert [line.how for line in ground.said] == ["name_open", "name_open"]
    (line,) = ground.lines
    assert line["source"] == NAME
    assert ground.gate.refused[Over.NAME_OPEN] == 2
    for sock in inside:
        with pytest.raises(BlockingIOError):
            sock.recv(1)

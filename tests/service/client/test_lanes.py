"""The lanes of a session against a server's bare sockets: prefaces, headers, and how many there are."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from appliance.service.client import lanes as module
from appliance.service.client.dial import Target
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.lanes import Lanes, Session
from appliance.service.client.origins import Origins
from appliance.service.client.tickets import Tickets
from appliance.service.client.tls import LANE_ALPN, ClientTls
from appliance.service.client.visits import Visits
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay, Wire
from appliance.service.tls import ServerTls
from appliance.service.tlswire import TlsWire
from appliance.settings import ClientSettings
from appliance.tunnel.certificates import SERVICE_NAME, issue_client, issue_server, make_authority
from appliance.tunnel.lane import (
    PREFACE_OCTETS,
    Preface,
    Status,
    lane_keys,
    read_preface,
    seal_header,
    verify,
)
from appliance.tunnel.pool import QUIET_SECONDS
from appliance.tunnel.proxyheader import Kind, ProxyHeader
from tests.service.turning import Turning, turning

KEYS = lane_keys(bytes(range(64)))
OTHER_KEYS = lane_keys(bytes(64))
SESSION = b"session1"
HEADER = ProxyHeader(("203.0.113.7", 50000), ("198.51.100.1", 443), "www.example.com", None, b"v", Kind.TLS)

NOW = datetime.now(UTC)
CA = make_authority("ours", NOW)
CLIENT = issue_client(CA, client_id="c1", names=["www.example.com"], service_name=SERVICE_NAME, wall=NOW)
SERVER = issue_server(CA, server_id="s1", service_name=SERVICE_NAME, addresses=["127.0.0.1"], wall=NOW)


class Arrived:
    """A lane at the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.wire: Wire = sock
        self.octets = b""
        self.ended = False

    @property
    def preface(self) -> Preface:
        return read_preface(self.octets[:PREFACE_OCTETS])

    def read(self) -> None:
        try:
            if isinstance(self.wire, TlsWire) and not self.wire.handshake():
                return
            while not self.ended:
                octets = self.wire.recv(4096)
                self.octets += octets
                self.ended = not octets
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True


class Server:
    """Takes lanes; and the client's side of one session, with what it says to the log."""

    def __init__(self, reactor: Turning, readiness: Readiness) -> None:
        self.reactor = reactor
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.tls: ServerTls | None = None
        self.arrived: list[Arrived] = []
        self.relay = Relay(readiness)
        settings = ClientSettings(invitation=Path("i"))
        self.visits = Visits(
            reactor,
            readiness,
            self.relay,
            Origins(settings, (), reactor),
            Keypairs(Tickets(Path("unused"))),
        )
        self.tls_of_client = ClientTls(SERVICE_NAME, CA.certificate, CLIENT, lambda: NOW)
        target = Target(socket.AF_INET, self.listener.getsockname())
        session = Session(target, SESSION, KEYS, self.tls_of_client, None, 4711)
        self.lanes = Lanes(reactor, self.visits, session, "server s1")
        self.said: list[str] = []
        self.lanes.complain = self.hear  # type: ignore[method-assign]

    def hear(self, kind: str, words: str, details: object = "") -> None:
        self.said.append(f"{words}{details}")

    def serve(self) -> None:
        """One turn of both sides."""
        try:
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                arrived = Arrived(sock)
                if self.tls is not None:
                    arrived.wire = TlsWire(sock, self.tls.connection())
                self.arrived.append(arrived)
        except (BlockingIOError, OSError):
            pass
        for lane in self.arrived:
            if not lane.ended:
                lane.read()

    def until(self, condition: Callable[[], object]) -> None:
        def done() -> object:
            self.serve()
            return condition()

        self.reactor.until(done, turns=3000)

    def turns(self) -> None:
        for _ in range(20):
            self.serve()
            self.reactor.turn(1)

    def ready(self, number: int) -> list[Arrived]:
        """The lanes that are open and have sent their preface, when there are that many."""

        def those() -> list[Arrived]:
            return [lane for lane in self.arrived if not lane.ended and len(lane.octets) >= PREFACE_OCTETS]

        self.until(lambda: len(those()) >= number)
        self.turns()
        assert len(those()) == number
        return those()

    def close(self) -> None:
        self.lanes.stop()
        self.visits.stop()
        self.relay.stop()
        self.listener.close()
        for lane in self.arrived:
            lane.sock.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with turning() as (reactor, readiness):
        made = Server(reactor, readiness)
        yield made
        made.close()


def test_the_floor_is_opened_with_prefaces_of_ascending_counters(server: Server) -> None:
    server.lanes.start()
    lanes = server.ready(module.FLOORS["plain"])
    for lane in lanes:
        assert len(lane.octets) == PREFACE_OCTETS
        assert lane.preface.session_id == SESSION
        assert verify(KEYS, lane.preface)
    assert sorted(lane.preface.counter for lane in lanes) == [1, 2]
    assert server.lanes.idle("plain") == 2
    assert server.lanes.idle("tls") == 0
    assert not server.said


def test_a_lane_that_is_taken_becomes_a_visit_and_is_replaced(server: Server) -> None:
    server.lanes.start()
    lane = server.ready(2)[0]
    sealed = seal_header(KEYS, lane.preface, HEADER.octets())
    lane.wire.send(sealed[:1])
    server.turns()
    assert server.lanes.idle("plain") == 2
    lane.wire.send(sealed[1:] + b"hello")
    server.until(lambda: len(lane.octets) > PREFACE_OCTETS)
    assert lane.octets[PREFACE_OCTETS:] == bytes([Status.NO_ORIGIN])  # the visit's answer
    server.turns()
    assert server.lanes.idle("plain") >= 2
    counters = [lane.preface.counter for lane in server.arrived]
    assert len(set(counters)) == len(counters)


@pytest.mark.parametrize(
    "forge",
    [
        lambda preface: seal_header(OTHER_KEYS, preface, HEADER.octets()),
        lambda preface: seal_header(KEYS, read_preface(preface.octets[:-1] + b"x"), HEADER.octets()),
        lambda preface: b"\xff\xff" + bytes(100),
        lambda preface: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_header_that_does_not_open_closes_the_lane(
    server: Server, forge: Callable[[Preface], bytes]
) -> None:
    server.lanes.start()
    lane = server.ready(2)[0]
    lane.wire.send(forge(lane.preface))
    server.until(lambda: lane.ended)
    assert lane.octets == lane.preface.octets
    assert len(server.said) == 1
    assert "not the server's" in server.said[0]


@pytest.mark.parametrize(
    "unread",
    [
        HEADER._replace(authority="*.example.com").octets(),  # as a newer server might
        HEADER.octets() + b"x",
        b"",
    ],
)
def test_headers_that_do_not_read_hold_up_nobody(
    server: Server, unread: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[LogEvent] = []
    log = Logger(observer=provider(ILogObserver)(lambda event: logged.append(event)))
    monkeypatch.setattr(server.lanes, "few_lines", FewLines(server.reactor, log))

    def any_lane() -> Arrived:
        def idle() -> list[Arrived]:
            return [each for each in server.arrived if not each.ended and len(each.octets) == PREFACE_OCTETS]

        server.until(idle)
        return idle()[-1]

    server.lanes.start()
    for _ in range(50):
        closed = any_lane()
        closed.wire.send(seal_header(KEYS, closed.preface, unread))
        server.until(partial(getattr, closed, "ended"))
        assert closed.octets == closed.preface.octets
    # No time has passed, and there are lanes as ever.
    lane = any_lane()
    lane.wire.send(seal_header(KEYS, lane.preface, HEADER.octets()))
    server.until(lambda: len(lane.octets) > PREFACE_OCTETS)
    assert lane.octets[PREFACE_OCTETS:] == bytes([Status.NO_ORIGIN])
    assert not server.said
    assert len(logged) == 1
    assert "cannot be read" in logged[0]["text"]


def test_a_lane_that_is_lost_is_replaced(server: Server) -> None:
    server.lanes.start()
    lanes = server.ready(2)
    server.reactor.advance(module.SOON_SECONDS)
    lanes[0].sock.close()
    lanes[0].ended = True
    server.ready(2)
    assert len(server.arrived) == 3


def test_lanes_that_nobody_wants_any_more_are_closed_the_oldest_first(server: Server) -> None:
    server.lanes.start()
    oldest = server.ready(2)
    server.reactor.advance(1.0)
    server.lanes.asked("plain", 2, 10)
    server.ready(10)
    server.reactor.advance(QUIET_SECONDS)
    server.until(lambda: all(lane.ended for lane in oldest))
    assert len(server.ready(5)) == server.lanes.idle("plain") == 5
    for _ in range(2):
        server.reactor.advance(QUIET_SECONDS)
        server.turns()
    assert len(server.ready(2)) == server.lanes.idle("plain") == 2
    server.reactor.advance(10 * QUIET_SECONDS)
    server.ready(2)
    assert len(server.arrived) == 10
    assert not server.said


def test_lanes_that_are_refused_at_once_are_dialled_ever_slower(server: Server) -> None:
    server.lanes.start()
    for lane in server.ready(2):
        lane.sock.close()
        lane.ended = True
    server.turns()
    assert len(server.arrived) == 2
    for _ in range(10):
        server.reactor.advance(0.1)
        server.turns()
        for lane in server.arrived:
            lane.sock.close()
            lane.ended = True
        server.turns()
    assert 3 <= len(server.arrived) <= 10


def test_a_server_that_does_not_listen(server: Server) -> None:
    server.listener.close()
    server.lanes.start()
    server.turns()
    assert server.said
    assert all("refused" in words for words in server.said)
    tries = len(server.said)
    server.turns()
    assert len(server.said) == tries
    server.reactor.advance(0.2)
    server.turns()
    assert len(server.said) == tries + 1


def test_visitors_that_wait_get_lanes(server: Server) -> None:
    server.lanes.start()
    server.ready(2)
    server.lanes.asked("plain", 0, 10)
    server.ready(10)


def test_no_more_lanes_than_there_may_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LANES", 5)
    server.lanes.start()
    server.ready(2)
    server.lanes.asked("plain", 0, 100)
    server.ready(5)


def test_lanes_that_the_server_does_not_hold_are_doubted_and_replaced(server: Server) -> None:
    server.lanes.start()
    old = server.ready(2)
    server.reactor.advance(module.ARRIVED_SECONDS)
    server.lanes.asked("plain", 1, 1)
    server.until(lambda: len(server.arrived) > 2)
    assert not any(lane.ended for lane in old)
    # Its header was on the way: it is used.
    doubted, kept = sorted(old, key=lambda lane: lane.preface.counter)
    doubted.wire.send(seal_header(KEYS, doubted.preface, HEADER.octets()))
    server.until(lambda: len(doubted.octets) > PREFACE_OCTETS)
    # Another's was not.
    server.lanes.asked("plain", 0, 1)
    server.reactor.advance(module.DOUBTED_SECONDS)
    server.until(lambda: kept.ended)


def test_a_tls_lane_is_opened_on_demand_and_carries_the_same(server: Server) -> None:
    server.lanes.start()
    plain = server.ready(2)
    server.tls = ServerTls(SERVER, [LANE_ALPN])
    server.lanes.asked("tls", 0, 1)
    (lane,) = [lane for lane in server.ready(3) if lane not in plain]
    assert isinstance(lane.wire, TlsWire)
    assert lane.wire.connection.get_alpn_proto_negotiated() == LANE_ALPN
    assert verify(KEYS, lane.preface)
    assert server.lanes.resume is None
    lane.wire.send(seal_header(KEYS, lane.preface, HEADER.octets()))
    server.until(lambda: len(lane.octets) > PREFACE_OCTETS)
    assert lane.octets[PREFACE_OCTETS:] == bytes([Status.NO_ORIGIN])
    assert server.lanes.resume is not None
    server.until(lambda: server.lanes.idle("tls") >= 1)


def test_a_tls_lane_to_somebody_else_is_not_opened(server: Server) -> None:
    server.lanes.start()
    server.ready(2)
    theirs = make_authority("theirs", NOW)
    stranger = issue_server(theirs, server_id="s1", service_name=SERVICE_NAME, addresses=[], wall=NOW)
    server.tls = ServerTls(stranger, [LANE_ALPN])
    server.lanes.asked("tls", 0, 1)
    server.until(lambda: server.said)
    assert "another CA" in server.said[0]


def test_a_handshake_that_does_not_end(server: Server) -> None:
    server.lanes.start()
    server.ready(2)
    server.lanes.asked("tls", 0, 1)
    server.until(lambda: len(server.arrived) == 3)
    server.turns()
    server.reactor.advance(module.HANDSHAKE_SECONDS)
    server.until(lambda: server.said)
    assert "handshake" in server.said[0]


def test_stopping_closes_idle_lanes(server: Server) -> None:
    server.lanes.start()
    lanes = server.ready(2)
    server.lanes.asked("plain", 2, 4)
    server.lanes.stop()
    server.until(lambda: all(lane.ended for lane in lanes))
    server.visits.stop()
    assert not server.reactor.getDelayedCalls()

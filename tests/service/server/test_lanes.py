"""Lanes: who may bring one, whose turn it is, and how a dead one is found before a visitor gets it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from OpenSSL import SSL

from appliance.service.readiness import Readiness
from appliance.service.server.lanes import PLAIN, TLS, Lane, Lanes, SessionLanes
from appliance.service.tls import ServerTls
from appliance.service.tlswire import TlsWire
from appliance.tunnel.certificates import SERVICE_NAME, Peer, issue_client, read_peer
from appliance.tunnel.lane import LaneKeys, lane_keys, write_preface
from tests.service.test_tlswire import CA, CLIENT, SERVER, WALL, client_connection
from tests.service.turning import Turning, tcp_pair, turning

SESSION_ID = b"session1"


@dataclass
class OneSession:
    peer: Peer
    lanes: SessionLanes


class Ground:
    """One session and the door that its lanes come through."""

    def __init__(self, reactor: Turning, readiness: Readiness) -> None:
        self.reactor = reactor
        self.readiness = readiness
        self.keys: LaneKeys = lane_keys(os.urandom(64))
        self.asked: list[tuple[str, int, int]] = []
        self.session = OneSession(
            read_peer(CLIENT.certificate),
            SessionLanes(self.keys, readiness, reactor, lambda *asked: self.asked.append(asked)),
        )
        self.lanes = Lanes(readiness, reactor, {SESSION_ID: self.session})

    def bring(self, counter: int = 0, *, keys: LaneKeys | None = None, rest: bytes = b"") -> socket.socket:
        """A lane as the entry hands it over; the client's end."""
        near, far = tcp_pair()
        self.readiness.register(far, lambda events: None)
        self.lanes.plain_arrived(far, write_preface(keys or self.keys, SESSION_ID, counter), rest)
        return near

    def ended(self, near: socket.socket) -> bool:
        try:
            while near.recv(65536):
                pass
            return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def ground() -> Iterator[Ground]:
    with turning() as (reactor, readiness):
        made = Ground(reactor, readiness)
        yield made
        made.session.lanes.close()
        made.lanes.stop()


def test_a_lane_is_taken_once(ground: Ground) -> None:
    near = ground.bring()
    assert ground.session.lanes.held(PLAIN) == 1
    taken: list[Lane] = []
    ground.session.lanes.take(PLAIN, taken.append)
    assert ground.session.lanes.held(PLAIN) == 0
    assert len(taken[0].seal(b"header")) == 2 + 6 + 16
    ground.readiness.forget(taken[0].wire)
    taken[0].wire.close()
    near.close()


@pytest.mark.parametrize("fault", ["used counter", "another key", "octets behind", "unknown session"])
def test_a_lane_that_proves_nothing_is_closed(ground: Ground, fault: str) -> None:
    good = ground.bring(7)
    if fault == "used counter":
        bad = ground.bring(7)
    elif fault == "another key":
        bad = ground.bring(8, keys=lane_keys(os.urandom(64)))
    elif fault == "octets behind":
        bad = ground.bring(8, rest=b"x")
    else:
        ground.lanes._sessions = {}
        bad = ground.bring(8)
    ground.reactor.until(lambda: ground.ended(bad))
    assert ground.session.lanes.held(PLAIN) == 1
    for sock in (good, bad):
        sock.close()


@pytest.mark.parametrize("how", ["closed", "reset", "octets"])
def test_an_idle_lane_that_moves_is_dropped(ground: Ground, how: str) -> None:
    near = ground.bring()
    if how == "octets":
        near.send(b"too early")
    elif how == "reset":
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
    else:
        near.close()
    ground.reactor.until(lambda: ground.session.lanes.held(PLAIN) == 0)
    near.close()


def test_who_waits_is_served_in_order_and_the_client_is_asked_seldom(ground: Ground) -> None:
    order: list[int] = []

    def take(number: int) -> None:
        def taken(lane: Lane) -> None:
            order.append(number)
            ground.readiness.forget(lane.wire)
            lane.wire.close()

        given_up.append(ground.session.lanes.take(PLAIN, taken))

    given_up: list[object] = []
    for number in range(50):
        take(number)
    assert ground.asked == [(PLAIN, 0, 1)]
    ground.reactor.advance(0.05)
    assert ground.asked == [(PLAIN, 0, 1), (PLAIN, 0, 50)]
    given_up[1]()  # type: ignore[operator]
    nears = [ground.bring(counter) for counter in range(3)]
    assert order == [0, 2, 3]
    for near in nears:
        near.close()


def test_close_ends_idle_lanes_and_takes_no_more(ground: Ground) -> None:
    idle = ground.bring(1)
    ground.session.lanes.close()
    ground.reactor.until(lambda: ground.ended(idle))
    late = ground.bring(2)
    ground.reactor.until(lambda: ground.ended(late))
    for sock in (idle, late):
        sock.close()


def tls_lane(ground: Ground, connection: SSL.Connection) -> TlsWire:
    """A TLS lane that has brought its preface; the client's end."""
    near, far = tcp_pair()
    client = TlsWire(near, connection)
    client.handshake()
    hello = b""
    while not hello:
        try:
            hello = far.recv(65536)
        except BlockingIOError:
            pass
    ground.readiness.register(far, lambda events: None)
    ground.lanes.tls_arrived(far, hello, ServerTls(SERVER, [b"tunnel-lane/1"]).connection())
    ground.reactor.until(client.handshake)
    client.send(write_preface(ground.keys, SESSION_ID, 3))
    return client


def test_a_tls_lane_brings_its_preface_inside(ground: Ground) -> None:
    client = tls_lane(ground, client_connection())
    ground.reactor.until(lambda: ground.session.lanes.held(TLS))
    assert ground.session.lanes.held(PLAIN) == 0
    client.close()


@pytest.mark.parametrize("shown", ["nothing", "another client's certificate"])
def test_a_tls_lane_shows_its_links_certificate(ground: Ground, shown: str) -> None:
    """A right preface is not enough: its key may have been stolen, the certificate's not with it."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if shown != "nothing":
        other = issue_client(CA, client_id="other", names=["a.b"], service_name=SERVICE_NAME, wall=WALL)
        context.use_certificate(other.certificate)
        context.use_privatekey(other.key)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    client = tls_lane(ground, connection)
    ground.reactor.until(lambda: ground.ended(client.sock))
    assert ground.session.lanes.held(TLS) == 0
    client.close()


def test_a_tls_lane_that_says_nothing_is_cut(ground: Ground) -> None:
    near, far = tcp_pair()
    ground.readiness.register(far, lambda events: None)
    ground.lanes.tls_arrived(far, b"", ServerTls(SERVER, []).connection())
    ground.reactor.advance(5.1)
    ground.reactor.until(lambda: ground.ended(near))
    near.close()

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import MultiService
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from zope.interface.verify import verifyObject

from appliance.dns.followed import Asked
from appliance.dns.responder import Responder
from appliance.dns.update import UpdateAsked
from appliance.service.nameserver.places import KEPT_PLACES, PLACES, UNEARNED_PLACES, Places
from appliance.service.nameserver.tcp import (
    EARNING_SECONDS,
    IDLE_SECONDS,
    MAX_IN_FLIGHT,
    MAX_MESSAGE_OCTETS,
    MESSAGE_SECONDS,
    STOP_SECONDS,
    TcpNameserver,
)
from appliance.service.nameserver.turns import TURN_MESSAGES
from tests.service.nameserver.demo import (
    LARGE_OCTETS,
    answers_in,
    framed,
    large_question,
    number_of,
    question,
    responder,
    unframed,
)

reactor: Any = _reactor


class _Transport(StringTransport):
    """A peer that reads, until the test says that he does not; it loses the connection as a real one does."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.protocol = protocol
        self.is_read = True
        self.aborted = False
        self.unread = b""

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        if not self.is_read:
            self.unread += data
            if len(self.unread) > 64 * 1024 and self.producer is not None:
                self.producer.pauseProducing()

    def loseConnection(self) -> None:
        self.disconnecting = True
        if not self.unread:
            self.protocol.connectionLost(None)

    def abortConnection(self) -> None:
        self.aborted = True
        self.unread = b""
        self.loseConnection()

    def read_it_all(self) -> None:
        """The peer reads what waits, and goes on reading."""
        self.is_read, self.unread = True, b""
        if self.disconnecting:
            self.protocol.connectionLost(None)
        elif self.producer is not None:
            self.producer.resumeProducing()


class _Peers:
    """Connections to a nameserver without a network."""

    def __init__(self, answering: Any = None) -> None:
        self.clock = Clock()
        self.nameserver = TcpNameserver(self.clock, answering or responder(), "127.0.0.1", 0)

    def connect(self, host: str = "192.0.2.1") -> _Transport | None:
        kind = IPv6Address if ":" in host else IPv4Address
        protocol: Any = self.nameserver._factory.buildProtocol(kind("TCP", host, 4000))
        if protocol is None:
            return None
        transport = _Transport(protocol)
        protocol.makeConnection(transport)
        return transport

    def peer(self, host: str = "192.0.2.1") -> _Transport:
        transport = self.connect(host)
        assert transport is not None
        return transport

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.nameserver.counters)

    def nothing_is_left(self) -> bool:
        return self.nameserver.connections == 0 and not self.clock.getDelayedCalls()


@pytest.fixture
def peers() -> _Peers:
    return _Peers()


def _answers(transport: _Transport) -> list[bytes]:
    return unframed(transport.value())  # type: ignore[no-untyped-call]


def _numbers(transport: _Transport) -> list[int]:
    return [number_of(message) for message in _answers(transport)]


def test_a_hundred_questions_in_one_segment(peers: _Peers) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(*(question(number) for number in range(100))))
    assert len(_numbers(peer)) == TURN_MESSAGES
    peers.clock.advance(0)
    assert _numbers(peer) == list(range(100))
    assert peer.producerState == "producing"


def test_any_cut_gives_the_same_answers(peers: _Peers) -> None:
    octets = framed(question(1), question(2), question(3))
    for cut in range(1, len(octets)):
        peer = peers.peer()
        peer.protocol.dataReceived(octets[:cut])
        peer.protocol.dataReceived(octets[cut:])
        peers.clock.advance(0)
        assert _numbers(peer) == [1, 2, 3]
        peer.loseConnection()
    peer = peers.peer()
    for octet in octets:
        peer.protocol.dataReceived(bytes((octet,)))
    assert _numbers(peer) == [1, 2, 3]


def test_over_tcp_a_large_answer_is_whole(peers: _Peers) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(large_question()))
    (answer,) = _answers(peer)
    assert len(answer) > LARGE_OCTETS


def test_a_turn_is_bounded_and_nothing_is_read_meanwhile(peers: _Peers) -> None:
    peer = peers.peer()
    count = 3 * TURN_MESSAGES + 7
    peer.protocol.dataReceived(framed(*(question(number) for number in range(count))))
    assert len(_numbers(peer)) == TURN_MESSAGES
    assert peer.producerState == "paused"
    peers.clock.advance(0)
    assert _numbers(peer) == list(range(count))
    assert peer.producerState == "producing"


def test_a_peer_that_does_not_read_is_not_read(peers: _Peers) -> None:
    peer = peers.peer()
    peer.is_read = False
    peer.protocol.dataReceived(framed(*(large_question(number) for number in range(50))))
    assert len(_numbers(peer)) <= 5  # of 20 kB each: the transport is full
    assert peer.producerState == "paused"
    peers.clock.advance(1)
    held = len(_numbers(peer))
    assert held <= 5
    peer.read_it_all()
    for _ in range(50):
        peers.clock.advance(0)
    assert _numbers(peer) == list(range(50))
    assert peer.producerState == "producing"


def test_a_peer_that_never_reads_is_aborted(peers: _Peers) -> None:
    peer = peers.peer()
    peer.is_read = False
    peer.protocol.dataReceived(framed(*(large_question(number) for number in range(50))))
    peers.clock.advance(0)
    peers.clock.advance(IDLE_SECONDS)
    assert peer.aborted
    assert peers.counters == {"aborted: answers were not read": 1}
    assert peers.nothing_is_left()


def test_half_close_still_gets_its_answers(peers: _Peers) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(*(question(number) for number in range(250))))
    peer.protocol.readConnectionLost()
    for _ in range(5):
        peers.clock.advance(0)
    assert _numbers(peer) == list(range(250))
    assert peer.disconnecting
    assert not peer.aborted
    assert peers.nothing_is_left()


def test_half_close_of_a_peer_that_reads_slowly(peers: _Peers) -> None:
    peer = peers.peer()
    peer.is_read = False
    peer.protocol.dataReceived(framed(*(large_question(number) for number in range(20))))
    held = len(_numbers(peer))
    peer.protocol.readConnectionLost()
    assert len(_numbers(peer)) == held
    for _ in range(20):
        peers.clock.advance(1)
        if peer.unread:
            peer.read_it_all()
            peer.is_read = False
    peer.read_it_all()
    assert _numbers(peer) == list(range(20))
    assert peers.nothing_is_left()


def test_half_close_in_the_middle_of_a_message(peers: _Peers) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(question(1), question(2))[:-3])
    peer.protocol.readConnectionLost()
    assert _numbers(peer) == [1]
    assert peers.nothing_is_left()


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_OCTETS + 1, 0xFFFF])
def test_an_impossible_length_ends_the_connection_after_the_answers(peers: _Peers, length: int) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(question(1)) + struct.pack("!H", length) + framed(question(2)))
    assert _numbers(peer) == [1]
    assert peer.disconnecting
    assert peers.counters == {"ended: impossible message length": 1}
    assert peers.nothing_is_left()


def test_the_longest_message_is_read(peers: _Peers) -> None:
    peer = peers.peer()
    peer.protocol.dataReceived(framed(question().ljust(MAX_MESSAGE_OCTETS, b"x")))
    assert len(_answers(peer)) == 1
    assert not peer.disconnecting


def test_what_is_no_question_gets_no_answer_and_ends_nothing(peers: _Peers) -> None:
    peer = peers.peer()
    response = bytearray(question(1))
    response[2] |= 0x80
    peer.protocol.dataReceived(framed(b"x", bytes(response), question(2)))
    assert _numbers(peer) == [2]
    assert not peer.disconnecting


def test_idle_connections_end(peers: _Peers) -> None:
    peer = peers.peer()
    peers.clock.advance(IDLE_SECONDS - 0.1)
    peer.protocol.dataReceived(framed(question()))
    peers.clock.advance(IDLE_SECONDS - 0.1)
    assert not peer.disconnecting
    peers.clock.advance(0.1)
    assert peer.disconnecting
    assert not peer.aborted
    assert peers.counters == {"ended: idle": 1}
    assert peers.nothing_is_left()


def test_a_message_has_two_seconds_however_it_drips(peers: _Peers) -> None:
    peer = peers.peer()
    peers.clock.advance(5)
    for octet in framed(question())[:-1]:
        peer.protocol.dataReceived(bytes((octet,)))
        if not peer.disconnecting:
            peers.clock.advance(MESSAGE_SECONDS / 20)
    assert peer.disconnecting
    assert peers.clock.seconds() == pytest.approx(5 + MESSAGE_SECONDS, abs=0.11)
    assert peers.counters == {"ended: a message took too long": 1}


def test_the_next_message_has_its_own_two_seconds(peers: _Peers) -> None:
    peer = peers.peer()
    octets = framed(question(1), question(2))
    half = len(octets) // 2
    peer.protocol.dataReceived(octets[: half - 5])
    peers.clock.advance(MESSAGE_SECONDS * 0.75)
    peer.protocol.dataReceived(octets[half - 5 : half + 5])
    peers.clock.advance(MESSAGE_SECONDS * 0.75)
    peer.protocol.dataReceived(octets[half + 5 :])
    assert _numbers(peer) == [1, 2]
    peers.clock.advance(MESSAGE_SECONDS * 2)
    assert not peer.disconnecting


def test_a_closing_peer_that_does_not_read_is_aborted(peers: _Peers) -> None:
    peer = peers.peer()
    peer.is_read = False
    peer.protocol.dataReceived(framed(question()))
    peers.clock.advance(IDLE_SECONDS)
    assert peer.disconnecting
    assert not peer.aborted
    assert peers.nameserver.connections == 1
    peers.clock.advance(IDLE_SECONDS)
    assert peer.aborted
    assert peers.nothing_is_left()


def test_one_source_may_have_many_places_that_it_earns(peers: _Peers) -> None:
    earning = [peers.peer() for _ in range(60)]
    for number, peer in enumerate(earning):
        peer.protocol.dataReceived(framed(question(number)))
    for _ in range(UNEARNED_PLACES + 5):
        peers.peer()
    peers.clock.advance(EARNING_SECONDS)
    assert peers.counters == {"ended: no query, as many others of its source": 5}
    assert peers.nameserver.connections == 60 + UNEARNED_PLACES
    peers.clock.advance(IDLE_SECONDS - EARNING_SECONDS)
    assert peers.nothing_is_left()


def test_the_longest_idle_connection_makes_room(peers: _Peers) -> None:
    free = PLACES - KEPT_PLACES
    all_of_them = []
    for number in range(free):
        all_of_them.append(peers.peer(f"192.0.2.{number}"))
        all_of_them[-1].protocol.dataReceived(framed(question()))
        peers.clock.advance(0.01)
    all_of_them[0].protocol.dataReceived(framed(question()))  # the first is not the longest idle one now
    peers.peer("198.51.100.1")
    assert [peer.aborted for peer in all_of_them] == [False, True] + [False] * (free - 2)
    assert peers.nameserver.connections == free
    for number in range(2 * PLACES):
        peers.peer(f"203.0.113.{number}").protocol.dataReceived(framed(question()))
    assert peers.nameserver.connections == free
    assert all(peer.aborted for peer in all_of_them)
    peers.clock.advance(IDLE_SECONDS)
    assert peers.nothing_is_left()


def test_who_does_not_read_has_not_earned_his_place(peers: _Peers) -> None:
    good = peers.peer("192.0.2.1")
    good.protocol.dataReceived(framed(question()))
    for number in range(PLACES):
        stuck = peers.peer(f"203.0.113.{number}")
        stuck.is_read = False
        stuck.protocol.dataReceived(framed(*(large_question(number) for number in range(50))))
        peers.clock.advance(0)
    assert not good.aborted
    assert peers.nameserver.connections == PLACES - KEPT_PLACES


def test_several_sockets_share_their_places() -> None:
    places = Places()
    clock = Clock()
    for number in range(2):
        nameserver = TcpNameserver(clock, responder(), "127.0.0.1", 0, places=places)
        for host in range(PLACES):
            protocol: Any = nameserver._factory.buildProtocol(IPv4Address("TCP", f"192.0.{number}.{host}", 4))
            protocol.makeConnection(_Transport(protocol))
    assert len(places) == PLACES - KEPT_PLACES
    clock.pump([EARNING_SECONDS, IDLE_SECONDS])
    assert (len(places), places.sources) == (0, 0)


class _Updating(_Peers):
    """Every message is an UPDATE; `asked` are those under way."""

    def __init__(self) -> None:
        class Updates(Responder):
            def respond(self, message: bytes, **how: Any) -> Any:
                return object.__new__(UpdateAsked)

        super().__init__(Updates())
        self.asked: list[Deferred[bytes]] = []
        self.nameserver._factory.update = self._update

    def _update(self, _: Asked) -> Deferred[bytes]:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_updates_in_flight_are_bounded() -> None:
    peers = _Updating()
    peer, asked = peers.peer(), peers.asked
    peer.protocol.dataReceived(framed(*(question(number) for number in range(3 * MAX_IN_FLIGHT))))
    assert len(asked) == MAX_IN_FLIGHT
    assert peer.producerState == "paused"
    for done in range(3 * MAX_IN_FLIGHT):
        asked[done].callback(question(done))
        assert len(asked) - done - 1 <= MAX_IN_FLIGHT
    assert _numbers(peer) == list(range(3 * MAX_IN_FLIGHT))
    assert peer.producerState == "producing"


@pytest.mark.parametrize("then", ["", "half-close", "half a message and half-close"])
def test_who_waits_for_an_update_is_not_idle(then: str) -> None:
    peers = _Updating()
    peer = peers.peer()
    peer.protocol.dataReceived(framed(question(1)))
    if "message" in then:
        peer.protocol.dataReceived(framed(question(2))[:-3])
    if "half-close" in then:
        peer.protocol.readConnectionLost()
    peers.clock.pump([1] * int(1.5 * IDLE_SECONDS))
    assert not peer.disconnecting
    peers.asked[0].callback(question(1))
    assert _numbers(peer) == [1]
    assert peer.disconnecting == ("half-close" in then)
    peers.clock.advance(IDLE_SECONDS)
    assert peers.nothing_is_left()
    assert not peer.aborted


def test_while_updates_keep_us_from_reading_nobody_is_slow() -> None:
    peers = _Updating()
    peer, asked = peers.peer(), peers.asked
    octets = framed(*(question(number) for number in range(MAX_IN_FLIGHT + 2)))
    peer.protocol.dataReceived(octets[:5])
    peer.protocol.dataReceived(octets[5:-5])
    assert (len(asked), peer.producerState) == (MAX_IN_FLIGHT, "paused")
    peers.clock.advance(2 * MESSAGE_SECONDS)
    assert not peer.disconnecting
    asked[0].callback(question(0))
    assert (len(asked), peer.producerState) == (MAX_IN_FLIGHT + 1, "paused")
    asked[1].callback(question(1))
    assert peer.producerState == "producing"
    peers.clock.advance(MESSAGE_SECONDS)  # but from here on the last message has its two seconds
    assert peers.counters == {"ended: a message took too long": 1}


def test_who_waits_for_his_turn_is_not_slow(peers: _Peers) -> None:
    peer = peers.peer()
    count = 3 * TURN_MESSAGES
    octets = framed(*(question(number) for number in range(count)))
    peer.protocol.dataReceived(octets[:5])
    peers.clock.advance(MESSAGE_SECONDS - 0.01)
    peer.protocol.dataReceived(octets[5:])
    assert peer.producerState == "paused"
    peers.clock.advance(0.01)
    assert not peer.disconnecting
    peers.clock.advance(0)
    assert _numbers(peer) == list(range(count))


def test_one_message_does_not_end_the_service(logged_errors: list[LogEvent]) -> None:
    class Broken(Responder):
        def respond(self, message: bytes, *, udp: bool, source: str, now: float, wall: float) -> bytes:
            raise RuntimeError("a mistake of ours")

    peers = _Peers(Broken())
    for _ in range(3):
        peers.peer().protocol.dataReceived(framed(question()))
    assert peers.counters["failed"] == 3
    assert len(logged_errors) == 1
    logged_errors.clear()
    assert peers.nothing_is_left()


def test_it_is_what_it_says(peers: _Peers) -> None:
    protocol = peers.peer().protocol
    assert verifyObject(IHalfCloseableProtocol, protocol)
    assert verifyObject(IPushProducer, protocol)
    protocol.writeConnectionLost()
    protocol.stopProducing()


def test_stopping_lets_answers_out_and_then_ends(peers: _Peers) -> None:
    idle, stuck = peers.peer(), peers.peer()
    stuck.is_read = False
    stuck.protocol.dataReceived(framed(*(large_question(number) for number in range(50))))
    stopped: list[object] = []
    peers.nameserver.stopService().addCallback(stopped.append)
    assert idle.disconnecting
    assert not idle.aborted
    assert not stopped
    peers.clock.advance(STOP_SECONDS)
    assert stuck.aborted
    assert stopped
    assert peers.nothing_is_left()


# On real sockets and a real reactor, with the peer in a thread.


@pytest_twisted.async_yield_fixture(params=["127.0.0.1", "::1"])
async def nameserver(request: pytest.FixtureRequest) -> AsyncIterator[TcpNameserver]:
    nameserver = TcpNameserver(reactor, responder(), request.param, 0)
    nameserver.privilegedStartService()
    port = nameserver.port
    parent = MultiService()
    nameserver.setServiceParent(parent)  # type: ignore[no-untyped-call]
    parent.startService()
    assert nameserver.port == port
    yield nameserver
    await parent.stopService()
    assert nameserver.connections == 0


async def _in_thread(nameserver: TcpNameserver, talk: Callable[[socket.socket], Any]) -> Any:
    def run() -> Any:
        with socket.create_connection((nameserver.host, nameserver.port), timeout=20) as peer:
            return talk(peer)

    return await deferToThread(run)


def _read_to_end(peer: socket.socket) -> bytes:
    found = b""
    while octets := peer.recv(65536):
        found += octets
    return found


@pytest_twisted.ensureDeferred
async def test_pipelining_and_half_close(nameserver: TcpNameserver) -> None:
    def talk(peer: socket.socket) -> bytes:
        peer.sendall(framed(*(question(number) for number in range(1000))))
        peer.shutdown(socket.SHUT_WR)
        return _read_to_end(peer)

    answers = unframed(await _in_thread(nameserver, talk))
    assert [number_of(answer) for answer in answers] == list(range(1000))
    assert all(answers_in(answer) == 1 for answer in answers)
    assert nameserver.connections == 0


@pytest_twisted.ensureDeferred
async def test_a_real_peer_that_reads_late_gets_everything(nameserver: TcpNameserver) -> None:
    seen: list[int] = []

    def talk(peer: socket.socket) -> bytes:
        peer.sendall(framed(*(large_question(number) for number in range(600))))  # 12 MB of answers
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1, socket.MSG_PEEK)
        reactor.callFromThread(look)
        return _read_to_end(peer)

    def look() -> None:
        seen.extend(len(connection._received) for connection in nameserver._factory.open)

    octets = await _in_thread(nameserver, talk)
    assert [number_of(answer) for answer in unframed(octets)] == list(range(600))
    assert seen
    assert all(size < 100_000 for size in seen)


@pytest_twisted.ensureDeferred
async def test_real_connections_give_their_places_back(nameserver: TcpNameserver) -> None:
    def talk(peer: socket.socket) -> list[bool]:
        others = [socket.create_connection(peer.getpeername()[:2], timeout=5) for _ in range(12)]
        for other in (peer, *others):
            other.sendall(framed(question()))
        ended = []
        for other in (peer, *others):
            try:
                ended.append(other.recv(1) == b"")
            except ConnectionResetError:
                ended.append(True)
        for other in others:
            # Hard, as a crashed visitor's kernel does.
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
        return ended

    ended = await _in_thread(nameserver, talk)
    assert ended == [False] * 13, "each completes a query, so a source may have more than a few"
    while nameserver.connections:
        await deferLater(reactor, 0.01, lambda: None)
    assert nameserver._factory.places.sources == 0


@pytest_twisted.ensureDeferred
async def test_a_service_that_only_bound_lets_go() -> None:
    bound = TcpNameserver(reactor, responder(), "127.0.0.1", 0)
    bound.privilegedStartService()
    await bound.stopService()
    with socket.create_server(("127.0.0.1", bound.port)):
        pass

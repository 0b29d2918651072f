from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import dns.rcode
import pytest
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from appliance.dns import names
from appliance.dns.journal import Journal
from appliance.dns.responder import Responder
from appliance.dns.transfer import Grant, Receiver, Transfer, TransferAsked
from appliance.dns.zone import RRset, Zone, zone_of
from appliance.service.nameserver.tcp import IDLE_SECONDS
from appliance.service.nameserver.transfers import MAX_AT_ONCE, Outgoing, Transfers
from tests.dns.asking import zone
from tests.dns.transferring import KEY, Asker, records_of
from tests.service.nameserver.demo import framed, question, unframed
from tests.service.nameserver.test_tcp import _Peers, _Transport

APEX = names.from_text("example.test")


class _Zones:
    """What Transfers needs of Zonefiles."""

    def __init__(self, served: Zone) -> None:
        self.responder = Responder([served])
        self.responder.keys = {KEY.name: KEY}
        self.responder.receivers = {KEY.name: Receiver((Grant(),))}

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        return self.responder.zones

    def journal(self, apex: bytes) -> Journal:
        return Journal()


class _Receiver:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[str] = []

    def send(self, message: bytes) -> None:
        self.messages.append(message)

    def sent_all(self) -> None:
        self.ends.append("whole")

    def cut(self) -> None:
        self.ends.append("cut")


def _large(records: int = 5000) -> Zone:
    hosts = [
        RRset(names.from_text(f"host-{number}.example.test"), 1, 300, (bytes((192, 0, 2, 1)),))
        for number in range(records)
    ]
    return zone_of(APEX, [*zone("").rrsets[APEX].values(), *hosts])


TURN_SECONDS = 1e-6


class _Turns(Clock):
    """A clock on which, as in a reactor, what is called in a turn is not called in the same."""

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        return super().callLater(max(delay, TURN_SECONDS), callable, *args, **kw)


class _Bench:
    def __init__(self, served: Zone) -> None:
        self.clock: Clock = _Turns()
        self.zones = _Zones(served)
        self.transfers = Transfers(self.clock, self.zones, wall=time.time)  # type: ignore[arg-type]

    def begin(self) -> tuple[Asker, _Receiver, Outgoing]:
        asker, receiver = Asker(), _Receiver()
        asked = self.asked(asker.question())
        return asker, receiver, self.transfers.begin(asked, receiver)

    def asked(self, query: bytes, *, udp: bool = False) -> TransferAsked:
        asked = self.zones.responder.respond(query, udp=udp, source="192.0.2.1", now=0.0, wall=time.time())
        assert isinstance(asked, TransferAsked)
        return asked

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(TURN_SECONDS)


def test_one_message_a_turn_however_many_transfers() -> None:
    bench = _Bench(_large())
    begun = [bench.begin() for _ in range(3)]
    for turn in range(1, 10):
        bench.turn()
        assert sum(len(receiver.messages) for _, receiver, _ in begun) == turn
    assert [len(receiver.messages) for _, receiver, _ in begun] == [3, 3, 3], "in turns"
    bench.turn(100)
    for asker, receiver, _ in begun:
        assert receiver.ends == ["whole"]
        assert asker.take(receiver.messages)
        assert asker.records == records_of(bench.zones.responder.zones[APEX])
    assert bench.transfers.counters == {"AXFR": 3}
    assert bench.transfers.under_way == 0
    assert not bench.clock.getDelayedCalls()


def test_the_zone_may_change_and_go_meanwhile() -> None:
    old = _large()
    bench = _Bench(old)
    asker, receiver, _ = bench.begin()
    bench.turn(2)
    bench.zones.responder.replace(_large(10))
    bench.turn(2)
    bench.zones.responder.remove(APEX)
    bench.turn(100)
    assert asker.take(receiver.messages)
    assert asker.records == records_of(old)


def test_who_does_not_read_is_waited_for_and_costs_nothing() -> None:
    bench = _Bench(_large())
    asker, receiver, outgoing = bench.begin()
    bench.turn(2)
    outgoing.pause()
    assert not bench.clock.getDelayedCalls()
    _, other, _ = bench.begin()
    bench.turn(100)
    assert len(receiver.messages) == 2
    assert other.ends == ["whole"]
    outgoing.resume()
    bench.turn(100)
    assert asker.take(receiver.messages)


def test_only_so_many_at_once() -> None:
    bench = _Bench(_large(10))
    begun = [bench.begin() for _ in range(MAX_AT_ONCE + 3)]
    assert bench.transfers.under_way == MAX_AT_ONCE
    begun[-1][2].cancel()  # while it waits
    for _, _, outgoing in begun[:MAX_AT_ONCE]:
        outgoing.pause()
    bench.turn(10)
    assert not begun[MAX_AT_ONCE][1].messages
    begun[0][2].cancel()
    bench.turn(10)
    assert begun[MAX_AT_ONCE][1].ends == ["whole"]
    assert begun[MAX_AT_ONCE + 1][1].ends == ["whole"]
    assert not begun[-1][1].messages
    assert bench.transfers.counters == {"had to wait": 3, "cut": 2, "AXFR": 2}
    for _, _, outgoing in begun[1:MAX_AT_ONCE]:
        outgoing.cancel()
    assert bench.transfers.under_way == 0


def test_a_zone_that_went_before_its_turn_is_a_servfail() -> None:
    bench = _Bench(_large(10))
    asker, receiver, _ = bench.begin()
    datagram = Asker()
    asked = bench.asked(datagram.question(1), udp=True)
    bench.zones.responder.remove(APEX)
    bench.turn(3)
    assert asker.read(receiver.messages[0]).rcode() == dns.rcode.SERVFAIL
    assert receiver.ends == ["whole"]
    assert datagram.read(bench.transfers.datagram(asked)).rcode() == dns.rcode.SERVFAIL


def test_a_fault_of_ours_costs_one_transfer(
    monkeypatch: pytest.MonkeyPatch, logged_errors: list[object]
) -> None:
    bench = _Bench(_large())
    _, receiver, _ = bench.begin()
    bench.turn(2)

    def fail(*_: object) -> bytes:
        raise RuntimeError("a mistake")

    datagram = Asker()
    asked = bench.asked(datagram.question(1), udp=True)
    with monkeypatch.context() as patch:
        patch.setattr(Transfer, "next_message", fail)
        patch.setattr(Transfer, "datagram", fail)
        bench.turn()
        assert receiver.ends == ["cut"]
        assert datagram.read(bench.transfers.datagram(asked)).rcode() == dns.rcode.SERVFAIL
    assert len(logged_errors) == 2
    logged_errors.clear()
    asker, receiver, _ = bench.begin()
    bench.turn(100)
    assert asker.take(receiver.messages)


# Over TCP


class _TcpBench(_Bench):
    def __init__(self, served: Zone) -> None:
        super().__init__(served)
        self.peers = _Peers(self.zones.responder)
        factory = self.peers.nameserver._factory
        self.clock = self.peers.clock
        self.transfers._reactor = self.clock
        factory.transfers = self.transfers
        factory.wall = time.time

    def peer(self) -> _Transport:
        return self.peers.peer()


def _messages(peer: _Transport) -> list[bytes]:
    return unframed(peer.value())  # type: ignore[no-untyped-call]


def test_queries_behind_a_transfer_are_answered_after_it() -> None:
    bench = _TcpBench(_large())
    peer, asker = bench.peer(), Asker()
    peer.protocol.dataReceived(
        framed(question(1, "a.example.test"), asker.question(), question(2, "a.example.test"))
    )
    assert peer.producerState == "paused"
    bench.turn(100)
    first, *transfer, last = _messages(peer)
    assert first[:2] == b"\x00\x01"
    assert last[:2] == b"\x00\x02"
    assert asker.take(transfer)
    assert peer.producerState == "producing"
    bench.clock.advance(IDLE_SECONDS)
    assert bench.peers.nothing_is_left()


def test_half_closing_behind_the_question_is_allowed() -> None:
    bench = _TcpBench(_large())
    peer, asker = bench.peer(), Asker()
    peer.protocol.dataReceived(framed(asker.question()))
    peer.protocol.readConnectionLost()
    bench.turn(100)
    assert asker.take(_messages(peer))
    assert bench.peers.nothing_is_left()


def test_a_peer_that_does_not_read_pauses_it_and_then_loses_it() -> None:
    bench = _TcpBench(_large())
    peer, asker = bench.peer(), Asker()
    peer.is_read = False
    peer.protocol.dataReceived(framed(asker.question()))
    bench.turn(100)
    unread = len(peer.unread)
    assert 64 * 1024 < unread < 64 * 1024 + 17_000, "what the transport takes, and no more"
    peer.read_it_all()
    bench.turn(100)
    assert asker.take(_messages(peer))
    peer = bench.peer()
    peer.is_read = False
    peer.protocol.dataReceived(framed(Asker().question()))
    bench.turn(100)
    bench.clock.advance(IDLE_SECONDS)
    assert peer.aborted
    assert bench.transfers.under_way == 0
    assert bench.transfers.counters["cut"] == 1


def test_a_lost_connection_ends_it() -> None:
    bench = _TcpBench(_large())
    peer = bench.peer()
    peer.protocol.dataReceived(framed(Asker().question()))
    bench.turn(3)
    peer.protocol.connectionLost(None)
    assert bench.transfers.under_way == 0
    assert bench.peers.nothing_is_left()

"""A machine on a transport: bursts, pauses, one timer, and nothing left behind."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from appliance.service.watchwire import WatchWire


class Machine:
    """Says what it is given, and remembers when it was asked."""

    def __init__(self, *bursts: bytes) -> None:
        self.bursts = list(bursts)
        self.deadline: float | None = None
        self.ticked: list[float] = []

    def receive(self, octets: bytes, now: float) -> list[object]:
        if octets == b"quiet":
            return []
        return [octets]

    def tick(self, now: float) -> list[object]:
        self.ticked.append(now)
        self.deadline = None
        return ["tick"]

    def next_deadline(self) -> float | None:
        return self.deadline

    def data_to_send(self) -> bytes:
        return self.bursts.pop(0) if self.bursts else b""


def begun(clock: Clock, machine: Machine, heard: list[object]) -> tuple[WatchWire, StringTransport]:
    wire = WatchWire(clock, heard.extend)
    transport = StringTransport()
    wire.makeConnection(transport)  # type: ignore[no-untyped-call]
    wire.begin(machine)
    return wire, transport


def test_a_burst_a_turn() -> None:
    clock = Clock()
    _, transport = begun(clock, Machine(b"one", b"two"), [])
    assert transport.value() == b"one"
    clock.advance(0)
    assert transport.value() == b"onetwo"
    clock.advance(0)
    assert not clock.getDelayedCalls()


def test_nothing_is_said_while_the_other_end_does_not_read() -> None:
    clock = Clock()
    machine = Machine(b"one", b"two")
    wire, transport = begun(clock, machine, [])
    assert transport.producer is wire
    wire.pauseProducing()
    clock.advance(1)
    assert machine.bursts == [b"two"]
    wire.resumeProducing()
    assert transport.value() == b"onetwo"


def test_events_are_told_and_the_timer_follows_the_deadline() -> None:
    clock, machine = Clock(), Machine()
    heard: list[object] = []
    wire, _ = begun(clock, machine, heard)
    machine.deadline = 3.0
    wire.dataReceived(b"a")
    clock.advance(1)
    machine.deadline = 5.0
    wire.dataReceived(b"quiet")
    clock.advance(3.5)
    assert heard == [b"a"]
    clock.advance(0.5)
    assert heard == [b"a", "tick"]
    assert machine.ticked == [5.0]


def test_the_end_says_what_is_left_and_the_cut_does_not() -> None:
    for cut in (False, True):
        clock, machine = Clock(), Machine(b"one", b"two", b"three")
        machine.deadline = 9.0
        wire, transport = begun(clock, machine, [])
        if cut:
            wire.cut()
            assert transport.value() == b"one"
            assert transport.disconnected
        else:
            wire.end()
            assert transport.value() == b"onetwothree"
            assert transport.disconnecting
        assert not clock.getDelayedCalls()
        wire.dataReceived(b"late")
        wire.resumeProducing()


def test_a_lost_connection_ends_the_timer() -> None:
    clock, machine = Clock(), Machine(b"one")
    machine.deadline = 9.0
    wire, _ = begun(clock, machine, [])
    wire.connectionLost()
    assert not clock.getDelayedCalls()
    wire.flush()

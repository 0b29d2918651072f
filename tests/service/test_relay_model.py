"""The relay against a model of two sockets: any schedule of arrivals, room, ends, resets and late edges.

The sockets are the kernel's promise and no more: an edge is told once, with all that is true at that moment;
``recv`` gives what is there, ``send`` takes what there is room for. Whatever the schedule, the octets arrive
whole and in order, nothing is read while something waits, and both sockets are closed once. (Pipes are the
real kernel's: ``test_relay.py``.)
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.service import relay as module
from appliance.service.readiness import ENDING, FAILED, READABLE, WRITABLE
from appliance.service.relay import Ended, Relay
from tests.effort import examples

READ = 16
"""Octets of one read in this test, so that small numbers fill it."""


class Sock(socket.socket):
    """One socket of the pair, as the relay sees it; ``arrive`` and its like are what its peer does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.edge = True  # as after register(): the first event tells the state
        self.available = b""
        self.room = 0
        self.full = False  # a send found no room: the next room is an edge
        self.peer_ended = False
        self.failed = False
        self.got = b""
        self.shut = False
        self.closed = 0
        self.sent: Callable[[], bytes] = bytes

    # What the peer does

    def arrive(self, octets: bytes) -> None:
        if not (self.peer_ended or self.failed):
            self.available += octets
            self.edge = True

    def give_room(self, octets: int) -> None:
        self.room += octets
        self.edge = self.edge or self.full
        self.full = False

    def end(self) -> None:
        self.peer_ended = self.edge = True

    def reset(self) -> None:
        self.failed = self.edge = True

    def events(self) -> int:
        self.edge = False
        events = READABLE if self.available or self.peer_ended or self.failed else 0
        events |= WRITABLE if self.room or self.failed else 0
        events |= ENDING & ~FAILED if self.peer_ended or self.failed else 0
        return events | (FAILED if self.failed else 0)

    # What the relay calls

    def recv(self, size: int, _flags: int = 0, /) -> bytes:
        assert not self.closed
        assert not self.sent(), f"{self.name} is read while something waits"
        if self.failed:
            raise ConnectionResetError
        if not self.available and not self.peer_ended:
            raise BlockingIOError
        octets, self.available = self.available[:size], self.available[size:]
        return octets

    def send(self, octets: Any, _flags: int = 0, /) -> int:
        assert not self.closed
        if self.failed:
            raise BrokenPipeError
        assert not self.shut
        if not self.room and octets:
            self.full = True
            raise BlockingIOError
        taken = octets[: self.room]
        if len(taken) < len(octets):
            self.full = True
        self.room -= len(taken)
        self.got += taken
        return len(taken)

    def shutdown(self, _how: int, /) -> None:
        assert not self.shut
        self.shut = True

    def getsockopt(self, *_: Any) -> Any:
        return 104 if self.failed else 0

    def close(self) -> None:
        self.closed += 1
        super().close()


class Turns:
    """A readiness whose edges and turns are the schedule's."""

    clock = None

    def __init__(self) -> None:
        self.owners: dict[Any, Callable[[int], None]] = {}
        self.due: deque[Callable[[], None]] = deque()

    def change(self, sock: Any, ready: Callable[[int], None]) -> None:
        self.owners[sock] = ready

    def forget(self, sock: Any) -> None:
        self.owners.pop(sock)

    def again(self, call: Callable[[], None]) -> None:
        self.due.append(call)

    def poll(self, sock: Sock) -> None:
        if sock.edge and sock in self.owners:
            self.owners[sock](sock.events())

    def turn(self) -> None:
        for _ in range(len(self.due)):
            self.due.popleft()()


class NoPipes:
    """None to borrow: the fallback of the real ones."""

    def borrow(self) -> None:
        return None

    def close(self) -> None:
        pass


sides = st.sampled_from(["a", "b"])
steps = st.one_of(
    st.tuples(st.just("arrive"), sides, st.integers(1, 3 * READ)),
    st.tuples(st.just("room"), sides, st.integers(1, 3 * READ)),
    st.tuples(st.just("poll"), sides, st.just(0)),
    st.tuples(st.just("turn"), sides, st.just(0)),
    st.tuples(st.sampled_from(["end", "end", "reset"]), sides, st.just(0)),
)


END_BEHIND = [("arrive", "a", 3), ("end", "a", 0)]
FULL_READS = [("arrive", "a", READ), ("arrive", "a", READ), ("poll", "a", 0)]


@given(
    schedule=st.lists(steps, max_size=40),
    to_a=st.binary(max_size=READ),
    to_b=st.binary(max_size=READ),
    room=st.integers(0, READ),
)
@example(schedule=END_BEHIND, to_a=b"", to_b=b"", room=5)
@example(schedule=FULL_READS, to_a=b"", to_b=b"", room=5)
@settings(max_examples=examples(600), deadline=None)
def test_any_schedule(schedule: list[tuple[str, str, int]], to_a: bytes, to_b: bytes, room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_OCTETS", READ)
        patch.setattr(module, "_SLICE_OCTETS", 2 * READ)
        run(schedule, to_a, to_b, room)


def run(schedule: list[tuple[str, str, int]], to_a: bytes, to_b: bytes, room: int) -> None:
    turns = Turns()
    relay = Relay(turns)  # type: ignore[arg-type]
    relay.pipes = NoPipes()  # type: ignore[assignment]
    socks = {"a": Sock("a"), "b": Sock("b")}
    a, b = socks.values()
    a.room = b.room = room
    sent = {"a": to_b, "b": to_a}  # by whom it was sent
    ended: list[Ended] = []
    counter = 0
    reset = False
    joined = relay.join(a, b, among=set(), ended=ended.append, to_a=to_a, to_b=to_b)
    a.sent, b.sent = (lambda: joined.from_a.waiting), (lambda: joined.from_b.waiting)

    for step, side, size in schedule:
        sock = socks[side]
        if step == "arrive" and not (sock.peer_ended or sock.failed):
            octets = bytes((counter + at) % 251 for at in range(size))
            counter += size
            sock.arrive(octets)
            sent[side] += octets
        elif step == "room":
            sock.give_room(size)
        elif step == "poll":
            turns.poll(sock)
        elif step == "turn":
            turns.turn()
        elif step == "end" and not sock.failed:
            sock.end()
        elif step == "reset" and not ended:
            sock.reset()
            reset = True

    for sock in (a, b):
        sock.give_room(1 << 20)
    while any(sock.edge for sock in turns.owners) or turns.due:
        for sock in (a, b):
            turns.poll(sock)
        turns.turn()

    assert sent["b"].startswith(a.got)
    assert sent["a"].startswith(b.got)
    if not reset:
        assert (a.got, b.got) == (sent["b"], sent["a"])
        assert (a.shut or a.closed, b.shut or b.closed) == (b.peer_ended, a.peer_ended)
        assert bool(ended) == (a.peer_ended and b.peer_ended)
        if ended:
            assert ended == [Ended(len(sent["a"]), len(sent["b"]), None)]
    else:
        assert len(ended) == 1
        assert ended[0].error is not None or (a.got, b.got) == (sent["b"], sent["a"])
    assert bool(ended) == (not relay.joined)
    if not ended:
        joined.abort()
        assert len(ended) == 1
    assert (a.closed, b.closed) == (1, 1)
    assert not turns.owners

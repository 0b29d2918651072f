"""The relay between real sockets: octets, ends, resets, back-pressure, and nothing left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.service.readiness import Readiness
from appliance.service.relay import Ended, Joined, Pipes, Relay, Wire, reset_on_close
from tests.effort import examples
from tests.service.turning import Turning, tcp_pair, turning


def sockets() -> set[str]:
    """The sockets of this process. Pipes are counted by the relay: pytest's reactor makes some of its own."""
    opened = (os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return {each for each in opened if each.startswith("socket:")}


@dataclass
class Ends:
    """A joined pair, seen from its two outer ends."""

    reactor: Turning
    relay: Relay
    left: socket.socket
    right: socket.socket
    ended: list[Ended] = field(default_factory=list)
    among: set[Joined] = field(default_factory=set)

    def receive(self, sock: socket.socket, count: int) -> bytes:
        got = bytearray()

        def enough() -> bool:
            while len(got) < count:
                try:
                    octets = sock.recv(1 << 20)
                except BlockingIOError:
                    return False
                if not octets:
                    return True
                got.extend(octets)
            return True

        self.reactor.until(enough)
        return bytes(got)

    def receive_end(self, sock: socket.socket) -> None:
        def ended() -> bool:
            try:
                assert sock.recv(1) == b""
            except BlockingIOError:
                return False
            return True

        self.reactor.until(ended)


def join(
    reactor: Turning,
    readiness: Readiness,
    *,
    to_a: bytes = b"",
    to_b: bytes = b"",
    buffers: int | None = None,
) -> Ends:
    left, a = tcp_pair(buffers)
    right, b = tcp_pair(buffers)
    ends = Ends(reactor, Relay(readiness), left, right)
    for sock in (a, b):
        readiness.register(sock, lambda events: None)
    ends.relay.join(a, b, among=ends.among, ended=ends.ended.append, to_a=to_a, to_b=to_b)
    return ends


@pytest.fixture
def ends() -> Iterator[Ends]:
    before = sockets()
    with turning() as (reactor, readiness):
        made = join(reactor, readiness, to_a=b"for a", to_b=b"for b")
        assert made.receive(made.left, 5) == b"for a"
        assert made.receive(made.right, 5) == b"for b"
        yield made
        made.left.close()
        made.right.close()
        made.relay.stop()
        assert made.relay.pipes.open == 0
    assert sockets() == before


def test_octets_go_both_ways(ends: Ends) -> None:
    for number in range(20):
        ends.left.send(b"question %d" % number)
        assert ends.receive(ends.right, 1).startswith(b"question")
        ends.right.send(b"answer %d" % number)
        assert ends.receive(ends.left, 1).startswith(b"answer")
    assert ends.ended == []


@pytest.mark.parametrize("direction", ["left to right", "right to left"])
def test_one_end_may_close_while_the_other_goes_on(ends: Ends, direction: str) -> None:
    first, second = (ends.left, ends.right) if direction == "left to right" else (ends.right, ends.left)
    first.send(b"the last word")
    first.shutdown(socket.SHUT_WR)
    assert ends.receive(second, 13) == b"the last word"
    ends.receive_end(second)
    for _ in range(3):
        second.send(b"still here")
        assert ends.receive(first, 10) == b"still here"
    assert ends.ended == []
    second.shutdown(socket.SHUT_WR)
    ends.receive_end(first)
    ends.reactor.until(lambda: ends.ended)
    assert ends.ended[0].error is None
    assert ends.relay.joined == ends.among == set()


def test_octets_and_the_end_in_one_edge(ends: Ends) -> None:
    """A short read with the end right behind it: no second edge comes, the end is passed on all the same."""
    ends.left.send(b"all")
    ends.left.close()
    assert ends.receive(ends.right, 3) == b"all"
    ends.receive_end(ends.right)


@pytest.mark.parametrize("busy", [False, True])
def test_a_reset_is_passed_on_as_a_reset(ends: Ends, busy: bool) -> None:
    if busy:  # the flow that would read the reset is blocked on the other end
        with pytest.raises(BlockingIOError):
            while True:
                ends.left.send(b"x" * 65536)
                ends.reactor.turn()
    reset_on_close(ends.left)
    ends.left.close()
    ends.reactor.until(lambda: ends.ended)
    assert isinstance(ends.ended[0].error, OSError)
    with pytest.raises(ConnectionResetError):
        while ends.right.recv(1 << 20):
            pass


def test_a_reset_after_the_end_is_noticed(ends: Ends) -> None:
    """A visitor that had half-closed goes away: the origin, from which nothing comes, learns of it."""
    ends.left.shutdown(socket.SHUT_WR)
    ends.receive_end(ends.right)
    reset_on_close(ends.left)
    ends.left.close()
    ends.reactor.until(lambda: ends.ended)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        ends.right.send(b"anybody?")


def test_abort_resets_both(ends: Ends) -> None:
    (joined,) = ends.relay.joined
    assert ends.among == {joined}
    joined.abort()
    joined.abort()
    assert len(ends.ended) == 1
    for sock in (ends.left, ends.right):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_peer_that_does_not_read_stops_the_one_that_sends(ends: Ends) -> None:
    sent = 0

    def full() -> bool:
        nonlocal sent
        try:
            while True:
                sent += ends.left.send(b"x" * 65536)
        except BlockingIOError:
            return False

    for _ in range(200):
        full()
        ends.reactor.turn()
    stopped_at = sent
    for _ in range(50):
        full()
        ends.reactor.turn()
    assert sent == stopped_at
    assert sent < 64 << 20  # the kernel's buffers, and one pipe
    assert len(ends.receive(ends.right, sent)) == sent


def test_a_small_request_goes_before_bulky_ones() -> None:
    with turning() as (reactor, readiness):
        bulky = [join(reactor, readiness) for _ in range(8)]
        small = join(reactor, readiness)
        for ends in bulky:
            ends.left.send(b"x" * 100_000)
            assert len(ends.receive(ends.right, 100_000)) == 100_000
        relays = [pair for ends in bulky for pair in ends.relay.joined]
        before = [pair.from_a.octets + pair.from_b.octets for pair in relays]
        for ends in bulky:
            ends.left.send(b"x" * 1_000_000)
        small.left.send(b"small")
        readiness.doRead()
        assert small.right.recv(10) == b"small"
        moved = [pair.from_a.octets + pair.from_b.octets for pair in relays]
        assert max(now - then for now, then in zip(moved, before, strict=True)) <= 1 << 16
        for ends in (*bulky, small):
            ends.relay.stop()
            ends.left.close()
            ends.right.close()


@pytest.mark.parametrize("buffers", [None, 4096])
def test_bulk_both_ways_at_once(buffers: int | None) -> None:
    size = 3_000_000 if buffers is None else 300_000
    outward, inward = os.urandom(size), os.urandom(size)
    with turning() as (reactor, readiness):
        ends = join(reactor, readiness, buffers=buffers)
        waiting = {ends.left: outward, ends.right: inward}
        got = {ends.left: bytearray(), ends.right: bytearray()}

        def moved() -> bool:
            for sock in (ends.left, ends.right):
                if waiting[sock]:
                    try:
                        waiting[sock] = waiting[sock][sock.send(waiting[sock][:100_000]) :]
                    except BlockingIOError:
                        pass
                try:
                    got[sock] += sock.recv(70_000)
                except BlockingIOError:
                    pass
            return len(got[ends.left]) == size and len(got[ends.right]) == size

        reactor.until(moved)
        assert bytes(got[ends.right]) == outward
        assert bytes(got[ends.left]) == inward
        ends.left.close()
        ends.right.close()
        reactor.until(lambda: ends.ended)
        assert (ends.ended[0].octets_from_a, ends.ended[0].octets_from_b) == (size, size)
        ends.relay.stop()
        assert ends.relay.pipes.open == 0


class ChoppyWire:
    """A wire that is no socket: it gives and takes as little as its script says, as a TLS connection may."""

    def __init__(self, sock: socket.socket, sizes: list[int]) -> None:
        self.sock = sock
        self._sizes = sizes
        self._turn = 0
        self._held = b""
        self._ending = False

    def _size(self) -> int:
        self._turn += 1
        return self._sizes[self._turn % len(self._sizes)]

    def fileno(self) -> int:
        return self.sock.fileno()

    def recv(self, size: int, /) -> bytes:
        return self.sock.recv(min(size, self._size()))

    def send(self, octets: bytes, /) -> int:
        if not self.flush():
            raise BlockingIOError
        self._held = octets[: self._size()]
        return len(self._held)

    def flush(self) -> bool:
        try:
            while self._held:
                self._held = self._held[self.sock.send(self._held) :]
        except BlockingIOError:
            return False
        if self._ending:
            self._ending = False
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def shutdown(self, how: int, /) -> None:
        self._ending = True

    def close(self) -> None:
        self.sock.close()


Wrap = Callable[[socket.socket], Wire]


@given(
    sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
    outward=st.integers(0, 200_000),
    inward=st.integers(0, 200_000),
    choppy=st.sampled_from(["neither", "a", "b", "both"]),
)
@settings(max_examples=examples(40), deadline=None)
def test_any_wires_and_sizes(sizes: list[int], outward: int, inward: int, choppy: str) -> None:
    before = sockets()
    with turning() as (reactor, readiness):
        left, a = tcp_pair(8192)
        right, b = tcp_pair(8192)
        wire_a: Wire = ChoppyWire(a, sizes) if choppy in ("a", "both") else a
        wire_b: Wire = ChoppyWire(b, sizes) if choppy in ("b", "both") else b
        ends = Ends(reactor, Relay(readiness), left, right)
        for wire in (wire_a, wire_b):
            readiness.register(wire, lambda events: None)
        ends.relay.join(wire_a, wire_b, among=ends.among, ended=ends.ended.append)
        waiting = {left: b"L" * outward, right: b"R" * inward}
        got = {left: 0, right: 0}
        done: set[socket.socket] = set()

        def moved() -> bool:
            for sock, other in ((left, right), (right, left)):
                try:
                    while waiting[sock]:
                        waiting[sock] = waiting[sock][sock.send(waiting[sock]) :]
                    if sock not in done:
                        done.add(sock)
                        sock.shutdown(socket.SHUT_WR)
                except BlockingIOError:
                    pass
                try:
                    got[other] += len(other.recv(30_000))
                except BlockingIOError:
                    pass
            return bool(ends.ended)

        reactor.until(moved)
        for sock in (left, right):
            sock.setblocking(True)
            while octets := sock.recv(1 << 20):
                got[sock] += len(octets)
            sock.close()
        assert got == {left: inward, right: outward}
        assert ends.ended[0].error is None
        ends.relay.stop()
        assert ends.relay.pipes.open == 0
    assert sockets() == before


def test_pipes_that_are_not_needed_are_closed_though_others_are() -> None:
    with turning() as (reactor, _):
        pipes = Pipes(reactor)
        borrowed = [pipes.borrow() for _ in range(3)]
        for pipe in borrowed:
            assert pipe is not None
            pipes.give_back(pipe, clean=True)
        for _ in range(12):
            pipe = pipes.borrow()
            assert pipe is not None
            reactor.advance(1)
            pipes.give_back(pipe, clean=True)
        assert pipes.open == 1
        pipes.close()
        assert pipes.open == 0

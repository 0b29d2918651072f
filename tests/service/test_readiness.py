"""The readiness: edges reach the right owner, once, and one owner's fault stays his."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent
from zope.interface import implementer

from appliance.service.readiness import ENDING, READABLE, WRITABLE, Readiness
from appliance.service.relay import reset_on_close
from tests.service.turning import tcp_pair, turning


def test_an_edge_is_told_once() -> None:
    with turning() as (reactor, readiness):
        near, far = tcp_pair()
        seen: list[int] = []
        readiness.register(near, seen.append)
        reactor.until(lambda: seen)
        assert seen[0] & WRITABLE
        assert not seen[0] & READABLE
        del seen[:]
        far.send(b"x")
        reactor.until(lambda: seen)
        assert seen[0] & READABLE
        del seen[:]
        for _ in range(5):
            reactor.turn()
        assert seen == []  # the octet is still unread, and its edge was told
        far.close()
        reactor.until(lambda: seen)
        assert seen[-1] & ENDING
        readiness.forget(near)
        readiness.forget(near)
        near.close()


def test_a_new_owner_gets_the_next_edge() -> None:
    with turning() as (reactor, readiness):
        near, far = tcp_pair()
        old: list[int] = []
        new: list[int] = []
        readiness.register(near, old.append)
        reactor.until(lambda: old)
        readiness.change(near, new.append)
        del old[:]
        far.send(b"x")
        reactor.until(lambda: new)
        assert old == []
        for sock in (near, far):
            readiness.forget(sock)
            sock.close()


def test_again_runs_later_and_not_at_once() -> None:
    with turning() as (reactor, readiness):
        calls: list[str] = []

        def call() -> None:
            calls.append("ran")
            if len(calls) < 3:
                readiness.again(call)

        readiness.again(call)
        assert calls == []
        reactor.advance(0)
        assert len(calls) == 3


def test_a_fault_is_logged_and_the_others_go_on(logged_errors: list[LogEvent]) -> None:
    with turning() as (reactor, readiness):
        pairs = [tcp_pair(), tcp_pair()]
        seen: list[int] = []

        def faulty(events: int) -> None:
            raise ZeroDivisionError

        readiness.register(pairs[0][0], faulty)
        readiness.register(pairs[1][0], seen.append)
        reactor.until(lambda: seen and logged_errors)
        for pair in pairs:
            for sock in pair:
                readiness.forget(sock)
                sock.close()
    assert all(event["log_failure"].check(ZeroDivisionError) for event in logged_errors)
    logged_errors.clear()


def test_stopped_it_calls_nobody() -> None:
    with turning() as (_, readiness):
        readiness.again(lambda: pytest.fail("called after stop"))
        readiness.stop()
        readiness.stop()
        assert readiness.fileno() == -1
        with socket.socket() as stranger:
            readiness.forget(stranger)


def test_a_new_socket_gets_no_event_of_the_one_that_had_its_number() -> None:
    """Both sockets are ready in one round; the first owner closes the other, whose number is used anew."""
    with turning() as (reactor, readiness):
        pairs = [tcp_pair(), tcp_pair()]
        reused: list[tuple[socket.socket, socket.socket]] = []
        seen: list[int] = []

        def close_the_other(own: int) -> None:
            if reused:
                return
            other = pairs[1 - own][0]
            number = other.fileno()
            readiness.forget(other)
            other.close()
            near, far = tcp_pair()
            while near.fileno() != number:  # the lowest free number, but for what tcp_pair opened between
                near, far = (far, near) if far.fileno() == number else tcp_pair()
            reused.append((near, far))
            readiness.register(near, seen.append)

        for own, (near, far) in enumerate(pairs):
            reset_on_close(far)
            readiness.register(near, lambda events, own=own: close_the_other(own))  # type: ignore[misc]
            far.close()
        reactor.until(lambda: reused)
        assert not any(events & ENDING for events in seen)
        reactor.until(lambda: seen)
        assert not any(events & ENDING for events in seen)
        for sock in (*reused[0], *(near for near, _ in pairs)):
            if sock.fileno() >= 0:
                readiness.forget(sock)
                sock.close()


@pytest_twisted.ensureDeferred
async def test_while_only_sockets_are_busy_the_turn_goes_on_and_everything_else_is_heard() -> None:
    """Two sockets that answer each other without end, beside a timer and another reader of the reactor."""
    readiness = Readiness(reactor)
    readiness.start()
    near, far = tcp_pair()
    other, told = socket.socketpair()
    turns, played, heard = 0, 0, Deferred[None]()

    def play(sock: socket.socket) -> None:
        nonlocal played
        try:
            while octets := sock.recv(100):
                played += 1
                sock.send(octets)
        except BlockingIOError:
            pass

    @implementer(IReadDescriptor)
    class Other:
        def fileno(self) -> int:
            return other.fileno()

        def doRead(self) -> None:
            reactor.removeReader(self)
            heard.callback(None)

        def logPrefix(self) -> str:
            return "other"

        def connectionLost(self, reason: object) -> None: ...

    def count() -> None:
        nonlocal turns
        turns += 1
        if turns == 20:
            told.send(b"x")

    reading = Other()
    reactor.addReader(reading)
    timer = LoopingCall(count)
    timer.start(0.005)
    for sock in (near, far):
        readiness.register(sock, lambda events, sock=sock: play(sock))  # type: ignore[misc]
    near.send(b"ball")
    await heard.addTimeout(10, reactor)
    timer.stop()
    readiness.stop()
    assert played > 1000
    for sock in (near, far, other, told):
        sock.close()


def test_who_has_little_to_do_goes_between_two_that_were_cut_short() -> None:
    with turning() as (reactor, readiness):
        near, far = tcp_pair()
        order: list[str] = []
        readiness.register(near, lambda events: order.append("small") if events & READABLE else None)
        reactor.turn()

        def bulky() -> None:
            order.append("bulky")
            if len(order) == 1:
                far.send(b"x")

        for _ in range(3):
            readiness.again(bulky)
        reactor.advance(0)
        assert order == ["bulky", "small", "bulky", "bulky"]
        for sock in (near, far):
            readiness.forget(sock)
            sock.close()


def test_the_reactor_gets_its_turn_though_there_is_much_to_do() -> None:
    with turning() as (reactor, readiness):
        calls: list[int] = []
        due: list[int] = []
        for number in range(100):
            readiness.again(lambda number=number: calls.append(number))  # type: ignore[misc]
        reactor.callLater(0, lambda: due.append(len(calls)))
        reactor.advance(0)
        assert due[0] < 20
        assert calls == list(range(100))


def test_a_look_tells_at_once_and_never_in_the_midst_of_another() -> None:
    with turning() as (reactor, readiness):
        (near, far), (other, far_other) = tcp_pair(), tcp_pair()
        order: list[str] = []

        def heard(events: int) -> None:
            if events & READABLE:
                far_other.send(b"x")
                order.append("begins")
                readiness.look()
                order.append("ends")

        readiness.register(near, heard)
        readiness.register(other, lambda events: order.append("other") if events & READABLE else None)
        reactor.turn()
        far.send(b"x")
        readiness.look()
        assert order == ["begins", "ends"]
        readiness.look()
        assert order == ["begins", "ends", "other"]
        for sock in (near, far, other, far_other):
            readiness.forget(sock)
            sock.close()

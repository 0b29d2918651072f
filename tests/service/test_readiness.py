"""The readiness: edges reach the right owner, once, and one owner's fault stays his."""

from __future__ import annotations

import socket

import pytest
from twisted.logger import LogEvent

from appliance.service.readiness import ENDING, READABLE, WRITABLE
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

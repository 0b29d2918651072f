"""A refusal reaches a peer who is still sending."""

from __future__ import annotations

from appliance.service.server.parting import Parting
from tests.service.turning import tcp_pair, turning


def test_the_refusal_is_read_although_octets_were_not() -> None:
    with turning() as (reactor, readiness):
        parting = Parting(readiness, reactor)
        visitor, sock = tcp_pair()
        readiness.register(sock, lambda events: None)
        visitor.send(b"x" * 100_000)
        parting.part(sock, b"no")
        got: list[bytes] = []

        def answered() -> bool:
            try:
                got.append(visitor.recv(10))
            except BlockingIOError:
                return False
            return got[-1] == b""

        reactor.until(answered)
        assert b"".join(got) == b"no"
        visitor.close()
        reactor.until(lambda: sock.fileno() < 0)
        assert not reactor.getDelayedCalls()


def test_a_peer_who_never_ends_is_cut() -> None:
    with turning() as (reactor, readiness):
        parting = Parting(readiness, reactor)
        visitor, sock = tcp_pair()
        readiness.register(sock, lambda events: None)
        parting.part(sock, b"no")
        reactor.turn()
        assert sock.fileno() >= 0
        reactor.advance(2.1)
        assert sock.fileno() < 0
        visitor.close()


def test_stop_closes_what_lingers() -> None:
    with turning() as (reactor, readiness):
        parting = Parting(readiness, reactor)
        visitor, sock = tcp_pair()
        readiness.register(sock, lambda events: None)
        parting.part(sock, b"no")
        parting.stop()
        assert sock.fileno() < 0
        visitor.close()

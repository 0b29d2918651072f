"""A visitor and an origin, the wire between them, and the real relay; the clock is the test's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from appliance.ingress.requests import Requests
from appliance.service import examined
from appliance.service.examined import Examined
from appliance.service.readiness import Readiness
from appliance.service.relay import Ended, Relay
from tests.ingress.test_requests import GET, HOST, NOT_SWITCHED, OTHER, POST, SWITCHED, UPGRADE
from tests.service.turning import Turning, tcp_pair, turning

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Conversation:
    reactor: Turning
    visitor: socket.socket
    origin: socket.socket
    wire: Examined
    requests: Requests
    ended: list[Ended] = field(default_factory=list)

    def turn(self, turns: int = 8) -> None:
        for _ in range(turns):
            self.reactor.turn()

    def read(self, sock: socket.socket) -> bytes | None:
        """What arrived; None for the end (or a reset) and nothing in front of it."""
        self.turn()
        octets = b""
        try:
            while piece := sock.recv(1 << 20):
                octets += piece
                self.turn()
        except BlockingIOError:
            return octets
        except ConnectionResetError:
            pass
        return octets or None

    def read_to_end(self, sock: socket.socket, count: int) -> bytes:
        octets = bytearray()

        def ended() -> bool:
            try:
                octets.extend(piece := sock.recv(1 << 20))
            except BlockingIOError:
                return False
            return not piece or len(octets) >= count

        self.reactor.until(ended)
        return bytes(octets)


def converse(
    reactor: Turning,
    readiness: Readiness,
    first: bytes = b"",
    *,
    buffers: int | None = None,
    fault: Callable[[], bytes] | None = None,
) -> Conversation:
    visitor, near = tcp_pair(buffers)
    origin, far = tcp_pair(buffers)
    requests = Requests(HOST)
    wire = Examined(near, requests, reactor, fault) if fault else Examined(near, requests, reactor)
    talk = Conversation(reactor, visitor, origin, wire, requests)
    for sock in (visitor, near, origin, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for sock in (near, far):
        readiness.register(sock, lambda events: None)
    to_origin = requests.from_visitor(first)
    wire.joined = Relay(readiness).join(wire, far, to_b=to_origin, among=set(), ended=talk.ended.append)
    return talk


@pytest.fixture
def loop() -> Iterator[tuple[Turning, Readiness]]:
    with turning() as both:
        yield both


def close(talk: Conversation) -> None:
    talk.visitor.close()
    talk.origin.close()
    talk.reactor.until(lambda: talk.ended)


def test_requests_and_answers_pass(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET)
    assert talk.read(talk.origin) == GET
    talk.origin.send(ANSWER)
    assert talk.read(talk.visitor) == ANSWER
    talk.visitor.send(POST[:20])
    assert talk.read(talk.origin) == b""
    talk.visitor.send(POST[20:] + GET)
    assert talk.read(talk.origin) == POST + GET
    talk.visitor.shutdown(socket.SHUT_WR)
    assert talk.read(talk.origin) is None
    talk.origin.send(ANSWER)
    talk.origin.close()
    assert talk.read(talk.visitor) == ANSWER
    assert talk.ended[0].error is None
    close(talk)


def test_the_page_goes_out_behind_the_answers_before_it(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET)
    talk.visitor.send(GET + OTHER + GET)
    assert talk.read(talk.origin) == GET + GET
    assert talk.read(talk.origin) is None
    talk.origin.send(ANSWER)
    assert talk.read(talk.visitor) == ANSWER
    talk.origin.send(ANSWER)
    talk.origin.close()
    talk.turn()
    assert talk.requests.refusal is not None
    assert talk.read(talk.visitor) == ANSWER + talk.requests.refusal
    assert talk.read(talk.visitor) is None
    assert not talk.ended, "the visitor has not ended yet"
    talk.visitor.close()
    talk.turn()
    assert talk.ended[0].error is None


def test_a_refusal_in_what_the_caller_had_read(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER)
    assert talk.read(talk.origin) == GET
    talk.origin.close()
    assert talk.requests.refusal is not None
    assert talk.read(talk.visitor) == talk.requests.refusal
    close(talk)


def test_a_visitor_who_goes_on_sending_gets_the_page_and_no_reset(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=OTHER)
    talk.visitor.send(b"x" * 1000)
    talk.origin.close()
    talk.turn()
    talk.visitor.send(b"x" * 1000)
    talk.turn()
    assert talk.read(talk.visitor) == talk.requests.refusal
    assert talk.read(talk.visitor) is None
    talk.visitor.send(b"x" * 1000)
    talk.turn()
    assert not talk.ended
    talk.reactor.advance(examined.LINGER_SECONDS)
    talk.turn()
    assert talk.ended[0].error is None
    close(talk)


def test_an_origin_that_does_not_end_is_not_waited_for(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER)
    assert talk.read(talk.origin) == GET
    talk.reactor.advance(examined.SILENT_SECONDS - 1)
    talk.origin.send(ANSWER)
    assert talk.read(talk.visitor) == ANSWER
    talk.reactor.advance(examined.SILENT_SECONDS - 1)
    assert talk.read(talk.visitor) == b""
    talk.reactor.advance(1)
    assert talk.read(talk.visitor) == talk.requests.refusal
    assert talk.read(talk.visitor) is None
    assert not talk.ended
    talk.reactor.advance(examined.LINGER_SECONDS)
    talk.turn()
    assert talk.ended[0].error is not None
    assert talk.read(talk.origin) is None
    close(talk)


def test_an_origin_that_speaks_behind_the_page_is_cut(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER)
    talk.reactor.advance(examined.SILENT_SECONDS)
    talk.origin.send(ANSWER)
    assert talk.read(talk.visitor) == talk.requests.refusal
    assert not talk.ended
    talk.visitor.close()
    talk.turn()
    assert isinstance(talk.ended[0].error, BrokenPipeError)
    close(talk)


def test_a_visitor_who_does_not_read_is_not_an_origin_that_is_silent(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER, buffers=4096)
    talk.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = talk.origin.send(b"x" * 100_000)
    talk.turn()
    for _ in range(5):
        talk.reactor.advance(examined.SILENT_SECONDS)
        talk.turn(1)
    sent += talk.origin.send(b"x" * 1_000)
    assert talk.read_to_end(talk.visitor, sent) == b"x" * sent
    assert talk.read(talk.visitor) == b""
    talk.reactor.advance(examined.SILENT_SECONDS)
    assert talk.read(talk.visitor) == talk.requests.refusal
    close(talk)


def test_what_the_kernel_still_holds_arrives_though_the_origin_is_cut(
    loop: tuple[Turning, Readiness],
) -> None:
    talk = converse(*loop, first=GET + OTHER, buffers=4096)
    talk.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert talk.read(talk.origin) == GET
    assert talk.read(talk.origin) is None
    sent = talk.origin.send(b"x" * 50_000)
    talk.turn()
    talk.visitor.send(b"more")
    talk.reactor.advance(examined.SILENT_SECONDS)
    talk.turn()
    talk.visitor.send(b"and more")
    talk.reactor.advance(examined.LINGER_SECONDS)
    talk.turn()
    assert talk.ended
    page = talk.requests.refusal
    assert page is not None
    assert talk.read_to_end(talk.visitor, sent + len(page)) == b"x" * sent + page
    close(talk)


def test_a_visitor_who_is_gone_when_the_page_is_due(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER)
    talk.turn()
    talk.visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    talk.visitor.close()
    talk.turn()
    talk.reactor.advance(examined.SILENT_SECONDS)
    talk.reactor.advance(examined.LINGER_SECONDS)
    assert talk.ended
    close(talk)


def test_the_page_waits_for_a_visitor_who_reads_slowly(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET + OTHER, buffers=4096)
    body = b"x" * 1_000_000
    sent = 0

    def send() -> bool:
        nonlocal sent
        try:
            sent += talk.origin.send(body[sent:])
        except BlockingIOError:
            return True
        return sent == len(body)

    talk.reactor.until(send)
    received = bytearray()

    def all_sent() -> bool:
        send_more = sent == len(body) or send()
        try:
            received.extend(talk.visitor.recv(4096))
        except BlockingIOError:
            pass
        return sent == len(body) and bool(send_more)

    talk.reactor.until(all_sent)
    assert talk.read(talk.origin) == GET
    talk.origin.close()
    page = talk.requests.refusal
    assert page is not None
    received += talk.read_to_end(talk.visitor, len(body) + len(page) - len(received))
    assert bytes(received) == body + page
    close(talk)


def test_what_waited_for_the_answer_to_an_upgrade_needs_no_further_edge(
    loop: tuple[Turning, Readiness],
) -> None:
    talk = converse(*loop)
    talk.visitor.send(UPGRADE + b"early frames")
    assert talk.read(talk.origin) == UPGRADE
    talk.origin.send(SWITCHED)
    assert talk.read(talk.visitor) == SWITCHED
    assert talk.read(talk.origin) == b"early frames"
    talk.visitor.send(OTHER)
    assert talk.read(talk.origin) == OTHER
    close(talk)


def test_what_waited_is_examined_where_nothing_was_switched(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop)
    talk.visitor.send(UPGRADE + OTHER)
    assert talk.read(talk.origin) == UPGRADE
    talk.origin.send(NOT_SWITCHED)
    assert talk.read(talk.visitor) == NOT_SWITCHED
    assert talk.read(talk.origin) is None
    talk.origin.close()
    assert talk.read(talk.visitor) == talk.requests.refusal
    close(talk)


def test_many_requests_give_others_their_turn(loop: tuple[Turning, Readiness]) -> None:
    class Slow(Turning):
        def seconds(self) -> float:
            self.rightNow += examined.TURN_SECONDS
            return super().seconds()

    reactor, readiness = loop
    talk = converse(reactor, readiness)
    talk.wire._clock = slow = Slow()
    talk.visitor.send(GET * 2000)
    reactor.turn()
    reactor.turn()
    assert 0 < talk.requests.heads < 2000
    received = b""
    for _ in range(50):
        slow.advance(0)
        received += talk.read(talk.origin) or b""
    assert received == GET * 2000
    close(talk)


def test_recv_gives_no_more_than_was_asked_for() -> None:
    visitor, near = tcp_pair()
    wire = Examined(near, Requests(HOST), Turning())
    visitor.send(GET * 3)
    assert wire.recv(10) == GET[:10]
    assert wire.recv(1 << 16) == (GET * 3)[10:]
    with pytest.raises(BlockingIOError):
        wire.recv(10)
    assert wire.fileno() == near.fileno()
    wire.close()
    visitor.close()
    assert wire.fileno() == -1


def test_without_a_join_nothing_lingers() -> None:
    visitor, near = tcp_pair()
    requests = Requests(HOST)
    requests.from_visitor(OTHER)
    clock = Turning()
    wire = Examined(near, requests, clock)
    assert wire.recv(10) == b""
    wire.shutdown(socket.SHUT_WR)
    assert wire.flush()
    wire.close()
    assert not clock.getDelayedCalls()
    assert visitor.recv(1 << 16) == requests.refusal
    visitor.close()


def test_a_fault_of_the_origin_is_a_page_behind_its_end(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET, fault=lambda: b"the page")
    assert talk.read(talk.origin) == GET
    talk.origin.close()
    assert talk.read(talk.visitor) == b"the page"
    assert talk.read(talk.visitor) is None
    assert not talk.ended, "the visitor has not ended yet"
    talk.visitor.send(GET)
    close(talk)


def test_an_origin_that_is_given_up(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET, fault=lambda: b"the page")
    talk.wire.end()
    assert talk.read(talk.visitor) == b"the page"
    assert talk.read(talk.visitor) is None
    talk.visitor.send(GET)  # nothing more goes to the origin
    assert talk.read(talk.origin) == GET
    assert not talk.ended
    talk.reactor.advance(examined.LINGER_SECONDS)
    assert talk.ended[0].error is not None
    assert talk.read(talk.origin) is None
    close(talk)


def test_an_origin_that_is_given_up_when_the_visitor_is_gone(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET, fault=lambda: b"the page")
    talk.turn()
    talk.visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    talk.visitor.close()
    talk.wire.end()
    talk.turn()
    assert talk.ended
    close(talk)


def test_a_read_is_larger_in_the_middle_of_a_body() -> None:
    class Sized:
        """A socket that keeps how much was asked for."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock
            self.asked: list[int] = []

        def recv(self, size: int) -> bytes:
            self.asked.append(size)
            return self._sock.recv(size)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    visitor, near = tcp_pair()
    sized = Sized(near)
    wire = Examined(sized, Requests(HOST), Turning())
    visitor.send(b"PUT / HTTP/1.1\r\nHost: www.example.org\r\nContent-Length: 70000\r\n\r\n")
    assert wire.recv(1 << 16)
    visitor.send(bytes(10_000))
    assert wire.recv(1 << 16) == bytes(10_000)
    visitor.send(bytes(100))
    assert wire.recv(1 << 16) == bytes(100)
    assert sized.asked == [1 << 14, 1 << 16, 1 << 14]
    wire.close()
    visitor.close()


def test_a_head_that_does_not_come_in_time(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop, first=GET)
    assert talk.read(talk.origin) == GET
    talk.reactor.advance(examined.HEAD_SECONDS * 10)  # between requests there is time
    talk.visitor.send(GET[:-1])
    assert talk.read(talk.origin) == b""
    talk.reactor.advance(examined.HEAD_SECONDS - 0.1)
    talk.visitor.send(GET[-1:] + GET[:5])
    assert talk.read(talk.origin) == GET
    talk.reactor.advance(0.1)
    assert talk.requests.refusal is None  # that is the next one, and has its own time
    for octet in GET[5:15]:
        talk.reactor.advance(examined.HEAD_SECONDS / 11)
        talk.visitor.send(bytes([octet]))
        assert talk.read(talk.origin) == b""
    talk.reactor.advance(examined.HEAD_SECONDS / 10)
    assert talk.read(talk.origin) is None
    talk.origin.close()
    page = talk.read(talk.visitor)
    assert page is not None
    assert page.startswith(b"HTTP/1.1 408 ")
    close(talk)


def test_a_body_may_take_its_time(loop: tuple[Turning, Readiness]) -> None:
    talk = converse(*loop)
    talk.visitor.send(POST[:10])
    talk.turn()
    talk.visitor.send(POST[10:-2])
    assert talk.read(talk.origin) == POST[:-2]
    talk.reactor.advance(examined.HEAD_SECONDS * 10)
    talk.visitor.send(POST[-2:])
    assert talk.read(talk.origin) == POST[-2:]
    close(talk)

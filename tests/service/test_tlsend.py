"""A visitor's TLS, ended over a real socket."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.service.tlsend import TlsEnd
from tests.effort import examples
from tests.service.client.visiting import Visitor, visitor_context
from tests.service.turning import tcp_pair

HOST = "www.example.com"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert(HOST)


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(context)
    return context


@dataclass
class Pair:
    visitor: Visitor
    end: TlsEnd

    def until(self, condition: Callable[[], object]) -> None:
        for _ in range(20_000):
            self.visitor.go_on()
            if condition():
                return
        raise AssertionError("not reached")

    def shake_hands(self) -> None:
        self.until(self.done)
        self.until(lambda: self.visitor.ready)

    def done(self) -> bool:
        try:
            return self.end.handshake()
        except BlockingIOError:
            return False

    def receive(self, count: int) -> bytes:
        got = bytearray()

        def enough() -> bool:
            with suppress(BlockingIOError):
                octets = self.end.recv(65536)
                got.extend(octets)
                return not octets or len(got) >= count
            return False

        self.until(enough)
        return bytes(got)

    def close(self) -> None:
        self.visitor.sock.close()
        self.end.close()


def make(*, ahead: bytes = b"", buffer_octets: int | None = None) -> Pair:
    far, near = tcp_pair(buffer_octets)
    visitor = Visitor(far, visitor_context(CA), HOST)
    visitor.skip = len(ahead)
    return Pair(visitor, TlsEnd(near, server_context(), ahead=ahead))


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = make()
    made.shake_hands()
    yield made
    made.close()


def test_both_ways(pair: Pair) -> None:
    pair.visitor.say(b"hello")
    assert pair.receive(5) == b"hello"
    assert pair.end.send(b"and back") == 8
    pair.until(lambda: pair.visitor.got == b"and back")
    assert not pair.end.resumed
    with pytest.raises(BlockingIOError):
        pair.end.recv(1)


def test_what_goes_ahead_comes_with_the_first_record() -> None:
    pair = make(ahead=b"\x01")
    pair.visitor.go_on()
    pair.until(lambda: pair.done() or pair.visitor.seen)
    assert pair.visitor.seen[:3] == b"\x01\x16\x03"
    pair.shake_hands()
    pair.close()


def test_what_was_read_already_comes_first() -> None:
    far, near = tcp_pair()
    visitor = Visitor(far, visitor_context(CA), HOST)
    visitor.go_on()
    hello = b""
    while len(hello) < 100:
        with suppress(BlockingIOError):
            hello += near.recv(65536)
    pair = Pair(visitor, TlsEnd(near, server_context(), first=hello))
    pair.shake_hands()
    pair.close()


def test_the_end_comes_both_ways_and_each_by_itself(pair: Pair) -> None:
    pair.visitor.say(b"last question")
    pair.end.shutdown(socket.SHUT_WR)
    pair.end.shutdown(socket.SHUT_WR)
    pair.until(lambda: pair.visitor.ended and pair.visitor.cut)
    # What he said before he knew, and what he says after, is not lost.
    pair.visitor.tls.write(b", and another")
    assert pair.receive(26) == b"last question, and another"
    with suppress(ssl.SSLWantReadError):
        pair.visitor.tls.unwrap()
    pair.visitor.go_on()
    assert pair.receive(1) == b""
    assert pair.end.recv(1) == b""


def test_a_visitor_who_leaves_without_a_word_has_ended(pair: Pair) -> None:
    pair.visitor.say(b"bye")
    pair.visitor.sock.shutdown(socket.SHUT_WR)
    assert pair.receive(10) == b"bye"
    assert pair.end.recv(10) == b""


def test_a_reset_is_a_reset(pair: Pair) -> None:
    pair.end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert pair.end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    pair.visitor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.visitor.sock.close()
    with pytest.raises(ConnectionResetError):
        while True:
            with suppress(BlockingIOError):
                pair.end.recv(10)


def test_what_is_no_record_is_told_him_and_raised(pair: Pair) -> None:
    pair.visitor.sock.send(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ConnectionAbortedError, match="TLS: "):
        pair.receive(1)
    with pytest.raises(ssl.SSLError):
        pair.until(lambda: False)


def test_a_failed_handshake_has_last_words() -> None:
    pair = make()
    pair.end = TlsEnd(pair.end.sock, server_context(), b"\x17\x03\x03\x00\x02\x05\x00", b"\x01")
    with pytest.raises(ConnectionAbortedError, match="TLS: UNEXPECTED_MESSAGE"):
        pair.end.handshake()
    unsent = pair.end.unsent()
    assert (unsent[:2], unsent[-2:]) == (b"\x01\x15", b"\x02\x0a")  # an alert: fatal, unexpected_message
    assert pair.end.unsent() == b""
    pair.close()


def until_broken(pair: Pair) -> None:
    while True:
        with suppress(BlockingIOError):
            pair.end.handshake()


def test_a_visitor_who_leaves_in_the_handshake() -> None:
    pair = make()
    pair.visitor.sock.close()
    with pytest.raises(ConnectionResetError):
        until_broken(pair)
    pair.end.close()


def test_a_full_socket_holds_one_write_and_no_more() -> None:
    pair = make(buffer_octets=4096)
    pair.shake_hands()
    body = os.urandom(3 << 20)
    sent, refusals = 0, 0
    seen = pair.visitor.got
    while sent < len(body):
        try:
            sent += pair.end.send(body[sent:])
        except BlockingIOError:
            refusals += 1
            assert len(pair.end._waiting) + pair.end._out.pending < (1 << 16) + 4096
            pair.visitor.go_on()
    pair.until(pair.end.flush)
    pair.until(lambda: len(pair.visitor.got) >= len(body))
    assert refusals
    assert seen + body == pair.visitor.got
    pair.close()


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["up", "down"]), st.integers(1, 100_000)), max_size=12),
    st.booleans(),
)
def test_any_turn_of_octets_arrives_in_order(turns: list[tuple[str, int]], half_closed: bool) -> None:
    pair = make(buffer_octets=8192)
    pair.shake_hands()
    said: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
    heard = bytearray()
    unsent = b""

    def move() -> bool:
        nonlocal unsent
        pair.visitor.go_on()
        with suppress(BlockingIOError):
            while unsent:
                unsent = unsent[pair.end.send(unsent) :]
        with suppress(BlockingIOError):
            while octets := pair.end.recv(65536):
                heard.extend(octets)
        return True

    for way, count in turns:
        octets = os.urandom(count)
        said[way] += octets
        if way == "up":
            pair.visitor.say(octets)
        else:
            unsent += octets
        move()
    pair.until(lambda: move() and not unsent and pair.end.flush())
    if half_closed:
        pair.end.shutdown(socket.SHUT_WR)
        pair.visitor.tls.write(b"after the end")
        said["up"] += b"after the end"
    pair.until(lambda: move() and heard == said["up"] and pair.visitor.got == said["down"])
    assert pair.visitor.ended is half_closed
    pair.close()

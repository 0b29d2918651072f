"""A TLS connection that is used like a socket, and joined like one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from OpenSSL import SSL

from appliance.service.relay import Ended, Relay
from appliance.service.tls import ServerTls
from appliance.service.tlswire import TlsWire
from appliance.tunnel.certificates import issue_client, issue_server, make_authority
from tests.service.turning import tcp_pair, turning

WALL = datetime.now(UTC)
CA = make_authority("test", WALL)
SERVER = issue_server(
    CA, server_id="s1", service_name="tunnel-server.internal", addresses=["127.0.0.1"], wall=WALL
)
CLIENT = issue_client(
    CA, client_id="c1", names=["www.example.com"], service_name="tunnel-server.internal", wall=WALL
)


@dataclass
class Pair:
    client: TlsWire
    server: TlsWire


def client_connection() -> SSL.Connection:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate(CLIENT.certificate)
    context.use_privatekey(CLIENT.key)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    return connection


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = tcp_pair()
    tls = ServerTls(SERVER, [b"tunnel-lane/1"])
    made = Pair(TlsWire(near, client_connection()), TlsWire(far, tls.connection()))
    until(lambda: all([made.client.handshake(), made.server.handshake()]))
    yield made
    near.close()
    far.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
    raise AssertionError("not reached")


def received(wire: TlsWire, count: int) -> bytes:
    got = bytearray()

    def enough() -> bool:
        try:
            octets = wire.recv(65536)
        except BlockingIOError:
            return False
        got.extend(octets)
        return len(got) >= count or not octets

    until(enough)
    return bytes(got)


def test_both_ways_and_the_peer_is_known(pair: Pair) -> None:
    assert pair.client.send(b"hello") == 5
    assert received(pair.server, 5) == b"hello"
    assert pair.server.send(b"welcome") == 7
    assert received(pair.client, 7) == b"welcome"
    certificate = pair.server.connection.get_peer_certificate(as_cryptography=True)
    assert certificate == CLIENT.certificate


def test_octets_read_before_the_handshake_are_given_to_it() -> None:
    near, far = tcp_pair()
    client = TlsWire(near, client_connection())
    client.handshake()
    first = b""
    while not first:
        try:
            first = far.recv(65536)
        except BlockingIOError:
            continue
    server = TlsWire(far, ServerTls(SERVER, []).connection(), first)
    until(lambda: all([server.handshake(), client.handshake()]))
    client.close()
    server.close()


def test_one_end_may_close_while_the_other_goes_on(pair: Pair) -> None:
    pair.client.send(b"last")
    pair.client.shutdown(socket.SHUT_WR)
    pair.client.shutdown(socket.SHUT_WR)
    assert received(pair.server, 5) == b"last"
    assert received(pair.server, 1) == b""
    pair.server.send(b"still here")
    assert received(pair.client, 10) == b"still here"


def test_a_stream_that_is_cut_is_no_end(pair: Pair) -> None:
    pair.client.sock.close()
    with pytest.raises(ConnectionResetError):
        received(pair.server, 1)


def test_garbage_breaks_it_with_an_os_error(pair: Pair) -> None:
    pair.client.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionAbortedError, match="TLS"):
        received(pair.server, 1)


def test_what_the_socket_does_not_take_is_held_and_bounded(pair: Pair) -> None:
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += pair.client.send(b"x" * (1 << 20))
    assert not pair.client.flush()
    assert len(pair.client._waiting) < 4 * 65536
    got = 0

    def drained() -> bool:
        nonlocal got
        flushed = pair.client.flush()
        got += len(received(pair.server, 1))
        return flushed and got == taken

    until(drained)


def test_joined_to_a_socket(pair: Pair) -> None:
    """200 kB both ways through socket - wire = wire - socket, with both ends of the stream passed on."""
    with turning() as (reactor, readiness):
        relay = Relay(readiness)
        outer: list[socket.socket] = []
        ended: list[Ended] = []
        for wire in (pair.client, pair.server):
            left, inner = tcp_pair(8192)
            outer.append(left)
            readiness.register(inner, lambda events: None)
            readiness.register(wire, lambda events: None)
            relay.join(inner, wire, among=set(), ended=ended.append)
        waiting = [os.urandom(200_000), os.urandom(200_000)]
        sent = list(waiting)
        got = [bytearray(), bytearray()]
        closed = [False, False]

        def moved() -> bool:
            for this, other in ((0, 1), (1, 0)):
                try:
                    while waiting[this]:
                        waiting[this] = waiting[this][outer[this].send(waiting[this]) :]
                    if not closed[this]:
                        closed[this] = True
                        outer[this].shutdown(socket.SHUT_WR)
                except BlockingIOError:
                    pass
                try:
                    got[other] += outer[other].recv(65536)
                except BlockingIOError:
                    pass
            return len(ended) == 2

        reactor.until(moved)
        for index in (0, 1):
            outer[index].setblocking(True)
            while octets := outer[index].recv(1 << 20):
                got[index] += octets
            outer[index].close()
        assert (bytes(got[1]), bytes(got[0])) == (sent[0], sent[1])
        assert [each.error for each in ended] == [None, None]

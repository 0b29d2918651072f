"""What is common to both kinds of TLS wire, with a "TLS" that writes octets in brackets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from appliance.service.tlsstream import OCTETS, TlsStream, broken


class Brackets(TlsStream):
    """`[octets]` for a record, `.` for the end."""

    def __init__(self, sock: socket.socket, ahead: bytes = b"") -> None:
        super().__init__(sock, ahead)
        self.ready = b""
        self.ends = 0

    def _seal(self, octets: bytes) -> int:
        self.ready += b"[" + octets + b"]"
        return len(octets)

    def _sealed(self) -> bytes:
        sealed, self.ready = self.ready, b""
        return sealed

    def _say_end(self) -> None:
        self.ends += 1
        self.ready += b"."


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.settimeout(5)
        yield near, far


def received(far: socket.socket) -> bytes:
    return b"".join(iter(lambda: far.recv(1 << 20), b""))


def test_what_stands_ahead_goes_first_and_the_end_last(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    stream = Brackets(near, ahead=b"\x01")
    assert stream.fileno() == near.fileno()
    assert stream.send(b"one") == 3
    stream.shutdown(socket.SHUT_WR)
    stream.shutdown(socket.SHUT_WR)
    assert received(far) == b"\x01[one]."
    assert stream.ends == 1
    stream.close()
    assert stream.fileno() == -1


def test_what_the_socket_does_not_take_waits_and_nothing_more_is_taken(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    stream = Brackets(near)
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += stream.send(b"x" * (2 * OCTETS))
    assert not stream.flush()
    stream.shutdown(socket.SHUT_WR)  # behind what waits
    got = bytearray()
    while not stream.flush():
        got += far.recv(1 << 20)
    got += received(far)
    assert got.count(b"x") == taken
    assert got.endswith(b"x].")


def test_what_did_not_go_out_can_be_had() -> None:
    near, far = socket.socketpair()
    with near:
        far.close()
        stream = Brackets(near, ahead=b"\x01")
        stream.ready = b"[alert]"
        stream._last_words()  # the peer is gone: no error
        assert stream.unsent() == b"\x01[alert]"
        assert stream.unsent() == b""


def test_it_says_what_broke() -> None:
    error = broken("bad record mac")
    assert (error.errno, str(error.strerror)) == (errno.ECONNABORTED, "TLS: bad record mac")

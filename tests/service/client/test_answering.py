"""An origin's socket that knows whether the origin has spoken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from appliance.service.client.answering import Answering
from tests.service.turning import tcp_pair

RESET = b"\1\0\0\0\0\0\0\0"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Answering]]:
    far, near = tcp_pair()
    yield far, Answering(near)
    far.close()
    near.close()


def received(wire: Answering) -> bytes:
    while True:
        with suppress(BlockingIOError):
            return wire.recv(100)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def test_it_is_a_socket(ends: tuple[socket.socket, Answering]) -> None:
    far, wire = ends
    assert wire.fileno() == wire.sock.fileno()
    assert wire.send(b"asked") == 5
    with pytest.raises(BlockingIOError):
        wire.recv(1)
    assert not wire.answered
    far.send(b"answered")
    assert received(wire) == b"answered"
    assert wire.answered
    wire.shutdown(socket.SHUT_WR)
    far.setblocking(True)
    assert (far.recv(100), far.recv(100)) == (b"asked", b"")
    wire.close()
    assert wire.fileno() == -1


def test_a_reset_before_the_first_octet_is_an_end(ends: tuple[socket.socket, Answering]) -> None:
    far, wire = ends
    reset(far)
    assert received(wire) == b""
    assert wire.send(b"lost") == 4
    assert not wire.answered


def test_a_reset_behind_it_is_a_reset(ends: tuple[socket.socket, Answering]) -> None:
    far, wire = ends
    far.send(b"a")
    assert received(wire) == b"a"
    reset(far)
    with pytest.raises(ConnectionResetError):
        received(wire)
    with pytest.raises(BrokenPipeError):
        wire.send(b"lost")


def test_an_end_is_an_end(ends: tuple[socket.socket, Answering]) -> None:
    far, wire = ends
    far.close()
    assert received(wire) == b""

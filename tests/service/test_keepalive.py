"""The kernel is told the numbers, and only of TCP."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from appliance.service import keepalive
from tests.service.turning import tcp_pair

OPTIONS = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)


def numbers(sock: socket.socket) -> tuple[int, ...]:
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return tuple(sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([keepalive.of_link], (1, 1, 3, 4500)),
        ([keepalive.of_visitors], (25, 10, 3, 0)),
        ([keepalive.of_visitors, keepalive.of_idle_lane], (25, 10, 3, 15000)),
        ([keepalive.of_visitors, keepalive.of_idle_lane, keepalive.of_joined_lane], (25, 10, 3, 0)),
    ],
)
def test_numbers(kinds: list[Callable[[socket.socket], None]], expected: tuple[int, ...]) -> None:
    near, far = tcp_pair()
    with near, far:
        for kind in kinds:
            kind(near)
        assert numbers(near) == expected


def test_what_a_port_accepts_has_its_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keepalive.of_visitors(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert numbers(accepted) == (25, 10, 3, 0)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

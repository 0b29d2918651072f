"""The kernel is told the numbers, and only of TCP."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from appliance.service import keepalive
from tests.service.turning import tcp_pair


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (keepalive.of_link, (1, 1, 3, 4500)),
        (keepalive.of_idle_lane, (25, 5, 3, 15000)),
        (keepalive.of_joined, (30, 10, 3, 0)),
    ],
)
def test_numbers(kind: Callable[[socket.socket], None], expected: tuple[int, ...]) -> None:
    near, far = tcp_pair()
    with near, far:
        kind(near)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert tuple(near.getsockopt(socket.IPPROTO_TCP, option) for option in options) == expected


def test_a_unix_socket_is_left_alone() -> None:
    near, far = socket.socketpair()
    with near, far:
        keepalive.of_joined(near)
        assert not near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

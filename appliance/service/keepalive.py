"""The kernel's own liveness of a TCP connection: one place for its numbers, by what the connection is.

Keepalive finds a peer that is gone while nothing is sent; ``TCP_USER_TIMEOUT`` one that is gone while
something is. Neither finds a stopped process, whose kernel goes on answering: links have a ping of their own
for that.
"""

from __future__ import annotations

import socket

#: A link's or watch's end is noticed by the kernel in about 1 s + 3 x 1 s of silence.
_LINK_IDLE_SECONDS, _LINK_INTERVAL_SECONDS, _LINK_PROBES = 1, 1, 3
_LINK_USER_TIMEOUT_MILLISECONDS = 4500

#: An idle lane only has to keep a NAT's mapping alive: the shortest common TCP mapping time-outs are around
#: 60 s (RFC 5382 asks for two hours and is not obeyed).
_IDLE_LANE_SECONDS, _IDLE_LANE_INTERVAL_SECONDS, _IDLE_LANE_PROBES = 25, 5, 3
_IDLE_LANE_USER_TIMEOUT_MILLISECONDS = 15_000

#: A joined pair may be silent for as long as both ends like; only a dead host ends it.
_JOINED_SECONDS, _JOINED_INTERVAL_SECONDS, _JOINED_PROBES = 30, 10, 3


def _set(sock: socket.socket, idle: int, interval: int, probes: int, user_timeout_milliseconds: int) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_milliseconds)


def of_link(sock: socket.socket) -> None:
    """A link or a watch: quick, for records and visitors follow from its end."""
    _set(sock, _LINK_IDLE_SECONDS, _LINK_INTERVAL_SECONDS, _LINK_PROBES, _LINK_USER_TIMEOUT_MILLISECONDS)


def of_idle_lane(sock: socket.socket) -> None:
    """A lane that waits for its visitor, until it is joined."""
    _set(
        sock,
        _IDLE_LANE_SECONDS,
        _IDLE_LANE_INTERVAL_SECONDS,
        _IDLE_LANE_PROBES,
        _IDLE_LANE_USER_TIMEOUT_MILLISECONDS,
    )


def of_joined(sock: socket.socket) -> None:
    """Either end of a joined pair. The user time-out is cleared: it also kills a healthy peer that merely
    does not read.
    """
    _set(sock, _JOINED_SECONDS, _JOINED_INTERVAL_SECONDS, _JOINED_PROBES, 0)

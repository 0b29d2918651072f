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

#: A lane, a visitor and an origin may be silent for as long as they like; only a dead host ends them. An idle
#: lane has to keep a NAT's mapping alive as well: the shortest common TCP mapping time-outs are around 60 s
#: (RFC 5382 asks for two hours and is not obeyed).
_IDLE_SECONDS, _INTERVAL_SECONDS, _PROBES = 25, 10, 3
_IDLE_LANE_USER_TIMEOUT_MILLISECONDS = 15_000


def of_link(sock: socket.socket) -> None:
    """A link or a watch: quick, for records and visitors follow from its end. Only TCP has these."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    _probe(sock, _LINK_IDLE_SECONDS, _LINK_INTERVAL_SECONDS, _LINK_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LINK_USER_TIMEOUT_MILLISECONDS)


def of_visitors(sock: socket.socket) -> None:
    """A TCP connection that carries a visitor or waits for one. A listening socket hands it on to what it
    accepts (Linux clones its options), which costs those nothing.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _probe(sock, _IDLE_SECONDS, _INTERVAL_SECONDS, _PROBES)


def of_idle_lane(sock: socket.socket) -> None:
    """A lane at its client, until it is joined: a preface that nobody acknowledges is a lane that is dead."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _IDLE_LANE_USER_TIMEOUT_MILLISECONDS)


def of_joined_lane(sock: socket.socket) -> None:
    """The user time-out is cleared: it also kills a healthy peer that merely does not read."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)


def _probe(sock: socket.socket, idle: int, interval: int, probes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)

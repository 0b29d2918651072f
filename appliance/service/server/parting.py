"""A refusal that arrives: the last octets, then the end, then a short wait for the peer's own end.

Closing a socket while octets of the peer are unread resets the connection, and the reset can overtake the
refusal on its way (RFC 9112 9.6 describes the same for HTTP): so the socket is half-closed and drained first,
for a bounded time.
"""

from __future__ import annotations

import socket
from typing import Any

from appliance.service.readiness import ENDING, READABLE, Readiness

#: Long enough for a refusal to cross the world and come back; nginx's lingering_time is 30 s, for bodies.
_LINGER_SECONDS = 2.0
#: Sockets that linger at once; past it the oldest is closed as it is.
_LINGERING_AT_MOST = 1024
_READ_OCTETS = 1 << 16


class Parting:
    """Sends the last octets to sockets that are registered with the readiness, and closes them."""

    def __init__(self, readiness: Readiness, clock: Any) -> None:
        self._readiness = readiness
        self._clock = clock
        self._lingering: dict[socket.socket, Any] = {}

    def part(self, sock: socket.socket, last_octets: bytes) -> None:
        """Own ``sock`` from now on: a refusal fits its empty send buffer, so one send is all that is tried.
        """
        try:
            sock.send(last_octets)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(sock)
            return
        if len(self._lingering) >= _LINGERING_AT_MOST:
            self._close(next(iter(self._lingering)))
        self._lingering[sock] = self._clock.callLater(_LINGER_SECONDS, self._close, sock)
        self._readiness.change(sock, lambda events: self._ready(sock, events))
        self._ready(sock, READABLE)

    def stop(self) -> None:
        """Close what lingers."""
        for sock in list(self._lingering):
            self._close(sock)

    def _ready(self, sock: socket.socket, events: int) -> None:
        if not events & (READABLE | ENDING):
            return
        try:
            while sock.recv(_READ_OCTETS):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        timer = self._lingering.pop(sock, None)
        if timer is not None and timer.active():
            timer.cancel()
        self._readiness.forget(sock)
        sock.close()

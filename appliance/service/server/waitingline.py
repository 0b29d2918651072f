"""Links that wait for their handshake: begun a few at a time, in the order in which they came.

A herd of clients (after a restart, all of them at once) would otherwise hold the reactor for seconds in
handshakes, and with it everybody's visitors. Watches do not wait here: they are few, and the DNS follows
them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from appliance.service.readiness import ENDING, Readiness
from appliance.tunnel.herd import PAUSE_SECONDS, Turnstile

#: A client gives a handshake 20 s; who would wait for most of that does better to come again later, by his
#: own jitter.
_WAITING_SECONDS = 18.0
WAITING_AT_MOST = int(_WAITING_SECONDS / PAUSE_SECONDS)


class WaitingLine:
    """Hands sockets on to ``adopt(sock, octets)`` as fast as the turnstile lets them."""

    def __init__(
        self, clock: Any, readiness: Readiness, adopt: Callable[[socket.socket, bytes], None]
    ) -> None:
        self._clock = clock
        self._readiness = readiness
        self._adopt = adopt
        self._turnstile = Turnstile()
        self._waiting: dict[socket.socket, bytes] = {}
        self._next: Any = None

    def join(self, sock: socket.socket, octets: bytes) -> None:
        """Own ``sock``, registered with the readiness, of which ``octets`` have been read."""
        if len(self._waiting) >= WAITING_AT_MOST:
            self._close(sock)
            return
        self._waiting[sock] = octets
        self._readiness.change(sock, lambda events: self._ready(sock, events))
        if self._next is None:
            self._next = self._clock.callLater(0, self._go_on)

    def __len__(self) -> int:
        return len(self._waiting)

    def stop(self) -> None:
        """Close all that wait."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._waiting:
            self._close(self._waiting.popitem()[0])

    def _go_on(self) -> None:
        """One at a time: its beginning takes a few milliseconds, and visitors have their turn in between."""
        self._readiness.look()
        now = self._clock.seconds()
        first = next(iter(self._waiting), None) if self._turnstile.opens_at(now) <= now else None
        octets = b"" if first is None else self._waiting.pop(first)
        if first is not None:
            self._turnstile.passed(now)
        self._next = None
        if self._waiting:
            self._next = self._clock.callLater(self._turnstile.opens_at(now) - now, self._go_on)
        if first is not None:  # last: whatever comes of it, the others have their turn
            self._adopt(first, octets)

    def _ready(self, sock: socket.socket, events: int) -> None:
        """Who leaves the line takes nobody's turn."""
        if events & ENDING and self._waiting.pop(sock, None) is not None:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._readiness.forget(sock)
        sock.close()

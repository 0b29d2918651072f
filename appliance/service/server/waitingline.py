"""Links that wait for their handshake: begun a few at a time, one source after the other.

A herd of clients (after a restart, all of them at once) would otherwise hold the reactor for seconds in
handshakes, and with it everybody's visitors. Nobody has proved yet who he is, so whoever comes in masses
waits behind himself. Watches do not wait here: they are few, and the DNS follows them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable
from typing import Any

from appliance.service.readiness import ENDING, Readiness
from appliance.tunnel.fairqueue import FairQueue
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
        self._waiting: FairQueue[socket.socket] = FairQueue()
        self._octets: dict[socket.socket, bytes] = {}
        self._next: Any = None

    def join(self, sock: socket.socket, octets: bytes, source: Hashable) -> None:
        """Own ``sock``, registered with the readiness, of which ``octets`` have been read; ``source`` as the
        gate counts.
        """
        self._waiting.add(sock, source)
        self._octets[sock] = octets
        self._readiness.change(sock, lambda events: self._ready(sock, events))
        if len(self._waiting) > WAITING_AT_MOST:
            self._send_away(self._waiting.newest_of_most())
        if self._next is None:
            self._next = self._clock.callLater(0, self._go_on)

    def __len__(self) -> int:
        return len(self._waiting)

    def stop(self) -> None:
        """Close all that wait."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for sock in list(self._octets):
            self._send_away(sock)

    def _go_on(self) -> None:
        """One at a time: its beginning takes a few milliseconds, and visitors have their turn in between."""
        self._readiness.look()
        now = self._clock.seconds()
        first = None
        if self._waiting and self._turnstile.opens_at(now) <= now:
            first = self._waiting.pop()
            self._turnstile.passed(now)
        self._next = None
        if self._waiting:
            self._next = self._clock.callLater(self._turnstile.opens_at(now) - now, self._go_on)
        if first is not None:  # last: whatever comes of it, the others have their turn
            self._adopt(first, self._octets.pop(first))

    def _ready(self, sock: socket.socket, events: int) -> None:
        """Who leaves the line takes nobody's turn."""
        if events & ENDING and sock in self._waiting:
            self._send_away(sock)

    def _send_away(self, sock: socket.socket) -> None:
        self._waiting.remove(sock)
        del self._octets[sock]
        self._readiness.forget(sock)
        sock.close()

"""A visitor's HTTP connection as a wire whose octets from the visitor pass through ``Requests``: on port 80
at the server, inside his TLS at a client that ends it.

Hides what a refusal in the middle of a connection takes. The origin may still be answering the requests
before it, so the page has to wait: the relay is told that the visitor's octets have ended, passes that on,
and when the origin's end comes back the page goes out in front of it. Then the visitor, who may still be
sending, is listened to for a moment, because closing on unread octets is a reset that can overtake the page
(RFC 9112 9.6).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

from appliance.ingress.requests import Requests
from appliance.service.readiness import READABLE, WRITABLE
from appliance.service.relay import Joined, Wire

SILENT_SECONDS = 5.0
"""An origin that was told the end and says nothing for this long gets no more time: whoever closes does it
at once.
"""

LINGER_SECONDS = 2.0
"""For the visitor's own end behind the page: long enough for it to cross the world and come back."""

HEAD_SECONDS = 10.0
"""For a head, from its first octets on: what the first one of a connection on port 80 has, too. Between
requests a visitor may be silent for as long as his origin likes.
"""

TURN_SECONDS = 0.005
"""Reading requests at a stretch, before others get their turn: 1 MiB of the shortest ones would take 2 s."""

_READ_OCTETS = 1 << 14
"""One read: 600 of the shortest requests, 25 ms."""

_BODY_OCTETS = 1 << 16
"""One read in the middle of a body, where there are none: half of the cost of one of 16 KiB."""

_NO_RESET_ON_CLOSE = struct.pack("ii", 0, 0)
_DRAIN_READS_MAX = 16
_DRAIN_OCTETS = 1 << 16


class Below(Wire, Protocol):
    """The visitor's own wire: a socket, or TLS over one (which has a ``flush()``, too)."""

    def setsockopt(self, level: int, option: int, value: Any, /) -> None: ...


class _Holding(Protocol):
    def flush(self) -> bool: ...


def _no_fault() -> bytes:
    return b""


class Examined:
    """A wire (see ``service/relay.py``) in front of the visitor's own.

    ``recv`` raises BlockingIOError only when the socket did, or when it has booked the relay's next read
    itself.
    """

    def __init__(
        self, sock: Below, requests: Requests, clock: Any, fault: Callable[[], bytes] = _no_fault
    ) -> None:
        """``requests`` may have seen octets already; what it let through of them is the caller's to send.

        ``fault()`` is asked when the origin has ended: the page for a visitor who got no answer from it.
        """
        self.sock = sock
        self._holding = cast(_Holding, sock) if hasattr(sock, "flush") else None
        self._fault = fault
        self.joined: Joined | None = None
        """To be set right after the join, with this wire as its ``a``; until then nothing can be booked or
        ended.
        """
        self._requests = requests
        self._clock = clock
        self._passed = b""  # let through and not yet taken by the relay
        self._turn_since: float | None = None
        self._again: Any = None
        self._head_timer: Any = None  # since a part of a head came
        self._timer: Any = None  # since the refusal: for the origin, then for the visitor
        self._heard = 0.0  # when the origin last said something
        self._full = False  # the visitor does not read, so the origin cannot say anything
        self._page: bytes | None = None  # None until the end was asked for; then what is left of it
        self._paged = False
        self._end_sent = False
        self._done = False

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.sock.fileno()

    def recv(self, size: int, /) -> bytes:
        """Octets for the origin; ``b""`` at the visitor's end and from a refusal on; BlockingIOError;
        OSError.
        """
        self._take_turn()
        while not self._passed:
            if self._paged or self._refused():
                return b""
            try:
                in_body = self._requests.certain >= _BODY_OCTETS
                octets = self.sock.recv(_BODY_OCTETS if in_body else _READ_OCTETS)
            except BlockingIOError:
                self._turn_since = None
                raise
            if not octets:
                return b""
            self._passed = self._requests.from_visitor(octets)
            if self._requests.head_begun:
                self._await_head()
        octets, self._passed = self._passed[:size], self._passed[size:]
        return octets

    def send(self, octets: bytes, /) -> int:
        """Octets of the origin; like a socket's."""
        if self._page is not None:
            raise BrokenPipeError("the visitor was told the end")
        self._full = True
        count = self.sock.send(octets)
        self._full = False
        if self._timer is not None:
            self._heard = self._clock.seconds()
        elif released := self._requests.from_origin(octets[:count]):
            self._passed += released
            self._read_again()
        elif self._refused():
            self._read_again()
        return count

    def shutdown(self, how: int, /) -> None:
        """The origin has ended: the page, if there is one, and the end."""
        if self._page is None:
            self._page = self._requests.refusal or self._fault()
            self._paged = bool(self._page)
            if not self._page:
                self._end_sent = self._done = True
                self.sock.shutdown(how)
        self.flush()

    def flush(self) -> bool:
        """True when nothing is held back, and behind a page, when the visitor has had his moment to read
        it.
        """
        if self._page is None or self._done:
            return self._flushed()
        try:
            while self._page:
                self._page = self._page[self.sock.send(self._page) :]
        except BlockingIOError:
            return False
        if not self._end_sent:
            self._end_sent = True
            self.sock.shutdown(socket.SHUT_WR)
            self._wait(LINGER_SECONDS, self._lingered)
        if not self._flushed():
            return False
        if self.joined is None or self._visitor_ended():
            self._done = True
        return self._done

    def end(self) -> None:
        """Wait for the origin no longer: the page, if there is one, and the end."""
        try:
            self.shutdown(socket.SHUT_WR)
        except OSError:  # the visitor is gone
            self._give_up()
            return
        self._wait(LINGER_SECONDS, self._give_up)

    def close(self) -> None:
        """Close the socket."""
        for call in (self._again, self._timer, self._head_timer):
            if call is not None and call.active():
                call.cancel()
        if self._end_sent and self._paged:
            self._end_gently()
        self.sock.close()

    def _flushed(self) -> bool:
        return self._holding is None or self._holding.flush()

    def _refused(self) -> bool:
        """Whether something was refused; the first time, the wait for the origin's end begins."""
        if self._requests.refusal is None:
            return False
        if self._timer is None:
            self._heard = self._clock.seconds()
            self._wait(SILENT_SECONDS, self._look)
        return True

    def _take_turn(self) -> None:
        if self.joined is None:
            return
        now = self._clock.seconds()
        if self._turn_since is None:
            self._turn_since = now
        elif now - self._turn_since > TURN_SECONDS:
            self._turn_since = None
            self._read_again()
            raise BlockingIOError

    def _await_head(self) -> None:
        if self._head_timer is None or not self._head_timer.active():
            self._head_timer = self._clock.callLater(HEAD_SECONDS, self._look_at_head, self._requests.heads)

    def _look_at_head(self, heads: int) -> None:
        """Of a head that began when there were so many before it."""
        if not self._requests.head_begun:
            return
        if self._requests.heads == heads:
            self._requests.too_slow()
            self._ready(READABLE)  # which finds the end
        else:
            self._await_head()

    def _read_again(self) -> None:
        """Have the relay read in the next reactor turn: no edge will tell it to."""
        if self._again is None or not self._again.active():
            self._again = self._clock.callLater(0, self._ready, READABLE)

    def _ready(self, events: int) -> None:
        if self.joined is not None:
            self.joined.from_a.ready(events)

    def _wait(self, seconds: float, then: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(seconds, then)

    def _look(self) -> None:
        """The origin had time to end. One that is still answering goes on; a silent one is not waited for."""
        left = SILENT_SECONDS if self._full else self._heard + SILENT_SECONDS - self._clock.seconds()
        if left > 0:
            self._wait(left, self._look)
            return
        self.end()

    def _give_up(self) -> None:
        if self.joined is not None:
            self.joined.abort()

    def _lingered(self) -> None:
        if not self._flushed():  # he does not even take the page
            self._give_up()
            return
        self._done = True
        self._ready(WRITABLE)

    def _end_gently(self) -> None:
        """Let the kernel send what it still holds, page and all, though the origin's side is being reset."""
        self._visitor_ended()
        with suppress(OSError):  # already gone
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_RESET_ON_CLOSE)

    def _visitor_ended(self) -> bool:
        """Read and forget what the visitor still sends."""
        try:
            for _ in range(_DRAIN_READS_MAX):
                if not self.sock.recv(_DRAIN_OCTETS):
                    return True
        except BlockingIOError:
            pass
        except OSError:
            return True
        return False

"""Opening a connection with a bare non-blocking socket, to the first address that takes it; hides connect(2).

Lanes and origins are dialled the same way; what a failure means is for whoever dials.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.service import keepalive
from appliance.service.client.localports import LocalPorts
from appliance.service.deadlines import Deadlines
from appliance.service.readiness import ENDING, WRITABLE, Readiness

#: How long until a full backlog is tried again: no visitor notices it, and it costs 50 connect(2) a second
#: for each origin, however many wait.
BACKLOG_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """A socket address: ``address`` is (host, port) with an IP address, or the path of a unix socket."""

    family: socket.AddressFamily
    address: tuple[str, int] | str


#: Given the connected socket, registered with the readiness and yours, or why there is none.
Done = Callable[[socket.socket | OSError], None]


class Dialling:
    """All who dial with the same patience."""

    def __init__(self, readiness: Readiness, clock: Any, seconds: float) -> None:
        self.readiness = readiness
        self.ports = LocalPorts()
        self.waiting = Deadlines[Dial](clock, seconds, lambda dial: dial.timed_out())
        self._clock = clock
        self._full: dict[Target, list[Dial]] = {}
        self._timer: Any = None

    def dial(self, targets: Sequence[Target], done: Done) -> Dial:
        """Begin one attempt to connect. ``done`` is called once, perhaps before this returns, and not after
        ``cancel()``.

        The targets are tried in turn; the last one's error is told, ``TimeoutError`` when the seconds are
        over.
        """
        return Dial(self, targets, done)

    def stop(self) -> None:
        """Nobody waits any more; who dials has been cancelled."""
        self.waiting.stop()
        self._full.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_full(self, target: Target) -> bool:
        """Whether others wait for room in its backlog: whoever comes later waits behind them."""
        return target in self._full

    def wait_for_room(self, dial: Dial, target: Target) -> None:
        """Let it go on when there may be room in the backlog again, of which no event tells."""
        self._full.setdefault(target, []).append(dial)
        if self._timer is None:
            self._timer = self._clock.callLater(BACKLOG_SECONDS, self._look_for_room)

    def _look_for_room(self) -> None:
        """Who waits longest tries for all behind him: a stranger chooses how many they are."""
        self._timer = None
        full, self._full = self._full, {}
        for target, dials in full.items():
            for number, dial in enumerate(dials, 1):
                dial.go_on()
                if target in self._full:
                    self._full[target] += dials[number:]
                    break


class Dial:
    """One attempt to connect."""

    __slots__ = ("_dialling", "_done", "_error", "_sock", "_targets")

    def __init__(self, dialling: Dialling, targets: Sequence[Target], done: Done) -> None:
        self._dialling = dialling
        self._targets = list(targets)
        self._done: Done | None = done
        self._sock: socket.socket | None = None
        self._error: OSError | None = None
        dialling.waiting.add(self)
        self._next()

    def cancel(self) -> None:
        """Give up, without a word."""
        self._done = None
        self._drop()
        self._dialling.waiting.discard(self)

    def go_on(self) -> None:
        """Try again where there was no room, unless it is over."""
        if self._done is not None:
            self._next()

    def _next(self) -> None:
        while self._targets:
            target = self._targets.pop(0)
            try:
                self._sock = self._connecting(target)
            except BlockingIOError:
                self._targets.insert(0, target)
                self._dialling.wait_for_room(self, target)
                return
            except OSError as error:
                self._error = error
                continue
            self._dialling.readiness.register(self._sock, self._ready)
            return
        self._tell(self._error or OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ)))

    def _connecting(self, target: Target) -> socket.socket:
        """Raises BlockingIOError where the backlog of a unix socket is full: TCP waits by itself, but there
        connect(2) says EAGAIN and has begun nothing.
        """
        if self._dialling.is_full(target):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if isinstance(target.address, str):
                number = sock.connect_ex(target.address)
            else:
                keepalive.of_visitors(sock)
                number = self._dialling.ports.connect(sock, target.address)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except BaseException:
            sock.close()
            raise
        return sock

    def _ready(self, events: int) -> None:
        sock = self._sock
        if sock is None or not events & (WRITABLE | ENDING):
            return
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._error = OSError(number, os.strerror(number))
            self._drop()
            self._next()
            return
        self._sock = None
        self._tell(sock)

    def timed_out(self) -> None:
        """Its time is over."""
        self._targets.clear()
        self._drop()
        self._tell(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _tell(self, result: socket.socket | OSError) -> None:
        self._dialling.waiting.discard(self)
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _drop(self) -> None:
        if self._sock is not None:
            self._dialling.readiness.forget(self._sock)
            self._sock.close()
            self._sock = None

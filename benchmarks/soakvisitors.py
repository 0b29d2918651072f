"""A mixed crowd at a steady rate: `python -m benchmarks.soakvisitors TLS_PORT HTTP_PORT HOST COUNT SECONDS`.

Its TLS visitors send a real ClientHello and talk to a `raworigin` behind the tunnel: most ask once and leave
first, or are left first; some come to the HTTP port, some take 8 MiB, some stay idle for a while and then ask
again. Every octet that is due is waited for; whatever else happens is an error. A line of JSON every second.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from benchmarks.raworigin import ANSWER, BULKY, BULKY_OCTETS, FLIGHT, PAGE, SMALL, SMALL_AND_CLOSE, record
from benchmarks.rawvisitors import hello, source

Kind = Literal["leaves", "left", "http", "bulky", "idle"]
TURNS: tuple[Kind, ...] = ("leaves", "left") * 40
EVERY: dict[Kind, int] = {"http": 25, "idle": 100, "bulky": 1_000}
"""Every how many-th is of this kind; the others leave first or are left, in turns."""
OPEN_AT_MOST = 4_000
IDLE_SECONDS = 60.0
LATE_SECONDS = 30.0
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has no name for it


def kind_of(number: int) -> Kind:
    for kind, every in EVERY.items():
        if number % every == every // 2:
            return kind
    return TURNS[number % len(TURNS)]


@dataclass(slots=True)
class _Visitor:
    sock: socket.socket
    kind: Kind
    since: float
    stage: str = "connecting"
    due: int = 0  # octets still to come
    asked: int = 0  # times


class Crowd:
    def __init__(self, tls: int, http: int, host: str) -> None:
        self._tls = tls
        self._http = http
        self._hello = hello(host)
        self._request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self._epoll = select.epoll()
        self._visitors: dict[int, _Visitor] = {}
        self._idle: deque[tuple[float, _Visitor]] = deque()
        self._buffer = bytearray(1 << 20)
        self.done = 0
        self.errors: Counter[str] = Counter()
        self.began = 0

    def run(self, count: int, seconds: float) -> None:
        start = said = time.monotonic()
        while True:
            now = time.monotonic()
            wanted = min(count, int((now - start) / seconds * count) + 1)
            while self.began < wanted and len(self._visitors) < OPEN_AT_MOST:
                self._begin(now)
            for fd, _ in self._epoll.poll(0.005, 512):
                visitor = self._visitors.get(fd)
                if visitor is not None:
                    self._guarded(visitor)
            now = time.monotonic()
            while self._idle and self._idle[0][0] <= now:
                _, visitor = self._idle.popleft()
                if visitor.stage == "idle":
                    visitor.since = now
                    self._ask(visitor, SMALL)
            if now - said >= 1:
                said = now
                self._late(now)
                self._say(now - start)
            if self.began == count and not self._visitors:
                self._say(now - start)
                return

    def _say(self, seconds: float) -> None:
        line = {"seconds": seconds, "done": self.done, "open": len(self._visitors), "errors": self.errors}
        print(json.dumps(line), flush=True)

    def _begin(self, now: float) -> None:
        kind = kind_of(self.began)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind(source(self.began))
        self.began += 1
        visitor = _Visitor(sock, kind, now)
        self._visitors[sock.fileno()] = visitor
        number = sock.connect_ex(("127.0.0.1", self._http if kind == "http" else self._tls))
        if number not in (0, errno.EINPROGRESS):
            self._fail(visitor, f"connect: {errno.errorcode[number]}")
            return
        self._epoll.register(sock, select.EPOLLOUT)

    def _guarded(self, visitor: _Visitor) -> None:
        try:
            self._ready(visitor)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(visitor, f"{visitor.kind}, {visitor.stage}: {errno.errorcode[error.errno or 0]}")

    def _ready(self, visitor: _Visitor) -> None:
        if visitor.stage == "connecting":
            number = visitor.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, "")
            if visitor.kind == "http":
                visitor.stage, visitor.due = "answer", len(PAGE)
                visitor.sock.send(self._request)
            else:
                visitor.stage, visitor.due = "flight", len(FLIGHT)
                visitor.sock.send(self._hello)
            self._epoll.modify(visitor.sock, select.EPOLLIN)
            return
        # Octets of a bulky answer are thrown away in the kernel.
        got = visitor.sock.recv_into(self._buffer, len(self._buffer), socket.MSG_TRUNC)
        if not got:
            if visitor.stage == "end":
                self._finish(visitor)
            else:
                self._fail(visitor, f"{visitor.kind}, {visitor.stage}: it ended early")
            return
        visitor.due -= got
        if visitor.due < 0 or visitor.stage in ("end", "idle"):
            self._fail(visitor, f"{visitor.kind}, {visitor.stage}: more came than was due")
        elif not visitor.due:
            self._answered(visitor)

    def _answered(self, visitor: _Visitor) -> None:
        kind = visitor.kind
        if visitor.stage == "flight":
            self._ask(visitor, {"left": SMALL_AND_CLOSE, "bulky": BULKY}.get(kind, SMALL))
        elif kind in ("left", "http"):
            visitor.stage = "end"
        elif kind == "idle" and visitor.asked == 1:
            visitor.stage = "idle"
            self._idle.append((time.monotonic() + IDLE_SECONDS, visitor))
        else:
            self._finish(visitor)

    def _ask(self, visitor: _Visitor, what: bytes) -> None:
        visitor.asked += 1
        visitor.stage = "answer"
        visitor.due = BULKY_OCTETS if what == BULKY else len(ANSWER)
        try:
            visitor.sock.send(record(what))
        except OSError as error:
            self._fail(visitor, f"{visitor.kind}, asking: {errno.errorcode[error.errno or 0]}")

    def _late(self, now: float) -> None:
        for visitor in list(self._visitors.values()):
            if visitor.stage != "idle" and now - visitor.since > LATE_SECONDS:
                self._fail(visitor, f"{visitor.kind}, {visitor.stage}: nothing for {LATE_SECONDS:.0f} s")

    def _fail(self, visitor: _Visitor, why: str) -> None:
        self.errors[why] += 1
        visitor.stage = "failed"
        self._close(visitor)

    def _finish(self, visitor: _Visitor) -> None:
        self.done += 1
        visitor.stage = "done"
        self._close(visitor)

    def _close(self, visitor: _Visitor) -> None:
        self._visitors.pop(visitor.sock.fileno(), None)
        visitor.sock.close()


if __name__ == "__main__":
    _, tls_port, http_port, host, count, seconds = sys.argv
    Crowd(int(tls_port), int(http_port), host).run(int(count), float(seconds))

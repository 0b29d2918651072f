"""An origin that does no cryptography: `python -m benchmarks.raworigin TLS_PORT HTTP_PORT FILE`.

A tunnel that passes TLS through cannot tell: a real ClientHello is answered by octets shaped as a server's
first flight, and what follows is records that carry one letter of what is wanted. So the machine's time is
the tunnel's. Plain HTTP gets one page and the end.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

FLIGHT = b"\x16\x03\x03\x05\x78" + bytes(1_400)
"""As long as a server's first flight with one ECDSA certificate."""
ANSWER = b"\x17\x03\x03\x01\x90" + bytes(400)
PAGE_BODY = bytes(400)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\nConnection: close\r\n\r\n" + PAGE_BODY
BULKY_OCTETS = 8 << 20

SMALL, SMALL_AND_CLOSE, BULKY, ENDLESS = b"s", b"c", b"b", b"e"
HEAD_OCTETS = 5  # of a TLS record
_SLICE_OCTETS = 1 << 20


def record(octets: bytes) -> bytes:
    """Application data, as TLS would frame it."""
    return b"\x17\x03\x03" + len(octets).to_bytes(2, "big") + octets


@dataclass(slots=True)
class _Visitor:
    sock: socket.socket
    plain: bool
    octets: bytes = b""
    greeted: bool = False
    left: int = 0  # of the file
    offset: int = 0


class RawOrigin:
    """One level-triggered epoll; small answers fit the socket's buffer and are sent at once."""

    def __init__(self, tls: int, http: int, file: Path) -> None:
        self._file = file.open("rb")
        self._size = file.stat().st_size
        self._epoll = select.epoll()
        self._visitors: dict[int, _Visitor] = {}
        self._listeners: dict[int, tuple[socket.socket, bool]] = {}
        for port, plain in ((tls, False), (http, True)):
            listener = socket.create_server(("127.0.0.1", port), backlog=4096)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = (listener, plain)
            self._epoll.register(listener, select.EPOLLIN)

    def run(self) -> None:
        while True:
            for fd, events in self._epoll.poll():
                if fd in self._listeners:
                    self._accept(*self._listeners[fd])
                    continue
                visitor = self._visitors.get(fd)
                if visitor is None:
                    continue
                try:
                    if visitor.left:
                        self._send_file(visitor)
                    elif events:
                        self._read(visitor)
                except BlockingIOError:
                    pass
                except OSError:
                    self._close(visitor)

    def _accept(self, listener: socket.socket, plain: bool) -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._visitors[sock.fileno()] = _Visitor(sock, plain)
            self._epoll.register(sock, select.EPOLLIN)

    def _read(self, visitor: _Visitor) -> None:
        octets = visitor.sock.recv(1 << 16)
        if not octets:
            self._close(visitor)
            return
        visitor.octets += octets
        if visitor.plain:
            if visitor.octets.endswith(b"\r\n\r\n"):
                visitor.sock.send(PAGE)
                self._close(visitor)
            return
        while len(visitor.octets) >= HEAD_OCTETS:
            end = HEAD_OCTETS + int.from_bytes(visitor.octets[3:HEAD_OCTETS], "big")
            if len(visitor.octets) < end:
                return
            wanted, visitor.octets = visitor.octets[HEAD_OCTETS:end], visitor.octets[end:]
            if not visitor.greeted:
                visitor.greeted = True
                visitor.sock.send(FLIGHT)
            elif wanted[:1] in (BULKY, ENDLESS):
                visitor.left = BULKY_OCTETS if wanted[:1] == BULKY else sys.maxsize
                self._epoll.modify(visitor.sock, select.EPOLLOUT)
                return
            else:
                visitor.sock.send(ANSWER)
                if wanted[:1] == SMALL_AND_CLOSE:
                    self._close(visitor)
                    return

    def _send_file(self, visitor: _Visitor) -> None:
        count = min(visitor.left, _SLICE_OCTETS, self._size - visitor.offset)
        sent = os.sendfile(visitor.sock.fileno(), self._file.fileno(), visitor.offset, count)
        visitor.left -= sent
        visitor.offset = (visitor.offset + sent) % self._size
        if not visitor.left:
            self._epoll.modify(visitor.sock, select.EPOLLIN)

    def _close(self, visitor: _Visitor) -> None:
        del self._visitors[visitor.sock.fileno()]
        visitor.sock.close()


if __name__ == "__main__":
    RawOrigin(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])).run()

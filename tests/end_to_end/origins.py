"""Origins of a test's own, in threads: what they got is kept octet by octet; and a tap in front of a port.

Real web servers say that a page arrived; these say what else arrived.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

_READ_OCTETS = 1 << 16


class Visited:
    """One connection that an origin accepted, and every octet that came on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.octets = bytearray()
        self.ended = False
        self.taken = 0  # octets that `line`, `take` and `head` gave

    def read(self) -> bytes:
        """What comes next, `b""` at the visitor's end; kept in `octets`."""
        got = self.sock.recv(_READ_OCTETS)
        self.octets += got
        self.ended = self.ended or not got
        return got

    def until(self, mark: bytes) -> bytes:
        """The octets up to and with `mark`, or `b""` if the visitor ended before."""
        while (end := self.octets.find(mark, self.taken)) < 0:
            if not self.read():
                return b""
        return self._give(end + len(mark))

    def take(self, count: int) -> bytes:
        """The next `count` octets, fewer at the visitor's end."""
        while len(self.octets) < self.taken + count and self.read():
            pass
        return self._give(min(self.taken + count, len(self.octets)))

    def head(self) -> bytes:
        """The next head of a request."""
        return self.until(b"\r\n\r\n")

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def _give(self, end: int) -> bytes:
        given = bytes(self.octets[self.taken : end])
        self.taken = end
        return given


class Origin:
    """Listens on loopback and serves each connection in a thread, by `serve`; over TLS with a `context`."""

    def __init__(self, serve: Callable[[Visited], None], context: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.visited: list[Visited] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def octets(self) -> bytes:
        """Everything that came, connection after connection."""
        return b"".join(bytes(one.octets) for one in self.visited)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # closed
                return
            visited = Visited(sock)
            self.visited.append(visited)
            thread = threading.Thread(target=self._begin, args=(visited,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _begin(self, visited: Visited) -> None:
        try:
            if self._context is not None:
                visited.sock = self._context.wrap_socket(visited.sock, server_side=True)
            self._serve(visited)
        except OSError:  # the visitor, or the end of the test, broke it off
            pass
        finally:
            visited.sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        for one in self.visited:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one.sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(body: bytes, *fields: str) -> bytes:
    """A 200 with this body."""
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *fields]
    return "".join(line + "\r\n" for line in [*head, ""]).encode() + body


def keep_alive(name: str) -> Callable[[Visited], None]:
    """Serve requests with counted bodies until the visitor ends or says so, and say whose request it was."""

    def serve(visited: Visited) -> None:
        while head := visited.head():
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = visited.take(length)
            visited.send(answer(b"%s: %s, %d octets" % (name.encode(), head.split(b" ")[1], len(body))))
            if b"\r\nConnection: close\r\n" in head:
                return

    return serve


class Silent:
    """A port that is bound, and whose kernel drops every further SYN: an origin that does not accept."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        # A queue for 0 takes one connection; the ones behind it fill what the kernel keeps of half-open ones.
        self._filling = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self.port))
            self._filling.append(sock)

    def octets(self) -> bytes:
        """What is there once everyone who still waits is accepted."""
        for sock in self._filling:
            sock.close()
        self._filling.clear()
        got = b""
        self._listener.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(0)
                    with contextlib.suppress(OSError):
                        got += sock.recv(_READ_OCTETS)
        return got

    def close(self) -> None:
        for sock in [*self._filling, self._listener]:
            sock.close()


class Tap:
    """Forwards a port to another, and looks for marks in all that passes."""

    def __init__(
        self, port: int, to: tuple[str, int], marks: list[bytes], address: str = "127.0.0.1"
    ) -> None:
        self.port = port
        self.seen: set[bytes] = set()
        self.from_server: list[int] = []  # octets, by connection
        self._to = to
        self._marks = marks
        self._keep = max(map(len, marks)) - 1
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((address, port), backlog=128)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to, timeout=5)
            except OSError:
                return
            far.settimeout(None)
            self._sockets += [near, far]
            number = len(self.from_server)
            self.from_server.append(0)
            for way in ((near, far, None), (far, near, number)):
                self._threads.append(threading.Thread(target=self._pass, args=way, daemon=True))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: int | None) -> None:
        tail = b""
        try:
            while octets := source.recv(_READ_OCTETS):
                around = tail + octets
                self.seen.update(mark for mark in self._marks if mark in around)
                tail = around[-self._keep :]
                if counted is not None:
                    self.from_server[counted] += len(octets)
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one end is gone: so is the other
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(5)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for sock in self._sockets:
            sock.close()

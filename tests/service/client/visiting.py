"""A visitor's TLS, on memory or on a socket, as small as it can be."""

from __future__ import annotations

import socket
import ssl

import trustme


def visitor_context(ca: trustme.CA, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(list(alpn or ("http/1.1",)))
    return context


def shake_hands(
    server: ssl.SSLContext,
    context: ssl.SSLContext,
    host: str | None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLObject:
    """A whole handshake on memory, and the tickets behind it; raises ssl.SSLError of the visitor's side."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = server.wrap_bio(up, down, server_side=True)
    far = context.wrap_bio(down, up, server_hostname=host, session=session)
    for _ in range(4):
        for side in (far, near):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                if side is far:
                    raise
    near.write(b"!")
    assert far.read(1) == b"!"
    return far


class Visitor:
    """On a non-blocking socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.sock = sock
        self.got = b""
        """What came, in clear."""
        self.seen = bytearray()
        """What came, as it came."""
        self.ended = False
        """close_notify has come."""
        self.cut = False
        """The socket has ended."""
        self.skip = 0
        """Octets in front of TLS."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._unsent = b""
        self.ready = False

    def go_on(self) -> None:
        """Send and receive what can be."""
        if not self.cut:
            try:
                while octets := self.sock.recv(65536):
                    self.seen += octets
                    skipped = min(self.skip, len(octets))
                    self.skip -= skipped
                    self._in.write(octets[skipped:])
                self.cut = True
            except BlockingIOError:
                pass
            except ConnectionResetError:
                self.cut = True
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while octets := self.tls.read(65536):
                self.got += octets
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        finally:
            self._unsent += self._out.read()
            try:
                while self._unsent:
                    self._unsent = self._unsent[self.sock.send(self._unsent) :]
            except BlockingIOError:
                pass

    def say(self, octets: bytes) -> None:
        self.tls.write(octets)
        self.go_on()

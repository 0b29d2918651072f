"""A visitor's TLS over a lane, ended here: a wire (see ``service/relay.py``) that gives what he says in
clear.

``TlsWire`` is the same over pyOpenSSL, between the two ends of a tunnel. A visitor's TLS is the standard
library's, for two reasons: its session tickets can have keys of ours (``libssl.py``), and a context of it
takes a new certificate's place without a connection noticing.

Whoever wants may cut the connection without TLS's own end (close_notify), as many programs do: HTTP says by
itself whether a request is whole (RFC 9112 9.8), so that is read as an end like any other.
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

from appliance.service.tlsstream import OCTETS, TlsStream, broken


class TlsEnd(TlsStream):
    """A wire; ``handshake()`` comes first."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, first: bytes = b"", ahead: bytes = b""
    ) -> None:
        """``first``: octets that were read from the socket already. ``ahead``: what goes out, in clear, in
        front of the first record.
        """
        super().__init__(sock, ahead)
        self.family = sock.family
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._held = b""  # read in clear and not given yet
        self._cut = False  # the socket has ended
        if first:
            self._in.write(first)

    @property
    def resumed(self) -> bool:
        """After the handshake: whether the visitor came with a session ticket."""
        return bool(self._tls.session_reused)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """The socket's."""
        self.sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        """The socket's."""
        return self.sock.getsockopt(level, option)

    def handshake(self) -> bool:
        """Go on with the handshake: True when it is done, False when the socket must be ready first. Raises
        OSError; then ``unsent()`` is what the visitor has to be told.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                try:
                    is_there = self._fill()
                except BlockingIOError:
                    return False
                if not is_there:
                    raise ConnectionResetError(errno.ECONNRESET, "the visitor left") from None
                continue
            except ssl.SSLError as error:
                raise _broken(error) from None
            self.flush()
            return True

    def recv(self, size: int, /) -> bytes:
        """Like a socket's: octets, ``b""`` at the end, BlockingIOError; ConnectionError for a broken
        stream.
        """
        while not self._held and not self._cut:
            self._read(size)
            if not self._held and not self._cut:
                self._cut = not self._fill()
        octets, self._held = self._held[:size], self._held[size:]
        return octets

    def _seal(self, octets: bytes) -> int:
        try:
            return self._tls.write(octets)
        except ssl.SSLError as error:
            raise _broken(error) from None

    def _sealed(self) -> bytes:
        return self._out.read() if self._out.pending else b""

    def _say_end(self) -> None:
        # unwrap() looks for the visitor's own end, and would lose what he said in front of it.
        while self._read(OCTETS):
            pass
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:  # he has not ended: the usual case
            pass
        except ssl.SSLError as error:
            raise _broken(error) from None

    def _read(self, size: int) -> bool:
        """Move what is there in clear, about ``size`` octets, to ``_held``; whether there was any. A record
        at a time, for that is how TLS gives it.
        """
        pieces = [self._held]
        got = 0
        try:
            # Asked when there is nothing, TLS raises; that costs as much as a read.
            while got < size and (self._in.pending or self._tls.pending()):
                octets = self._tls.read(size - got)
                if not octets:
                    self._cut = True
                    break
                pieces.append(octets)
                got += len(octets)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._cut = True
        except ssl.SSLError as error:
            self._last_words()
            raise _broken(error) from None
        self._held = b"".join(pieces)
        return got > 0

    def _fill(self) -> bool:
        """Octets of the socket for TLS; False at its end. Raises OSError."""
        octets = self.sock.recv(OCTETS)
        if octets:
            self._in.write(octets)
        return bool(octets)


def _broken(error: ssl.SSLError) -> ConnectionError:
    return broken(str(error.reason or error))

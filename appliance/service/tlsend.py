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

#: One read of the socket, and the most that is taken from a writer at a time: four TLS records.
_OCTETS = 1 << 16


class TlsEnd:
    """``recv``, ``send``, ``flush``, ``shutdown`` and ``close``; ``handshake()`` comes first."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, first: bytes = b"", ahead: bytes = b""
    ) -> None:
        """``first``: octets that were read from the socket already. ``ahead``: what goes out, in clear, in
        front of the first record.
        """
        self.sock = sock
        self.family = sock.family
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._ahead = ahead
        self._sealed = b""  # records that the socket did not take yet
        self._held = b""  # read in clear and not given yet
        self._cut = False  # the socket has ended
        self._ending = False  # close_notify was written
        self._ended = False  # and the socket's own end went out behind it
        if first:
            self._in.write(first)

    @property
    def resumed(self) -> bool:
        """After the handshake: whether the visitor came with a session ticket."""
        return bool(self._tls.session_reused)

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.sock.fileno()

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
                if not self._fill():
                    raise ConnectionResetError(errno.ECONNRESET, "the visitor left") from None
                continue
            except ssl.SSLError as error:
                raise _broken(error) from None
            self.flush()
            return True

    def unsent(self) -> bytes:
        """What was to go out and did not: after a failed handshake the alert, and what stands ahead of it."""
        return self._take_sealed()

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

    def send(self, octets: bytes, /) -> int:
        """Take octets, all or the first 64 KiB; BlockingIOError while the socket has not taken the ones
        before.
        """
        if not self.flush():
            raise BlockingIOError
        try:
            taken = self._tls.write(octets[:_OCTETS])
        except ssl.SSLError as error:
            raise _broken(error) from None
        self.flush()
        return taken

    def flush(self) -> bool:
        """Write the records that wait; True when none is left, and the stream's end, if asked for, is out as
        well.
        """
        while sealed := self._take_sealed():
            self._sealed = sealed
            try:
                self._sealed = sealed[self.sock.send(sealed) :]
            except BlockingIOError:
                return False
        if self._ending and not self._ended:
            self._ended = True
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def shutdown(self, _how: int, /) -> None:
        """Say that nothing more comes from here; the other direction goes on."""
        if not self._ending:
            self._ending = True
            # unwrap() looks for the visitor's own end, and would lose what he said in front of it.
            while self._read(_OCTETS):
                pass
            try:
                self._tls.unwrap()
            except ssl.SSLWantReadError:  # he has not ended: the usual case
                pass
            except ssl.SSLError as error:
                raise _broken(error) from None
        self.flush()

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _take_sealed(self) -> bytes:
        sealed, self._sealed = self._sealed, b""
        if not sealed and (self._ahead or self._out.pending):
            sealed, self._ahead = self._ahead + self._out.read(), b""
        return sealed

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
        octets = self.sock.recv(_OCTETS)
        if octets:
            self._in.write(octets)
        return bool(octets)

    def _last_words(self) -> None:
        """The alert for the visitor, if the socket takes it."""
        try:
            self.flush()
        except OSError:
            return


def _broken(error: ssl.SSLError) -> ConnectionError:
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {error.reason or error}")

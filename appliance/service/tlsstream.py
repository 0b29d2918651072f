"""What writes through TLS over a bare non-blocking socket: records that wait, and the end of the stream.

TLS works on memory here, so that the socket stays ours: Twisted's TLS would bring a transport with buffers of
its own between two flows that must stop each other. ``TlsWire`` (pyOpenSSL, between the ends of a tunnel) and
``TlsEnd`` (the standard library, a visitor's) say what a library can say only in its own words.
"""

from __future__ import annotations

import errno
import socket

#: One read of the socket, and the most that is taken from a writer at a time: four TLS records.
OCTETS = 1 << 16


class TlsStream:
    """``send``, ``flush``, ``shutdown`` and ``close`` of a wire (see ``service/relay.py``)."""

    def __init__(self, sock: socket.socket, ahead: bytes = b"") -> None:
        """``ahead``: what goes out, in clear, in front of the first record."""
        self.sock = sock
        self._waiting = ahead  # records that the socket did not take yet
        self._ending = False  # close_notify was written
        self._ended = False  # and the socket's own end went out behind it

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.sock.fileno()

    def send(self, octets: bytes, /) -> int:
        """Take octets, all or the first 64 KiB; BlockingIOError while the socket has not taken the ones
        before.
        """
        if not self.flush():
            raise BlockingIOError
        taken = self._seal(octets[:OCTETS])
        self.flush()
        return taken

    def flush(self) -> bool:
        """Write the records that wait; True when none is left, and the stream's end, if asked for, is out as
        well.
        """
        while True:
            if more := self._sealed():
                self._waiting += more
            elif not self._waiting:
                break
            try:
                self._waiting = self._waiting[self.sock.send(self._waiting) :]
            except BlockingIOError:
                return False
        if self._ending and not self._ended:
            self._ended = True
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def unsent(self) -> bytes:
        """What was to go out and did not: after a failed handshake the alert, and what stands ahead of it."""
        octets, self._waiting = self._waiting + self._sealed(), b""
        return octets

    def shutdown(self, _how: int, /) -> None:
        """Say that nothing more comes from here; the other direction goes on."""
        if not self._ending:
            self._ending = True
            self._say_end()
        self.flush()

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _last_words(self) -> None:
        """The alert for the peer, if the socket takes it."""
        try:
            self.flush()
        except OSError:
            return

    def _seal(self, octets: bytes) -> int:
        """Make records of these; how many were taken. Raises ConnectionError."""
        raise NotImplementedError

    def _sealed(self) -> bytes:
        """The records that the library has ready, ``b""`` if none."""
        raise NotImplementedError

    def _say_end(self) -> None:
        """Have close_notify made. Raises ConnectionError."""
        raise NotImplementedError


def broken(reasons: str) -> ConnectionError:
    """The stream cannot go on."""
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {reasons}")

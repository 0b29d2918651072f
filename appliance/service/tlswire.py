"""A TLS connection over a bare non-blocking socket that can be used, and joined, as if it were one itself.

pyOpenSSL works on memory here, so that the socket stays ours: Twisted's TLS would bring a transport with
buffers of its own between two flows that must stop each other. The end of the stream is TLS's own
(close_notify); a connection that ends without it was cut, and reading says so (RFC 8446 6.1).
"""

from __future__ import annotations

import errno
import socket

from OpenSSL import SSL

#: One read of the socket, and the most that is taken from a writer at a time: four TLS records.
_OCTETS = 1 << 16


class TlsWire:
    """``recv``, ``send``, ``shutdown`` and ``close`` of a socket, with TLS between; ``handshake()`` comes
    first.
    """

    def __init__(self, sock: socket.socket, connection: SSL.Connection, first: bytes = b"") -> None:
        """``first``: octets that were read from the socket already."""
        self.sock = sock
        self.connection = connection
        self._sealed = b""  # records that the socket did not take yet
        self._ending = False  # close_notify was given to the connection
        self._ended = False  # and the socket's own end went out behind it
        if first:
            connection.bio_write(first)

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.sock.fileno()

    def handshake(self) -> bool:
        """Go on with the handshake: True when it is done, False when the socket must be ready first. Raises
        OSError.
        """
        while True:
            try:
                self.connection.do_handshake()
            except SSL.WantReadError:
                self.flush()
                try:
                    self._fill()
                except BlockingIOError:
                    return False
                continue
            except SSL.Error as error:
                self._last_words()
                raise _broken(error) from None
            self.flush()
            return True

    def recv(self, size: int, /) -> bytes:
        """Like a socket's: octets, ``b""`` at the end, BlockingIOError; ConnectionError for a broken or cut
        stream.
        """
        while True:
            try:
                return self.connection.recv(size)
            except SSL.WantReadError:
                self._fill()
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                self._last_words()
                raise _broken(error) from None

    def send(self, octets: bytes, /) -> int:
        """Take octets, all or the first 64 KiB; BlockingIOError while the socket has not taken the ones
        before.
        """
        if not self.flush():
            raise BlockingIOError
        try:
            taken = self.connection.send(octets[:_OCTETS])
        except SSL.Error as error:
            raise _broken(error) from None
        self.flush()
        return taken

    def flush(self) -> bool:
        """Write the records that wait; True when none is left, and the stream's end, if asked for, is out as
        well.
        """
        while True:
            if not self._sealed:
                try:
                    self._sealed = self.connection.bio_read(_OCTETS * 2)
                except SSL.WantReadError:
                    break
            try:
                self._sealed = self._sealed[self.sock.send(self._sealed) :]
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
            try:
                self.connection.shutdown()
            except SSL.Error as error:
                raise _broken(error) from None
        self.flush()

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _fill(self) -> None:
        octets = self.sock.recv(_OCTETS)
        if not octets:
            raise ConnectionResetError(errno.ECONNRESET, "the TLS stream was cut")
        self.connection.bio_write(octets)

    def _last_words(self) -> None:
        """The alert that OpenSSL has for the peer, if the socket takes it."""
        try:
            self.flush()
        except OSError:
            return


def _broken(error: SSL.Error) -> ConnectionError:
    reasons = ", ".join(entry[-1] for entry in error.args[0]) if error.args and error.args[0] else "closed"
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {reasons}")

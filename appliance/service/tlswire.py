"""A TLS connection over a bare non-blocking socket that can be used, and joined, as if it were one itself.

It is pyOpenSSL's, as the links' TLS is. The end of the stream is TLS's own (close_notify); a connection that
ends without it was cut, and reading says so (RFC 8446 6.1).
"""

from __future__ import annotations

import errno
import socket

from OpenSSL import SSL

from appliance.service.tlsstream import OCTETS, TlsStream, broken


class TlsWire(TlsStream):
    """A wire; ``handshake()`` comes first."""

    def __init__(self, sock: socket.socket, connection: SSL.Connection, first: bytes = b"") -> None:
        """``first``: octets that were read from the socket already."""
        super().__init__(sock)
        self.connection = connection
        if first:
            connection.bio_write(first)

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

    def _seal(self, octets: bytes) -> int:
        try:
            return self.connection.send(octets)
        except SSL.Error as error:
            raise _broken(error) from None

    def _sealed(self) -> bytes:
        try:
            return self.connection.bio_read(OCTETS * 2)
        except SSL.WantReadError:
            return b""

    def _say_end(self) -> None:
        try:
            self.connection.shutdown()
        except SSL.Error as error:
            raise _broken(error) from None

    def _fill(self) -> None:
        octets = self.sock.recv(OCTETS)
        if not octets:
            raise ConnectionResetError(errno.ECONNRESET, "the TLS stream was cut")
        self.connection.bio_write(octets)


def _broken(error: SSL.Error) -> ConnectionError:
    entries = error.args[0] if error.args else ()
    return broken(", ".join(entry[-1] for entry in entries) or "closed")

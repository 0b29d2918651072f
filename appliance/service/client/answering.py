"""A plain origin as a wire that knows whether it has ever answered.

An origin that breaks off before it has said anything has ended, to whoever reads it: then the visitor can be
told, which is more than a reset. Once it has spoken a reset is a reset.
"""

from __future__ import annotations

import socket


class Answering:
    """A wire (see ``service/relay.py``) over the socket of an origin."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answered = False

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.sock.fileno()

    def recv(self, size: int, /) -> bytes:
        """The socket's, but for an error in place of the first octet, which is an end."""
        if self.answered:
            return self.sock.recv(size)
        try:
            octets = self.sock.recv(size)
        except BlockingIOError:
            raise
        except OSError:
            return b""
        self.answered = bool(octets)
        return octets

    def send(self, octets: bytes, /) -> int:
        """The socket's; what an origin that broke off without a word does not take is lost: ``recv`` will
        tell.
        """
        try:
            return self.sock.send(octets)
        except BlockingIOError:
            raise
        except OSError:
            if self.answered:
                raise
            return len(octets)

    def shutdown(self, how: int, /) -> None:
        """The socket's."""
        self.sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

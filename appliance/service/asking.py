"""One DNS message to one server, and its answer: by UDP, and by TCP where that is cut short.

Hides the socket, one of its own for each message, so that only that server is heard and a port where nobody
listens is known at once.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.service.nameserver.conversation import Conversation

ANSWER_SECONDS = 2.0
_MAX_DATAGRAM_OCTETS = 4096
_TRUNCATED = 0x02
_HEADER_OCTETS = 12


@implementer(IReadDescriptor)
class Asking:
    """Sends `message` to `host` and `port`. `heard` gets what comes back with its ID, and says whether that
    was the answer. `ended` is told once: None after the answer, else why there is none.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        message: bytes,
        *,
        heard: Callable[[bytes], bool],
        ended: Callable[[str | None], None],
    ) -> None:
        self._reactor = reactor
        self._where = host, port
        self._message = message
        self._heard = heard
        self._ended = ended
        self._socket: socket.socket | None = None
        self._conversation: Conversation | None = None
        # Never within this call: whoever asks wants to keep what he is given first.
        self._timer: IDelayedCall | None = reactor.callLater(0, self._begin)

    def stop(self) -> None:
        """Without a word to `ended`."""
        self._close()
        if self._conversation is not None:
            self._conversation.stop()

    def _begin(self) -> None:
        family = socket.AF_INET6 if ":" in self._where[0] else socket.AF_INET
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._timer = self._reactor.callLater(ANSWER_SECONDS, self._end, "no answer")
        try:
            self._socket = socket.socket(family, kind)  # there may be no IPv6 here
            self._socket.connect(self._where)
            self._socket.send(self._message)
        except OSError as error:
            self._end(f"no answer: {error.strerror}")
            return
        self._reactor.addReader(self)

    def fileno(self) -> int:
        """Twisted: the descriptor to watch."""
        return self._socket.fileno() if self._socket is not None else -1

    def doRead(self) -> None:
        """Twisted: a datagram."""
        assert self._socket is not None
        try:
            octets = self._socket.recv(_MAX_DATAGRAM_OCTETS)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"no answer: {error.strerror}")
            return
        if len(octets) < _HEADER_OCTETS or octets[:2] != self._message[:2]:
            return
        if octets[2] & _TRUNCATED:
            self._close()
            self._conversation = Conversation(
                self._reactor, *self._where, self._message, heard=self._heard, ended=self._ended
            )
        elif self._heard(octets):
            self._end(None)

    def logPrefix(self) -> str:
        """Twisted: who this is in a log."""
        return "asking"

    def connectionLost(self, reason: Failure) -> None:
        """Twisted: there is nobody (epoll tells of that as an end), or the reactor is shutting down."""
        if self._socket is not None:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNABORTED
            self._end(f"no answer: {os.strerror(error)}")

    def _end(self, why: str | None) -> None:
        self._close()
        self._ended(why)

    def _close(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

"""One message to another DNS server over TCP, and the messages that answer it (RFC 1035 4.2.2).

Hides the connection: its making, its lengths, and how long the other side may be silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""Without a message that is whole: a server that makes a transfer sends some each second."""


class Conversation(ClientFactory):
    """Sends `message` to the server at `host` and `port`; `heard` gets each message of the answer, and says
    whether it was the last. In the end `ended` is told, once: None after the last message, else what went
    wrong.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        message: bytes,
        *,
        heard: Callable[[bytes], bool],
        ended: Callable[[str | None], None],
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.message = message
        self._reactor = reactor
        self._heard = heard
        self._ended = ended
        self._is_over = False
        self._silence_seconds = silence_seconds
        self._timer: IDelayedCall | None = None
        self._connection = reactor.connectTCP(host, port, self, timeout=CONNECT_SECONDS)

    def buildProtocol(self, addr: object) -> Protocol:
        return _Messages(self)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self.end(f"no connection: {reason.getErrorMessage()}")

    def clientConnectionLost(self, connector: object, reason: Failure) -> None:
        self.end("it ended the connection before its answer was whole")

    def stop(self) -> None:
        """Without a word to `ended`."""
        self._is_over = True
        self._end()

    def waiting(self) -> None:
        """From now on silence counts."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.callLater(self._silence_seconds, self._silent)

    def take(self, message: bytes) -> None:
        if self._is_over:
            return
        self.waiting()
        if self._heard(message):
            self.end(None)

    def end(self, why: str | None) -> None:
        """It is over."""
        if not self._is_over:
            self._is_over = True
            self._end()
            self._ended(why)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.disconnect()

    def _silent(self) -> None:
        self._timer = None
        self.end(f"it was silent for {self._silence_seconds:g} s")


class _Messages(Protocol):
    """The stream, cut into messages."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._received = bytearray()

    def connectionMade(self) -> None:
        message = self._conversation.message
        assert self.transport is not None
        self.transport.write(len(message).to_bytes(2, "big") + message)
        self._conversation.waiting()

    def dataReceived(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        while len(received) - at >= 2:
            end = at + 2 + int.from_bytes(received[at : at + 2], "big")
            if end > len(received):
                break
            self._conversation.take(bytes(received[at + 2 : end]))
            at = end
        del received[:at]

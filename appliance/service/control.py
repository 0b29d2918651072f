"""The control socket: how a command that is typed beside a running appliance reaches it.

A unix socket in the state directory, mode 0600, so whoever may open it may read the keys as well. One JSON
object a line each way: `{"command": "invite", "names": ["www.example.org"]}` is answered by
`{"result": …}` or `{"error": "…"}`. Hides the socket's file: one that a killed process left is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, ILoggingContext
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

SOCKET_NAME = "control"
MAX_REQUEST_OCTETS = 65536
"""An invitation of 256 names of 253 octets fits."""
MAX_CONNECTIONS = 16
REQUEST_SECONDS = 30.0
MAX_PATH_OCTETS = 107
"""sun_path has 108 with the final zero (unix(7))."""

Command = Callable[[Mapping[str, Any]], "Deferred[Any] | Any"]
"""Takes the request's arguments, gives what json can write; raises CommandRefused."""


class CommandRefused(Exception):
    """The command is not done; the text says why, to the person who typed it."""


class CannotControl(Exception):
    """The control socket cannot be opened; the text says why."""


class Control(Service):
    """Answers `commands` on the socket `state/control`."""

    _log = Logger()

    def __init__(self, reactor: Any, state: Path, commands: Mapping[str, Command]) -> None:
        self._reactor = reactor
        self._path = state / SOCKET_NAME
        self._commands = commands
        self._port: Any = None

    def startService(self) -> None:
        """Open the socket. The store of this state directory is open, so no other appliance has it."""
        if len(os.fsencode(self._path)) > MAX_PATH_OCTETS:
            raise CannotControl(f"{self._path} is too long for a socket, which has {MAX_PATH_OCTETS} octets")
        super().startService()  # type: ignore[no-untyped-call]
        self._path.unlink(missing_ok=True)
        factory = _Conversations(self._reactor, self._answer)
        umask = os.umask(0o177)
        try:
            self._port = self._reactor.listenUNIX(str(self._path), factory, mode=0o600)
        finally:
            os.umask(umask)

    def stopService(self) -> Deferred[Any] | None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._port is None:
            return None
        port, self._port = self._port, None
        port.factory.end()
        stopped: Deferred[Any] = maybeDeferred(port.stopListening)
        return stopped

    def _answer(self, line: bytes) -> Deferred[dict[str, Any]]:
        def ask() -> Any:
            try:
                request = json.loads(line)
                command = self._commands[request.pop("command")]
            except (ValueError, AttributeError, TypeError):
                raise CommandRefused("that is not a request") from None
            except KeyError as error:
                raise CommandRefused(f"there is no command {error}") from None
            return command(request)

        def refused(failure: Failure) -> dict[str, Any]:
            if failure.check(CommandRefused):
                return {"error": str(failure.value)}
            self._log.failure("a command failed", failure)
            return {"error": f"the command failed ({type(failure.value).__name__}): see the appliance's log"}

        return maybeDeferred(ask).addCallbacks(lambda result: {"result": result}, refused)


class _Conversation(LineOnlyReceiver, TimeoutMixin):
    """One connection of a command: a request, its answer, the end."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_REQUEST_OCTETS

    def __init__(self, reactor: Any, answer: Callable[[bytes], Deferred[dict[str, Any]]]) -> None:
        self._reactor = reactor
        self._answer = answer

    def callLater(self, period: float, func: Callable[[], None]) -> Any:
        return self._reactor.callLater(period, func)

    def connectionMade(self) -> None:
        factory = self.factory
        assert isinstance(factory, _Conversations)
        factory.open.add(self)
        if len(factory.open) > MAX_CONNECTIONS:
            self._end()
        else:
            self.setTimeout(REQUEST_SECONDS)  # type: ignore[no-untyped-call]

    def lineReceived(self, line: bytes) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._answer(line).addCallback(self._say)

    def _say(self, answer: dict[str, Any]) -> None:
        if self.connected:
            self.sendLine(json.dumps(answer).encode())  # type: ignore[no-untyped-call]
            self._end()

    def _end(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        factory = self.factory
        assert isinstance(factory, _Conversations)
        factory.open.discard(self)


@implementer(ILoggingContext)
class _Conversations(Factory):
    """Makes them, and ends those that are open when the service stops."""

    noisy = False

    def __init__(self, reactor: Any, answer: Callable[[bytes], Deferred[dict[str, Any]]]) -> None:
        self.open: set[_Conversation] = set()
        self._reactor = reactor
        self._answer = answer

    def logPrefix(self) -> str:
        return "control"

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol = _Conversation(self._reactor, self._answer)
        protocol.factory = self
        return protocol

    def end(self) -> None:
        for conversation in list(self.open):
            if conversation.transport is not None:
                conversation.transport.abortConnection()  # type: ignore[attr-defined]

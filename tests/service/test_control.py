from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent

from appliance.service.control import (
    MAX_CONNECTIONS,
    MAX_REQUEST_OCTETS,
    REQUEST_SECONDS,
    CannotControl,
    CommandRefused,
    Control,
)


class Reactor(MemoryReactorClock):
    """Remembers the unix port that was asked for."""

    factory: Any = None
    path = ""
    mode = 0

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        self.path, self.factory, self.mode = address, factory, mode
        return Port(factory)


class Port:
    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.stopped = False

    def stopListening(self) -> None:
        self.stopped = True


def started(tmp_path: Path, **commands: Any) -> tuple[Reactor, Control]:
    reactor = Reactor()  # type: ignore[no-untyped-call]
    control = Control(reactor, tmp_path, commands)
    control.startService()
    return reactor, control


def connected(reactor: Reactor) -> tuple[Any, StringTransport]:
    protocol = reactor.factory.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    return protocol, transport


def asked(reactor: Reactor, line: bytes) -> Any:
    protocol, transport = connected(reactor)
    protocol.dataReceived(line + b"\n")
    assert transport.disconnecting
    return json.loads(transport.value())


def test_an_answer(tmp_path: Path) -> None:
    reactor, _ = started(tmp_path, add=lambda request: request["a"] + 1)
    assert asked(reactor, b'{"command": "add", "a": 1}') == {"result": 2}
    assert reactor.path == str(tmp_path / "control")
    assert reactor.mode == 0o600


def test_an_answer_later(tmp_path: Path) -> None:
    later: Deferred[str] = Deferred()
    reactor, _ = started(tmp_path, wait=lambda _: later)
    protocol, transport = connected(reactor)
    protocol.dataReceived(b'{"command":')
    protocol.dataReceived(b' "wait"}\n')
    assert transport.value() == b""
    reactor.advance(REQUEST_SECONDS * 2)
    assert not transport.disconnecting
    later.callback("x")
    assert json.loads(transport.value()) == {"result": "x"}


def test_an_answer_to_nobody(tmp_path: Path) -> None:
    later: Deferred[str] = Deferred()
    reactor, _ = started(tmp_path, wait=lambda _: later)
    protocol, transport = connected(reactor)
    protocol.dataReceived(b'{"command": "wait"}\n')
    protocol.connected = 0
    later.callback("x")
    assert transport.value() == b""


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[]", b"5", b'{"a": 1}', b'{"command": []}', b'{"command": "x"}']
)
def test_what_is_no_request(tmp_path: Path, line: bytes) -> None:
    reactor, _ = started(tmp_path)
    assert set(asked(reactor, line)) == {"error"}


def test_a_refusal(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise CommandRefused("not today")

    reactor, _ = started(tmp_path, refuse=refuse)
    assert asked(reactor, b'{"command": "refuse"}') == {"error": "not today"}


def test_a_mistake_of_ours(tmp_path: Path, logged_errors: list[LogEvent]) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("bug")

    reactor, _ = started(tmp_path, fail=fail)
    error = asked(reactor, b'{"command": "fail"}')["error"]
    assert error == "the command failed (RuntimeError): see the appliance's log"
    assert len(logged_errors) == 1
    logged_errors.clear()


def test_bounds(tmp_path: Path) -> None:
    reactor, _ = started(tmp_path)
    protocol, transport = connected(reactor)
    protocol.dataReceived(b"x" * (MAX_REQUEST_OCTETS + 1))
    assert transport.disconnecting
    protocol, transport = connected(reactor)
    reactor.advance(REQUEST_SECONDS + 1)
    assert transport.disconnecting
    for _ in range(MAX_CONNECTIONS):
        protocol, transport = connected(reactor)
    assert transport.disconnecting


def test_stopping_ends_conversations(tmp_path: Path) -> None:
    reactor, control = started(tmp_path)
    protocol, transport = connected(reactor)
    control.stopService()
    assert transport.disconnected
    protocol.connectionLost()
    assert not reactor.getDelayedCalls()
    assert control.stopService() is None


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(CannotControl, match="too long for a socket"):
        Control(None, tmp_path / ("x" * 100), {}).startService()


@pytest_twisted.ensureDeferred
async def test_a_real_socket(tmp_path: Path) -> None:
    from twisted.internet import reactor  # the only way to see the mode of the file

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control"))
    left.close()
    control = Control(reactor, tmp_path, {})
    control.startService()
    assert stat.S_IMODE(os.stat(tmp_path / "control").st_mode) == 0o600
    stopped = control.stopService()
    assert stopped is not None
    await stopped

"""Dialling real sockets on loopback."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.service.client.dial import Dialling, Target
from appliance.service.readiness import Readiness
from tests.service.turning import Turning, turning

Result = socket.socket | OSError


@pytest.fixture
def turned() -> Iterator[tuple[Turning, Readiness]]:
    with turning() as both:
        yield both


def listening() -> tuple[socket.socket, Target]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4)
    return listener, Target(socket.AF_INET, listener.getsockname())


def refusing() -> Target:
    listener, target = listening()
    listener.close()
    return target


def full() -> tuple[list[socket.socket], Target]:
    """A listener that takes no further connection, so that a dial hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    filling = [listener]
    for _ in range(2):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        filling.append(sock)
    return filling, Target(socket.AF_INET, listener.getsockname())


def dial(turned: tuple[Turning, Readiness], targets: list[Target]) -> Result:
    reactor, readiness = turned
    results: list[Result] = []
    dialling = Dialling(readiness, reactor, 5.0)
    dialling.dial(targets, results.append)
    reactor.until(lambda: results)
    dialling.stop()
    return results[0]


def test_the_first_target_that_accepts(turned: tuple[Turning, Readiness]) -> None:
    listener, target = listening()
    result = dial(turned, [refusing(), target])
    assert isinstance(result, socket.socket)
    assert result.getpeername() == target.address
    assert result.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    turned[1].forget(result)
    result.close()
    listener.close()


def test_a_unix_socket(turned: tuple[Turning, Readiness], tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "web"))
    listener.listen(1)
    result = dial(turned, [Target(socket.AF_UNIX, str(tmp_path / "web"))])
    assert isinstance(result, socket.socket)
    turned[1].forget(result)
    result.close()
    listener.close()


def full_unix(path: Path) -> tuple[socket.socket, Target]:
    """A unix socket whose backlog of one is full: connect(2) says EAGAIN, and nothing tells of room."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    listener.setblocking(False)
    with socket.socket(socket.AF_UNIX) as filling:  # it stays in the backlog when it is closed
        filling.connect(str(path))
    with socket.socket(socket.AF_UNIX) as refused:
        refused.setblocking(False)
        assert refused.connect_ex(str(path)) == errno.EAGAIN
    return listener, Target(socket.AF_UNIX, str(path))


def test_a_unix_socket_whose_backlog_is_full_is_waited_for(
    turned: tuple[Turning, Readiness], tmp_path: Path
) -> None:
    reactor, readiness = turned
    listener, target = full_unix(tmp_path / "web")
    results: list[tuple[str, Result]] = []
    dialling = Dialling(readiness, reactor, 5.0)
    dialling.dial([target], lambda result: results.append(("first", result)))
    dialling.dial([target], lambda result: results.append(("second", result)))
    for _ in range(20):
        reactor.advance(0.2)
        reactor.turn()
    assert not results
    for waited in ("first", "second"):  # each when there is room, and in their order
        listener.accept()[0].close()
        reactor.advance(0.05)
        reactor.until(lambda: results)
        ((who, result),) = results
        results.clear()
        assert who == waited
        assert isinstance(result, socket.socket)
        readiness.forget(result)
        result.close()
    dialling.stop()
    listener.close()


def test_a_unix_socket_whose_backlog_stays_full(turned: tuple[Turning, Readiness], tmp_path: Path) -> None:
    reactor, readiness = turned
    listener, target = full_unix(tmp_path / "web")
    results: list[Result] = []
    dialling = Dialling(readiness, reactor, 5.0)
    dialling.dial([target], lambda result: results.append(result))
    cancelled = dialling.dial([target], lambda result: results.append(result))
    reactor.advance(1.0)
    cancelled.cancel()
    reactor.advance(3.9)
    assert not results
    reactor.advance(0.2)
    assert [type(result) for result in results] == [TimeoutError]  # as where TCP waits in vain
    for _ in range(3):
        reactor.advance(0.1)
    assert not reactor.getDelayedCalls()
    listener.close()


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ENOENT, errno.EDESTADDRREQ])
def test_why_there_is_none(turned: tuple[Turning, Readiness], number: int, tmp_path: Path) -> None:
    targets = {
        errno.ECONNREFUSED: [refusing()],
        errno.ENOENT: [Target(socket.AF_UNIX, str(tmp_path / "nobody"))],
        errno.EDESTADDRREQ: [],
    }[number]
    result = dial(turned, targets)
    assert isinstance(result, OSError)
    assert result.errno == number


def test_the_time_is_limited(turned: tuple[Turning, Readiness]) -> None:
    reactor, readiness = turned
    filling, target = full()
    results: list[Result] = []
    Dialling(readiness, reactor, 5.0).dial([target], results.append)
    reactor.turn()
    reactor.advance(4.9)
    assert not results
    reactor.advance(0.2)
    assert isinstance(results[0], TimeoutError)
    assert results[0].errno == errno.ETIMEDOUT
    for sock in filling:
        sock.close()


def test_a_cancelled_one_says_nothing(turned: tuple[Turning, Readiness]) -> None:
    reactor, readiness = turned
    listener, target = listening()
    results: list[Result] = []
    dialling = Dialling(readiness, reactor, 5.0)
    dialling.dial([target], results.append).cancel()
    dialling.stop()
    for _ in range(5):
        reactor.turn()
    assert not results
    assert not reactor.getDelayedCalls()
    listener.close()

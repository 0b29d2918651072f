"""One message and its answer, over real sockets on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore

from appliance.service import asking
from appliance.service.asking import Asking
from tests.end_to_end.programs import free_port

QUERY = b"\x12\x34" + bytes(10)
ANSWER = b"\x12\x34\x80" + bytes(9)


@pytest.fixture
def reactor() -> IReactorCore:
    from twisted.internet import reactor

    return reactor


class Server:
    """Answers a datagram as it is told, and a connection with `over_tcp`."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.port = free_port("both")
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.tcp = socket.socket()
        self.tcp.bind(("127.0.0.1", self.port))
        self.tcp.listen()
        self.heard: list[bytes] = []

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()

    def answer(self, *datagrams: bytes) -> None:
        octets, source = self.udp.recvfrom(4096)
        self.heard.append(octets)
        for one in datagrams:
            self.udp.sendto(one, source)

    def answer_tcp(self, message: bytes) -> None:
        connection, _ = self.tcp.accept()
        with connection:
            self.heard.append(connection.recv(4096))
            connection.sendall(len(message).to_bytes(2, "big") + message)


@pytest.fixture
def server(reactor: Any) -> Iterator[Server]:
    made = Server(reactor)
    yield made
    made.close()


def ask(reactor: Any, port: int, heard: Callable[[bytes], bool]) -> tuple[Asking, Deferred[str | None]]:
    ended: Deferred[str | None] = Deferred()
    return Asking(reactor, "127.0.0.1", port, QUERY, heard=heard, ended=ended.callback), ended


def passed(reactor: Any) -> Deferred[None]:
    """A while that is enough for what is under way on loopback."""
    done: Deferred[None] = Deferred()
    reactor.callLater(0.1, done.callback, None)
    return done


@pytest_twisted.ensureDeferred
async def test_the_answer_is_the_one_with_its_id_that_is_believed(reactor: Any, server: Server) -> None:
    got: list[bytes] = []

    def heard(octets: bytes) -> bool:
        got.append(octets)
        return octets == ANSWER

    _, ended = ask(reactor, server.port, heard)
    other = ANSWER[:-1] + b"x"
    reactor.callInThread(server.answer, b"", b"\x12\x35" + ANSWER[2:], other, ANSWER, ANSWER)
    assert await ended is None
    assert got == [other, ANSWER]
    assert server.heard == [QUERY]


@pytest_twisted.ensureDeferred
async def test_what_is_cut_short_is_asked_over_tcp(reactor: Any, server: Server) -> None:
    got: list[bytes] = []

    def heard(octets: bytes) -> bool:
        got.append(octets)
        return True

    _, ended = ask(reactor, server.port, heard)
    reactor.callInThread(server.answer, ANSWER[:2] + b"\x82" + ANSWER[3:])
    reactor.callInThread(server.answer_tcp, ANSWER)
    assert await ended is None
    assert got == [ANSWER]
    await passed(reactor)  # until the connection is closed as well
    assert server.heard == [QUERY, len(QUERY).to_bytes(2, "big") + QUERY]


@pytest_twisted.ensureDeferred
async def test_a_port_where_nobody_listens_is_known_at_once(reactor: Any, server: Server) -> None:
    server.close()
    began = reactor.seconds()
    _, ended = ask(reactor, server.port, lambda octets: True)
    assert await ended == "no answer: Connection refused"
    assert reactor.seconds() - began < asking.ANSWER_SECONDS


@pytest_twisted.ensureDeferred
async def test_silence_has_an_end(reactor: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.05)
    _, ended = ask(reactor, server.port, lambda octets: True)
    assert await ended == "no answer"


@pytest_twisted.ensureDeferred
async def test_an_address_that_cannot_be_reached(reactor: Any) -> None:
    ended: Deferred[str | None] = Deferred()
    Asking(reactor, "255.255.255.255", 53, QUERY, heard=lambda octets: True, ended=ended.callback)
    why = await ended
    assert why is not None
    assert why.startswith("no answer: ")


@pytest_twisted.ensureDeferred
async def test_a_family_that_the_machine_has_not(reactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.AF_INET6", 250)
    ended: Deferred[str | None] = Deferred()
    Asking(reactor, "2001:db8::1", 53, QUERY, heard=lambda octets: True, ended=ended.callback)
    why = await ended
    assert why is not None
    assert why.startswith("no answer: ")


@pytest.mark.parametrize("when", ["at once", "sent", "over TCP"])
@pytest_twisted.ensureDeferred
async def test_after_stop_nothing_is_told(reactor: Any, server: Server, when: str) -> None:
    asked, ended = ask(reactor, server.port, lambda octets: True)
    if when == "over TCP":
        reactor.callInThread(server.answer, ANSWER[:2] + b"\x82" + ANSWER[3:])
    if when != "at once":
        await passed(reactor)
    asked.stop()
    await passed(reactor)
    assert not ended.called

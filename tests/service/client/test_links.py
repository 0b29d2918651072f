"""One link by itself: how long it waits, what it keeps of the transport, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from appliance.service.client import links as module
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.links import Client, Link, LinkFailed
from appliance.service.client.origins import Origins
from appliance.service.client.tickets import Tickets
from appliance.service.client.tls import ClientTls
from appliance.service.client.visits import Visits
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay
from appliance.settings import ClientSettings
from appliance.tunnel.certificates import SERVICE_NAME, read_credential
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.session import Offer
from tests.service.client.fake_server import CA, NAMES, FakeServer, invitation, until
from tests.tunnel.lists import KeptList

reactor: Any = _reactor

CREDENTIAL = read_credential(invitation().credential_pem)


class Keeping:
    """A keeper that lets every link join, and remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def denied(self, server_id: str, name: str, value: str, text: str) -> None:
        raise AssertionError("nothing was challenged")

    def renewal_answered(self, link: Link, certificate: str, text: str) -> None:
        raise AssertionError("nothing was to be renewed")

    def may_join(self, link: Link, server_id: str) -> bool:
        self.told.append(f"may join {server_id}")
        return True

    def welcomed(self, link: Link, server_id: str) -> None:
        self.told.append(f"welcomed {server_id}")

    def parted(self, link: Link) -> None:
        self.told.append("parted")


class Making:
    """A link's surroundings; ``clock`` in place of the reactor where nothing is dialled."""

    def __init__(self, clock: Any) -> None:
        self.drawn: list[float] = []
        self.keeper = Keeping()
        self.links: list[Link] = []
        self.clock = clock
        self.readiness = Readiness(clock)
        settings = ClientSettings(invitation=Path("i"))
        visits = Visits(
            clock,
            self.readiness,
            Relay(self.readiness),
            Origins(settings, NAMES, clock),
            Keypairs(Tickets(Path("unused"))),
        )
        tls = ClientTls(SERVICE_NAME, CA.certificate, CREDENTIAL, lambda: datetime.now(UTC))
        offers = {NAMES[0]: Offer(tls=True, http="redirect")}
        self.client = Client(clock, visits, tls, "0" * 32, offers, self.jitter, KeptList(CA))

    def jitter(self, low: float, high: float) -> float:
        self.drawn.append(high)
        return 0.01

    def link(self, address: ServerAddress) -> Link:
        self.links.append(Link(self.client, address, self.keeper))
        return self.links[-1]


@pytest_twisted.async_yield_fixture
async def making() -> AsyncIterator[Making]:
    made = Making(reactor)
    made.readiness.start()
    yield made
    for link in made.links:
        if link.running:
            await maybeDeferred(link.stopService)
    made.client.visits.stop()
    made.readiness.stop()


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[FakeServer]:
    made = FakeServer(reactor)
    yield made
    await made.stop()


def pauses(link: Link, making: Making, number: int) -> list[float]:
    making.drawn.clear()
    for _ in range(number):
        link.pause(1)
    return list(making.drawn)


def test_the_pause_is_drawn_from_ever_more_up_to_a_ceiling() -> None:
    making = Making(Clock())
    link = making.link(ServerAddress("127.0.0.1", 1))
    assert pauses(link, making, 8) == [1, 2, 4, 8, 16, 20, 20, 20]


def test_a_server_that_restarts_is_dialled_every_few_seconds() -> None:
    """Its visitors are kept for 5 s until a client is there again; a refused dial costs nobody anything."""
    making = Making(Clock())
    link = making.link(ServerAddress("127.0.0.1"))

    def drawn(*, refused: bool) -> float:
        link.failed(LinkFailed("no"), refused=refused)
        return pauses(link, making, 1)[0]

    talk: Any = object()
    link.running = 0
    link.ended(talk, "the server is gone", 100.0)
    assert pauses(link, making, 1) == [1]
    assert [drawn(refused=True) for _ in range(5)] == [2, 3, 3, 3, 3]
    assert drawn(refused=False) == 20
    making.clock.advance(29.0)
    assert drawn(refused=True) == 3
    making.clock.advance(2.0)
    assert drawn(refused=True) == 20  # it does not restart: it is away


def test_only_a_session_that_lasted_makes_the_pause_short_again() -> None:
    making = Making(Clock())
    link = making.link(ServerAddress("127.0.0.1", 1))
    assert pauses(link, making, 5)[-1] == 16
    talk: Any = object()
    link.ended(talk, "it closed the connection", None)
    link.running = 0
    assert pauses(link, making, 1) == [20]
    link.ended(talk, "it closed the connection", module.STABLE_SECONDS - 1)
    assert pauses(link, making, 1) == [8]
    link.ended(talk, "it closed the connection", module.STABLE_SECONDS)
    assert pauses(link, making, 1) == [1]


def test_a_server_that_leaves_says_when_to_come_back_and_that_counts_once() -> None:
    making = Making(Clock())
    link = making.link(ServerAddress("127.0.0.1", 1))
    link.come_back(7.0)
    assert link.pause(1) == pytest.approx(7.01)
    assert link.pause(1) == pytest.approx(0.01)


@pytest_twisted.ensureDeferred
async def test_the_keeper_is_told_in_order(making: Making, server: FakeServer) -> None:
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: link.lanes is not None)
    assert making.keeper.told == ["may join s1", "welcomed s1"]
    await until(reactor, lambda: server.link is not None)
    assert server.link is not None
    server.link.cut()
    await until(reactor, lambda: making.keeper.told.count("welcomed s1") == 2)
    assert making.keeper.told[2] == "parted"


@pytest_twisted.ensureDeferred
async def test_a_link_that_may_not_join_says_no_hello(making: Making, server: FakeServer) -> None:
    making.keeper.may_join = lambda link, server_id: False  # type: ignore[method-assign]
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: server.connections >= 3)
    assert all(link.instance is None for link in server.links)
    assert not making.keeper.told


@pytest_twisted.ensureDeferred
async def test_the_kernel_watches_the_link(making: Making, server: FakeServer) -> None:
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: link.lanes is not None)
    talk: Any = link._talk
    sock = module._socket_under(talk.transport)
    assert sock is not None
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4500


@pytest_twisted.ensureDeferred
async def test_a_link_pings(making: Making, server: FakeServer) -> None:
    server.ping_seconds = 1.0
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: server.link is not None and server.link.names)
    fake = server.link
    assert fake is not None
    heard: list[bytes] = []
    receive = fake.receive

    def listening(octets: bytes) -> None:
        heard.append(octets)
        receive(octets)

    fake.receive = listening  # type: ignore[method-assign]
    await until(reactor, lambda: any(b'"ping"' in octets for octets in heard))
    await deferLater(reactor, 0.05)
    assert link.lanes is not None


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_does_not_end(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.02)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        link = making.link(ServerAddress("127.0.0.1", silent.getsockname()[1]))
        link.startService()
        await until(reactor, lambda: len(making.drawn) >= 2)
        assert not link.complaints.new(link.address, "it did not finish the TLS handshake in time")


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_close_is_not_waited_for(
    making: Making, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: link.lanes is not None and server.link is not None)
    assert server.link is not None
    server.link.transport.pauseProducing()
    await link.stopService()
    assert link.lanes is None


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_on_behind_its_goodbye_is_cut(
    making: Making, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    link = making.link(server.listen())
    link.startService()
    await until(reactor, lambda: link.lanes is not None and server.link is not None)
    first = server.link
    assert first is not None
    first.transport.pauseProducing()  # no close_notify is answered
    first.session.goodbye("stopping", "the server is stopping")
    first.send()
    end = reactor.seconds() + 5.0
    while len(server.links) == 1:  # until it is dialled again
        assert reactor.seconds() < end, "the old connection is kept"
        first.transport.write(b"more\n")
        await deferLater(reactor, 0.02)
    await link.stopService()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (error.ConnectionRefusedError(111, "x"), "connection refused"),
        (error.TimeoutError(), "it did not answer in time"),
        (error.ConnectError(99, "x"), "no local port is left"),
        (error.NoRouteError(113, "x"), "no route to host"),
        (error.ConnectError(None, "odd"), "odd"),
    ],
)
def test_words_for_no_connection(reason: Exception, words: str) -> None:
    assert words in module._connect_words(Failure(reason))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (error.ConnectionDone(), "it closed the connection"),
        (error.ConnectionLost(), "the connection broke"),
        (SSL.Error([("SSL routines", "", "unexpected eof")]), "TLS: unexpected eof"),
        (SSL.Error(), "it closed the connection"),
        (ValueError("odd"), "odd"),
    ],
)
def test_words_for_a_lost_connection(reason: Exception, words: str) -> None:
    assert words in module._lost_words(Failure(reason))

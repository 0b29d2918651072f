"""A whole tunnel client against fake servers and a fake nameserver, on loopback, in one reactor."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.addresses import Listen, Origin
from appliance.service.client.joining import TunnelClient
from appliance.settings import ClientSettings
from appliance.tunnel.certificates import make_authority
from appliance.tunnel.discovery import MAX_SERVERS, ServerAddress, write_txt
from appliance.tunnel.lane import Status
from appliance.tunnel.messages import Goodbye, Lines
from appliance.tunnel.proxyheader import Kind, read_proxy_header
from appliance.tunnel.session import ClientDraining, CrlBrought
from tests.service.client.fake_server import CA, NOW, FakeServer, invitation, issued, until, visitor
from tests.service.client.test_resolver import FakeNameserver, txt
from tests.tunnel.authority import OTHER_CA
from tests.tunnel.lists import revoking

reactor: Any = _reactor
"""Shadows nothing: the tests below need the real one, for they use real sockets."""


class FakeOrigin(Factory):
    """A web server of sorts: keeps its connections and what came on them."""

    def __init__(self) -> None:
        self.connections: list[OriginConnection] = []
        self.port: Any = reactor.listenTCP(0, self, interface="127.0.0.1")

    def buildProtocol(self, addr: object) -> OriginConnection:
        self.connections.append(OriginConnection())
        return self.connections[-1]

    @property
    def address(self) -> Origin:
        return Origin("127.0.0.1", self.port.getHost().port)

    async def stop(self) -> None:
        await self.port.stopListening()
        for connection in self.connections:
            transport: Any = connection.transport
            transport.abortConnection()
        await until(reactor, lambda: all(connection.ended for connection in self.connections))


class OriginConnection(Protocol):
    def __init__(self) -> None:
        self.octets = b""
        self.half_closed = False
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        self.octets += data

    def send(self, octets: bytes) -> None:
        assert self.transport is not None
        self.transport.write(octets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True


@implementer(ILogObserver)
class Log:
    """What the client says to people."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("appliance."):
            self.lines.append(formatEvent(event))

    def holding(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]


class World:
    """Everything that a test may use, and its end."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log = Log()
        self.servers: list[FakeServer] = []
        self.clients: list[TunnelClient] = []
        self.origin = FakeOrigin()
        self.nameserver = FakeNameserver()
        self.nameserver.listen()
        self.jitter: Callable[[float, float], float] = lambda low, high: low + 0.01

    def server(self, server_id: str = "s1", **more: Any) -> FakeServer:
        made = FakeServer(reactor, server_id, **more)
        self.servers.append(made)
        return made

    def client(self, *servers: ServerAddress, **settings: Any) -> TunnelClient:
        more: dict[str, Any] = {"tls_origin": self.origin.address, "http_origin": self.origin.address}
        wall = settings.pop("wall", lambda: NOW)
        names = settings.pop("granted", ("www.example.com",))
        made = ClientSettings(
            invitation=Path("invitation"),
            state=self.state,
            resolver=Listen(*self.nameserver.address),
            **(more | settings),
        )
        client = TunnelClient(reactor, made, invitation(*servers, names=names), jitter=self.jitter, wall=wall)
        self.clients.append(client)
        client.startService()
        return client

    def discovers(self, *servers: ServerAddress) -> None:
        self.nameserver.answer = txt(*map(write_txt, servers), name="example.com", ttl=5)

    async def stop(self) -> None:
        for client in self.clients:
            if client.running:
                await maybeDeferred(client.stopService)
        for server in self.servers:
            await server.stop()
        await self.origin.stop()
        await self.nameserver.udp.stopListening()
        await self.nameserver.tcp.stopListening()
        await deferLater(reactor, 0)


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    globalLogPublisher.addObserver(made.log)
    yield made
    globalLogPublisher.removeObserver(made.log)
    await made.stop()


async def joined(server: FakeServer, lanes: int = 2) -> Any:
    """The server's newest link, when the client has registered and its idle lanes are there."""
    await until(
        reactor,
        lambda: server.link is not None and server.link.names and len(server.link.lanes) >= lanes,
        "joined",
    )
    return server.link


@pytest_twisted.ensureDeferred
async def test_joins_and_says_so_in_one_line(world: World) -> None:
    server = world.server()
    address = server.listen()
    client = world.client(address)
    link = await joined(server)
    await until(reactor, lambda: client.joined == [address])
    assert link.names == ["www.example.com"]
    assert link.instance == (world.state / "instance").read_text().strip()
    await until(reactor, lambda: world.log.holding("joined"))
    assert world.log.holding("joined server") == [f"joined server s1 at {address}: www.example.com"]
    assert not any(lane.tls for lane in link.lanes)


@pytest_twisted.ensureDeferred
async def test_a_visitor_over_tls_from_end_to_end(world: World) -> None:
    server = world.server()
    world.client(server.listen())
    link = await joined(server)
    lane = link.lanes[0]
    lane.take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets)
    origin = world.origin.connections[0]
    assert origin.octets == b"ClientHello"
    assert not lane.answer
    origin.send(b"ServerHello")
    await until(reactor, lambda: len(lane.answer) == 12)
    assert lane.answer == bytes([Status.JOINED]) + b"ServerHello"
    lane.transport.write(b"x" * 300_000)
    await until(reactor, lambda: len(origin.octets) == 300_011)
    # The end of one direction goes through while the other goes on.
    lane.transport.loseWriteConnection()
    await until(reactor, lambda: origin.ended)  # Twisted closes whole at an end of the stream
    await until(reactor, lambda: lane.ended)
    await until(reactor, lambda: len(link.lanes) >= 2)  # and the lane was replaced


@pytest_twisted.ensureDeferred
async def test_a_visitor_over_plain_http_comes_on_a_tls_lane(world: World) -> None:
    server = world.server()
    world.client(server.listen(), http="serve", proxy_protocol=True)
    link = await joined(server)
    link.session.lanes("tls", 0, 1)
    link.send()
    await until(reactor, lambda: any(lane.tls for lane in link.lanes))
    (lane,) = [lane for lane in link.lanes if lane.tls]
    header = visitor(kind=Kind.HTTP)
    lane.take(link, header, b"GET / HTTP/1.1\r\n\r\n")
    await until(reactor, lambda: lane.answer == bytes([Status.JOINED]))
    expected = header.for_origin().octets() + b"GET / HTTP/1.1\r\n\r\n"
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets == expected)
    assert read_proxy_header(expected[: -len(b"GET / HTTP/1.1\r\n\r\n")]).source == ("203.0.113.7", 50000)
    origin = world.origin.connections[0]
    origin.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * 200_000)
    assert origin.transport is not None
    origin.transport.loseConnection()
    await until(reactor, lambda: len(lane.answer) == 200_020)
    await until(reactor, lambda: lane.ended)


@pytest_twisted.ensureDeferred
async def test_every_server_that_the_dns_names_is_joined(world: World) -> None:
    servers = [world.server(f"s{number}") for number in range(3)]
    addresses = [server.listen() for server in servers]
    world.discovers(*addresses)
    client = world.client(addresses[0])
    for server in servers:
        await joined(server)
    assert client.joined == sorted(addresses)


@pytest_twisted.ensureDeferred
async def test_a_drain_tells_the_servers_and_lets_visitors_finish(world: World) -> None:
    servers = [world.server(f"s{number}") for number in range(2)]
    client = world.client(*(server.listen() for server in servers))
    links = [await joined(server) for server in servers]
    lane, late = links[0].lanes[:2]
    lane.take(links[0], visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections)
    world.origin.connections[0].send(b"ServerHello")
    await until(reactor, lambda: lane.answer)
    over: list[None] = []
    client.drain().addCallback(over.append)
    for link in links:
        await until(reactor, lambda link=link: ClientDraining() in link.events)  # type: ignore[misc]
    late.take(links[0], visitor(), b"on the way")  # it was chosen before the server heard
    await until(reactor, lambda: len(world.origin.connections) == 2)
    links[1].cut()
    await until(reactor, lambda: len(client.joined) == 1)
    for connection in world.origin.connections:
        assert not over
        transport: Any = connection.transport
        transport.abortConnection()
    await until(reactor, lambda: over)
    assert len(servers[1].links) == 1  # it was not dialled again
    client.drain().addCallback(over.append)
    assert over == [None, None]


@pytest_twisted.ensureDeferred
async def test_a_drain_of_nobody_is_over_at_once_and_one_of_somebody_has_a_limit(world: World) -> None:
    server = world.server()
    address = server.listen()
    client = world.client(address, drain_seconds=0)
    over: list[None] = []
    client.drain().addCallback(over.append)  # before it has joined
    assert over == [None]
    await deferLater(reactor, 0.05)
    assert not server.links
    other = world.client(address, drain_seconds=0)
    link = await joined(server)
    lane = link.lanes[0]
    lane.take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections)
    other.drain().addCallback(over.append)
    await until(reactor, lambda: len(over) == 2)


@pytest_twisted.ensureDeferred
async def test_a_revoked_server_is_left_with_its_visitors_and_refused_for_ever(world: World) -> None:
    stolen, other = world.server("s1"), world.server("s2")
    addresses = [stolen.listen(), other.listen()]
    client = world.client(*addresses)
    link, second = [await joined(server) for server in (stolen, other)]
    lane = link.lanes[0]
    lane.take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections)
    world.origin.connections[0].send(b"ServerHello")
    await until(reactor, lambda: lane.answer)
    revoked = revoking(CA, [stolen.credential.certificate.serial_number], 3, NOW)
    second.session.give(revoked)
    second.send()
    await until(reactor, lambda: link.ended and lane.ended and world.origin.connections[0].ended)
    assert client.joined == [addresses[1]]
    await until(reactor, lambda: world.log.holding("cannot join", "was revoked"))
    assert (world.state / "revoked.pem").read_bytes() == revoked.pem
    await maybeDeferred(client.stopService)
    connections, links = stolen.connections, len(stolen.links)
    world.client(*addresses)  # it remembers
    await until(reactor, lambda: stolen.connections > connections)
    await until(reactor, lambda: len(other.links) == 2)
    assert len(stolen.links) == links


@pytest_twisted.ensureDeferred
async def test_a_list_goes_from_one_server_to_the_others(world: World) -> None:
    servers = [world.server(f"s{number}") for number in range(2)]
    client = world.client(*(server.listen() for server in servers))
    first, second = [await joined(server) for server in servers]
    revoked = revoking(CA, [1, 2], 5, NOW)
    first.session.give(revoked)
    first.send()
    await until(reactor, lambda: CrlBrought(revoked.pem) in second.events)
    assert CrlBrought(revoked.pem) not in first.events
    second.cut()
    await until(reactor, lambda: len(servers[1].links) == 2)
    await until(reactor, lambda: CrlBrought(revoked.pem) in servers[1].links[1].events)
    assert len(client.joined) == 2
    first.session.give(revoking(OTHER_CA, [1], 6, NOW))
    first.send()
    await until(reactor, lambda: first.ended)
    assert world.log.holding("left server s0", "not signed by this CA")


@pytest_twisted.ensureDeferred
async def test_a_live_link_stays_when_the_dns_forgets_its_server(world: World) -> None:
    first, second = world.server("s1"), world.server("s2")
    address = first.listen()
    client = world.client(address)
    await joined(first)
    world.discovers(second.listen())
    # A lost link is a reason to ask the DNS at once.
    assert first.link is not None
    first.link.cut()
    await joined(second)
    await joined(first)
    assert address in client.joined
    assert len(world.nameserver.asked) >= 2


def look_up_anew(client: TunnelClient) -> None:
    client._resolver.stopService()
    client._resolver.startService()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(txt(name="example.com"), id="empty"),
        pytest.param(txt("r=superprotocol;ip=0.0.0.0", "v=spf1 -all", name="example.com"), id="forged"),
        pytest.param(lambda query, tcp: None, id="nothing"),
        pytest.param(lambda query, tcp: b"\x00" * 12, id="garbage"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nothing_that_the_dns_says_takes_a_joined_server_away(world: World, answer: Any) -> None:
    server, other = world.server(), world.server("s2")
    address = server.listen()
    client = world.client(address)
    link = await joined(server)
    world.nameserver.answer = answer
    asked = len(world.nameserver.asked)
    look_up_anew(client)
    await until(reactor, lambda: len(world.nameserver.asked) > asked)
    await deferLater(reactor, 0.05)
    assert client.joined == [address]
    world.discovers(other.listen())  # and what it says next is believed
    look_up_anew(client)
    await joined(other)
    assert not link.ended


@pytest_twisted.ensureDeferred
async def test_an_answer_of_more_than_64_servers_costs_a_bounded_number_of_dials(world: World) -> None:
    server = world.server()
    address = server.listen()
    client = world.client(address)
    link = await joined(server)
    world.discovers(*(ServerAddress(f"127.0.{number}.1", 1) for number in range(1, 100)))
    look_up_anew(client)
    await until(reactor, lambda: len(client.links) > 1)
    assert len(client.links) == MAX_SERVERS
    assert client.joined == [address]
    assert not link.ended


@pytest_twisted.ensureDeferred
async def test_comes_back_to_a_server_that_died_and_its_joined_visitors_go_on(world: World) -> None:
    server = world.server()
    address = server.listen()
    client = world.client(address)
    link = await joined(server)
    lane = link.lanes[0]
    lane.take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets)
    origin = world.origin.connections[0]
    origin.send(b"S")
    await until(reactor, lambda: lane.answer)
    idle = [other for other in link.lanes if other is not lane]
    link.cut()
    await until(reactor, lambda: all(other.ended for other in idle))
    again = await joined(server)
    assert again is not link
    assert again.instance == link.instance
    assert client.joined == [address]
    origin.send(b"more")
    await until(reactor, lambda: lane.answer == bytes([Status.JOINED]) + b"Smore")
    assert len(world.log.holding("left server s1")) == 1
    assert len(world.log.holding("joined server s1")) == 2


@pytest_twisted.ensureDeferred
async def test_retries_for_ever_and_says_why_once(world: World) -> None:
    server = world.server()
    address = server.listen()
    await server.stop()
    pauses: list[float] = []
    of_the_resolver = {6.25, 12.5, 25.0, 50.0, 75.0}

    def jitter(low: float, high: float) -> float:
        pauses.append(high)
        return 0.005

    world.jitter = jitter
    world.client(address)
    await until(reactor, lambda: pauses.count(20.0) >= 3)
    assert [high for high in pauses if high not in of_the_resolver][:7] == [1, 2, 4, 8, 16, 20, 20]
    assert world.log.holding("cannot join") == [
        f"cannot join the server at {address}: connection refused; trying again"
    ]
    server.listen()
    await joined(server)


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_up_is_no_success(world: World) -> None:
    server = world.server()
    server.hangs_up = True
    ceilings: list[float] = []

    def jitter(low: float, high: float) -> float:
        ceilings.append(high)
        return 0.005

    world.jitter = jitter
    world.client(server.listen())
    await until(reactor, lambda: 16 in ceilings)
    assert len(world.log.holding("cannot join")) == 1
    assert not world.log.holding("left server")


@pytest_twisted.ensureDeferred
async def test_a_refused_link_is_explained_in_the_servers_words_once(world: World) -> None:
    server = world.server()
    server.refuses = ("revoked", "the certificate 1f was revoked")
    world.client(server.listen())
    await until(reactor, lambda: server.connections >= 5)
    assert len(world.log.holding("cannot join")) == 1
    assert world.log.holding("cannot join", "the certificate 1f was revoked")
    server.refuses = None
    await joined(server)


@pytest_twisted.ensureDeferred
async def test_a_server_of_another_ca_is_told_nothing(world: World) -> None:
    server = world.server(credential=issued(ca=make_authority("theirs", NOW)))
    world.client(server.listen())
    await until(reactor, lambda: server.connections >= 3)
    assert not server.links
    assert len(world.log.holding("cannot join", "another CA")) == 1


@pytest_twisted.ensureDeferred
async def test_a_server_that_says_it_is_another_is_left(world: World) -> None:
    server = world.server()
    server.says_it_is = "s2"
    client = world.client(server.listen())
    await until(reactor, lambda: world.log.holding("cannot join", "says it is s2"))
    assert not client.joined
    assert not server.lanes


@pytest_twisted.ensureDeferred
async def test_goodbye_and_draining_from_the_server(world: World) -> None:
    server = world.server()
    client = world.client(server.listen())
    link = await joined(server)
    link.session.drain(0.2)
    link.send()
    await until(reactor, lambda: world.log.holding("is leaving"))
    # It goes on to send visitors until it leaves.
    link.lanes[0].take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets)
    began = reactor.seconds()
    link.session.goodbye("stopping", "the server is stopping")
    link.send()
    await until(reactor, lambda: not client.joined)
    assert world.log.holding("left server s1", "the server is stopping")
    await joined(server)
    assert reactor.seconds() - began >= 0.2


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_refused_is_said_and_the_others_are_served(world: World) -> None:
    server = world.server()
    real = server.grant
    server.grant = lambda certificate: real(certificate)[:1]  # type: ignore[method-assign]
    address = server.listen()
    world.client(address, granted=("www.example.com", "api.example.com"))
    await joined(server)
    await until(reactor, lambda: world.log.holding("joined server"))
    assert world.log.holding("joined server") == [f"joined server s1 at {address}: www.example.com"]
    assert len(world.log.holding("refuses api.example.com")) == 1


@pytest_twisted.ensureDeferred
async def test_two_addresses_of_one_server_have_one_link(world: World) -> None:
    server, alternate = world.server("s1"), world.server("s1")
    addresses = [server.listen("127.0.0.1"), alternate.listen("127.0.0.2")]
    world.discovers(*addresses)
    client = world.client(*addresses)
    await until(reactor, lambda: client.joined and len(client.links) == 1, "one link")
    (up,) = client.joined
    ends = dict(zip(addresses, (server, alternate), strict=True))
    other = next(address for address in addresses if address != up)
    assert not ends[other].links or all(link.instance is None for link in ends[other].links)
    # When the one that was used is gone, the other is dialled.
    await ends[up].stop()
    await joined(ends[other])
    assert client.joined == [other]


@pytest_twisted.ensureDeferred
async def test_stopping_says_goodbye_and_ends_everything(world: World) -> None:
    server = world.server()
    client = world.client(server.listen())
    link = await joined(server)
    lane = link.lanes[0]
    lane.take(link, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets)
    heard = b""
    receive = link.receive

    def listening(octets: bytes) -> None:
        nonlocal heard
        heard += octets
        receive(octets)

    link.receive = listening
    stopped: Deferred[Any] = client.stopService()
    await stopped
    await until(reactor, lambda: link.ended and lane.ended and all(idle.ended for idle in link.lanes))
    assert any(isinstance(message, Goodbye) for message in Lines().feed(heard))
    await until(reactor, lambda: world.origin.connections[0].ended)
    assert not client.joined


@pytest_twisted.ensureDeferred
async def test_stopping_while_dialling(world: World) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        client = world.client(ServerAddress("127.0.0.1", silent.getsockname()[1]))
        await deferLater(reactor, 0.02)
        await maybeDeferred(client.stopService)


@pytest_twisted.ensureDeferred
async def test_stopping_while_waiting_to_dial_again(world: World) -> None:
    server = world.server()
    address = server.listen()
    await server.stop()
    world.jitter = lambda low, high: high
    client = world.client(address)
    await until(reactor, lambda: world.log.holding("cannot join"))
    await maybeDeferred(client.stopService)


@pytest_twisted.ensureDeferred
async def test_two_clients_with_one_state_directory_are_two_instances(world: World) -> None:
    server = world.server()
    address = server.listen()
    world.client(address)
    await joined(server)
    world.client(address)
    await until(reactor, lambda: len([link for link in server.links if link.names]) == 2)
    first, second = (link.instance for link in server.links)
    assert first != second
    assert world.log.holding("another tunnel client runs")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
@pytest_twisted.ensureDeferred
async def test_a_server_at_an_ipv6_address(world: World) -> None:
    server = world.server()
    address = server.listen("::1")
    client = world.client(address)
    await joined(server)
    assert client.joined == [address]


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (0, []),
        (303, []),
        (305, ["expires on", "in 59 days", "no server"]),
        (366, ["expired on", "--renew c1"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_invitation_that_ends_soon_is_warned_of(world: World, days: int, words: list[str]) -> None:
    client = world.client(wall=lambda: NOW + timedelta(days=days))
    said = world.log.holding("the certificate exp")
    assert len(said) == (1 if words else 0)
    for each in words:
        assert each in said[0]
    await maybeDeferred(client.stopService)

"""Two appliances and a client on one reactor: nothing in them is the process's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.names.client import Resolver
from twisted.names.error import DNSNameError
from twisted.python.failure import Failure

from appliance.addresses import Listen, Origin
from appliance.service.appliance import Appliance
from appliance.service.client.joining import TunnelClient
from appliance.settings import ApplianceSettings, ClientSettings, NameserverSettings, ServerSettings
from appliance.tunnel.discovery import ServerAddress
from tests.end_to_end.programs import free_port
from tests.service.server.linked import until
from tests.service.server.test_entry import hello

reactor: Any = _reactor
ZONE = "one.test"
NAME = f"www.{ZONE}"
ADDRESSES = ["127.0.0.1", "127.0.0.2"]


class Answers(Protocol):
    """An origin: says how many octets it got, at the first ones."""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(b"origin got %d" % len(data))
        transport.loseConnection()


class Asks(Protocol):
    """A visitor: sends a ClientHello, and takes everything until the end."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(hello(NAME, [b"h2"]))

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True


def nameserver_settings(directory: Path, dns: int, other: ServerAddress) -> NameserverSettings:
    zones = directory / "zones"
    zones.mkdir(parents=True)
    (zones / "one.zone").write_text(
        f"$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns1 hostmaster 1 7200 900 1209600 15\n NS ns1\nns1 A 127.0.0.1\n"
    )
    return NameserverSettings(
        zones=zones, listen=(Listen("127.0.0.1", dns),), servers=(other,), private_addresses=True
    )


@pytest_twisted.ensureDeferred
async def test_two_appliances_and_a_client_in_one_process(tmp_path: Path) -> None:
    dns, tls = free_port("both"), free_port("tcp")
    public = [ServerAddress(address, tls) for address in ADDRESSES]
    first = Appliance(
        reactor,
        ApplianceSettings(
            state=tmp_path / "s1" / "state",
            nameserver=nameserver_settings(tmp_path / "s1", dns, public[1]),
            server=ServerSettings(
                id="s1", addresses=(public[0],), tls=(Listen(ADDRESSES[0], tls),), https_port=tls
            ),
        ),
    )
    first.startService()
    enrolment = tmp_path / "enrolment.toml"
    enrolment.write_text((await first.authority.enroll("s2", [public[1]])).to_toml())
    second = Appliance(
        reactor,
        ApplianceSettings(
            state=tmp_path / "s2" / "state",
            server=ServerSettings(
                id="s2",
                addresses=(public[1],),
                tls=(Listen(ADDRESSES[1], tls),),
                enrolment=enrolment,
                https_port=tls,
            ),
        ),
    )
    second.startService()
    origin = reactor.listenTCP(0, Factory.forProtocol(Answers), interface="127.0.0.1")
    client = TunnelClient(
        reactor,
        ClientSettings(
            invitation=tmp_path / "unused",
            state=tmp_path / "client",
            resolver=Listen("127.0.0.1", dns),
            tls_origin=Origin("127.0.0.1", origin.getHost().port),
        ),
        await first.authority.invite([NAME], "home"),
    )
    client.startService()
    try:
        for appliance in (first, second):
            await until(lambda appliance=appliance: appliance.status()["sessions"])  # type: ignore[misc]
        resolver = Resolver(servers=[("127.0.0.1", dns)])

        async def addresses() -> list[str]:
            try:
                answers, _, _ = await resolver.lookupAddress(NAME, timeout=[5])
            except DNSNameError:  # the registration has not been published yet
                return []
            return sorted(answer.payload.dottedQuad() for answer in answers)

        while await addresses() != ADDRESSES:
            await deferLater(reactor, 0.05)
        for address in ADDRESSES:
            visitor = Asks()
            await TCP4ClientEndpoint(reactor, address, tls).connect(Factory.forProtocol(lambda: visitor))  # noqa: B023
            await until(lambda: visitor.ended)  # noqa: B023
            assert visitor.got == b"origin got %d" % len(hello(NAME, [b"h2"]))
    finally:
        await client.stopService()
        await origin.stopListening()
        await second.stopService()
        await first.stopService()
    await until(lambda: not reactor.getDelayedCalls())

"""A small tunnel server on loopback, made of the cores, that does what a test tells it to.

Links and lanes come to one port and are told apart by their first octet. It routes nobody: a test takes a
lane and is the visitor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.service.client.tls import LANE_ALPN, LINK_ALPN
from appliance.service.tls import ServerTls
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    CertificateRefused,
    Credential,
    Role,
    examine,
    issue_client,
    issue_server,
    make_authority,
)
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Invitation
from appliance.tunnel.lane import (
    EXPORTED_OCTETS,
    EXPORTER_LABEL,
    MAGIC,
    PREFACE_OCTETS,
    LaneKeys,
    lane_keys,
    read_preface,
    seal_header,
    verify,
)
from appliance.tunnel.messages import Goodbye, encode
from appliance.tunnel.proxyheader import Kind, ProxyHeader
from appliance.tunnel.session import Event, HelloReceived, NameRegistered, ServerSession

NAMES = ("www.example.com",)
NOW = datetime.now(UTC)
CA = make_authority("fake appliance", NOW)
PATIENCE_SECONDS = 20.0


def issued(server_id: str = "s1", ca: Credential = CA) -> Credential:
    return issue_server(ca, server_id=server_id, service_name=SERVICE_NAME, addresses=["127.0.0.1"], wall=NOW)


def invitation(*servers: ServerAddress, names: tuple[str, ...] = NAMES) -> Invitation:
    credential = issue_client(CA, client_id="c1", names=names, service_name=SERVICE_NAME, wall=NOW)
    return Invitation(
        client="c1",
        names=names,
        discovery="example.com",
        service_name=SERVICE_NAME,
        servers=servers,
        ca_pem=CA.certificate_pem(),
        credential_pem=credential.pem(),
    )


def visitor(host: str = NAMES[0], kind: Kind = Kind.TLS) -> ProxyHeader:
    return ProxyHeader(("203.0.113.7", 50000), ("198.51.100.1", 443), host, None, b"visit-1", kind)


async def until(reactor: Any, condition: Callable[[], object], what: str = "") -> None:
    """Let the reactor turn until the condition holds."""
    end = reactor.seconds() + PATIENCE_SECONDS
    while not condition():
        assert reactor.seconds() < end, f"it did not come to it: {what or condition}"
        await deferLater(reactor, 0.003)


class FakeLink:
    """The server's end of one link."""

    def __init__(self, server: FakeServer, transport: Any, names: tuple[str, ...]) -> None:
        self.server = server
        self.transport = transport
        self.id = os.urandom(8)
        self.session = ServerSession(
            peer_names=names,
            server_id=server.says_it_is or server.server_id,
            boot="boot",
            session_id=self.id,
            nonce=lambda: os.urandom(8).hex(),
            now=server.reactor.seconds(),
            service_name=SERVICE_NAME,
            ping_seconds=server.ping_seconds,
            crl=server.crl,
        )
        exported = transport.getHandle().export_keying_material(EXPORTER_LABEL, EXPORTED_OCTETS, b"")
        self.keys: LaneKeys = lane_keys(exported)
        self.events: list[Event] = []
        self.ended = False

    @property
    def instance(self) -> str | None:
        return next((event.instance for event in self.events if isinstance(event, HelloReceived)), None)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events if isinstance(event, NameRegistered)]

    @property
    def lanes(self) -> list[FakeLane]:
        """Those of this session that nobody has taken and that are open, the oldest first."""
        return [
            lane
            for lane in self.server.lanes
            if lane.preface.session_id == self.id and not lane.taken and not lane.ended
        ]

    def receive(self, octets: bytes) -> None:
        self.events += self.session.receive(octets, self.server.reactor.seconds())
        self.send()

    def send(self) -> None:
        """Write what the session has to say: after every verb of a test as well."""
        if not self.server.withholds:
            self.transport.write(self.session.data_to_send())

    def cut(self) -> None:
        """As a crash would."""
        self.transport.abortConnection()


class FakeLane:
    """A lane at the server: idle until a test takes it."""

    def __init__(self, transport: Any, tls: bool) -> None:
        self.transport = transport
        self.tls = tls
        self.octets = b""
        self.taken = False
        self.ended = False
        self.reset = False

    @property
    def preface(self) -> Any:
        return read_preface(self.octets[:PREFACE_OCTETS])

    @property
    def answer(self) -> bytes:
        """The status octet and what came behind it."""
        return self.octets[PREFACE_OCTETS:]

    def take(self, link: FakeLink, header: ProxyHeader, early: bytes = b"") -> None:
        assert verify(link.keys, self.preface)
        self.taken = True
        self.transport.write(seal_header(link.keys, self.preface, header.octets()) + early)


class FakeServer:
    """One server id at one address of loopback."""

    def __init__(self, reactor: Any, server_id: str = "s1", credential: Credential | None = None) -> None:
        self.reactor = reactor
        self.server_id = server_id
        self.says_it_is = ""
        self.refuses: tuple[str, str] | None = None
        self.hangs_up = False
        self.withholds = False
        self.ping_seconds = 5.0
        self.crl = 0
        self.links: list[FakeLink] = []
        self.lanes: list[FakeLane] = []
        self.connections = 0
        self.alpn: list[bytes | None] = []
        self._open: set[Any] = set()
        self._closed: list[Deferred[None]] = []
        self.shows(credential or issued(server_id))
        self._port: Any = None
        self._number = 0

    def shows(self, credential: Credential) -> None:
        """From now on, in new handshakes."""
        self.credential = credential
        self._tls = ServerTls(credential, [LINK_ALPN, LANE_ALPN])

    def listen(self, host: str = "127.0.0.1") -> ServerAddress:
        """Take connections at a port of its own, or at the same one as before."""
        factory = Factory.forProtocol(lambda: _First(self))
        self._port = self.reactor.listenTCP(self._number, factory, interface=host)
        self._number = self._port.getHost().port
        return ServerAddress(host, self._number)

    async def stop(self) -> None:
        """Crash: no more connections, and those that there are break."""
        if self._port is not None:
            await self._port.stopListening()
            self._port = None
        for transport in list(self._open):
            transport.abortConnection()
        await until(self.reactor, lambda: not self._open, "connections closed")

    @property
    def link(self) -> FakeLink | None:
        """The newest link that is up."""
        up = [link for link in self.links if not link.ended]
        return up[-1] if up else None

    def accepted(self, transport: Any) -> None:
        self.connections += 1
        self._open.add(transport)

    def lost(self, transport: Any) -> None:
        self._open.discard(transport)

    def tls_protocol(self) -> Any:
        return TLSMemoryBIOFactory(
            self._tls, False, Factory.forProtocol(lambda: _Inside(self)), self.reactor
        ).buildProtocol(None)

    def grant(self, certificate: Any) -> tuple[str, ...]:
        return examine(certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=NOW).names


class _First(Protocol):
    """Looks at the first octet: a plain lane, or TLS."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._lane: FakeLane | None = None
        self._tls: Any = None

    def connectionMade(self) -> None:
        self._server.accepted(self.transport)
        if self._server.hangs_up:
            self.transport.abortConnection()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        if self._lane is None and self._tls is None:
            if data[:1] == MAGIC[:1]:
                self._lane = FakeLane(self.transport, tls=False)
            else:
                self._tls = self._server.tls_protocol()
                self._tls.makeConnection(self.transport)
        if self._tls is not None:
            self._tls.dataReceived(data)
        elif self._lane is not None:
            self._lane.octets += data
            if self._lane not in self._server.lanes and len(self._lane.octets) >= PREFACE_OCTETS:
                self._server.lanes.append(self._lane)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._server.lost(self.transport)
        if self._lane is not None:
            self._lane.ended = True
        if self._tls is not None:
            self._tls.connectionLost(reason)


@implementer(IHandshakeListener)
class _Inside(Protocol):
    """A link or a lane inside TLS."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._link: FakeLink | None = None
        self._lane: FakeLane | None = None

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        alpn = transport.negotiatedProtocol
        self._server.alpn.append(alpn)
        if alpn == LANE_ALPN:
            self._lane = FakeLane(transport, tls=True)
            return
        try:
            names = self._server.grant(transport.getHandle().get_peer_certificate(as_cryptography=True))
        except CertificateRefused as refused:
            self._server.refuses = (refused.reason.value, refused.text)
            names = ()
        if self._server.refuses is not None:
            transport.write(encode(Goodbye(*self._server.refuses)))
            transport.loseConnection()
            return
        self._link = FakeLink(self._server, transport, names)
        self._server.links.append(self._link)

    def dataReceived(self, data: bytes) -> None:
        if self._link is not None:
            self._link.receive(data)
        elif self._lane is not None:
            self._lane.octets += data
            if self._lane not in self._server.lanes and len(self._lane.octets) >= PREFACE_OCTETS:
                self._server.lanes.append(self._lane)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for end in (self._link, self._lane):
            if end is not None:
                end.ended = True

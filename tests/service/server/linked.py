"""A tunnel server in this process, and clients that only have a link: for tests with a running reactor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.service.server.accounts import Accounts
from appliance.service.server.challenges import Challenges
from appliance.service.server.tunnelserver import TunnelServer
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Credential,
    Peer,
    Role,
    examine,
    issue_client,
    issue_nameserver,
    issue_server,
    make_authority,
)
from appliance.tunnel.renewal import Request
from appliance.tunnel.session import ClientSession, Ended, Event, NameRegistered, Offer
from tests.tunnel.lists import KeptList

reactor: Any = _reactor
WALL = datetime.now(UTC)
CA = make_authority("test", WALL - timedelta(days=1000))
SERVER = issue_server(CA, server_id="s1", service_name=SERVICE_NAME, addresses=["127.0.0.1"], wall=WALL)
NAMESERVER = issue_nameserver(CA, nameserver_id="n1", wall=WALL)
NAMES = ["www.example.com", "*.apps.example.com"]
TLS_ONLY = Offer(True, "redirect")


def client_credential(client_id: str = "home", *, ca: Credential = CA, **more: Any) -> Credential:
    arguments = {"names": NAMES, "service_name": SERVICE_NAME, "wall": WALL, **more}
    return issue_client(ca, client_id=client_id, **arguments)


@implementer(IOpenSSLClientConnectionCreator)
class ClientEnd:
    """A client's TLS that believes every server: what is tested here is the other end."""

    def __init__(self, credential: Credential | None, alpn: bytes) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if credential is not None:
            context.use_certificate(credential.certificate)
            context.use_privatekey(credential.key)
        self._connection = SSL.Connection(context, None)
        self._connection.set_alpn_protos([alpn])
        self._connection.set_tlsext_host_name(SERVICE_NAME.encode())

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return self._connection


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed or reset it; what comes before is not looked at."""
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


class Mute:
    """A peer that never ends TLS: its kernel answers TCP, and nobody a close_notify."""

    def __init__(self, ground: Ground, credential: Credential | None, alpn: bytes = b"tunnel/1") -> None:
        self._tls = ClientEnd(credential, alpn).clientConnectionForTLS(None)
        self._tls.set_connect_state()
        self._sock = socket.create_connection(("127.0.0.1", ground.server.ports[0]))
        self._sock.setblocking(False)

    async def shake_hands(self) -> None:
        """The handshake is done when this returns."""
        await until(self._is_shaken)

    def send(self, octets: bytes) -> None:
        """Say this, over TLS."""
        self._tls.send(octets)
        self._flush()

    def is_cut(self) -> bool:
        """Whether the other end has closed TCP."""
        return ended(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _is_shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            with suppress(BlockingIOError):
                self._tls.bio_write(self._sock.recv(65536))
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        with suppress(SSL.WantReadError):
            self._sock.sendall(self._tls.bio_read(65536))


class Served(Protocol):
    """The protocol of an accepted watch, for those tests: it only counts."""


class Ground:
    """One server and its ears."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.shown: dict[str, bytes] = {}
        self.watches: list[Peer] = []
        self.asked: list[Request] = []
        self.answer: Deferred[str] = Deferred()
        self.kept = KeptList(CA, lambda revoked: self.server.revoke(revoked))
        self.challenges = Challenges(reactor, list, lambda: None)
        self.watched: list[Any] = []
        self.accounts = Accounts(reactor, lambda: self.watched, lambda: None)
        self.server = TunnelServer(
            reactor,
            server_id="s1",
            boot="boot",
            service_name=SERVICE_NAME,
            tls_addresses=[("127.0.0.1", 0)],
            http_addresses=[("127.0.0.1", 0)],
            https_port=443,
            default_name=None,
            identity=lambda: (SERVER, CA.certificate),
            examine=self._examine,
            revocations=self.kept,
            known=lambda host: False,
            known_as=lambda host: None,
            watch_for=self._watch,
            serving=self._serving,
            not_serving=lambda name: self.told.append(("not serving", name)),
            challenges=self.challenges,
            renew=self._renew,
            accounts=self.accounts,
        )
        self.server.startService()
        self.clients: list[LinkOnly] = []

    def _examine(self, certificate: x509.Certificate | None, role: Role, wall: datetime) -> Peer:
        return examine(certificate, role=role, ca=CA.certificate, revoked=self.kept.revoked, wall=wall)

    def _serving(self, name: str, certificate_pem: bytes) -> None:
        self.told.append(("serving", name))
        self.shown[name] = certificate_pem

    def _renew(self, request: Request) -> Deferred[str]:
        self.asked.append(request)
        self.answer = Deferred()
        return self.answer

    def _watch(self, peer: Peer) -> Served:
        self.watches.append(peer)
        return Served()

    async def link(self, credential: Credential | None, **more: Any) -> LinkOnly:
        """Connect with this certificate; the handshake is done when this returns."""
        made = LinkOnly(**more)
        self.clients.append(made)
        tls = ClientEnd(credential, more.get("alpn", b"tunnel/1"))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.server.ports[0])
        await wrapClientTLS(tls, endpoint).connect(Factory.forProtocol(lambda: made))
        return made

    async def close(self) -> None:
        await self.server.stopService()
        for client in self.clients:
            await until(lambda client=client: client.closed)  # type: ignore[misc]
        await until(lambda: not reactor.getDelayedCalls())


class LinkOnly(Protocol):
    """A client that says hello and registers its names, and never brings a lane."""

    def __init__(
        self,
        offers: dict[str, Offer] | None = None,
        *,
        instance: str | None = None,
        alpn: bytes = b"tunnel/1",
        answers: bool = True,
        crl: int | None = None,
    ) -> None:
        self.machine = ClientSession(
            instance=instance or os.urandom(16).hex(),
            offers=dict.fromkeys(NAMES, TLS_ONLY) if offers is None else offers,
            nonce=lambda: os.urandom(4).hex(),
            now=reactor.seconds(),
            crl=crl,
        )
        self.events: list[Event] = []
        self.octets = b""
        self.closed = False
        self._speaks = alpn == b"tunnel/1"
        self._answers = answers

    def connectionMade(self) -> None:
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        self.octets += data
        if self._speaks and self._answers:
            self.events += self.machine.receive(data, reactor.seconds())
            self._flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True

    def send(self, octets: bytes) -> None:
        transport: Any = self.transport
        transport.write(octets)

    def abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events if isinstance(event, NameRegistered)]

    @property
    def end(self) -> Ended | None:
        return next((event for event in self.events if isinstance(event, Ended)), None)

    def _flush(self) -> None:
        octets = self.machine.data_to_send() if self._speaks else b""
        if octets:
            self.send(octets)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait, with the reactor running, for a condition."""
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, "not reached in time"
        await deferLater(reactor, 0.005)

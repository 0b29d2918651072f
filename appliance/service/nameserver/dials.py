"""One dial of a tunnel server, from the connect to the end of the watch that may come of it.

Hides TLS and whom it meets. The handshake lets everybody through, as a tunnel server's does: the certificate
is judged behind it, so that a refusal has words, and before a word of ours is said. It must be a tunnel
server's, issued by our CA for the service name and not revoked, and carry the very address that was dialled.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.fleet.events import CrlBrought, Ended, ObserverEvent, ServerGreeted
from appliance.fleet.watch import Observer
from appliance.service import keepalive
from appliance.service.shares import Shares
from appliance.service.watchwire import WatchWire
from appliance.tunnel.certificates import CertificateRefused, Credential, Peer, Reason, Role, examine
from appliance.tunnel.crl import CrlRefused, RevocationList, Revocations
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.renewal import Request

WATCH_ALPN = b"watch/1"
CONNECT_SECONDS = 30
"""Whoever dials gives up long before; this only bounds what Twisted keeps if it does not."""


class Meeting:
    """How this nameserver proves itself to servers, and whom it takes for one.

    `identity()` gives its credential and the CA (asked once, when they are first needed: they are made when
    the appliance starts, and again after `forget_identity`); `revocations` keeps the newest revocation list;
    `renews()` is whether the CA's key is here.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        nameserver_id: str,
        service_name: str,
        identity: Callable[[], tuple[Credential, x509.Certificate]],
        revocations: Revocations,
        renews: Callable[[], bool] = lambda: False,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reactor = reactor
        self._nameserver_id = nameserver_id
        self._service_name = service_name
        self._identity = cache(identity)
        self._tls = cache(self._creator)
        self.revocations = revocations
        self._renews = renews
        self._wall = wall
        self.shares = Shares(reactor)

    def connect(self, address: ServerAddress, factory: Factory) -> Deferred[Any]:
        """Connect and begin the handshake."""
        kind = TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
        endpoint = kind(self._reactor, address.host, address.port, timeout=CONNECT_SECONDS)
        connected: Deferred[Any] = wrapClientTLS(self._tls(), endpoint).connect(factory)
        return connected

    def server_at(self, address: ServerAddress, certificate: x509.Certificate | None) -> Peer:
        """Who shows this certificate at this address. Raises CertificateRefused."""
        peer = self._examine(certificate, Role.SERVER)
        if ipaddress.ip_address(address.host) not in map(ipaddress.ip_address, peer.addresses):
            held = ", ".join(peer.addresses) or "none"
            raise CertificateRefused(
                Reason.WRONG_NAME,
                f"the certificate of {peer.id} is for other addresses ({held}) than {address.host}",
            )
        return peer

    def observer(self, server_id: str) -> Observer:
        """The machine for a watch of this server."""
        return Observer(
            self._nameserver_id,
            partial(secrets.token_hex, 8),
            self._reactor.seconds(),
            server_id=server_id,
            examine=partial(self._examine, role=Role.CLIENT),
            crl=self.revocations.revoked.number,
            renews=self._renews(),
        )

    def forget_identity(self) -> None:
        """It has changed: the next dial shows the new one."""
        self._identity.cache_clear()
        self._tls.cache_clear()

    def _creator(self) -> _NameserverTls:
        return _NameserverTls(self._identity()[0], self._service_name)

    def _examine(self, certificate: x509.Certificate | None, role: Role) -> Peer:
        _, ca = self._identity()
        return examine(
            certificate,
            role=role,
            ca=ca,
            revoked=self.revocations.revoked,
            wall=self._wall(),
            service_name=self._service_name,
        )


@implementer(IOpenSSLClientConnectionCreator)
class _NameserverTls:
    """TLS 1.3 as a nameserver: shows its certificate, asks for the service name and for a watch."""

    def __init__(self, credential: Credential, service_name: str) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        context.set_verify(SSL.VERIFY_NONE)  # examine() does, in words
        self._context = context
        self._service_name = service_name.encode("ascii")

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Twisted: the connection of one dial."""
        connection = SSL.Connection(self._context, None)
        connection.set_tlsext_host_name(self._service_name)
        connection.set_alpn_protos([WATCH_ALPN])
        return connection


class Dial:
    """A dial under way, and then the connection.

    `refused(dial)`: nobody listens there; `failed(dial, text)`: no watch came of it, or it ended;
    `heard(dial, events)`: what the watch says. After `failed`, `refused` or `drop` nothing is called.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        meeting: Meeting,
        address: ServerAddress,
        *,
        refused: Callable[[Dial], None],
        failed: Callable[[Dial, str], None],
        heard: Callable[[Dial, list[ObserverEvent]], None],
        revoked: Callable[[], None],
    ) -> None:
        """`revoked()`: the server there is one whose certificate is revoked."""
        self.peer: Peer | None = None
        self.observer: Observer | None = None
        self._meeting = meeting
        self._address = address
        self._refused = refused
        self._failed = failed
        self._heard = heard
        self._revoked = revoked
        self.is_over = False
        self._wire = _Wire(reactor, self)
        self._connecting: Deferred[Any] | None = None
        factory: Factory[Any] = Factory.forProtocol(lambda: self._wire)
        factory.noisy = False
        connecting = meeting.connect(address, factory)
        if not connecting.called:
            self._connecting = connecting
        connecting.addCallbacks(self._connected, self._not_connected)

    def know(self, names: list[str]) -> None:
        """Tell the server of names that are known."""
        if self.observer is not None:
            self.observer.know(names)
            self._wire.flush()

    def forget(self, names: list[str]) -> None:
        """Tell the server of names that are no longer known."""
        if self.observer is not None:
            self.observer.forget(names)
            self._wire.flush()

    def withdrawn(self, held: bool) -> None:
        """Tell the draining server that it is out of what is published; or not, for there is no other."""
        if self.observer is not None and not self.is_over:
            self.observer.withdrawn(held=held)
            self._wire.flush()

    def ask_renewal(self, request: Request) -> None:
        """Have the server get a certificate renewed."""
        if self.observer is not None and not self.is_over:
            self.observer.renewals.ask(request)
            self._wire.flush()

    def answer_renewal(self, digest: str, certificate: str, text: str) -> None:
        """Give the server the certificate that it asked for, or say why there is none."""
        if self.observer is not None and not self.is_over:
            if certificate:
                self.observer.renewals.answer(digest, certificate)
            else:
                self.observer.renewals.refuse(digest, text)
            self._wire.flush()

    def give(self, revoked: RevocationList) -> None:
        """Give the server this revocation list, unless it has one as new."""
        if self.observer is not None and not self.is_over:
            self.observer.give(revoked)
            self._wire.flush()

    def revoke(self, revoked: RevocationList) -> None:
        """This is the revocation list now: no word of those on it counts."""
        if self.observer is not None and not self.is_over:
            gone = self.observer.revoke(revoked.serials)
            if gone:
                self._heard(self, gone)
            self.give(revoked)

    def examine_again(self) -> None:
        """The revocation list is another one."""
        if self.peer is not None and not self.is_over:
            try:
                self._meeting.server_at(self._address, self.peer.certificate)
            except CertificateRefused as refusal:
                self._refuse(refusal)

    def drop(self) -> None:
        """End it, whatever it is."""
        self.is_over = True
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._wire.transport is not None:
            self._wire.cut()

    # What the connection says

    def _connected(self, _wire: object) -> None:
        self._connecting = None

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if self.is_over:
            return
        self.is_over = True
        if failure.check(ConnectionRefusedError):
            self._refused(self)
        else:
            if not failure.check(ConnectError):
                self._log.failure("a dial of {address} failed", failure, address=self._address)
            self._failed(self, f"cannot be reached: {failure.getErrorMessage()}")

    def _met(self, certificate: x509.Certificate | None, alpn: bytes | None) -> None:
        """The handshake is over."""
        try:
            peer = self._meeting.server_at(self._address, certificate)
        except CertificateRefused as refusal:
            self._refuse(refusal)
            return
        if alpn != WATCH_ALPN:
            self._over("it is not a tunnel server that can be watched (no ALPN watch/1)")
            self._wire.cut()
            return
        self.peer = peer
        self.observer = self._meeting.observer(peer.id)
        self._wire.begin(self.observer)

    def _said(self, events: list[ObserverEvent]) -> None:
        ended = events[-1] if isinstance(events[-1], Ended) else None
        said: list[ObserverEvent] = [one for one in events if not isinstance(one, Ended | CrlBrought)]
        for event in events:
            if isinstance(event, ServerGreeted):
                self.give(self._meeting.revocations.revoked)
            elif isinstance(event, CrlBrought):
                self._take(event.pem)
        if said and not self.is_over:
            self._heard(self, said)
        if ended is not None and not self.is_over:
            self._wire.cut()
            self._over(ended.text)

    def _take(self, crl_pem: bytes) -> None:
        try:
            self._meeting.revocations.take(crl_pem)
        except CrlRefused as error:
            self._wire.cut()
            self._over(str(error))
        else:
            self.examine_again()  # whoever brings a list may be on it

    def _lost(self, reason: Failure) -> None:
        self._over(_words(reason))

    def _over(self, text: str) -> None:
        if not self.is_over:
            self.is_over = True
            self._failed(self, text)

    def _refuse(self, refusal: CertificateRefused) -> None:
        self._wire.cut()
        if refusal.reason is Reason.REVOKED and not self.is_over:
            self._revoked()
        self._over(refusal.text)


@implementer(IHandshakeListener)
class _Wire(WatchWire):
    """The connection of a dial."""

    def __init__(self, reactor: Any, dial: Dial) -> None:
        super().__init__(reactor, dial._said)
        self._dial = dial

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._share = self._dial._meeting.shares.share(super().dataReceived, transport)
        keepalive.of_link(transport.transport.getHandle())  # below the TLS

    def dataReceived(self, data: bytes) -> None:
        self._share.received(data)

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        certificate = transport.getHandle().get_peer_certificate(as_cryptography=True)
        self._dial._met(certificate, transport.negotiatedProtocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._share.finish()
        super().connectionLost(reason)
        self._dial._lost(reason)


def _words(reason: Failure) -> str:
    """Why a connection ended, for a log: OpenSSL's own words where it was the handshake."""
    problem = reason.value
    if isinstance(problem, SSL.Error) and problem.args and isinstance(problem.args[0], list):
        return "TLS failed: " + (", ".join(str(error[-1]) for error in problem.args[0]) or "closed")
    return f"the connection ended: {reason.getErrorMessage()}"

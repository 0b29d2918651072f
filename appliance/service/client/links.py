"""The link to one server address: dialled for ever, and what is said when it is joined, refused or lost.

Hides TLS over Twisted, the clock of the :class:`~appliance.tunnel.session.ClientSession`, and retrying. A
link counts as connected when the server's ``welcome`` has come, not before: in TLS 1.3 a client's handshake
is over before the server has looked at its certificate, and a pause that began anew with every such
connection would be no pause.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Shape

from OpenSSL import SSL
from twisted.application import service
from twisted.application.internet import ClientService
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import implementer, provider

from appliance.service import keepalive
from appliance.service.client.complaints import Complaints
from appliance.service.client.dial import Target
from appliance.service.client.lanes import Lanes, Session
from appliance.service.client.origins import in_words
from appliance.service.client.tls import LINK_ALPN, ClientTls, ServerProof, ServerRefused, tls_words
from appliance.service.client.visits import Visits
from appliance.tunnel.certificates import Credential
from appliance.tunnel.crl import CrlRefused, RevocationList, Revocations
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.lane import EXPORTED_OCTETS, EXPORTER_LABEL, lane_keys
from appliance.tunnel.renewal import Request
from appliance.tunnel.session import (
    ChallengeDenied,
    ClientSession,
    CrlBrought,
    Ended,
    LanesAsked,
    NameRefused,
    NameRegistered,
    Offer,
    RenewalAnswered,
    ServerDraining,
    Welcomed,
)

CONNECT_SECONDS = 10.0
#: From there on to the end of the TLS handshake: nearly all of it is for the line of a server to which a herd
#: comes back. The session itself waits for the welcome.
HANDSHAKE_SECONDS = 20.0
#: Full jitter, for ever: uniform(0, min(20 s, 0.5 s * 2^n)). With 1,000 clients and 387 handshakes a second
#: the whole fleet is back within 20 s of its server.
RETRY_CEILING_SECONDS = 20.0
RETRY_BASE_SECONDS = 0.5
#: A session that lasted this long shows that the server is well: the next pause is a first one again. After a
#: shorter one (a server that restarts and restarts) it goes on from the fourth, up to 8 s: 1,000 clients that
#: come back over 8 s are 125 handshakes a second, a third of what one core of a server does.
STABLE_SECONDS = 30.0
FAILURES_AFTER_A_SHORT_SESSION = 3
#: A server that was joined a moment ago and now refuses connections is being restarted. Its visitors are kept
#: for 5 s until a client of theirs is there, and a refused dial costs it nothing: so it is dialled at least
#: this often for so long. 1,000 clients that come within 3 s wait 10 s at most where 100 a second are let in.
RESTART_CEILING_SECONDS = 3.0
RESTART_SECONDS = 30.0
#: How long the last words of a link that is stopped may take.
STOP_SECONDS = 2.0


class LinkFailed(Exception):
    """The server could not be joined"""


class Alternate(LinkFailed):
    """It is another address of a server that is joined already"""


class Keeper(Shape):
    """Whoever keeps the links: told of each one's fate."""

    def may_join(self, link: Link, server_id: str) -> bool:
        """The server has proved who it is, and nothing was said yet: whether to go on."""

    def welcomed(self, link: Link, server_id: str) -> None:
        """The server has welcomed this client."""

    def renewal_answered(self, link: Link, certificate: str, text: str) -> None:
        """The server has a certificate for this client, or says why it has none."""

    def denied(self, server_id: str, name: str, value: str, text: str) -> None:
        """The server does not pass a challenge on."""

    def parted(self, link: Link) -> None:
        """The connection is gone, after ``may_join``."""


@dataclass(frozen=True, slots=True)
class Client:
    """What all links of a client share."""

    reactor: Any
    visits: Visits
    tls: ClientTls
    instance: str
    offers: Mapping[str, Offer]
    jitter: Callable[[float, float], float]
    revocations: Revocations
    nonce: Callable[[], str] = lambda: secrets.token_hex(8)


class Link(service.Service):
    """The link to ``address`` and its lanes: dialled from ``startService()`` on, until ``stopService()``."""

    log = Logger()

    def __init__(self, client: Client, address: ServerAddress, keeper: Keeper) -> None:
        self.client = client
        self.address = address
        self.keeper = keeper
        self.complaints = Complaints()
        self._talk: _Talk | None = None
        self._failures = 0
        self._was_refused = False
        self._lost_at = float("-inf")
        self._come_back: float | None = None
        self._is_draining = False
        self._is_retired = False
        self._dialling = _Redial(_Welcome(self), _quiet(Protocol), self.pause, client.reactor)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._dialling.startService()

    def revoke(self, revoked: RevocationList) -> None:
        """End the link to a server whose certificate is on the list; give the list to any other."""
        if self._talk is not None:
            self._talk.revoke(revoked)

    def challenge(self, name: str, value: str, seconds: int, signature: str) -> None:
        """Have the server's nameservers publish a challenge, if the server is joined."""
        self.tell(lambda session: session.challenge(name, value, seconds, signature))

    def challenge_over(self, name: str, value: str) -> None:
        """It need not be published any more."""
        self.tell(lambda session: session.challenge_over(name, value))

    def renew(self, request: Request) -> None:
        """Ask the server for another certificate."""
        self.tell(lambda session: session.renew(request.request, request.signature))

    def retire(self) -> None:
        """Another link comes in the place of this one: it is not dialled again when it ends."""
        self._is_draining = self._is_retired = True
        if self._talk is None:
            self._dialling.stopService()

    def tell(self, say: Callable[[ClientSession], None]) -> None:
        """Have something said in the session, if the server is joined."""
        if self._talk is not None:
            self._talk.tell(say)

    def drain(self) -> None:
        """No new visitors; those that are here go on. The link is not dialled again when it ends."""
        self._is_draining = True
        if self._talk is not None and self._talk.lanes is not None:
            self._talk.drain()
        else:
            self._dialling.stopService()

    def stopService(self) -> Deferred[None]:
        """Say goodbye and close; fires when the connection is gone."""
        super().stopService()  # type: ignore[no-untyped-call]
        talk = self._talk
        if talk is not None:
            talk.goodbye("stopping", "the tunnel client is stopping")
        stopped: Deferred[None] = self._dialling.stopService()
        if not stopped.called and talk is not None:
            abort = self.client.reactor.callLater(STOP_SECONDS, talk.abort)
            stopped.addBoth(lambda result: abort.cancel() if abort.active() else None)
        return stopped

    @property
    def lanes(self) -> Lanes | None:
        """The lanes of the session, if there is one."""
        return None if self._talk is None else self._talk.lanes

    @property
    def is_current(self) -> bool:
        """Whether the server was shown what this client proves itself with now."""
        return self._talk is not None and self._talk.credential is self.client.tls.credential

    # What the endpoint tells

    def began(self, talk: _Talk) -> None:
        self._talk = talk

    def ended(self, talk: _Talk, words: str, lasted: float | None) -> None:
        """The connection is gone. ``lasted``: the seconds since the welcome; None if there was none."""
        if self._talk is talk:
            self._talk = None
        if self._is_draining:
            self._dialling.stopService()
        if lasted is None:
            return
        self._lost_at = self.client.reactor.seconds()
        self._failures = (
            0 if lasted >= STABLE_SECONDS else min(self._failures, FAILURES_AFTER_A_SHORT_SESSION)
        )
        if self.running and not self._is_retired:
            self.log.warn(
                "left server {id} at {address}: {words}", id=talk.server, address=self.address, words=words
            )

    def failed(self, reason: Exception, *, refused: bool = False) -> None:
        """An attempt to join came to nothing. ``refused``: nobody listens there."""
        self._was_refused = refused
        if isinstance(reason, Alternate):
            return
        words = str(reason)
        if self.complaints.new(self.address, words):
            self.log.warn(
                "cannot join the server at {address}: {words}; trying again",
                address=self.address,
                words=words,
            )

    def come_back(self, seconds: float) -> None:
        """The server is about to leave, and asks to be dialled again so much later."""
        self._come_back = seconds

    def pause(self, _attempt: int) -> float:
        """The seconds until the next attempt; each call is one more failure."""
        self._failures += 1
        since_lost = self.client.reactor.seconds() - self._lost_at
        restarts = self._was_refused and since_lost < RESTART_SECONDS
        most = RESTART_CEILING_SECONDS if restarts else RETRY_CEILING_SECONDS
        ceiling = min(most, RETRY_BASE_SECONDS * 2 ** min(self._failures, 10))
        later, self._come_back = self._come_back or 0.0, None
        return later + self.client.jitter(0.0, ceiling)


@provider(ILogObserver)
def _unheard(event: object) -> None:
    """No log."""


class _Redial(ClientService):
    """Twisted's, without its line in the log for every attempt: the link has its own words."""

    _log = Logger(observer=_unheard)


@implementer(IStreamClientEndpoint)
class _Welcome:
    """The endpoint of a ``ClientService``: its connections are those that were welcomed.

    (``prepareConnection`` is for this, but as of Twisted 26.10 a connection that is lost while it is being
    prepared ends in ``NoTransition`` in the state machine of ``ClientService``.)
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Twisted: fires with the factory's protocol, on a connection over which ``welcome`` has come."""
        link = self._link
        address, reactor = link.address, link.client.reactor
        proof = link.client.tls.connection(LINK_ALPN)
        talk = _Talk(link, proof)
        endpoint = (TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint)(
            reactor, address.host, address.port, timeout=CONNECT_SECONDS
        )
        connecting: Deferred[Any] = wrapClientTLS(proof, endpoint).connect(_quiet(lambda: talk))

        def give_up(_: object) -> None:
            connecting.cancel()
            talk.abort()

        result: Deferred[Any] = Deferred(give_up)

        def welcomed(_: object) -> None:
            outer = protocolFactory.buildProtocol(None)
            talk.lost = outer.connectionLost
            outer.makeConnection(talk.transport)
            result.callback(outer)

        def failed(failure: Failure) -> None:
            reason = failure.value
            if not failure.check(LinkFailed):
                reason = LinkFailed(_connect_words(failure))
            if not failure.check(CancelledError):
                refused = failure.check(error.ConnectionRefusedError) is not None
                link.failed(reason, refused=refused)  # type: ignore[arg-type]
            result.errback(failure)

        connecting.addCallback(lambda _: talk.welcomed).addCallbacks(welcomed, failed)
        return result


@implementer(IHandshakeListener)
class _Talk(Protocol):
    """One connection of a link: the session over it."""

    def __init__(self, link: Link, proof: ServerProof) -> None:
        self.welcomed: Deferred[None] = Deferred()
        self.lost: Callable[[Failure], None] | None = None
        self.lanes: Lanes | None = None
        self.server = ""
        self._link = link
        self._client = link.client
        self._proof = proof
        self._session: ClientSession | None = None
        self._server_id = ""
        self._serial = 0
        self._claimed = False
        self._since: float | None = None
        self._unanswered: set[str] = set()
        self._accepted: list[str] = []
        self._why = ""
        self._timer: Any = None

    @property
    def credential(self) -> Credential:
        """What the server is shown."""
        return self._proof.credential

    # Twisted

    def connectionMade(self) -> None:
        self._link.began(self)
        sock = _socket_under(self.transport)
        if sock is not None:
            keepalive.of_link(sock)
        self._timer = self._client.reactor.callLater(
            HANDSHAKE_SECONDS, self._give_up, "it did not finish the TLS handshake in time"
        )

    def handshakeCompleted(self) -> None:
        """Twisted: TLS is up, the server's certificate was verified; nothing was said yet."""
        try:
            peer = self._proof.check(self._client.tls)
        except ServerRefused as refused:
            self._give_up(str(refused))
            return
        if not self._link.keeper.may_join(self._link, peer.id):
            self._fail(Alternate(f"another address of server {peer.id}"))
            self.abort()
            return
        self._claimed = True
        self._server_id, self._serial = peer.id, peer.serial
        now = self._client.reactor.seconds()
        self._unanswered = set(self._client.offers)
        self._session = ClientSession(
            instance=self._client.instance,
            offers=self._client.offers,
            nonce=self._client.nonce,
            now=now,
            crl=self._client.revocations.revoked.number,
        )
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        if self._session is not None:
            self._follow(self._session.receive(data, self._client.reactor.seconds()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        now = self._client.reactor.seconds()
        words = self._why or self._proof.refusal or _lost_words(reason)
        if self.lanes is not None:
            self.lanes.stop()
            self.lanes = None
        self._link.ended(self, words, None if self._since is None else now - self._since)
        if self._claimed:
            self._claimed = False
            self._link.keeper.parted(self._link)
        self._fail(LinkFailed(words))
        if self.lost is not None:
            lost, self.lost = self.lost, None
            lost(reason)

    # What the link asks for

    def revoke(self, revoked: RevocationList) -> None:
        if self._serial in revoked.serials:
            self._give_up("its certificate is revoked")
        elif self._session is not None:
            self._session.give(revoked)
            self._write()

    def tell(self, say: Callable[[ClientSession], None]) -> None:
        if self._session is not None:
            say(self._session)
            self._write()

    def drain(self) -> None:
        if self._session is not None:
            self._session.drain()
            self._write()

    def goodbye(self, reason: str, text: str) -> None:
        if self._session is not None:
            self._session.goodbye(reason, text)
            self._write()

    def abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    # The session

    def _follow(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case Welcomed():
                    self._welcomed(event)
                case NameRegistered(name=name):
                    self._accepted.append(name)
                    self._answered(name)
                case NameRefused(name=name, text=text):
                    self._refused(name, text)
                case ChallengeDenied(name=name, value=value, text=text):
                    self._link.keeper.denied(self.server, name, value, text)
                case RenewalAnswered(certificate=certificate, text=text):
                    self._link.keeper.renewal_answered(self._link, certificate, text)
                case LanesAsked(kind=kind, held=held, waiting=waiting):
                    if self.lanes is not None:
                        self.lanes.asked("tls" if kind == "tls" else "plain", held, waiting)
                case ServerDraining(reconnect_in=seconds):
                    self._link.come_back(seconds)
                    self._log("server {id} at {address} is leaving", id=self.server)
                case CrlBrought(pem=pem):
                    self._take(pem)
                case Ended(text=text):
                    self._why = self._why or text
        self._go_on()
        if any(isinstance(event, Ended) for event in events) and self.transport is not None:
            self._session = None  # what comes behind the end is not read, and does not put off the abort
            self.transport.loseConnection()
            self._timer = self._client.reactor.callLater(STOP_SECONDS, self.abort)

    def _take(self, crl_pem: bytes) -> None:
        try:
            self._client.revocations.take(crl_pem)
        except CrlRefused as refused:
            self._give_up(str(refused))

    def _go_on(self) -> None:
        """Send what the session has to say, and wait for what comes next."""
        self._write()
        assert self._session is not None
        self._stop_timer()
        deadline = self._session.next_deadline()
        if deadline is not None:
            delay = max(0.0, deadline - self._client.reactor.seconds())
            self._timer = self._client.reactor.callLater(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        assert self._session is not None
        self._follow(self._session.tick(self._client.reactor.seconds()))

    def _write(self) -> None:
        assert self._session is not None
        octets = self._session.data_to_send()
        if octets and self.transport is not None:
            self.transport.write(octets)

    def _welcomed(self, event: Welcomed) -> None:
        if event.server != self._server_id:
            self._give_up(f"it says it is {event.server} and its certificate is that of {self._server_id}")
            return
        self.server = event.server
        self._since = self._client.reactor.seconds()
        connection = self._proof.connection
        exported = connection.export_keying_material(EXPORTER_LABEL, EXPORTED_OCTETS, b"")
        host, port = self._link.address.host, self._link.address.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        session = Session(
            Target(family, (host, port)),
            event.session,
            lane_keys(exported),
            self._client.tls,
            connection.get_session(),
            self._serial,
        )
        called = f"server {self.server} at {self._link.address}"
        self.lanes = Lanes(self._client.reactor, self._client.visits, session, called)
        self._link.keeper.welcomed(self._link, self.server)
        self.welcomed.callback(None)
        self.lanes.start()
        assert self._session is not None
        self._session.give(self._client.revocations.revoked)

    def _refused(self, name: str, text: str) -> None:
        if self._link.complaints.new(name, text):
            self._link.log.error(
                "server {id} at {address} refuses {name}: {text}",
                id=self.server,
                address=self._link.address,
                name=name,
                text=text,
            )
        self._answered(name)

    def _answered(self, name: str) -> None:
        """One more name was accepted or refused; after the last one the client is joined."""
        if name not in self._unanswered or self._since is None:
            return
        self._unanswered.discard(name)
        if self._unanswered or not self._accepted:
            return
        self._link.complaints.over(self._link.address)
        # End-to-end tests and people wait for this line.
        self._log("joined server {id} at {address}: {names}", id=self.server, names=", ".join(self._accepted))

    # The end

    def _give_up(self, words: str) -> None:
        self._why = self._why or words
        self._fail(LinkFailed(words))
        self.abort()

    def _fail(self, reason: LinkFailed) -> None:
        if not self.welcomed.called:
            self.welcomed.errback(reason)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _log(self, text: str, **words: object) -> None:
        self._link.log.info(text, address=self._link.address, **words)


def _quiet(protocol: Callable[[], Any]) -> Factory:
    """A factory that does not say in the log when it starts and stops."""
    factory: Factory = Factory.forProtocol(protocol)
    factory.noisy = False
    return factory


def _socket_under(transport: Any) -> socket.socket | None:
    """The TCP socket below Twisted's TLS."""
    under = getattr(transport, "transport", None)
    sock = under.getHandle() if under is not None and hasattr(under, "getHandle") else None
    return sock if isinstance(sock, socket.socket) else None


def _connect_words(failure: Failure) -> str:
    """Why there was no TCP connection."""
    reason = failure.value
    if failure.check(error.TimeoutError, error.TCPTimedOutError):
        return "it did not answer in time"
    if isinstance(reason, error.ConnectError) and isinstance(reason.osError, int):
        return in_words(OSError(reason.osError, os.strerror(reason.osError)))
    return str(failure.getErrorMessage())


def _lost_words(failure: Failure) -> str:
    """Why a connection is gone."""
    reason = failure.value
    if isinstance(reason, SSL.Error) and reason.args:
        words = tls_words(reason.args[0])
        if "unrecognized name" in words or "internal error" in words:
            # What visitors are told whose name it does not know, or may not know yet.
            words += "; it is not a server of the service that the invitation names"
        return f"TLS: {words}"
    if failure.check(error.ConnectionDone, SSL.Error):
        return "it closed the connection"
    if failure.check(error.ConnectionLost, error.ConnectionAborted):
        return "the connection broke"
    return str(failure.getErrorMessage())

"""The links of clients to this server: their sessions, the names they serve, and when they end.

A session is one client instance's. The same instance that comes again replaces its old session at once,
whatever has become of it; visitors that were joined through the old one go on, and are counted as the new
one's.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.pace import Paces
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.server.accounts import AccountRefused, Accounts
from appliance.service.server.challenges import ChallengeRefused, Challenges
from appliance.service.server.company import Company
from appliance.service.server.lanes import SessionLanes
from appliance.service.shares import Shares
from appliance.tunnel.certificates import Peer
from appliance.tunnel.crl import CrlRefused, RevocationList, Revocations
from appliance.tunnel.herd import spread_seconds
from appliance.tunnel.lane import EXPORTED_OCTETS, EXPORTER_LABEL, lane_keys
from appliance.tunnel.messages import Uncertified
from appliance.tunnel.renewal import RenewalRefused, Request
from appliance.tunnel.routes import Routes
from appliance.tunnel.session import (
    PING_SECONDS,
    AccountSaid,
    CertificateMissed,
    ChallengeDenied,
    ChallengeSaid,
    ChallengeWithdrawn,
    ClientDraining,
    CrlBrought,
    Ended,
    HelloReceived,
    NameRefused,
    NameRegistered,
    NameUnregistered,
    RenewalAsked,
    ServerSession,
)

#: Instances of one client certificate that share its names: enough for a rolling deploy of a large service,
#: few enough that a stolen certificate cannot fill the table.
_INSTANCES_AT_MOST = 16
#: Above so many links each gets a ping every few minutes, below half as many every 5 s again: what links cost
#: at rest does not grow for ever. Pings find a program that hangs, and the first visitor who waits for it in
#: vain has one sent at once; the kernel finds a dead host, and keeps a NAT's mapping, at a far lower price.
_MANY_LINKS = 500
_PING_SECONDS_OF_MANY = 180.0
#: Visitors joined through a client whose link went silent are left alone for so long: he may come back.
_ORPHANS_SECONDS = 60.0
#: ``callLater`` takes any number, but a wall clock that is set right later should be noticed within the day.
_EXPIRY_LOOK_SECONDS = 86_400.0
#: Of one client, on all its links. It asks once a month, and once a minute at first when it is refused.
RENEWALS_PER_SECOND = 1.0

SessionSeen = Callable[["Session"], None]
Renew = Callable[[Request], "Deferred[str]"]
"""Fires with a certificate, PEM, or fails with RenewalRefused."""


class Session:
    """One client instance, linked: its certificate, its lanes, and the visitors joined through it."""

    def __init__(
        self, peer: Peer, session_id: bytes, lanes: SessionLanes, doubt: Callable[[], None]
    ) -> None:
        """``doubt()`` asks at once whether the client lives."""
        self.peer = peer
        self.id = session_id
        self.lanes = lanes
        self.doubt = doubt
        self.instance = ""
        # Handed on as it is to the instance's next session: who is joined takes himself out of it when he
        # leaves.
        self.joined = Company()

    @cached_property
    def certificate_pem(self) -> bytes:
        """What is shown to nameservers with each of its names."""
        return self.peer.certificate.public_bytes(Encoding.PEM)


class Links:
    """All sessions at this server. ``routes`` follows them."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        readiness: Readiness,
        *,
        server_id: str,
        boot: str,
        service_name: str,
        routes: Routes[Session],
        serving: Callable[[str, bytes], None],
        not_serving: Callable[[str], None],
        challenges: Challenges,
        accounts: Accounts,
        registered: Callable[[str], None],
        session_ended: SessionSeen,
        complaints: FewLines,
        revocations: Revocations,
        renew: Renew,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``serving(name, certificate_pem)`` at a name's first session, and again for a certificate that
        lives longer, and for another one when that is revoked; ``not_serving(name)`` at its last one's end.
        ``registered(name)`` at each session of it. ``renew`` is what clients ask that of.
        """
        self.reactor = reactor
        self.readiness = readiness
        self.server_id = server_id
        self.boot = boot
        self.service_name = service_name
        self.shares = Shares(reactor, readiness.look)
        self.sessions: dict[bytes, Session] = {}
        self._routes = routes
        self._serving = serving
        self._not_serving = not_serving
        self.challenges = challenges
        self.accounts = accounts
        self._registered = registered
        self._session_ended = session_ended
        self._complaints = complaints
        self.revocations = revocations
        self.renew = renew
        self.renewal_paces = Paces(RENEWALS_PER_SECOND)
        self._shown: dict[str, _Shown] = {}
        self._jitter = jitter
        self._is_draining = False
        self.ping_seconds = PING_SECONDS
        self._links: dict[Session, _Link] = {}
        self._addresses: Counter[str] = Counter()
        self._by_instance: dict[tuple[str, str], Session] = {}
        self._instances: Counter[str] = Counter()  # of each client
        # Who is still joined though the session is over, and its certificate's serial; and of those who waits
        # for the client to come back.
        self._left: dict[Company, int] = {}
        self._orphans: dict[tuple[str, str], tuple[Company, Any]] = {}

    def protocol_for(self, peer: Peer) -> IProtocol:
        """The protocol of an accepted connection whose peer proved to be this client."""
        return _Link(self, peer)

    def revoke(self, revoked: RevocationList) -> None:
        """End the links, and the visitors joined through them, of every client whose certificate is on the
        list, and the visitors that his earlier links have left; give it to the others.
        """
        self.challenges.revoke(revoked)
        for session in list(self.sessions.values()):
            if session.peer.serial in revoked.serials:
                self._dismiss(session, "revoked", "the client's certificate was revoked")
        for joined, serial in list(self._left.items()):
            if serial in revoked.serials:
                joined.abort()
        for name, shown in list(self._shown.items()):
            if shown.serial in revoked.serials:  # of a session that is over, and others serve the name
                self._show(name, max(self._routes.sessions(name), key=lambda one: one.peer.expires))
        for link in list(self._links.values()):
            link.give(revoked)

    def drain(self) -> None:
        """Tell every client that this server will leave, and each another time to come back."""
        self._is_draining = True
        for link in self._links.values():
            self._drain(link)

    def _drain(self, link: _Link) -> None:
        link.drain(self._jitter(0.0, spread_seconds(len(self.sessions))))

    def stop(self, reason: str = "stopping", text: str = "the server is stopping") -> None:
        """Say goodbye on every link; its end follows when the octets are out."""
        for session in list(self.sessions.values()):
            self._links[session].goodbye(reason, text)
        for joined, timer in self._orphans.values():
            if timer.active():
                timer.cancel()
            joined.abort()
        self._orphans.clear()

    def linked(self, address: str) -> bool:
        """Whether a client is linked from this IP address."""
        return address in self._addresses

    def status(self) -> list[dict[str, Any]]:
        """One plain value per session, for the operator."""
        return [
            {
                "client": session.peer.id,
                "instance": session.instance,
                "address": self._links[session].address,
                "names": self._links[session].names,
                "idle_lanes": session.lanes.held("plain") + session.lanes.held("tls"),
                "visitors": len(session.joined),
                "expires": session.peer.expires.isoformat(),
            }
            for session in self.sessions.values()
        ]

    def uncertified(self) -> list[dict[str, Any]]:
        """Plain values for the operator: the names for which a client has got no certificate."""
        return [
            {"name": name, "client": session.peer.id, "since": one.since, "why": one.text}
            for session in self.sessions.values()
            for name, one in self._links[session].uncertified.items()
        ]

    def _begin(self, link: _Link, session: Session) -> None:
        self.sessions[session.id] = session
        self._links[session] = link
        self._addresses[link.address] += 1
        self._pace()

    def _pace(self) -> None:
        """Ping seldom while there are many links, and tell those that are there."""
        many = len(self.sessions) > (_MANY_LINKS if self.ping_seconds == PING_SECONDS else _MANY_LINKS // 2)
        ping_seconds = _PING_SECONDS_OF_MANY if many else PING_SECONDS
        if ping_seconds != self.ping_seconds:
            self.ping_seconds = ping_seconds
            for link in self._links.values():
                link.ping_every(ping_seconds)

    def _instance_known(self, session: Session, instance: str) -> bool:
        """The hello came: take over from the same instance's old session. False when there are too many
        instances.
        """
        key = (session.peer.id, instance)
        old = self._by_instance.get(key)
        if old is not None:
            session.joined, old.joined = old.joined, Company()
            self._links[old].goodbye("replaced", "the same client instance has come again")
            self._over(old, silent=False)
        elif self._instances[session.peer.id] >= _INSTANCES_AT_MOST:
            return False
        session.instance = instance
        self._by_instance[key] = session
        self._instances[session.peer.id] += 1
        if self._is_draining:
            self._drain(self._links[session])
        if key in self._orphans:
            session.joined, timer = self._orphans.pop(key)
            self._left.pop(session.joined, None)
            if timer.active():
                timer.cancel()
        return True

    def _register(self, session: Session, event: NameRegistered) -> None:
        first = self._routes.add(event.name, session, event.offer)
        self._log.info(
            "{client} serves {name} here", client=session.peer.id, name=event.name, instance=session.instance
        )
        if first or session.peer.expires > self._shown[event.name].expires:
            # A nameserver that comes later is shown the same one, and it must not have ended by then.
            self._show(event.name, session)
        self._registered(event.name)

    def _show(self, name: str, session: Session) -> None:
        self._shown[name] = _Shown(session.peer.serial, session.peer.expires)
        self._serving(name, session.certificate_pem)

    def _unregister(self, session: Session, name: str) -> None:
        if self._routes.remove(name, session):
            self._unserved(name)

    def _withdraw(self, session: Session) -> None:
        """No new visitors for this session."""
        for name in self._routes.remove_session(session):
            self._unserved(name)

    def _unserved(self, name: str) -> None:
        del self._shown[name]
        self._not_serving(name)

    def _dismiss(self, session: Session, reason: str, text: str) -> None:
        """End a session for good, with what was joined through it."""
        link = self._links[session]
        link.goodbye(reason, text)
        self._complaints.warn(session.peer.id, f"link ended: {text}")
        self._over(session, silent=False)
        session.joined.abort()

    def _over(self, session: Session, *, silent: bool) -> None:
        """The session serves nobody any more."""
        if self.sessions.pop(session.id, None) is None:
            return
        self.accounts.over(session.id)
        address = self._links.pop(session).address
        _take_one(self._addresses, address)
        if session.joined:
            self._left[session.joined] = session.peer.serial
            session.joined.emptied = self._nobody_left
        key = (session.peer.id, session.instance)
        if self._by_instance.get(key) is session:
            del self._by_instance[key]
            _take_one(self._instances, session.peer.id)
            if silent and session.joined:
                timer = self.reactor.callLater(_ORPHANS_SECONDS, self._give_orphans_up, key)
                self._orphans[key] = (session.joined, timer)
        self._withdraw(session)
        session.lanes.close()
        self._session_ended(session)
        self._pace()

    def _nobody_left(self, joined: Company) -> None:
        self._left.pop(joined, None)  # not there when the client has come back

    def _give_orphans_up(self, key: tuple[str, str]) -> None:
        joined, _ = self._orphans.pop(key)
        joined.abort()


class _Shown(NamedTuple):
    """Of the certificate that nameservers are shown for a name."""

    serial: int
    expires: datetime


class _Link(Protocol):
    """One link's octets: a :class:`ServerSession` between TLS and :class:`Links`."""

    def __init__(self, links: Links, peer: Peer) -> None:
        self._links = links
        self._peer = peer
        self._timer: Any = None
        self._expiry: Any = None
        self._closing = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        links = self._links
        session_id = os.urandom(8)
        exported = transport.getHandle().export_keying_material(EXPORTER_LABEL, EXPORTED_OCTETS, b"")
        lanes = SessionLanes(lane_keys(exported), links.readiness, links.reactor, self._ask_for_lanes)
        self.address = transport.getPeer().host
        self.session = Session(self._peer, session_id, lanes, self._doubt)
        self._machine = ServerSession(
            peer_names=self._peer.names,
            server_id=links.server_id,
            boot=links.boot,
            session_id=session_id,
            nonce=_nonce,
            now=links.reactor.seconds(),
            service_name=links.service_name,
            ping_seconds=links.ping_seconds,
            crl=links.revocations.revoked.number,
        )
        self._share = links.shares.share(self._hear, transport)
        links._begin(self, self.session)
        self._look_at_expiry()
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        if not self._closing:
            self._share.received(data)

    def _hear(self, data: bytes) -> None:
        if not self._closing:
            self._happened(self._machine.receive(data, self._links.reactor.seconds()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._share.finish()
        self._closing = True
        self._forget_timers()
        self._links._over(self.session, silent=True)

    @property
    def names(self) -> list[str]:
        """The names that are registered on this link."""
        return list(self._machine.offers)

    @property
    def uncertified(self) -> Mapping[str, Uncertified]:
        """The names for which this client has got no certificate."""
        return self._machine.uncertified

    def goodbye(self, reason: str, text: str) -> None:
        """Say why the link ends, and end it."""
        if not self._closing:
            self._machine.goodbye(reason, text)
            self._end()

    def give(self, revoked: RevocationList) -> None:
        """Give the client this revocation list, unless he has one as new."""
        if not self._closing:
            self._machine.give(revoked)
            self._flush()

    def ping_every(self, ping_seconds: float) -> None:
        """Both ends ping so often from now on."""
        self._machine.ping_every(ping_seconds)

    def drain(self, reconnect_in: float) -> None:
        """Say that this server will leave, and when to come back."""
        if not self._closing:
            self._machine.drain(reconnect_in)
            self._flush()

    def _ask_for_lanes(self, kind: str, held: int, waiting: int) -> None:
        if not self._closing:
            self._machine.lanes(kind, held, waiting)
            self._flush()

    def _doubt(self) -> None:
        if not self._closing:
            self._machine.doubt(self._links.reactor.seconds())
            self._tick()

    def _tick(self) -> None:
        self._happened(self._machine.tick(self._links.reactor.seconds()))

    def _happened(self, events: list[Any]) -> None:
        links = self._links
        for event in events:
            if isinstance(event, HelloReceived):
                if not links._instance_known(self.session, event.instance):
                    text = f"{_INSTANCES_AT_MOST} instances of this client are linked already"
                    self.goodbye("too_many_instances", text)
                    links._complaints.warn(self._peer.id, f"link refused: {text}")
                    links._over(self.session, silent=False)
                    return
                self._machine.give(links.revocations.revoked)
            elif isinstance(event, NameRegistered):
                links._register(self.session, event)
            elif isinstance(event, NameUnregistered):
                links._unregister(self.session, event.name)
            elif isinstance(event, ClientDraining):
                links._withdraw(self.session)
            elif isinstance(event, CrlBrought):
                if not self._take(event.pem):
                    return
            elif isinstance(event, ChallengeSaid):
                self._challenged(event)
            elif isinstance(event, RenewalAsked):
                held = self.session.certificate_pem.decode("ascii")
                self._renew(Request(held, event.request, event.signature))
            elif isinstance(event, ChallengeWithdrawn):
                links.challenges.withdraw(self._peer, event.name, event.value)
            elif isinstance(event, ChallengeDenied):
                links._complaints.warn(self._peer.id, f"a challenge of {event.name} refused: {event.text}")
            elif isinstance(event, AccountSaid):
                self._account_said(event)
            elif isinstance(event, CertificateMissed):
                links._complaints.warn(self._peer.id, f"{event.name}: no new certificate: {event.text}")
            elif isinstance(event, NameRefused):
                links._complaints.warn(self._peer.id, f"{event.name} refused: {event.text}")
            elif isinstance(event, Ended):
                self._log_end(event)
                self._end()
                links._over(self.session, silent=event.reason == "silent")
                return
        self._flush()

    def _challenged(self, event: ChallengeSaid) -> None:
        try:
            self._links.challenges.say(self._peer, event.name, event.value, event.seconds, event.signature)
        except ChallengeRefused as error:
            self._machine.deny_challenge(event.name, event.value, str(error))
            self._links._complaints.warn(self._peer.id, f"a challenge of {event.name} refused: {error}")

    def _renew(self, request: Request) -> None:
        """Have it signed, here or elsewhere, and answer, if the link is there by then."""

        def renewed(pem: str) -> None:
            if not self._closing:
                self._machine.renewed(pem)
                self._flush()

        def refused(failure: Failure) -> None:
            failure.trap(RenewalRefused)
            self._refuse_renewal(str(failure.value))

        if not request.fits:
            self._refuse_renewal("the certificate is too long to be renewed by its holder")
        elif not self._links.renewal_paces.allows(self._peer.id, self._links.reactor.seconds()):
            self._refuse_renewal(f"more than {RENEWALS_PER_SECOND:g} a second")
        else:
            self._links.renew(request).addCallbacks(renewed, refused)

    def _refuse_renewal(self, text: str) -> None:
        if not self._closing:
            self._machine.refuse_renewal(text)
            self._flush()
            self._links._complaints.warn(self._peer.id, f"its certificate is not renewed: {text}")

    def _account_said(self, event: AccountSaid) -> None:
        session = self.session
        try:
            self._links.accounts.say(session.id, self._peer, session.instance, event)
        except AccountRefused as error:
            self._links._complaints.warn(self._peer.id, f"an account refused: {error}")

    def _take(self, crl_pem: bytes) -> bool:
        """Take over the list that the client brought; whether the link goes on."""
        links = self._links
        try:
            links.revocations.take(crl_pem)
        except CrlRefused as error:
            links._complaints.warn(self._peer.id, f"link ended: {error}")
            self.goodbye("protocol", str(error))
            links._over(self.session, silent=False)
        return not self._closing

    def _log_end(self, event: Ended) -> None:
        self._links._log.info(
            "link of {client} ended: {text}", client=self._peer.id, text=event.text, reason=event.reason
        )

    def _flush(self) -> None:
        transport: Any = self.transport
        octets = self._machine.data_to_send()
        if octets:
            transport.write(octets)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        deadline = self._machine.next_deadline()
        if deadline is not None and not self._closing:
            wait = max(0.0, deadline - self._links.reactor.seconds())
            self._timer = self._links.reactor.callLater(wait, self._tick)

    def _end(self) -> None:
        self._closing = True
        self._flush()
        self._forget_timers()
        transport: Any = self.transport
        transport.loseConnection()

    def _forget_timers(self) -> None:
        for timer in (self._timer, self._expiry):
            if timer is not None and timer.active():
                timer.cancel()

    def _look_at_expiry(self) -> None:
        left = (self._peer.expires - datetime.now(UTC)).total_seconds()
        if left <= 0:
            self._links._dismiss(self.session, "expired", "the client's certificate has expired")
            return
        self._expiry = self._links.reactor.callLater(min(left, _EXPIRY_LOOK_SECONDS), self._look_at_expiry)


def _take_one(counted: Counter[str], key: str) -> None:
    counted[key] -= 1
    if not counted[key]:
        del counted[key]


def _nonce() -> str:
    return os.urandom(8).hex()

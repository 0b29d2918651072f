"""The tunnel client: which servers it is joined to; the service that holds all its others.

Where servers are comes from the invitation and from the resolver, what follows from that is the
:class:`~appliance.tunnel.discovery.Joiner`'s, and each address that it names has a link. The parts that need
this process to be the one that stays (descriptors, threads, files) are made in ``startService``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from appliance.service.carrying import ASKED_ON_SECONDS, Carrying, End
from appliance.service.client.acmestate import AcmeState
from appliance.service.client.aside import Aside
from appliance.service.client.certificates import Certificates
from appliance.service.client.certifying import Issuing
from appliance.service.client.challenges import Challenges
from appliance.service.client.expiring import Expiring
from appliance.service.client.instance import Instance
from appliance.service.client.issuer import Issuer
from appliance.service.client.issuing import Issuances
from appliance.service.client.links import Client, Link
from appliance.service.client.origins import Origins
from appliance.service.client.resolver import Resolver
from appliance.service.client.revoked import Revoked
from appliance.service.client.successors import Successors
from appliance.service.client.telling import Telling
from appliance.service.client.tls import ClientTls
from appliance.service.client.visits import Visits
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay
from appliance.service.renewed import RenewedFiles
from appliance.service.renewer import Renewer
from appliance.settings import ClientSettings
from appliance.tunnel.account import sign as sign_account
from appliance.tunnel.certificates import Credential, read_certificate, read_credential
from appliance.tunnel.challenge import sign
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import Joiner, ServerAddress
from appliance.tunnel.invitation import Invitation
from appliance.tunnel.renewal import share_of

#: Between two looks at whether the last visitors are gone.
DRAIN_LOOK_SECONDS = 0.1


def _wall() -> datetime:
    return datetime.now(UTC)


class TunnelClient(service.Service):
    """Keeps this client joined to every server, from ``startService()`` to ``stopService()``.

    ``jitter(low, high)`` draws every random pause, ``wall()`` is the calendar (aware).
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: ClientSettings,
        invitation: Invitation,
        *,
        wall: Callable[[], datetime] = _wall,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Opens nothing. Raises CredentialRefused if the invitation's certificates cannot be read."""
        self._reactor = reactor
        self._settings = settings
        self._invitation = invitation
        self._wall = wall
        self._jitter = jitter
        self._credential = read_credential(invitation.credential_pem)
        self._ca = ca = read_certificate(invitation.ca_pem)
        self._revoked = Revoked(settings.state, ca, self._revoke)
        self._tls = ClientTls(
            invitation.service_name, ca, self._credential, wall, lambda: self._revoked.revoked
        )
        self.origins = Origins(settings, invitation.names, reactor)
        self._certified = self.origins.certified()
        self.certificates = Certificates(
            reactor, settings.state, self.origins.terminated(), wall, issued=bool(self._certified)
        )
        nameserver = settings.resolver
        self._resolver = Resolver(
            reactor,
            invitation.discovery,
            self._found,
            nameserver=None if nameserver is None else (nameserver.host, nameserver.port),
            jitter=jitter,
        )
        self.challenges = Challenges(
            reactor,
            links=lambda: self._links.values(),
            joined=lambda: [server for server, link in self._claims.items() if link in self._joined],
            resolvers=self._resolver.nameservers,
            sign=lambda name, value: sign(self._credential.key, name, value),
        )
        self._telling: Telling | None = None
        self._joiner = Joiner()
        self._links: dict[ServerAddress, Link] = {}
        self._claims: dict[str, Link] = {}  # by server id: the link that may say hello to it
        self._joined: set[Link] = set()
        self._successors = Successors(self._link, self._stop)
        self._asking = Carrying(reactor, self._askable, ASKED_ON_SECONDS)
        self._renewer: Renewer | None = None
        self._stopping: set[Deferred[None]] = set()
        self._expiring: Expiring | None = None
        self._instance: Instance | None = None
        self._client: Client | None = None
        self._readiness: Readiness | None = None
        self._relay: Relay | None = None
        self._issuances: Issuances | None = None
        self._drained: list[Deferred[None]] = []
        self._drain_until: float | None = None
        self._drain_look: Any = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._readiness = Readiness(self._reactor)
        self._readiness.start()
        self._relay = Relay(self._readiness)
        visits = Visits(self._reactor, self._readiness, self._relay, self.origins, self.certificates.keypairs)
        self._instance = Instance(self._settings.state)
        if self._instance.trouble:
            self.log.warn("{trouble}; this run has an instance id of its own", trouble=self._instance.trouble)
        self._revoked.open()
        self.certificates.start()
        self._certify(self._instance)
        self._client = Client(
            self._reactor,
            visits,
            self._tls,
            self._instance.id,
            self.origins.offers(),
            self._jitter,
            self._revoked,
        )
        self._renewer = self._renew(self._instance)
        self._renewer.start()
        self._expiring = Expiring(self._reactor, self._renewer, self._invitation.client, self._wall)
        self._expiring.start()
        self._joiner.found(self._invitation.servers, self._reactor.seconds())
        self._review()
        self._resolver.startService()

    def _certify(self, instance: Instance) -> None:
        """Get certificates for the names that are to have one by ACME. Two processes with one state directory
        would each know half of what was ordered.
        """
        acme = self._settings.acme
        if acme is None or not self._certified:
            return
        state = AcmeState(self._settings.state, acme.url)
        self._telling = Telling(
            lambda: self._links.values(),
            lambda at, url, issuers: sign_account(self._credential.key, instance.id, at, url, issuers),
            self._wall,
        )
        shared = Issuing(
            self._reactor,
            Issuer(acme, state),
            state,
            self.challenges,
            self.certificates.keypairs,
            Aside(self._reactor),
            self._wall,
            self._jitter,
            self._telling,
        )
        self._issuances = Issuances(shared, self._certified, instance.id, acme.called)
        self._issuances.start(instance.trouble)

    def _renew(self, instance: Instance) -> Renewer:
        """Keep the certificate good. Each instance asks for itself, and at another time; of two processes
        with one state directory the first asks, and both take what it gets.
        """
        return Renewer(
            self._reactor,
            RenewedFiles(self._settings.state),
            self._credential,
            self._ca,
            called=self._invitation.client,
            ask=self._asking.ask,
            took=self._took,
            wall=self._wall,
            jitter=self._jitter,
            share=share_of(instance.id),
            asks=not instance.trouble,
        )

    def read_again(self) -> None:
        """Somebody says that there is something new (SIGHUP)."""
        self.certificates.read_again()
        if self._issuances is not None:
            self._issuances.hurry()
        if self._renewer is not None:
            self._renewer.hurry()

    def drain(self) -> Deferred[None]:
        """Take no new visitors; fires when those that are here are gone, or have had `drain_seconds`.

        A visitor whose header is on its way here comes too late, and his server gives him to another client.
        """
        over: Deferred[None] = Deferred()
        self._drained.append(over)
        if self._drain_until is None:
            self._drain_until = self._reactor.seconds() + self._settings.drain_seconds
            self._resolver.stopService()
            self._successors.forget()
            for link in self._all_links():
                link.drain()
            self.log.info(
                "draining: {visitors} visitors have at most {seconds} s",
                visitors=self._visitors(),
                seconds=self._settings.drain_seconds,
            )
        self._look_at_drain()
        return over

    def _look_at_drain(self) -> None:
        assert self._drain_until is not None
        now = self._reactor.seconds()
        if self._visitors() and now < self._drain_until:
            self._forget_look()
            self._drain_look = self._reactor.callLater(DRAIN_LOOK_SECONDS, self._look_at_drain)
            return
        drained, self._drained = self._drained, []
        for over in drained:
            over.callback(None)

    def _forget_look(self) -> None:
        if self._drain_look is not None and self._drain_look.active():
            self._drain_look.cancel()

    def _visitors(self) -> int:
        waiting = 0 if self._client is None else len(self._client.visits.waiting)
        return waiting + (0 if self._relay is None else len(self._relay.joined))

    def stopService(self) -> Deferred[Any]:
        """Say goodbye to every server, end what is joined, and let go of everything."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._forget_look()
        if self._drain_until is None:
            self._resolver.stopService()
        self.certificates.stop()
        if self._issuances is not None:
            self._issuances.stop()
        self.challenges.stop()
        if self._expiring is not None:
            self._expiring.stop()
        if self._renewer is not None:
            self._renewer.stop()
        self._successors.forget()
        links, self._links = self._all_links(), {}
        for link in links:
            self._stop(link)
        if self._client is not None:
            self._client.visits.stop()
        if self._relay is not None:
            self._relay.stop()
        return DeferredList(list(self._stopping)).addCallback(self._stopped)

    def _stopped(self, _: object) -> None:
        if self._client is not None:
            self._client.visits.stop()  # lanes were dialled until their links had ended
        if self._readiness is not None:
            self._readiness.stop()
        if self._instance is not None:
            self._instance.close()

    @property
    def joined(self) -> list[ServerAddress]:
        """The addresses of the servers that this client is joined to now."""
        return sorted({link.address for link in self._joined})

    @property
    def links(self) -> dict[ServerAddress, Link]:
        """The links that there are, up or not."""
        return dict(self._links)

    # Which servers

    def _revoke(self, revoked: RevocationList) -> None:
        """A newer list has come: leave the servers that it names, and give it to the others."""
        assert self._client is not None
        for link in (*self._all_links(), *self._successors.coming):
            link.revoke(revoked)
        self._client.visits.cut(revoked.serials)

    def _found(self, servers: tuple[ServerAddress, ...]) -> None:
        self._joiner.found(servers, self._reactor.seconds())
        self._review()

    def _review(self) -> None:
        """Have a link to each address that the Joiner names, and to no other."""
        if not self.running or self._client is None or self._drain_until is not None:
            return
        wanted = self._joiner.to_join(self._reactor.seconds())
        for address in [address for address in self._links if address not in wanted]:
            self._stop(self._links.pop(address))
        for address in wanted:
            if address not in self._links:
                link = self._links[address] = self._link(address)
                link.startService()

    def _link(self, address: ServerAddress) -> Link:
        assert self._client is not None
        return Link(self._client, address, self)

    # Which certificate

    def _took(self, credential: Credential) -> None:
        """Another certificate counts: it is shown in new handshakes, and the servers that were shown the old
        one are joined again, before that one's end would end what is joined through them.
        """
        self._credential = credential
        self._tls.use(credential)
        for link in list(self._joined):
            self._join_again(link)

    def _join_again(self, link: Link) -> None:
        if self._drain_until is None:
            self._successors.call_for(link)

    def _all_links(self) -> list[Link]:
        return [*self._links.values(), *self._successors.retiring]

    def _askable(self) -> list[End]:
        """A server looks for the signature of the certificate that it was shown on the link."""
        return [(link, link.renew) for link in self._joined if link.is_current]

    def _stop(self, link: Link) -> None:
        stopped = link.stopService()
        self._stopping.add(stopped)
        stopped.addBoth(lambda _: self._stopping.discard(stopped))

    # What links tell

    def may_join(self, link: Link, server_id: str) -> bool:
        """One link a server, by the first address to get there: a second ``hello`` would end the first
        session. A successor joins nobody but the server that it was dialled for.
        """
        old = self._successors.predecessor(link)
        if old is not None:
            if self._claims.get(server_id) is not old:
                return False
            self._claims[server_id] = self._links[link.address] = link
            self._successors.take_place(link)
            return True
        holder = self._claims.setdefault(server_id, link)
        if holder is link:
            return True
        if holder in self._joined:
            now = self._reactor.seconds()
            # Tell the Joiner whose address it is without giving up the link that there is.
            self._joiner.linked(link.address, server_id)
            self._joiner.linked(holder.address, server_id)
            self._joiner.unlinked(link.address, now)
            self._reactor.callLater(0, self._review)
        return False

    def welcomed(self, link: Link, server_id: str) -> None:
        """``welcome`` has come."""
        self._joined.add(link)
        self._joiner.linked(link.address, server_id)
        self.challenges.welcomed(link)
        if self._telling is not None:
            self._telling.welcomed(link)
        self._review()
        if not link.is_current:  # it was being dialled when another certificate came
            self._join_again(link)
        elif self._renewer is not None:
            self._renewer.hurry()

    def renewal_answered(self, link: Link, certificate: str, text: str) -> None:
        """A server has a certificate for us, or says why it has none."""
        self._asking.answered(link, certificate, text)

    def denied(self, server_id: str, name: str, value: str, text: str) -> None:
        """A server does not pass a challenge on."""
        self.challenges.denied(server_id, name, value, text)

    def parted(self, link: Link) -> None:
        """A link is gone: ask at once where servers are now."""
        for server_id, holder in list(self._claims.items()):
            if holder is link:
                del self._claims[server_id]
        self._successors.parted(link)
        self._joined.discard(link)
        if self._is_held(link.address) or not self._joiner.is_linked(link.address):
            return
        self._joiner.unlinked(link.address, self._reactor.seconds())
        if self._drain_until is None:
            self._resolver.look_up_now()
        self._review()

    def _is_held(self, address: ServerAddress) -> bool:
        """Whether a link is there: one that took the place of another, or whose place is taken."""
        return any(link.address == address for link in (*self._joined, *self._claims.values()))

"""The watches that nameservers keep on this server: what they are told, and what they tell.

Hides that there are several of them. Each gets the names with a session here, with the certificate of the
client that serves it; from each come the names that it knows, so that a visitor of a known name is not told
that there is no such site. A nameserver in the same process watches through `local()`, without a wire.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

from cryptography import x509
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.events import (
    CrlBrought,
    Ended,
    NameserverGreeted,
    NamesForgotten,
    NamesKnown,
    ServerEvent,
    ServerWithdrawn,
    WatchEnd,
)
from appliance.fleet.known import KnownNames
from appliance.fleet.messages import Certificate, shown
from appliance.fleet.pace import Paces
from appliance.fleet.renewing import RenewalAnswered, RenewalAsked
from appliance.fleet.watch import WatchedServer
from appliance.service.carrying import Carrying, End
from appliance.service.fewlines import FewLines
from appliance.service.server.accounts import Accounts
from appliance.service.server.challenges import Challenges
from appliance.service.signing import PER_SECOND_OF_ONE
from appliance.service.watchwire import WatchWire
from appliance.tunnel.certificates import Peer
from appliance.tunnel.crl import CrlRefused, RevocationList, Revocations
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.lines import MessageError
from appliance.tunnel.renewal import RenewalRefused, Request

MAX_WATCHES = 64
"""A zone has at most 8 nameservers of ours, and a check has 3 dials open beside an old watch."""
MAX_WATCHES_OF_NAMESERVER = 8
MAX_KNOWN_OF_NAMESERVER = 500_000
"""Names; about 100 MiB here if there really are so many."""
MAX_PUBLISHED = 90_000
"""Names that are served: fewer than nameservers take from one server (MAX_NAMES_OF_SERVER), for one too many
ends the watch. Their certificates are no more, and leave room for those of challenges and accounts.
"""
CERTIFICATES_REMEMBERED = 256
"""As messages: a client's names come one after the other, and each would cost 0.4 ms if it has 250."""

Withdrawn = Callable[[object, bool | None], None]
"""Which watch has answered that this server is out of what is published (False), or held in (True); or is
over (None).
"""

Renew = Callable[[Request], "Deferred[str]"]
"""Fires with a certificate, PEM, or fails with RenewalRefused."""


class Watches(Service):
    """All watches of this server. `known` are the names that a nameserver knows or that were served here."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        server_id: str,
        boot: str,
        addresses: Iterable[ServerAddress],
        revocations: Revocations,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.known = KnownNames()
        self.reactor = reactor
        self.server_id = server_id
        self._boot = boot
        self.addresses = tuple(addresses)
        self.revocations = revocations
        self._wall = wall
        self._complaints = FewLines(reactor, self._log)
        self._serving: dict[str, Certificate] = {}
        self._expires: dict[str, float] = {}
        self._told: dict[str, _Told] = {}  # by nameserver
        self._open: list[_Watch] = []
        self._local: LocalEnd | None = None
        self._withdrawn: Withdrawn | None = None
        self.challenges = Challenges(reactor, self._machines, self._flush)
        self.carrying = Carrying(reactor, self._renewing)
        self.renew: Renew = _nobody_renews
        self._renewal_paces = Paces(PER_SECOND_OF_ONE)
        self.renewer_came: Callable[[], None] = _asleep
        self.accounts = Accounts(reactor, self._machines, self._flush)

    def protocol_for(self, peer: Peer) -> IProtocol:
        """The protocol of an accepted connection whose peer proved to be this nameserver."""
        return _Watch(self, peer)

    def local(self) -> LocalEnd:
        """The end for a nameserver in this process."""
        self._local = LocalEnd(self)
        return self._local

    def serving(self, name: str, certificate_pem: bytes) -> None:
        """A name has its first session here, of a client with this certificate."""
        try:
            message, expires = _showing(certificate_pem)
        except MessageError as error:
            self._complaints.warn(name, f"cannot be published: {error}")
            return
        if name not in self._serving and len(self._serving) >= MAX_PUBLISHED:
            self._complaints.warn("names", f"{name} and others are not published: more than {MAX_PUBLISHED}")
            return
        self._serving[name] = message
        self._expires[name] = expires
        self.known.know(name, expires)
        for machine in self._machines():
            machine.serving(name, message)
        self._flush()

    def not_serving(self, name: str) -> None:
        """A name's last session here is gone."""
        if self._serving.pop(name, None) is None:
            return
        del self._expires[name]
        for machine in self._machines():
            machine.not_serving(name)
        self._flush()

    def may_be_known(self, host: str) -> bool:
        """Whether this host name is known, or no nameserver has said yet, since this server started, which
        names are: a visitor is not told that there is no such name by somebody who cannot know.
        """
        return not self._told or self.known.knows(host)

    def on_renewals(self, renew: Renew, came: Callable[[], None]) -> None:
        """`renew` gets what nameservers ask for; `came()`: one that has the CA's key watches now."""
        self.renew, self.renewer_came = renew, came

    def asked_to_renew(self, nameserver_id: str, request: Request) -> Deferred[str]:
        """What a nameserver asks for."""
        if not self._renewal_paces.allows(nameserver_id, self.reactor.seconds()):
            return fail(RenewalRefused(f"more than {PER_SECOND_OF_ONE:g} a second"))
        return self.renew(request)

    def renew_for(self, request: Request) -> Deferred[str]:
        """What a client asks for."""
        return self.renew(request)

    def drain(self, withdrawn: Withdrawn) -> list[object]:
        """Tell every nameserver that this server will leave; those whose answer is to be waited for."""
        self._withdrawn = withdrawn
        for machine in self._machines():
            machine.drain()
        self._flush()
        local = [] if self._local is None or self._local.machine is None else [self._local]
        return [*self._open, *local]

    def revoke(self, revoked: RevocationList) -> None:
        """End the watches of every nameserver whose certificate is on the list; give it to the others."""
        for watch in list(self._open):
            if watch.peer.serial in revoked.serials:
                watch.dismiss("revoked", "the nameserver's certificate was revoked")
            else:
                watch.give(revoked)

    def stopService(self) -> None:
        """Tell every nameserver that this server leaves."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.challenges.stop()
        self.accounts.stop()
        for watch in list(self._open):
            watch.leave()

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator."""
        return [{"nameserver": watch.peer.id} for watch in self._open]

    # For the ends

    def machine(self) -> WatchedServer:
        """A new machine with what is served now."""
        machine = WatchedServer(
            self.server_id,
            self._boot,
            self.addresses,
            partial(secrets.token_hex, 8),
            self.reactor.seconds(),
            self._serving,
            draining=self._withdrawn is not None,
            crl=self.revocations.revoked.number,
        )
        self.challenges.say_all(machine)
        self.accounts.say_all(machine)
        return machine

    def opened(self, watch: _Watch) -> None:
        """It has begun."""
        of_it = sum(1 for other in self._open if other.peer.id == watch.peer.id)
        self._open.append(watch)
        if of_it >= MAX_WATCHES_OF_NAMESERVER or len(self._open) > MAX_WATCHES:
            watch.dismiss("too_many", "there are too many watches on this server")

    def over(self, watch: _Watch) -> None:
        """Nothing more is said on it, though its connection may take a while to end: it counts no more."""
        self._open.remove(watch)

    def closed(self, watch: _Watch, text: str) -> None:
        """Its connection has ended."""
        if self._withdrawn is not None:
            self._withdrawn(watch, None)
        if text:
            self._complaints.warn(f"nameserver {watch.peer.id}", f"its watch ended: {text}")

    def told(self, watch: object, nameserver_id: str, saying: _Told, events: Iterable[ServerEvent]) -> bool:
        """What one watch of a nameserver says; False when that is more than can be kept.

        A nameserver that comes again says all that it knows; what it said before holds until it has done so.
        """
        for event in events:
            match event:
                case NameserverGreeted() | CrlBrought():
                    pass
                case NamesKnown(names, complete):
                    if len(saying.names) + len(names) > MAX_KNOWN_OF_NAMESERVER:
                        return False
                    saying.names.update(names)
                    if saying.is_complete:
                        self._known(names)
                    elif complete:
                        saying.is_complete = True
                        before = self._told.get(nameserver_id)
                        self._told[nameserver_id] = saying
                        self._known(saying.names)
                        self._forgotten(before.names - saying.names if before else ())
                case NamesForgotten(names):
                    saying.names.difference_update(names)
                    if saying.is_complete:
                        self._forgotten(names)
                case ServerWithdrawn(held):
                    if self._withdrawn is not None:
                        self._withdrawn(watch, held)
        return True

    def _known(self, names: Iterable[str]) -> None:
        for name in names:
            self.known.know(name, math.inf)

    def _forgotten(self, names: Iterable[str]) -> None:
        for name in names:
            if not any(name in told.names for told in self._told.values()):
                self.known.forget(name)
                if name in self._serving:
                    self.known.know(name, self._expires[name])

    def _renewing(self) -> list[End]:
        """The watches of nameservers that have the CA's key."""
        return [
            (watch, watch.ask_renewal)
            for watch in self._open
            if watch.machine is not None and watch.machine.other_renews
        ]

    def _machines(self) -> list[WatchedServer]:
        self.known.expire(self._wall())
        machines = [watch.machine for watch in self._open]
        if self._local is not None:
            machines.append(self._local.machine)
        return [machine for machine in machines if machine is not None]

    def _flush(self) -> None:
        for watch in self._open:
            watch.flush()
        if self._local is not None:
            self._local.wake()


class _Told:
    """What a nameserver said that it knows, on one watch."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.is_complete = False


class LocalEnd:
    """This server's end of the watch by a nameserver in the same process."""

    def __init__(self, watches: Watches) -> None:
        self.server_id = watches.server_id
        self.addresses = watches.addresses
        self.machine: WatchedServer | None = None
        self.wake: Callable[[], None] = _asleep
        self._watches = watches
        self._told = _Told()

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; `wake()` is called whenever there is something to say."""
        self.wake = wake
        self.machine = self._watches.machine()

    def receive(self, octets: bytes) -> None:
        """What the nameserver says."""
        assert self.machine is not None
        self._watches.told(
            self, "", self._told, self.machine.receive(octets, self._watches.reactor.seconds())
        )

    def data_to_send(self) -> bytes:
        """What this server says; to be asked again until there is nothing."""
        assert self.machine is not None
        return self.machine.data_to_send()


class _Watch(WatchWire):
    """One accepted connection."""

    def __init__(self, watches: Watches, peer: Peer) -> None:
        super().__init__(watches.reactor, self._events)
        self.peer = peer
        self.machine: WatchedServer | None = None
        self._watches = watches
        self._told = _Told()
        self._why = ""

    def connectionMade(self) -> None:
        self.machine = self._watches.machine()
        self.begin(self.machine)
        self._watches.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._is_over()
        self._watches.closed(self, self._why)

    def leave(self) -> None:
        """This server leaves."""
        if self.machine is not None:
            self.machine.leave()
            self._is_over()
            self.end()

    def give(self, revoked: RevocationList) -> None:
        """Give the nameserver this revocation list, unless it has one as new."""
        if self.machine is not None:
            self.machine.give(revoked)
            self.flush()

    def ask_renewal(self, request: Request) -> None:
        """Have the nameserver renew a certificate."""
        if self.machine is not None:
            self.machine.renewals.ask(request)
            self.flush()

    def _renew(self, request: Request) -> None:
        """The nameserver wants one to be renewed."""

        def renewed(pem: str) -> None:
            if self.machine is not None:
                self.machine.renewals.answer(request.digest, pem)
                self.flush()

        def refused(failure: Failure) -> None:
            failure.trap(RenewalRefused)
            if self.machine is not None:
                self.machine.renewals.refuse(request.digest, str(failure.value))
                self.flush()

        self._watches.asked_to_renew(self.peer.id, request).addCallbacks(renewed, refused)

    def dismiss(self, reason: str, text: str) -> None:
        """End this watch, in words."""
        self._why = text
        if self.machine is not None:
            self.machine.goodbye(reason, text)
            self._is_over()
            self.end()

    def _is_over(self) -> None:
        if self.machine is not None:
            self.machine = None
            self._watches.over(self)

    def _events(self, events: list[ServerEvent]) -> None:
        for event in events:
            if isinstance(event, NameserverGreeted):
                self.give(self._watches.revocations.revoked)
                if self.machine is not None and self.machine.other_renews:
                    self._watches.renewer_came()
            elif isinstance(event, RenewalAsked):
                self._renew(event.request)
            elif isinstance(event, RenewalAnswered):
                self._watches.carrying.answered(self, event.certificate, event.text, event.digest)
            elif isinstance(event, CrlBrought):
                try:
                    self._watches.revocations.take(event.pem)
                except CrlRefused as error:
                    self.dismiss("protocol", str(error))
        if self.machine is None:
            return  # dismissed, perhaps by the very list that it brought
        if not self._watches.told(self, self.peer.id, self._told, events):
            self.dismiss("too_many_names", f"more than {MAX_KNOWN_OF_NAMESERVER} known names")
        elif isinstance(events[-1], Ended):
            self._why = events[-1].text
            self._is_over()
            if events[-1].reason is WatchEnd.SILENT:
                self.cut()
            else:
                self.end()


@lru_cache(CERTIFICATES_REMEMBERED)
def _showing(certificate_pem: bytes) -> tuple[Certificate, float]:
    """How a client's certificate is shown, and when it expires. Raises MessageError: it is too long."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return shown(certificate), certificate.not_valid_after_utc.timestamp()


def _nobody_renews(_request: Request) -> Deferred[str]:
    return fail(RenewalRefused("the server begins"))


def _asleep() -> None:
    pass

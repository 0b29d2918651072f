"""Keeps a watch on every tunnel server that the settings list or that was introduced, and on the one in this
process.

Hides when an address is dialled. The end of a watch starts a check (`fleet.check`), whose answering dial is
the next watch; without an answer the address rests for a random while and is checked again. A server in this
process is watched by the same machines, without a wire.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.accounts import Account
from appliance.fleet.check import Check, Verdict
from appliance.fleet.events import (
    AccountRefused,
    AccountSaid,
    ChallengeSaid,
    ChallengeWithdrawn,
    NameRefused,
    ObserverEvent,
    ServerDraining,
    ServerGreeted,
    ServerLeft,
    ServingStarted,
    ServingStopped,
    SnapshotTaken,
)
from appliance.fleet.pace import Paces
from appliance.fleet.renewing import RenewalAnswered, RenewalAsked
from appliance.service.carrying import ASKED_ON_SECONDS, Carrying, End
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.dials import Dial, Meeting
from appliance.service.nameserver.lag import LoopLag
from appliance.service.nameserver.registry import Registry
from appliance.service.signing import PER_SECOND_OF_ONE
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.renewal import RenewalRefused, Request

REST_SECONDS_FIRST, REST_SECONDS_MOST = 0.5, 4.0
"""The first and the longest rest between two checks of a server that does not answer; the rest is random
below it, and back within 10 s is what a healed network is allowed.
"""
BRIEF_SECONDS = 10.0
BRIEF_WATCHES = 3
"""After so many watches in a row that ended so soon, each time with the server alive, there is a rest before
the next: something is wrong that another dial does not cure.
"""

Renew = Callable[[Request], "Deferred[str]"]
"""Fires with a certificate, PEM, or fails with RenewalRefused."""


class LocalServer(Protocol):
    """A tunnel server in this process: its end of a watch."""

    server_id: str
    addresses: tuple[ServerAddress, ...]

    def start(self, wake: Callable[[], None]) -> None:
        """`wake()` is called whenever there is something to say."""

    def receive(self, octets: bytes) -> None: ...

    def data_to_send(self) -> bytes: ...


class WatchingState(enum.Enum):
    """What is being done about one address."""

    CHECKING = "checking"
    WATCHING = "watching"
    RESTING = "resting"


_NEXT: Mapping[tuple[WatchingState, str], WatchingState] = {
    (WatchingState.CHECKING, "answered"): WatchingState.WATCHING,
    (WatchingState.CHECKING, "unanswered"): WatchingState.RESTING,
    (WatchingState.WATCHING, "ended"): WatchingState.CHECKING,
    (WatchingState.WATCHING, "ended for now"): WatchingState.RESTING,
    (WatchingState.RESTING, "rested"): WatchingState.CHECKING,
}


class Watcher(Service):
    """Watches `addresses`, and tells the registry."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        registry: Registry,
        addresses: Iterable[ServerAddress],
        meeting: Meeting,
        *,
        local: LocalServer | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.reactor = reactor
        self.registry = registry
        self.meeting = meeting
        self.jitter = jitter
        self.lag = LoopLag(reactor)
        self.complaints = FewLines(reactor, self.log)
        remote = dict.fromkeys(addresses)
        for address in local.addresses if local is not None else ():
            remote.pop(address, None)
        self._places = {address: _Place(self, address) for address in remote}
        self._own = frozenset(local.addresses) if local is not None else frozenset()
        self._introduced: set[ServerAddress] = set()
        self._greeted: Callable[[str, str], None] = _nobody
        self.challenge_said: Callable[[str, str, str, int], None] = _nobody
        self.challenge_withdrawn: Callable[[str, str, str], None] = _nobody
        self.carrying = Carrying(reactor, self._renewing, ASKED_ON_SECONDS)
        self.renew: Renew = _nobody_renews
        self._renewal_paces = Paces(PER_SECOND_OF_ONE)
        self.renewer_came: Callable[[], None] = _nobody
        self.account_said: Callable[[Account], None] = _nobody
        self._local = None if local is None else _LocalWatch(self, local)
        registry.on_names(self._known, self._forgotten)

    def startService(self) -> None:
        """Watch the server in this process at once, and dial the others."""
        super().startService()  # type: ignore[no-untyped-call]
        self.lag.start()
        if self._local is not None:
            self._local.start()
        for place in tuple(self._places.values()):
            if self.registry.admits(place.address):
                place.check()
            else:
                self.log.error(
                    "{address} is not reachable from the internet and is not published"
                    " (private_addresses = true allows it)",
                    address=place.address,
                )

    def stopService(self) -> None:
        """End every watch; what is published stays published."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.lag.stop()
        for place in tuple(self._places.values()):
            place.stop()
        if self._local is not None:
            self._local.stop()

    def revoke(self, revoked: RevocationList) -> None:
        """End the watches of every server whose certificate is on the list, and take it out; give the list to
        the others, and believe nothing that they said of a client who is on it.
        """
        for place in tuple(self._places.values()):
            place.revoke(revoked)

    def on_greeted(self, tell: Callable[[str, str], None]) -> None:
        """`tell(server_id, boot)` hears which start of a server answers on a watch."""
        self._greeted = tell

    def on_challenges(
        self, said: Callable[[str, str, str, int], None], withdrawn: Callable[[str, str, str], None]
    ) -> None:
        """`said(server_id, name, value, seconds)` and `withdrawn(server_id, name, value)` hear of the
        challenges of clients.
        """
        self.challenge_said, self.challenge_withdrawn = said, withdrawn

    def on_renewals(self, renew: Renew, came: Callable[[], None]) -> None:
        """`renew` gets what servers ask for; `came()`: one more can be asked."""
        self.renew, self.renewer_came = renew, came

    def asked_to_renew(self, server_id: str, request: Request) -> Deferred[str]:
        """What a server asks for."""
        if not self._renewal_paces.allows(server_id, self.reactor.seconds()):
            return fail(RenewalRefused(f"more than {PER_SECOND_OF_ONE:g} a second"))
        return self.renew(request)

    def on_accounts(self, said: Callable[[Account], None]) -> None:
        """`said` hears of the accounts of clients."""
        self.account_said = said

    def greeted(self, server_id: str, boot: str) -> None:
        """A watch has met this start of this server."""
        self._greeted(server_id, boot)

    def introduce(self, addresses: Iterable[ServerAddress]) -> None:
        """Watch these, too; those that are not, now: whoever says that he is there is worth a dial."""
        for address in addresses:
            if address in self._own or not self.registry.admits(address):
                continue
            place = self._places.get(address)
            if place is None:
                place = self._places[address] = _Place(self, address)
                self._introduced.add(address)
            if self.running:
                place.hurry()

    def retain(self, addresses: Collection[ServerAddress]) -> None:
        """Of those introduced, go on with these, and with those that are heard."""
        for address in self._introduced.difference(addresses):
            place = self._places[address]
            if place.watch is None:
                place.stop()
                del self._places[address]
                self._introduced.discard(address)

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator: what is being done about each address."""
        return [place.status() for place in self._places.values()]

    def _renewing(self) -> list[End]:
        """The servers that are watched: each can at least ask on."""
        watches = [place.watch for place in self._places.values() if place.watch is not None]
        return [(watch, watch.ask_renewal) for watch in watches]

    def _known(self, names: Collection[str]) -> None:
        for place in tuple(self._places.values()):
            if place.watch is not None:
                place.watch.know(list(names))
        if self._local is not None:
            self._local.know(names)

    def _forgotten(self, names: Collection[str]) -> None:
        for place in tuple(self._places.values()):
            if place.watch is not None:
                place.watch.forget(list(names))
        if self._local is not None:
            self._local.forget(names)


class _Follower:
    """Says to the registry what one watch says, and to a draining server that it is out (or held)."""

    def __init__(
        self,
        watcher: Watcher,
        server_id: str,
        addresses: Collection[ServerAddress],
        withdrawn: Callable[[bool], None],
    ) -> None:
        self._watcher = watcher
        self._registry = watcher.registry
        self._complaints = watcher.complaints
        self.server_id = server_id
        self._addresses = addresses
        self._withdrawn = withdrawn
        self._drains = False
        self._has_joined = False
        self.boot = ""

    def follow(self, events: Iterable[ObserverEvent]) -> None:
        registry, addresses = self._registry, self._addresses
        for event in events:
            match event:
                case ServerGreeted(_, boot):
                    self.boot = boot
                    self._watcher.greeted(self.server_id, boot)
                case SnapshotTaken(names):
                    registry.joined(addresses, self.server_id, self.boot, names)
                    self._has_joined = True
                    self._drain()
                case ServerDraining():
                    self._drains = True
                    self._drain()
                case ServingStarted(name, expires):
                    registry.serving(addresses, self.boot, name, expires)
                case ServingStopped(name):
                    registry.not_serving(addresses, self.boot, name)
                case NameRefused(name, text):
                    self._complaints.warn(self.server_id, f"serves {name}, which is not published: {text}")
                case ChallengeSaid(name, value, seconds):
                    self._watcher.challenge_said(self.server_id, name, value, seconds)
                case ChallengeWithdrawn(name, value):
                    self._watcher.challenge_withdrawn(self.server_id, name, value)
                case AccountSaid(account):
                    self._watcher.account_said(account)
                case AccountRefused(text):
                    self._complaints.warn(self.server_id, f"says an account, which is not believed: {text}")
                case ServerLeft():
                    registry.left(addresses, self.server_id, self.boot)

    def _drain(self) -> None:
        """Take it out, in the same turn in which it may have joined."""
        if self._drains and self._has_joined:
            published = self._registry.draining(self._addresses, self.server_id, self.boot)
            published.addCallback(self._withdrawn)


class _Place:
    """One address: its check, its dials, its watch."""

    def __init__(self, watcher: Watcher, address: ServerAddress) -> None:
        self.address = address
        self.watch: Dial | None = None
        self._watcher = watcher
        self._state = WatchingState.RESTING
        self._check = Check(None, 0.0)
        self._dials: set[Dial] = set()
        self._timer: Any = None
        self._follower: _Follower | None = None
        self._serial: int | None = None
        self._since = 0.0
        self._unanswered = 0
        self._brief = 0
        self._has_left = False
        self._why = ""

    def check(self) -> None:
        """Begin a check now."""
        self._becomes("rested")

    def hurry(self) -> None:
        """Begin a check now if one is to come."""
        if self._state is WatchingState.RESTING:
            self._set_timer(None)
            self._becomes("rested")

    def stop(self) -> None:
        """End everything."""
        self._set_timer(None)
        self._drop_dials()
        if self.watch is not None:
            self.watch.drop()
            self.watch = None

    def revoke(self, revoked: RevocationList) -> None:
        """The server last met here may be on this list, whether it is heard now or not."""
        if self._serial in revoked.serials:
            self._revoked()
            if self.watch is not None:
                self.watch.examine_again()
        elif self.watch is not None:
            self.watch.revoke(revoked)

    def status(self) -> dict[str, Any]:
        """Plain values for the operator."""
        seconds = round(self._watcher.reactor.seconds() - self._since, 1)
        return {
            "address": str(self.address),
            "state": self._state.value,
            "seconds": seconds,
            "problem": self._why,
        }

    def _becomes(self, what: str) -> None:
        self._state = _NEXT[self._state, what]
        now = self._since = self._watcher.reactor.seconds()
        if self._state is WatchingState.CHECKING:
            self._check = Check(self._watcher.registry.boot_at(self.address), now)
            self._go_on()
        elif self._state is WatchingState.RESTING:
            most = min(REST_SECONDS_MOST, REST_SECONDS_FIRST * 2 ** min(self._unanswered, 10))
            self._unanswered += 1
            self._set_timer(self._watcher.jitter(0.0, most))

    # The check

    def _go_on(self) -> None:
        """What is due in the check; then what it found, or when to go on."""
        check = self._check
        now = self._watcher.reactor.seconds()
        check.tick(now, self._watcher.lag.lagged_since(check.began))
        for _ in range(check.dials_due(now)):
            if check.verdict is None:  # the one before may have been refused at once
                self._dial()
        self._settle()

    def _dial(self) -> None:
        watcher = self._watcher
        dial = Dial(
            watcher.reactor,
            watcher.meeting,
            self.address,
            refused=self._refused,
            failed=self._failed,
            heard=self._heard,
            revoked=self._revoked,
        )
        if not dial.is_over:
            self._dials.add(dial)

    def _settle(self) -> None:
        verdict = self._check.verdict
        if verdict is None:
            deadline = self._check.next_deadline()
            assert deadline is not None
            self._set_timer(deadline - self._watcher.reactor.seconds())
            return
        if self._state is not WatchingState.CHECKING:
            return  # a dial was refused while it was made, and that has settled it
        self._set_timer(None)
        self._drop_dials()
        registry, boot = self._watcher.registry, self._check.boot
        if boot is not None and verdict in (Verdict.REFUSED, Verdict.OTHER_BOOT):
            registry.dead(self.address, boot)
        elif boot is not None and verdict is Verdict.SILENT:
            registry.silent(self.address, boot)
        if verdict is Verdict.REFUSED:
            self._tell("nobody listens there")
        elif verdict is Verdict.SILENT and not self._why:
            self._tell("does not answer")
        self._becomes("answered" if self.watch is not None else "unanswered")

    def _drop_dials(self) -> None:
        dials, self._dials = self._dials, set()
        for dial in dials:
            dial.drop()

    # What the dials say

    def _refused(self, dial: Dial) -> None:
        self._dials.discard(dial)
        self._check.refused()
        self._settle()

    def _failed(self, dial: Dial, text: str) -> None:
        self._dials.discard(dial)
        self._tell(text)
        if dial is self.watch:
            self.watch = self._follower = None
            brief = self._watcher.reactor.seconds() - self._since < BRIEF_SECONDS
            self._brief = self._brief + 1 if brief else 0
            rests = self._has_left or self._brief >= BRIEF_WATCHES
            self._has_left = False
            self._becomes("ended for now" if rests else "ended")

    def _revoked(self) -> None:
        self._watcher.registry.removed(self.address)

    def _heard(self, dial: Dial, events: list[ObserverEvent]) -> None:
        if dial is not self.watch:
            greeted = events[0]
            if self._check.verdict is not None or not isinstance(greeted, ServerGreeted):
                return
            assert dial.peer is not None
            self._dials.discard(dial)
            self.watch = dial
            self._serial = dial.peer.serial
            self._follower = _Follower(self._watcher, greeted.server_id, (self.address,), dial.withdrawn)
            self._check.answered(greeted.boot)
            self._settle()
            dial.know(self._watcher.registry.names())
        if self._follower is not None:
            self._follower.follow(events)
        for event in events:
            if isinstance(event, SnapshotTaken):
                self._unanswered = 0
                self._why = ""
                self._watcher.renewer_came()
            elif isinstance(event, ServerLeft):
                self._has_left = True
            elif isinstance(event, RenewalAsked):
                self._renew(dial, event.request)
            elif isinstance(event, RenewalAnswered):
                self._watcher.carrying.answered(dial, event.certificate, event.text, event.digest)

    def _renew(self, dial: Dial, request: Request) -> None:
        """The server wants a certificate to be renewed."""

        def refused(failure: Failure) -> None:
            failure.trap(RenewalRefused)
            text = str(failure.value)
            dial.answer_renewal(request.digest, "", text)
            self._watcher.complaints.warn(f"a renewal asked by {self.address}", f"refused: {text}")

        assert self._follower is not None  # since it has greeted
        self._watcher.asked_to_renew(self._follower.server_id, request).addCallbacks(
            lambda pem: dial.answer_renewal(request.digest, pem, ""), refused
        )

    def _tell(self, text: str) -> None:
        """One line when the problem is another one than before."""
        if text != self._why:
            self._why = text
            self._watcher.complaints.warn(str(self.address), text)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._watcher.reactor.callLater(max(0.0, seconds), self._timed)

    def _timed(self) -> None:
        self._timer = None
        if self._state is WatchingState.RESTING:
            self._becomes("rested")
        else:
            self._go_on()


class _LocalWatch:
    """The watch of the server in this process: octets go from one machine to the other, and nobody is ever
    silent.
    """

    def __init__(self, watcher: Watcher, server: LocalServer) -> None:
        self._watcher = watcher
        self._server = server
        self._observer = watcher.meeting.observer(server.server_id)
        self._follower: _Follower | None = None
        self._pumping: Any = None

    def start(self) -> None:
        self._server.start(self._soon)
        self._observer.know(self._watcher.registry.names())
        self._pump()

    def stop(self) -> None:
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None

    def know(self, names: Iterable[str]) -> None:
        self._observer.know(names)
        self._soon()

    def forget(self, names: Iterable[str]) -> None:
        self._observer.forget(names)
        self._soon()

    def _withdrawn(self, held: bool) -> None:
        self._observer.withdrawn(held=held)
        self._soon()

    def _soon(self) -> None:
        if self._pumping is None and self._watcher.running:
            self._pumping = self._watcher.reactor.callLater(0, self._pump)

    def _pump(self) -> None:
        """Carry octets until neither end has any."""
        self._pumping = None
        said = True
        while said:
            said = False
            if octets := self._server.data_to_send():
                said = True
                self._follow(self._observer.receive(octets, self._watcher.reactor.seconds()))
            if octets := self._observer.data_to_send():
                said = True
                self._server.receive(octets)

    def _follow(self, events: list[ObserverEvent]) -> None:
        for event in events:
            if isinstance(event, ServerGreeted):
                addresses = tuple(filter(self._watcher.registry.admits, event.addresses))
                for address in set(event.addresses) - set(addresses):
                    self._watcher.log.error(
                        "{address}, of this server itself, is not reachable from the internet and is not"
                        " published (private_addresses = true allows it)",
                        address=address,
                    )
                self._follower = _Follower(self._watcher, event.server_id, addresses, self._withdrawn)
            if self._follower is not None:
                self._follower.follow((event,))


def _nobody(*_heard: object) -> None:
    pass


def _nobody_renews(_request: Request) -> Deferred[str]:
    return fail(RenewalRefused("the nameserver begins"))

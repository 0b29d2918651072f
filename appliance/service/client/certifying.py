"""One name on its way to a certificate: what each state of its Issuance does, on the reactor.

Hides the order of things that makes a crash harmless: the ledger is on disk before the CA is asked, the
certificate and its key before they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from typing import Protocol as Shape

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from appliance.dns.caa import Caa, Verdict, caa_permits
from appliance.service.client.acmestate import AcmeState
from appliance.service.client.challenges import ChallengeNotPublished
from appliance.service.client.issuer import IssuerFailed, IssuerLimits, IssuerRefused, IssuerSilent, Seen
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.resolver import LookupFailed
from appliance.tunnel.certificaterequest import certificate_id, lifetime_of, new_key
from appliance.tunnel.issuance import (
    RATE_LIMITED_SECONDS,
    Event,
    Issuance,
    Issued,
    Placed,
    Proved,
    Refused,
    State,
    Stopped,
    Validated,
    Woken,
)
from appliance.tunnel.issuanceledger import Ledger, Order
from appliance.tunnel.keypair import Keypair, KeypairRefused, read_keypair
from appliance.tunnel.names import is_wildcard

#: Between two looks at an order that the CA works on, unless it says when: the library acme's own.
POLL_SECONDS = 1.0
#: For a first look at CAA records that are bound to our account, which nameservers have just been told of: a
#: resolver may have those of before for a live TTL and as much more where it asks another one.
CAA_SECONDS = 45.0
#: A CA that has not decided by then is asked again after a pause. Let's Encrypt takes some seconds.
DECISION_SECONDS = 120.0

T = TypeVar("T")


class Publishing(Shape):
    """Of challenges (``challenges.Challenges``)."""

    def publish(self, name: str, value: str) -> Deferred[None]:
        """Fires when every nameserver answers so; fails with ChallengeNotPublished."""

    def withdraw(self, name: str, value: str) -> None:
        """Have it published no longer."""

    def caa(self, name: str) -> Deferred[tuple[Caa, ...]]:
        """The CAA records that count for a name; fails with LookupFailed."""


class Asked(Shape):
    """A CA (``issuer.Issuer``)."""

    @property
    def account(self) -> str: ...
    @property
    def caa_identities(self) -> tuple[str, ...]: ...
    def place(self, name: str, replaces: str | None) -> Seen: ...
    def look(self, url: str) -> Seen: ...
    def answer(self, seen: Seen) -> None: ...
    def finalize(self, seen: Seen, name: str, key_pem: str) -> None: ...
    def fetch(self, seen: Seen) -> bytes: ...
    def window(self, certificate: str) -> tuple[tuple[datetime, datetime], float] | None: ...


class Told(Shape):
    """Who tells servers (``telling.Telling``)."""

    def account(self, url: str, issuers: Sequence[str]) -> None: ...
    def uncertified(self, name: str, why: str) -> None: ...
    def certified(self, name: str) -> None: ...


class Running(Shape):
    """What runs calls that block (``aside.Aside``)."""

    def call(self, what: Callable[[], Any]) -> Deferred[Any]: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Issuing:
    """What all names share."""

    reactor: Any
    ca: Asked
    state: AcmeState
    challenges: Publishing
    keypairs: Keypairs
    aside: Running
    wall: Callable[[], datetime]
    chance: Callable[[float, float], float]
    telling: Told


class Certifying:
    """``run()`` takes the Issuance of ``name`` from waiting to waiting; ``words`` then say what was wrong."""

    def __init__(self, shared: Issuing, name: str, issuance: Issuance) -> None:
        self.words = ""
        self._shared = shared
        self._name = name
        self._issuance = issuance
        self._seen: Seen | None = None
        self._published = ""

    async def run(self) -> None:
        """One attempt."""
        self.words = ""
        self._take(Woken(new_key()))
        steps = {
            State.ORDERING: self._order,
            State.PROVING: self._prove,
            State.VALIDATING: self._validate,
            State.ISSUING: self._issue,
        }
        try:
            while self._issuance.state is not State.WAITING:
                self._take(await self._result(steps[self._issuance.state]))
        finally:
            if self._published:
                self._shared.challenges.withdraw(self._name, self._published)
                self._published = ""
        try:
            await self._keep()
        except OSError as error:
            self.words = self.words or str(error)

    async def _result(self, step: Callable[[], Any]) -> Event:
        try:
            await self._keep()
            event: Event = await step()
        except IssuerFailed as failed:
            self.words = str(failed)
            at_least = failed.retry_after
            if isinstance(failed, IssuerLimits):
                at_least = at_least or RATE_LIMITED_SECONDS
            return (Refused if isinstance(failed, IssuerRefused) else Stopped)(at_least)
        except ChallengeNotPublished as failed:
            self.words = str(failed)
            return Stopped()
        except OSError as error:
            self.words = f"the state directory: {error.strerror or error}"
            return Stopped()
        return event

    def _take(self, event: Event) -> None:
        shared = self._shared
        self._issuance.receive(event, shared.wall(), shared.chance(0.0, 1.0))

    def _keep(self) -> Deferred[None]:
        ledger = self._issuance.ledger
        return self._shared.aside.call(lambda: self._shared.state.put_ledger(self._name, ledger))

    # The states

    async def _order(self) -> Event:
        ca = self._shared.ca
        order = self._issuance.ledger.order
        assert order is not None
        if order.url:
            seen = await self._call(partial(ca.look, order.url))
        else:
            seen = await self._call(partial(self._place, self._issuance.ledger, order, self._replaced()))
        self._shared.telling.account(ca.account, ca.caa_identities)
        self._seen = self._not_invalid(seen)
        return Placed(seen.url) if seen.status == "pending" else Validated(seen.url)

    def _place(self, ledger: Ledger, order: Order, replaced: str | None) -> Seen:
        """In the thread: a new order, whose place is on disk before anything else happens. It is the one
        thing that a crash can lose, so the moment is to be short.
        """
        seen = self._shared.ca.place(self._name, replaced)
        placed = replace(ledger, order=replace(order, url=seen.url))
        self._shared.state.put_ledger(self._name, placed)
        return seen

    async def _prove(self) -> Event:
        assert self._seen is not None
        if not self._seen.value:
            raise IssuerRefused("the CA offers no dns-01 challenge")
        await self._check_caa()
        await self._shared.challenges.publish(self._name, self._seen.value)
        self._published = self._seen.value
        return Proved()

    async def _check_caa(self) -> None:
        """Better a no here than the CA's, which is counted. A CA that does not say what CAA records call it
        has to look itself. Records that are for other accounts may soon be for ours as well.
        """
        reactor = self._shared.reactor
        until = reactor.seconds() + CAA_SECONDS
        while not (verdict := await self._permitted()):
            if not verdict.for_others or reactor.seconds() + POLL_SECONDS > until:
                raise IssuerSilent(verdict.why)
            await deferLater(reactor, POLL_SECONDS)

    async def _permitted(self) -> Verdict:
        ca = self._shared.ca
        if not ca.caa_identities:
            return Verdict(True)
        try:
            records = await self._shared.challenges.caa(self._name)
        except LookupFailed as failed:
            raise IssuerSilent(f"CAA records cannot be looked up: {failed}") from None
        return caa_permits(
            records,
            ca.caa_identities,
            wildcard=is_wildcard(self._name),
            account_uri=ca.account,
            method="dns-01",
        )

    async def _validate(self) -> Event:
        seen = self._seen
        assert seen is not None
        if seen.challenge:
            await self._call(partial(self._shared.ca.answer, seen))
        seen = await self._decided(seen, "pending")
        return Validated(seen.url)

    async def _issue(self) -> Event:
        seen, order = self._seen, self._issuance.ledger.order
        assert seen is not None
        assert order is not None
        if seen.status == "ready":
            asked = seen
            await self._call(lambda: self._shared.ca.finalize(asked, self._name, order.key_pem))
        issued = await self._decided(seen, "ready", "processing")
        pem = await self._call(lambda: self._shared.ca.fetch(issued))
        try:
            keypair = read_keypair(pem, order.key_pem.encode("ascii"))
            self._shared.keypairs.check(self._name, keypair)  # what is on disk may be a good one
            await self._call(lambda: self._shared.state.put_certificate(self._name, keypair))
            self._shared.keypairs.put(self._name, keypair)
        except KeypairRefused as refused:
            raise IssuerRefused(f"what the CA gave {refused.text}") from None
        return Issued(lifetime_of(pem))

    async def _decided(self, seen: Seen, *undecided: str) -> Seen:
        """The order, once its status is none of these."""
        reactor = self._shared.reactor
        until = reactor.seconds() + DECISION_SECONDS
        while True:
            seen = self._not_invalid(await self._call(partial(self._shared.ca.look, seen.url)))
            if seen.status not in undecided:
                self._seen = seen
                return seen
            pause = max(POLL_SECONDS, seen.retry_after)
            if reactor.seconds() + pause > until:
                raise IssuerSilent(f"the CA has not decided within {DECISION_SECONDS:.0f} s")
            await deferLater(reactor, pause)

    def _not_invalid(self, seen: Seen) -> Seen:
        if seen.status == "invalid":
            raise IssuerRefused(f"the CA says: {seen.words or 'the order is invalid, and not why'}")
        return seen

    def _replaced(self) -> str | None:
        current: Keypair | None = self._shared.keypairs.current.get(self._name)
        return None if current is None else certificate_id(current.certificate_pem)

    async def _call(self, what: Callable[[], T]) -> T:
        result: T = await self._shared.aside.call(what)
        return result

"""When the certificate of a name is ordered, and what has become of an order: one machine a name.

What the CA says is told to `receive()`; what has to be on disk before the next thing is asked for is the
`ledger`. `wall` is the calendar, for all of this outlives the process. Hides every number: how long before
its end a certificate is renewed, what pause follows a failure, how many orders a CA is bothered with.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from appliance.tunnel.issuanceledger import LONGEST_PAUSE_SECONDS, Ledger, Order

RENEWAL_PART = 3
"""A certificate is renewed when a third of its lifetime is left: what Let's Encrypt asks for, and certbot and
Caddy do."""
STAGGER_PART = 30
"""Clients of one name renew at moments of their own, over a thirtieth of the lifetime before that: three days
of ninety."""
FIRST_SECONDS = 2.0
"""The same for the first certificate, which somebody waits for."""
LATEST_PART = 6
"""No wish of the CA's counts that leaves less than a sixth: half of the time for failures is over then."""
ORDERS_AN_HOUR = 5
"""New orders of a name. Let's Encrypt takes five failed validations of a name an hour from an account."""
ORDERS_SECONDS = 3600.0
REFUSED_SECONDS, REFUSED_CEILING_SECONDS = 60.0, 6 * 3600.0
"""The pause after the CA has said no, doubled each time: Caddy's first and last."""
STOPPED_SECONDS, STOPPED_CEILING_SECONDS = 5.0, 3600.0
"""The same where the order stands and something did not answer: what is asked again costs the CA nothing."""
RATE_LIMITED_SECONDS = 3600.0
"""The pause after `rateLimited` without a Retry-After: the hour in which Let's Encrypt counts most things."""
EARLIEST_PAUSE = 0.5
"""Of a pause, what chance does not shorten."""


class State(enum.Enum):
    """What is being done for a name."""

    WAITING = "waiting"
    ORDERING = "ordering"
    PROVING = "proving"
    VALIDATING = "validating"
    ISSUING = "issuing"


@dataclass(frozen=True, slots=True)
class Woken:
    """It is time; `key_pem` is the key of the certificate if there is no order to go on with."""

    key_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Placed:
    """The order is there, at `url`, and the CA waits for the proof."""

    url: str


@dataclass(frozen=True, slots=True)
class Proved:
    """Every nameserver answers with the challenge."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The CA has seen it, now or for an earlier order: the order at `url` may be finalized."""

    url: str


@dataclass(frozen=True, slots=True)
class Issued:
    """The certificate is here, on disk and in use."""

    lifetime: Lifetime


@dataclass(frozen=True, slots=True)
class Stopped:
    """Something did not answer; the order stands."""

    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """The CA has said no: this order comes to nothing."""

    retry_after: float = 0.0


Event = Woken | Placed | Proved | Validated | Issued | Stopped | Refused

_NEXT = {
    (State.WAITING, Woken): State.ORDERING,
    (State.ORDERING, Placed): State.PROVING,
    (State.ORDERING, Validated): State.ISSUING,
    (State.PROVING, Proved): State.VALIDATING,
    (State.VALIDATING, Validated): State.ISSUING,
    (State.ISSUING, Issued): State.WAITING,
} | {
    (state, failure): State.WAITING
    for state in State
    if state is not State.WAITING
    for failure in (Stopped, Refused)
}


class OutOfTurn(Exception):
    """This cannot happen now."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Of a certificate. `window`: when the CA would have it renewed (ARI, RFC 9773)."""

    begins: datetime
    ends: datetime
    window: tuple[datetime, datetime] | None = None

    def renewal(self, share: float) -> datetime:
        """When to renew it; `share`, from 0 to 1, is the client's place among those that do.

        A window may be as late as the CA likes, and behind the certificate's end. RFC 9773 4.2: "Clients MUST
        attempt renewal at a time of their choosing based on the suggested renewal window"; to take a moment
        within it is only RECOMMENDED.
        """
        whole = self.ends - self.begins
        if self.window is not None:
            first, last = self.window
            wanted = first + (last - first) * share
            if wanted <= self.ends - whole / LATEST_PART:
                return wanted
        return self.ends - whole / RENEWAL_PART - whole / STAGGER_PART * share


class Issuance:
    """One name's. `lifetime` is the current certificate's, None where there is none."""

    def __init__(self, ledger: Ledger, lifetime: Lifetime | None, share: float) -> None:
        self.ledger = ledger
        self.lifetime = lifetime
        self.state = State.WAITING
        self._share = share
        self._first: datetime | None = None

    def next_deadline(self, wall: datetime) -> datetime:
        """When to say `Woken`. Dates in the future were written by a clock that was wrong, and do not count.
        """
        ledger = self.ledger
        due = self._due(wall)
        if ledger.failed is not None and ledger.failed <= wall:
            due = max(due, ledger.failed + timedelta(seconds=ledger.pause_seconds))
        begun = self._begun(wall)
        if (ledger.order is None or not ledger.order.url) and len(begun) >= ORDERS_AN_HOUR:
            due = max(due, begun[-ORDERS_AN_HOUR] + timedelta(seconds=ORDERS_SECONDS))
        return due

    def receive(self, event: Event, wall: datetime, chance: float = 1.0) -> None:
        """Take what has happened; `chance`, from 0 to 1, lengthens a pause. Raises OutOfTurn."""
        following = _NEXT.get((self.state, type(event)))
        if following is None:
            raise OutOfTurn(f"{type(event).__name__} while {self.state.value}")
        match event:
            case Woken(key_pem=key_pem):
                self._begin(key_pem, wall)
            case Placed(url=url) | Validated(url=url):
                assert self.ledger.order is not None
                self.ledger = replace(self.ledger, order=replace(self.ledger.order, url=url))
            case Issued(lifetime=lifetime):
                self.lifetime = lifetime
                self.ledger = Ledger(begun=self.ledger.begun)
            case Stopped(retry_after=retry_after):
                self._pause(wall, STOPPED_SECONDS, STOPPED_CEILING_SECONDS, chance, retry_after)
            case Refused(retry_after=retry_after):
                self._pause(wall, REFUSED_SECONDS, REFUSED_CEILING_SECONDS, chance, retry_after)
                self.ledger = replace(self.ledger, order=None)
        self.state = following

    def hurry(self) -> bool:
        """Somebody says that nothing is wrong any more: wait no longer, but for the bound of orders. Whether
        there was a pause.
        """
        paused = self.state is State.WAITING and self.ledger.failed is not None
        if paused:
            self.ledger = replace(self.ledger, failed=None, pause_seconds=0.0)
        return paused

    def _due(self, wall: datetime) -> datetime:
        if self.ledger.order is not None:
            return wall
        if self.lifetime is not None:
            return self.lifetime.renewal(self._share)
        if self._first is None:
            self._first = wall + timedelta(seconds=FIRST_SECONDS * self._share)
        return self._first

    def _begun(self, wall: datetime) -> tuple[datetime, ...]:
        """When the orders of the last hour were begun."""
        since = wall - timedelta(seconds=ORDERS_SECONDS)
        return tuple(sorted(begun for begun in self.ledger.begun if since < begun <= wall))

    def _begin(self, key_pem: str, wall: datetime) -> None:
        order = self.ledger.order
        if order is not None and order.url:
            return
        # One without a URL was begun, and the process ended: it may be there or not, and counts.
        begun = (*self._begun(wall), wall)
        self.ledger = replace(self.ledger, order=order or Order(key_pem), begun=begun)

    def _pause(self, wall: datetime, first: float, ceiling: float, chance: float, at_least: float) -> None:
        failures = self.ledger.failures + 1
        pause = min(ceiling, first * 2 ** min(failures - 1, 20))
        pause *= EARLIEST_PAUSE + (1 - EARLIEST_PAUSE) * chance
        pause = min(max(pause, at_least), LONGEST_PAUSE_SECONDS)
        self.ledger = replace(self.ledger, failed=wall, pause_seconds=pause, failures=failures)


def share_of(instance: str, name: str) -> float:
    """From 0 to 1: the place of a client among those of a name, always the same."""
    digest = hashlib.sha256(f"{instance} {name}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64

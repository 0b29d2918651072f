"""The zones that have their primary elsewhere: copied from it, kept on disk, and served on without it.

Hides when the primary is asked, and the order of things: a version that came whole is on the disk before it
is in service. What a transfer must look like, and when to ask, is dns/secondary's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.followed import NotifyHeard
from appliance.dns.secondary import Incoming, Timers, TransferFailed
from appliance.dns.tsig import Key
from appliance.dns.zone import Zone, zone_of
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.conversation import Conversation
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store, StoreFailed

MAX_AT_ONCE = 4
"""Transfers: fewer than a primary of ours makes at once."""


@dataclass(frozen=True, slots=True)
class Primary:
    """Who has the zones `apexes`, where it answers DNS (host, port), and the key that we share with it."""

    apexes: tuple[bytes, ...]
    addresses: tuple[tuple[str, int], ...]
    key: Key


@dataclass(slots=True)
class _Copy:
    """One zone as we have it. `asks_whole`: the changes did not go with it; `is_due_again`: a NOTIFY came
    during a transfer; `outlives`: it has expired, and the disk does not let it go; `at`: which address is
    asked next."""

    apex: bytes
    timers: Timers
    zone: Zone | None = None
    conversation: Conversation | None = None
    is_busy: bool = False
    is_due_again: bool = False
    asks_whole: bool = False
    outlives: bool = False
    at: int = 0


class Following(service.Service):
    """Follows the zones of `primary` into `zonefiles`. `message_id` gives a random number of 16 bits;
    `zones_changed` is called when another zone is in service, or one is no longer.

    `counters` count what came of asking.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        zonefiles: Zonefiles,
        primary: Primary,
        *,
        message_id: Callable[[], int],
        zones_changed: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.primary = primary
        self._reactor = reactor
        self._store = store
        self._zonefiles = zonefiles
        self._message_id = message_id
        self._zones_changed = zones_changed
        self._wall = wall
        self._lines = FewLines(reactor, self._log)
        self._copies: dict[bytes, _Copy] = {}
        self._call: IDelayedCall | None = None

    def load(self) -> None:
        """Serve what was last copied, where it is not too old; the store is open. Raises StoreFailed."""
        now, wall = self._reactor.seconds(), self._wall()
        for apex in self.primary.apexes:
            copy = self._copies[apex] = _Copy(apex, Timers(now))
            rrsets = self._store.copied(apex)
            if not rrsets:
                continue
            copy.zone = zone_of(apex, rrsets)
            confirmed = self._store.confirmed(apex) or 0.0
            copy.timers = Timers(now, copy.zone.soa, now - max(0.0, wall - confirmed))
            if copy.timers.expires is None or copy.timers.expires > now:
                self._zonefiles.take(copy.zone)

    def startService(self) -> None:
        """Asks for every zone at once: what we have may be old."""
        super().startService()  # type: ignore[no-untyped-call]
        self._tick()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        for copy in self._copies.values():
            if copy.conversation is not None:
                copy.conversation.stop()
                copy.conversation = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def heard(self, heard: NotifyHeard) -> None:
        """The primary has said that there is a newer version."""
        self.counters["NOTIFY"] += 1
        self.ask(heard.apex)

    def ask(self, apex: bytes) -> None:
        """Ask for this zone at once, or again when what is under way has ended."""
        copy = self._copies.get(apex)
        if copy is None or not self.running:
            return
        if copy.is_busy:
            copy.is_due_again = True
        else:
            copy.timers.notified(self._reactor.seconds())
            self._tick()

    def ask_all(self) -> None:
        for apex in self.primary.apexes:
            self.ask(apex)

    def status(self) -> list[dict[str, Any]]:
        """Of each zone the serial that we have from the primary (None: none), and how many seconds ago it
        said that this is the newest."""
        return [self._status_of(copy) for copy in self._copies.values()]

    def _status_of(self, copy: _Copy) -> dict[str, Any]:
        confirmed = self._store.confirmed(copy.apex)
        return {
            "zone": names.to_text(copy.apex),
            "serial": None if copy.zone is None else copy.zone.serial,
            "confirmed_seconds_ago": None if confirmed is None else round(self._wall() - confirmed, 1),
        }

    def _tick(self) -> None:
        now = self._reactor.seconds()
        for copy in self._copies.values():
            expires = copy.timers.expires
            if expires is not None and expires <= now and copy.apex in self._zonefiles.apexes:
                self._expire(copy)
        for copy in self._copies.values():
            if copy.timers.due <= now and not copy.is_busy and self._under_way < MAX_AT_ONCE:
                self._begin(copy)
        self._schedule()

    @property
    def _under_way(self) -> int:
        return sum(copy.is_busy for copy in self._copies.values())

    def _schedule(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if not self.running:
            return
        is_full = self._under_way >= MAX_AT_ONCE
        deadlines = [
            deadline
            for copy in self._copies.values()
            for deadline in (
                None if copy.is_busy or is_full else copy.timers.due,
                copy.timers.expires if copy.apex in self._zonefiles.apexes and not copy.outlives else None,
            )
            if deadline is not None
        ]
        if deadlines:
            wait = max(0.0, min(deadlines) - self._reactor.seconds())
            self._call = self._reactor.callLater(wait, self._due)

    def _due(self) -> None:
        self._call = None
        self._tick()

    def _expire(self, copy: _Copy) -> None:
        if not copy.outlives:
            self.counters["expired"] += 1
            zone = names.to_text(copy.apex)
            self._log.error("{zone} is too old to be served: the primary has been silent for longer than the"
                            " EXPIRE of its SOA", zone=zone)  # fmt: skip
        copy.outlives = True
        try:
            self._zonefiles.drop(copy.apex)
        except StoreFailed:
            return  # the next failed attempt tries again
        copy.outlives = False
        self._zones_changed()

    def _begin(self, copy: _Copy) -> None:
        copy.is_busy = True
        base = None if copy.asks_whole else copy.zone
        incoming = Incoming(copy.apex, base, self.primary.key, self._message_id(), int(self._wall()))
        host, port = self.primary.addresses[copy.at % len(self.primary.addresses)]
        got: list[Zone] = []

        def heard(message: bytes) -> bool:
            try:
                zone = incoming.receive(message, int(self._wall()))
            except TransferFailed as failed:
                copy.asks_whole = copy.asks_whole or failed.contradicts
                assert copy.conversation is not None
                copy.conversation.end(str(failed))
                return False
            if zone is not None:
                got.append(zone)
            return zone is not None

        def ended(why: str | None) -> None:
            copy.conversation = None
            if why is not None:
                self._failed(copy, f"{host} port {port}: {why}")
            else:
                self._copied(copy, got[0], incoming)

        copy.conversation = Conversation(self._reactor, host, port, incoming.query, heard=heard, ended=ended)

    def _copied(self, copy: _Copy, zone: Zone, incoming: Incoming) -> None:
        """A version has come whole: to the disk, then into service."""
        wall = self._wall()
        kept: Deferred[None]
        if zone is copy.zone:
            kept = self._store.confirm(copy.apex, wall)
        elif incoming.changes is not None:
            kept = self._store.copy(copy.apex, incoming.changes.items(), wall, is_whole=False)
        else:
            rrsets = (rrset for node in zone.rrsets.values() for rrset in node.values())
            everything = (((rrset.name, rrset.rtype), rrset) for rrset in rrsets)
            kept = self._store.copy(copy.apex, everything, wall, is_whole=True)
        kept.addCallback(lambda _: self._serve(copy, zone))
        kept.addErrback(self._not_kept, copy)

    def _serve(self, copy: _Copy, zone: Zone) -> None:
        is_new = zone is not copy.zone
        is_another = copy.apex not in self._zonefiles.apexes
        if is_new or is_another:
            self._zonefiles.take(zone)
        if is_another:
            self._zones_changed()
        copy.zone = zone
        copy.asks_whole = copy.outlives = False
        self.counters["new version" if is_new else "up to date"] += 1
        if is_new:
            what = f"{names.to_text(copy.apex)} {zone.serial} is copied from the primary"
            self._log.info("{what}", what=what)
        copy.timers.succeeded(zone.soa, self._reactor.seconds())
        self._over(copy)

    def _not_kept(self, failure: Failure, copy: _Copy) -> None:
        if not failure.check(StoreFailed):  # which the store has logged
            self._log.failure("a copied zone was not taken", failure)
        # The disk may have the version that we do not serve: the whole of it comes again.
        copy.asks_whole = True
        self._failed(copy, failure.getErrorMessage())

    def _failed(self, copy: _Copy, why: str) -> None:
        self.counters["failed"] += 1
        copy.at += 1
        copy.timers.failed(self._reactor.seconds())
        self._lines.warn(names.to_text(copy.apex), f"was not copied from the primary: {why}")
        self._over(copy)

    def _over(self, copy: _Copy) -> None:
        copy.is_busy = False
        if copy.is_due_again:
            copy.is_due_again = False
            copy.timers.notified(self._reactor.seconds())
        if self.running:
            self._tick()

"""Announces this tunnel server to the nameservers of its zone, so that none of them has to list it.

Hides who they are: those of the enrolment, with the key that this server has at each, and whoever the zone's
NS set names beside them; or those of the settings. When and what is said, fleet/announcing knows.
"""

from __future__ import annotations

import base64
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application import service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from appliance.dns import names
from appliance.dns.tsig import Key
from appliance.fleet.announcement import Announcement
from appliance.fleet.announcing import Announcing, Outcome
from appliance.service.asking import Asking
from appliance.service.server.nameservers import Nameservers
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Introduction

DNS_PORT = 53
_ALGORITHM = names.from_text("hmac-sha256")


class Announcer(service.Service):
    """Announces the start `boot` of the server `server_id` at `addresses`, as `introduction` lets it.

    `nameservers`, if there are any, are announced to in the place of all others. `own` are the hosts where
    this very appliance answers DNS, which need not be told.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        server_id: str,
        boot: str,
        addresses: Sequence[ServerAddress],
        introduction: Introduction,
        nameservers: Sequence[ServerAddress] = (),
        own: Sequence[str] = (),
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.reactor = reactor
        self.server_id = server_id
        self.apex = names.from_text(introduction.zone)
        self.chance = chance
        self.wall = wall
        self._boot = boot
        self._addresses = tuple(addresses)
        self._introduction = introduction
        self._own = frozenset(own)
        self._n = 0
        self._places: dict[str, _Place] = {}
        self._nameservers: Nameservers | None = None
        if nameservers:
            for address in nameservers:
                self._add(str(address), (address,))
        else:
            for one in introduction.nameservers:
                self._add(one.id, one.addresses)
            self._nameservers = Nameservers(reactor, introduction.zone, self._asked, self._found)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        for place in self._places.values():
            place.announce()
        if self._nameservers is not None:
            self._nameservers.startService()

    def stopService(self) -> None:
        """Say no more: that this server leaves, its watches say."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._nameservers is not None:
            self._nameservers.stopService()
        for place in self._places.values():
            place.stop()

    def status(self) -> list[dict[str, Any]]:
        """How each nameserver answered, and how many seconds ago."""
        return [place.status() for place in self._places.values()]

    def next_announcement(self) -> Announcement:
        """What is to be said now: never twice the same."""
        self._n += 1
        return Announcement(self._boot, self._n, self._addresses)

    def _add(self, name: str, addresses: Sequence[ServerAddress]) -> None:
        if not addresses or any(address.host in self._own for address in addresses):
            return
        place = self._places[name] = _Place(self, name, addresses, self._keys(addresses))
        if self.running:
            place.announce()

    def _keys(self, addresses: Sequence[ServerAddress]) -> list[Key]:
        """The key of the nameserver that was at one of these hosts; behind it those of the others, one of
        whom may have moved there.
        """
        hosts = {address.host for address in addresses}
        here = sorted(
            self._introduction.nameservers,
            key=lambda one: hosts.isdisjoint(address.host for address in one.addresses),
        )
        name = names.from_text(self._introduction.key_name)
        return [Key(name, _ALGORITHM, base64.b64decode(one.secret)) for one in here]

    def _asked(self) -> list[tuple[str, int]]:
        """Whom the NS set is asked of: first who takes what we say."""
        places = sorted(self._places.values(), key=lambda place: not place.is_taken)
        return [(address.host, address.port) for place in places for address in place.addresses]

    def _found(self, found: Mapping[str, tuple[str, ...]]) -> None:
        """The NS set: who is in it and not among those that we have."""
        enrolled = {one.id for one in self._introduction.nameservers}
        for gone in self._places.keys() - enrolled - found.keys():
            self._places.pop(gone).stop()
        known = {address.host for place in self._places.values() for address in place.addresses}
        for name, hosts in found.items():
            if name not in self._places and known.isdisjoint(hosts):
                self._add(name, [ServerAddress(host, DNS_PORT) for host in hosts])


class _Place:
    """One nameserver."""

    def __init__(
        self, announcer: Announcer, name: str, addresses: Sequence[ServerAddress], keys: Sequence[Key]
    ) -> None:
        self.addresses = tuple(addresses)
        self.is_taken = False
        self._announcer = announcer
        self._name = name
        self._announcing = Announcing(announcer.apex, announcer.server_id, keys, announcer.chance)
        self._at = 0
        self._asking: Asking | None = None
        self._timer: IDelayedCall | None = None
        self._words = ""
        self._since = self._began = announcer.reactor.seconds()
        self._outcome: Outcome | None = None

    def announce(self) -> None:
        """Say it now."""
        announcer = self._announcer
        self._timer = None
        self._outcome = None
        self._began = announcer.reactor.seconds()
        message = self._announcing.announce(
            announcer.next_announcement(), secrets.randbits(16), announcer.wall()
        )
        where = self.addresses[self._at % len(self.addresses)]
        self._asking = Asking(
            announcer.reactor, where.host, where.port, message, heard=self._heard, ended=self._ended
        )

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.stop()
            self._asking = None

    def status(self) -> dict[str, Any]:
        """Plain values for the operator."""
        return {
            "nameserver": self._name,
            "addresses": list(map(str, self.addresses)),
            "answer": self._words,
            "seconds": round(self._announcer.reactor.seconds() - self._since, 1),
        }

    def _heard(self, octets: bytes) -> bool:
        self._outcome = self._announcing.judge(octets, self._announcer.wall())
        return self._outcome is not None

    def _ended(self, why: str | None) -> None:
        self._asking = None
        outcome = self._outcome
        if outcome is None:
            self._at += 1  # the next of its addresses
            waited = self._announcer.reactor.seconds() - self._began
            outcome = self._announcing.unanswered(why or "no answer", waited)
        self._tell(outcome)
        self._timer = self._announcer.reactor.callLater(outcome.next_seconds, self.announce)

    def _tell(self, outcome: Outcome) -> None:
        """One line when the answer is another one than before."""
        self.is_taken = outcome.is_taken
        self._since = self._announcer.reactor.seconds()
        if outcome.words == self._words:
            return
        self._words = outcome.words
        if outcome.is_taken:
            self._announcer._log.info("nameserver {name} takes what we announce", name=self._name)
        else:
            self._announcer._log.warn(
                "nameserver {name} does not take what we announce: {words}",
                name=self._name,
                words=outcome.words,
            )

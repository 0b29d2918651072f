"""What this nameserver knows of the fleet, and how it gets into the zones and onto the disk.

Hides when records are laid: a change is published in the next turn of the reactor, further ones wait until a
second has passed, and whatever takes a server out waits for nothing but the version that is being made. What
is published is also kept, so that the first answer after a restart is the last one before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.accounts import Account
from appliance.fleet.known import KnownNames
from appliance.fleet.mayissue import Issuers, MayIssue
from appliance.fleet.membership import Group, Membership, Published, Standing
from appliance.fleet.publish import IssuersPublished, Publication, may_be_published
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import SeenServer, Store, StoreFailed
from appliance.tunnel.discovery import ServerAddress

LAY_SECONDS = 1.0
"""Between two publications that are not urgent: gdnsd's rate as well. A registration is waited for by nobody
for less than the TTL of 15 s; the death of a server is.
"""
TEND_SECONDS = 30.0
"""How often it is looked whether a name has expired or a server was silent for an hour."""
CLOCK_STEP_SECONDS = 90_000.0
"""A name that is served outlives its certificates by so long: whoever serves it ends the session by his own
clock, and a step of this one by a day takes no name away. No longer, for an enrolled server may lie.
"""

NamesTold = Callable[[Collection[str]], None]
_Drain = tuple[Collection[ServerAddress], Deferred[bool]]


class Registry(Service):
    """Servers, known names and what follows from both.

    `listed` are the addresses that the operator's settings name, those of a server in this process included;
    `introduced` tells of an id whether that server announces itself here instead; `discovery` is the name
    that lists the servers (each apex without one); `issuers` are the CAs that may issue, and `accounts` tells
    those of a name's clients. The store is open and the zones are loaded when the
    service starts; after that the first answer is right.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        zonefiles: Zonefiles,
        *,
        listed: Collection[ServerAddress],
        introduced: Callable[[str], bool] = lambda server_id: False,
        discovery: str | None = None,
        private_addresses: bool = False,
        issuers: Sequence[Issuers] = (),
        accounts: Callable[[str], list[Account]] = lambda name: [],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._zonefiles = zonefiles
        self._listed = listed
        self._introduced = introduced
        self._discovery = discovery
        self._private_addresses = private_addresses
        self._issuers = issuers
        self._accounts = accounts
        self._issuers_published = IssuersPublished()
        self._wall = wall
        self._membership = Membership()
        self._known = KnownNames()
        self._published = Published((), ())
        self._dirty: set[str] | None = None  # the names to publish again; None: all
        self._groups: dict[str, Group] = {}  # of the names that are published
        self._listing: frozenset[bytes] = frozenset()
        self._kept: dict[str, SeenServer] = {}
        self._laid_at = float("-inf")
        self._lay: Any = None
        self._is_laying = False
        self._has_more = False  # that was due while a version was made
        self._told_known: NamesTold = _nobody
        self._told_forgotten: NamesTold = _nobody
        self._drains: list[_Drain] = []
        self._complaints = {standing: FewLines(reactor, self._log) for standing in Standing}
        self._held_said: tuple[ServerAddress, ...] = ()
        self._tending = LoopingCall(self._tend)
        self._tending.clock = reactor

    def startService(self) -> None:
        """Publish what was published before the restart."""
        super().startService()  # type: ignore[no-untyped-call]
        now = self._reactor.seconds()
        for name, expires in self._store.known().items():
            self._known.know(name, expires)
        self._known.expire(self._wall())
        for server in self._store.servers():
            self._kept[server.id] = server
            for address in server.addresses:
                self._membership.restored(address, server.id, server.boot, now)
                is_ours = address in self._listed or self._introduced(server.id)
                if not is_ours or not self.admits(address):
                    self._membership.unlisted(address, now)
        self._publish()
        self._zonefiles.finish()  # the sockets come next: what is not there by then would be denied
        self._laid_at = float("-inf")  # the server in this process comes next, and is not to wait
        self._tending.start(TEND_SECONDS, now=False)

    def stopService(self) -> None:
        """Change nothing any more: what is published stays published."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._tending.stop()
        if self._lay is not None:
            self._lay.cancel()
            self._lay = None

    # Names

    def on_names(self, known: NamesTold, forgotten: NamesTold) -> None:
        """Who is told of names that become known or are forgotten from now on."""
        self._told_known, self._told_forgotten = known, forgotten

    def names(self) -> list[str]:
        """All known names."""
        return list(self._known)

    def is_known(self, name: str) -> bool:
        """Whether exactly this name or wildcard is known."""
        return name in self._known

    def knows(self, host: str) -> bool:
        """Whether this normal host name, or a wildcard over it, is known."""
        return self._known.knows(host)

    def know(self, name: str, expires: float) -> Deferred[None]:
        """The name is known until `expires` (Unix time). Fires when that is on disk."""
        return self._know({name: expires})

    def forget(self, name: str) -> Deferred[bool]:
        """The name is not known any more, until a client serves it again. Fires with whether it was.

        First on disk, so that no restart brings it back: with a StoreFailed it stays known.
        """

        def forgotten(_: None) -> bool:
            was_known = self._known.forget(name)
            if was_known:
                self._told_forgotten((name,))
                self._soon((name,))
            return was_known

        return self._store.forget(name).addCallback(forgotten)

    # Servers: what the watches say

    def admits(self, address: ServerAddress) -> bool:
        """Whether this address may be published at all."""
        return may_be_published(address, self._private_addresses)

    def boot_at(self, address: ServerAddress) -> str | None:
        """Which start of a server was last verified at this address."""
        return self._membership.boot_at(address)

    def places_of(self, is_wanted: Callable[[str], bool]) -> set[ServerAddress]:
        """Where the servers of these ids were verified, unless they have left."""
        return {
            member.address
            for member in self._membership.members()
            if member.standing is not Standing.LEFT and is_wanted(member.server_id)
        }

    def boot_of(self, server_id: str) -> str | None:
        """The start of this server that a watch hears now."""
        for member in self._membership.members():
            if member.server_id == server_id and member.standing is Standing.UP:
                return member.boot
        return None

    def members(self) -> set[str]:
        """The ids of all servers that were verified and are not forgotten."""
        return {member.server_id for member in self._membership.members()}

    def joined(
        self, addresses: Iterable[ServerAddress], server_id: str, boot: str, names: Mapping[str, float]
    ) -> None:
        """A server was verified at these addresses, and serves these names (with their expiry)."""
        membership = self._membership
        others: set[str] = set()  # that are in another group now
        for address in filter(self.admits, addresses):
            others |= membership.names_at(address) ^ names.keys()
            self._stands(address, partial(membership.joined, address, server_id, boot, names.keys()))
        self._seen(names)
        self._soon(others)

    def serving(self, addresses: Iterable[ServerAddress], boot: str, name: str, expires: float) -> None:
        """A name has a session there now."""
        for address in addresses:
            self._membership.serving(address, boot, name)
        self._seen({name: expires})
        self._soon((name,))

    def not_serving(self, addresses: Iterable[ServerAddress], boot: str, name: str) -> None:
        """A name has no session there any more."""
        for address in addresses:
            self._membership.not_serving(address, boot, name)
        self._soon((name,))

    def dead(self, address: ServerAddress, boot: str) -> None:
        """That start of the server at this address is proved gone."""
        self._stands(address, partial(self._membership.dead, address, boot))
        self._soon((), urgent=True)

    def silent(self, address: ServerAddress, boot: str) -> None:
        """Nothing is heard from that start of the server at this address."""
        self._stands(address, partial(self._membership.silent, address, boot))
        self._soon((), urgent=True)

    def draining(self, addresses: Collection[ServerAddress], server_id: str, boot: str) -> Deferred[bool]:
        """That start of the server will leave, and serves until then.

        Fires when what follows is published: whether one of these addresses is, all the same.
        """
        published: Deferred[bool] = Deferred()
        for address in addresses:
            self._stands(address, partial(self._membership.draining, server_id, boot))
        self._drains.append((addresses, published))
        self._soon((), urgent=True)
        return published

    def left(self, addresses: Iterable[ServerAddress], server_id: str, boot: str) -> None:
        """That start of the server said that it goes away."""
        for address in addresses:
            self._stands(address, partial(self._membership.left, server_id, boot))
        self._soon((), urgent=True)

    def removed(self, address: ServerAddress) -> None:
        """The server there is revoked: it goes out even if it is the last one."""
        before = self._standing(address)
        if before is None:
            return
        others = self._membership.names_at(address)
        self._membership.removed(address)
        self._log.warn("server {id} at {address} is revoked, and out", id=before[0], address=address)
        self._soon(others, urgent=True)

    # Publication

    def zones_changed(self) -> None:
        """The zones were loaded anew: names may be in one now that were in none."""
        self._dirty = None
        self._publish()

    def accounts_changed(self, names: Iterable[str]) -> None:
        """The accounts of these names' clients are others than before."""
        self._soon(names)

    def status(self) -> dict[str, Any]:
        """Plain values for the operator."""
        now = self._reactor.seconds()
        published = self._published
        return {
            "servers": [
                {
                    "address": str(member.address),
                    "id": member.server_id,
                    "boot": member.boot,
                    "standing": member.standing.value,
                    "seconds": round(now - member.since, 1),
                    "names": member.names,
                    "published": member.address in published.addresses,
                    "held": member.address in published.held,
                }
                for member in self._membership.members()
            ],
            "names": [
                {
                    "name": name,
                    "expires": self._known.expires(name),
                    "servers": list(map(str, published.serving(self._groups.get(name, ())))),
                }
                for name in sorted(self._known)
            ],
            "conflicts": list(map(str, self._zonefiles.conflicts)),
            "warnings": self._warnings(),
        }

    def _know(self, names: Mapping[str, float]) -> Deferred[None]:
        """Fires when it is on disk: at once for names that were known for as long."""
        new = [name for name in names if name not in self._known]
        longer = [name for name, expires in names.items() if self._known.know(name, expires)]
        if new:
            self._told_known(new)
            self._soon(new)
        return self._store.remember_all({name: names[name] for name in longer}) if longer else succeed(None)

    def _seen(self, names: Mapping[str, float]) -> None:
        self._know(names).addErrback(_already_told)

    def _stands(self, address: ServerAddress, change: Callable[[float], None]) -> None:
        """Make a change, and say in one line what it changed."""
        before = self._standing(address)
        change(self._reactor.seconds())
        after = self._standing(address)
        if after is None or after == before:
            return
        server_id, standing = after
        if standing is Standing.UP:
            self._log.info("server {id} at {address} is up", id=server_id, address=address)
        else:
            was = before[1].value if before else "not known"
            self._complaints[standing].warn(
                f"server {server_id} at {address}", f"is {standing.value}, was {was}"
            )

    def _standing(self, address: ServerAddress) -> tuple[str, Standing] | None:
        for member in self._membership.members():
            if member.address == address:
                return member.server_id, member.standing
        return None

    def _soon(self, names: Iterable[str] | None = None, *, urgent: bool = False) -> None:
        """Publish again, with these `names` in their new groups, or all of them."""
        if names is None:
            self._dirty = None
        elif self._dirty is not None:
            self._dirty.update(names)
        if not self.running:
            return
        now = self._reactor.seconds()
        due = now if urgent else max(now, self._laid_at + LAY_SECONDS)
        if self._lay is not None:
            if self._lay.getTime() <= due:
                return
            self._lay.cancel()
        self._lay = self._reactor.callLater(due - now, self._laid)

    def _laid(self) -> None:
        self._lay = None
        if self._is_laying:
            self._has_more = True  # all that is dirty by then, in one
        else:
            self._publish()

    def _is_laid(self, _: None, drains: Sequence[_Drain], addresses: frozenset[ServerAddress]) -> None:
        self._is_laying = False
        for draining, told in drains:
            told.callback(not addresses.isdisjoint(draining))
        if self._has_more and self.running:
            self._publish()

    def _publish(self) -> None:
        self._laid_at = self._reactor.seconds()
        self._published = published = self._membership.published()
        publication = Publication(published, self._zonefiles.apexes, self._discovery)
        dirty, self._dirty = self._dirty, set()
        names = {*self._known, *self._groups} if dirty is None else dirty
        self._is_laying, self._has_more = True, False
        may_issue = MayIssue(self._issuers, self._zonefiles.apexes, self.is_known, self._accounts)
        changed = self._zonefiles.change(
            chain(
                publication.changes(map(self._grouped, names), self._listing),
                self._issuers_published.changes(names, may_issue),
            ),
            lambda: {
                **publication.sets({id(group): group for group in self._groups.values()}.values()),
                **self._issuers_published.sets(),
            },
        )
        self._listing = publication.listing
        self._keep(published.addresses)
        drains, self._drains = self._drains, []
        self._warn_of_held()
        changed.addCallback(self._is_laid, drains, frozenset(published.addresses))

    def _grouped(self, name: str) -> tuple[str, Group | None]:
        """A name that is published now, in its group, or is no longer."""
        if name not in self._known:
            self._groups.pop(name, None)
            return name, None
        group = self._groups[name] = self._membership.group_of(name)
        return name, group

    def _warnings(self) -> list[str]:
        """What is published against better knowledge."""
        if not self._published.held:
            return []
        held = ", ".join(map(str, self._published.held))
        return [f"{held} stays in the DNS though not heard: too few servers would remain without"]

    def _warn_of_held(self) -> None:
        """A line whenever others are held than before; it takes 2.5 s of silence to make one."""
        held = self._published.held
        if held != self._held_said:
            self._held_said = held
            for warning in self._warnings():
                self._log.warn("fleet: {warning}", warning=warning)

    def _keep(self, addresses: Collection[ServerAddress]) -> None:
        """What is published is what a restart begins with."""
        seen: dict[str, SeenServer] = {}
        for member in self._membership.members():
            if member.address in addresses:
                before = seen.get(member.server_id)
                of_it = (*(before.addresses if before else ()), member.address)
                seen[member.server_id] = SeenServer(member.server_id, of_it, member.boot)
        for server in seen.values():
            if self._kept.get(server.id) != server:
                self._store.saw(server).addErrback(_already_told)
        for server_id in self._kept.keys() - seen.keys():
            self._store.forget_server(server_id).addErrback(_already_told)
        self._kept = seen

    def _tend(self) -> None:
        wall = self._wall()
        expired = self._known.expire(wall - CLOCK_STEP_SECONDS)
        expired += self._known.expire(wall, lambda name: bool(self._membership.group_of(name)))
        for name in expired:
            self._store.forget(name).addErrback(_already_told)
        if expired:
            self._told_forgotten(expired)
        if self._membership.tick(self._reactor.seconds()) or expired:
            self._soon()


def _nobody(_names: Collection[str]) -> None:
    pass


def _already_told(failure: Failure) -> None:
    """The store has logged that the disk fails. What is published is right; a restart would forget it."""
    failure.trap(StoreFailed)

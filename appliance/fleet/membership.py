"""Which tunnel servers are members, and which of their addresses are published.

Hides the rule (gdnsd's, whose default share is the same half): what is *proved* dead goes out at once, what
is merely *silent* only while at least half of the known servers remain, and nothing that looks dead ever
empties the set. What *drains* goes out at once as well, and stays while nobody else is heard. A name's
addresses are those of the servers where it has a session, of draining ones only if it has none at others; all
of them where it has none.

Names with sessions at the same servers are a *group*, whether these servers are heard or not: when one of
them dies the group stays what it is, and what follows for it is another.

What is kept is per address, as each address has a watch of its own; what is counted is servers. A server is
*known* once one of its addresses was verified and published, until it has left, is removed, or has been
silent or dead for more than an hour while others were heard; one that drains is about to leave, and no longer
counts. `now` is monotonic seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field

from appliance.tunnel.discovery import ServerAddress

FORGET_SECONDS = 3600.0
"""A server that nobody heard for so long no longer counts when the half is counted."""


class Standing(enum.Enum):
    """What is known of an address that was once verified."""

    RESTORED = "restored"
    """Published before a restart and not yet asked again: the first answer is the last one."""
    UP = "up"
    DRAINING = "draining"
    """Alive, and said that it will leave: for ever, for this boot."""
    SILENT = "silent"
    DEAD = "dead"
    LEFT = "left"


_HEARD = (Standing.UP, Standing.RESTORED)
_KNOWN = (*_HEARD, Standing.SILENT, Standing.DEAD)
_GONE = (Standing.DEAD, Standing.LEFT)


Group = tuple[ServerAddress, ...]
"""Where a name has sessions."""


@dataclass(frozen=True, slots=True)
class Published:
    """What follows for the DNS."""

    addresses: tuple[ServerAddress, ...]
    held: tuple[ServerAddress, ...]
    """Those among `addresses` that are silent or gone and kept only because too little would remain."""
    choices: tuple[tuple[tuple[ServerAddress, bool], ...], ...] = field(default=(), compare=False)
    """Where visitors of a name are sent, if it has sessions there, else to the next choice; with each address
    whether it was asked. One that was not may have sessions of every name, as it had before the restart."""

    def of_group(self, group: Group) -> tuple[ServerAddress, ...]:
        """Where visitors of a group's names are sent."""
        return self.serving(group) or self.addresses

    def serving(self, group: Group) -> tuple[ServerAddress, ...]:
        """The same, without those that are there for want of any."""
        for choice in self.choices:
            if any(was_asked and at in group for at, was_asked in choice):
                return tuple(at for at, was_asked in choice if at in group or not was_asked)
        return ()


@dataclass(frozen=True, slots=True)
class Member:
    """One address, as shown by `status`. `since` is when its standing began."""

    address: ServerAddress
    server_id: str
    boot: str
    standing: Standing
    since: float
    names: int


@dataclass(slots=True)
class _Entry:
    server_id: str
    boot: str
    standing: Standing
    since: float
    names: set[str] | None
    """None until it was asked: after a restart. Those of one that is gone stay, for its groups to stay."""


class Membership:
    """All addresses that were ever verified and are not forgotten."""

    def __init__(self) -> None:
        self._entries: dict[ServerAddress, _Entry] = {}
        self._groups: dict[Group, Group] = {}  # so that equal ones are one

    def restored(self, address: ServerAddress, server_id: str, boot: str, now: float) -> None:
        """This address was published before this nameserver restarted."""
        self._entries[address] = _Entry(server_id, boot, Standing.RESTORED, now, None)

    def joined(
        self, address: ServerAddress, server_id: str, boot: str, names: Iterable[str], now: float
    ) -> None:
        """A watch met this server at this address, verified it, and has the names that it serves."""
        if not self._anybody_is_up():
            # Whoever heard nobody was cut off itself: that time is not the others' silence.
            for entry in self._entries.values():
                if entry.standing is Standing.SILENT:
                    entry.since = now
        before = self._entries.get(address)
        standing = Standing.UP
        if before is not None and before.boot == boot and before.standing is Standing.DRAINING:
            standing = Standing.DRAINING
        same = before is not None and before.boot == boot and before.standing is standing
        since = before.since if same and before is not None else now
        self._entries[address] = _Entry(server_id, boot, standing, since, set(names))

    def serving(self, address: ServerAddress, boot: str, name: str) -> None:
        """A name has a session at this boot of this server."""
        entry = self._of_boot(address, boot)
        if entry is not None and entry.names is not None:
            entry.names.add(name)

    def not_serving(self, address: ServerAddress, boot: str, name: str) -> None:
        """A name has no session at this boot of this server any more."""
        entry = self._of_boot(address, boot)
        if entry is not None and entry.names is not None:
            entry.names.discard(name)

    def dead(self, address: ServerAddress, boot: str, now: float) -> None:
        """This boot is proved gone: the address refused a connection, or another boot answered there."""
        entry = self._of_boot(address, boot)
        if entry is not None and entry.standing not in _GONE:
            self._stands(entry, Standing.DEAD, now)

    def silent(self, address: ServerAddress, boot: str, now: float) -> None:
        """Nothing is heard from this boot any more. Its names stay: this observer may be the one cut off.

        One that drained has left.
        """
        entry = self._of_boot(address, boot)
        if entry is not None and entry.standing is Standing.DRAINING:
            self.left(entry.server_id, boot, now)
        elif entry is not None and entry.standing in _HEARD:
            self._stands(entry, Standing.SILENT, now)

    def draining(self, server_id: str, boot: str, now: float) -> None:
        """This boot said that it will leave; it goes on serving until then."""
        for entry in self._entries.values():
            is_it = entry.server_id == server_id and entry.boot == boot
            if is_it and entry.standing not in (Standing.DRAINING, *_GONE):
                self._stands(entry, Standing.DRAINING, now)

    def left(self, server_id: str, boot: str, now: float) -> None:
        """This boot said that it goes away."""
        for entry in self._entries.values():
            if entry.server_id == server_id and entry.boot == boot and entry.standing is not Standing.LEFT:
                self._stands(entry, Standing.LEFT, now)

    def unlisted(self, address: ServerAddress, now: float) -> None:
        """The operator no longer lists this address: it stays only while there is no other."""
        entry = self._entries.get(address)
        if entry is not None:
            self._stands(entry, Standing.LEFT, now)

    def removed(self, address: ServerAddress) -> None:
        """The operator removed or revoked the server there: the one thing that may take out the last one."""
        self._entries.pop(address, None)

    def tick(self, now: float) -> bool:
        """Forgets whom nobody heard for more than an hour. Whether anybody was forgotten."""
        if not self._anybody_is_up():
            return False
        old = [at for at, entry in self._entries.items() if self._forgotten_at(entry) < now]
        for address in old:
            del self._entries[address]
        return bool(old)

    def next_deadline(self) -> float | None:
        """After this time `tick` may have something to do."""
        times = [self._forgotten_at(entry) for entry in self._entries.values()]
        return min(times) if times and self._anybody_is_up() and min(times) < float("inf") else None

    def boot_at(self, address: ServerAddress) -> str | None:
        """Which boot was last verified at this address."""
        entry = self._entries.get(address)
        return None if entry is None else entry.boot

    def members(self) -> list[Member]:
        """Everybody, in the order of addresses."""
        return [
            Member(at, entry.server_id, entry.boot, entry.standing, entry.since, self._served_at(entry))
            for at, entry in sorted(self._entries.items())
        ]

    @staticmethod
    def _served_at(entry: _Entry) -> int:
        return 0 if entry.standing in _GONE else len(entry.names or ())

    def names_at(self, address: ServerAddress) -> Set[str]:
        """The names whose group this address is in."""
        entry = self._entries.get(address)
        return frozenset() if entry is None else entry.names or frozenset()

    def group_of(self, name: str) -> Group:
        """Where this name has sessions, or had them when the server there was last heard."""
        group = tuple([at for at, entry in self._entries.items() if entry.names and name in entry.names])
        return self._groups.setdefault(group, group)

    def published(self) -> Published:
        """What follows now."""
        heard, leaving = self._of_standing(*_HEARD), self._of_standing(Standing.DRAINING)
        if not heard:
            heard, leaving = leaving, heard  # they live
        held = self._held(heard)
        chosen = sorted(heard | held)
        choices = tuple(
            tuple((at, self._entries[at].names is not None) for at in addresses)
            for addresses in (chosen, sorted(leaving))
        )
        return Published(tuple(chosen), tuple(sorted(held)), choices)

    def _of_standing(self, *standings: Standing) -> set[ServerAddress]:
        return {at for at, entry in self._entries.items() if entry.standing in standings}

    def _held(self, heard: Set[ServerAddress]) -> set[ServerAddress]:
        silent = self._of_standing(Standing.SILENT)
        if silent and (2 * len(self._servers(_HEARD)) < len(self._servers(_KNOWN))):
            return silent
        gone = self._of_standing(*_GONE)
        if heard or not gone:
            return set()
        return {max(gone, key=lambda at: (self._entries[at].since, at))}  # the last one that went

    def _servers(self, standings: Collection[Standing]) -> set[str]:
        return {entry.server_id for entry in self._entries.values() if entry.standing in standings}

    def _anybody_is_up(self) -> bool:
        return any(entry.standing is Standing.UP for entry in self._entries.values())

    def _of_boot(self, address: ServerAddress, boot: str) -> _Entry | None:
        entry = self._entries.get(address)
        return entry if entry is not None and entry.boot == boot else None

    @staticmethod
    def _stands(entry: _Entry, standing: Standing, now: float) -> None:
        entry.standing = standing
        entry.since = now

    @staticmethod
    def _forgotten_at(entry: _Entry) -> float:
        is_heard = entry.standing in (*_HEARD, Standing.DRAINING)
        return float("inf") if is_heard else entry.since + FORGET_SECONDS

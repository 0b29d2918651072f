"""Which tunnel servers are members, and which of their addresses are published.

Hides the rule (gdnsd's, whose default share is the same half): what is *proved* dead goes out at once, what
is merely *silent* only while at least half of the known servers remain, and nothing that looks dead ever
empties the set. What *drains* goes out at once as well, and stays while nobody else is heard. A name's
addresses are those of the servers where it has a session, of draining ones only if it has none at others; all
of them where it has none.

What is kept is per address, as each address has a watch of its own; what is counted is servers. A server is
*known* once one of its addresses was verified and published, until it has left, is removed, or has been
silent or dead for more than an hour while others were heard; one that drains is about to leave, and no longer
counts. `now` is monotonic seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

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


@dataclass(frozen=True, slots=True)
class Published:
    """What follows for the DNS. `names` has only names with a session at a published address."""

    addresses: tuple[ServerAddress, ...]
    names: Mapping[str, tuple[ServerAddress, ...]]
    held: tuple[ServerAddress, ...]
    """Those among `addresses` that are silent or gone and kept only because too little would remain."""

    def of_name(self, name: str) -> tuple[ServerAddress, ...]:
        """Where visitors of a name are sent."""
        return self.names.get(name, self.addresses)


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
    """None until it was asked: after a restart."""


class _Names(Mapping[str, tuple[ServerAddress, ...]]):
    """Where each name has a session, found when it is asked: most publications ask for a few names.

    Equal sets are one tuple, so that 10,000 names on three servers are a handful of them. An address with
    None was not asked yet, and may have sessions of every name, as it had before the restart. `otherwise` are
    those of the names that have none at these.
    """

    def __init__(
        self,
        serving: Sequence[tuple[ServerAddress, Set[str] | None]],
        otherwise: Mapping[str, tuple[ServerAddress, ...]] | None = None,
    ) -> None:
        self._serving = serving
        self._otherwise = {} if otherwise is None else otherwise
        self._found: dict[int, tuple[ServerAddress, ...]] = {}

    def __getitem__(self, name: str) -> tuple[ServerAddress, ...]:
        which = 0
        for _, names in self._serving:
            which = which << 1 | (names is not None and name in names)
        if not which:
            return self._otherwise[name]
        found = self._found.get(which)
        if found is None:
            found = self._found[which] = tuple(
                at for at, names in self._serving if names is None or name in names
            )
        return found

    def __iter__(self) -> Iterator[str]:
        served = (name for _, names in self._serving for name in names or ())
        return iter(dict.fromkeys(chain(served, self._otherwise)))

    def __len__(self) -> int:
        return len(set().union(self._otherwise, *(names or () for _, names in self._serving)))


class Membership:
    """All addresses that were ever verified and are not forgotten."""

    def __init__(self) -> None:
        self._entries: dict[ServerAddress, _Entry] = {}

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
            entry.names = set()

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
                entry.names = set()

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
            Member(at, entry.server_id, entry.boot, entry.standing, entry.since, len(entry.names or ()))
            for at, entry in sorted(self._entries.items())
        ]

    def published(self) -> Published:
        """What follows now."""
        heard, leaving = self._of_standing(*_HEARD), self._of_standing(Standing.DRAINING)
        if not heard:
            heard, leaving = leaving, heard  # they live
        held = self._held(heard)
        chosen = sorted(heard | held)
        names = _Names(self._names_at(chosen), _Names(self._names_at(sorted(leaving))) if leaving else None)
        return Published(tuple(chosen), names, tuple(sorted(held)))

    def _names_at(self, addresses: Iterable[ServerAddress]) -> list[tuple[ServerAddress, Set[str] | None]]:
        return [(address, self._entries[address].names) for address in addresses]

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

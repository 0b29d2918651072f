"""The zones in service: every `*.zone` file of a directory, with what UPDATE changed and the live records
laid over.

Hides which files there are, what is kept when one of them is bad, and how a version gets a serial that was
reserved on disk before anybody saw it. The apex of a zone comes from its SOA; the file's name is free.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

from twisted.application import service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.amendments import Merged, merge
from appliance.dns.journal import Journal, finding_difference
from appliance.dns.layered import with_changes
from appliance.dns.numbers import SOA
from appliance.dns.overlay import (
    LIVE_TYPES,
    Conflict,
    Key,
    Laid,
    Live,
    LiveRecords,
    conflicts_at_load,
    laying,
)
from appliance.dns.responder import Responder
from appliance.dns.rrtypes import text_of
from appliance.dns.serial import MODULUS, is_newer, next_serial
from appliance.dns.steps import finish
from appliance.dns.zone import RRset, Sets, Zone, soa_minimum, soa_with
from appliance.dns.zonefile import ZoneFileError, read_zone
from appliance.service.nameserver.largefiles import LargeFileRefused, LargeFiles, checked, is_large
from appliance.service.nameserver.slices import Slices
from appliance.service.store import Store, StoreFailed

RESERVED_AHEAD = 2048
"""Serials reserved on disk beyond the last one and beyond the Unix time. More would only make the jump
larger that a killed process leaves (half an hour ahead of the clock).
"""
KEPT_FOR_CHANGES = RESERVED_AHEAD // 4
"""Serials of a block that the clock does not use up: 64 changes while the disk does not answer."""
RENEW_SECONDS = RESERVED_AHEAD / 4
"""So that, with one serial a second as the clock runs, what is kept for changes is never begun."""


MAX_COMPARED_NAMES = 5_000
"""A zone file with more names that is loaded again is not compared with the one before: secondaries get the
whole zone, as they do where more than half of one changed."""
CHANGES_A_STEP = 16
"""Each takes about 10 us, of which most of them are unchanged records that are compared."""

T = TypeVar("T")
LiveChange = tuple[Key, RRset | bytes | None]
"""The live rrset of a name and type, or the id of the set that it is; None: it is gone."""
_Coming = tuple[Iterator[LiveChange], Callable[[], Sets] | None, Deferred[None]]


class ZonesRefused(Exception):
    """The zone files cannot be used; each line of the text is one error, with its file and line."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True, slots=True)
class Served:
    """A zone in service: what its file says, the same as amended by UPDATE, the live records given for it,
    and all of it as published."""

    file: Zone
    laid: Laid
    before: Zone | None
    """The version before; None where there is none, or what has changed is too much to be kept."""

    @property
    def static(self) -> Zone:
        return self.laid.static

    @property
    def live(self) -> LiveRecords:
        return cast(LiveRecords, self.laid.live)

    @property
    def zone(self) -> Zone:
        return self.laid.zone

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        return tuple(conflict for found in self.laid.conflicts.values() for conflict in found)


def read_zones(directory: Path, kept: Path | None = None) -> dict[Path, Zone]:
    """The zones of `directory` as their files say. Raises ZonesRefused with every error of every file.

    Opens nothing else, but for large files what was `kept` of them: for the check before the fork.
    """
    zones, errors = _read_all(directory, lambda path: checked(path, kept))
    if errors:
        raise ZonesRefused(_flat(errors))
    return zones


class Zonefiles(service.Service):
    """The zones of `directory`, answered by `responder`; `index` (0 to 7) is this nameserver's in its zones.

    Without a directory the zones are those that were taken from their primary. What is read of large files is
    kept in the directory `kept`. `on_static` hear of every
    version of what is not live.
    As a running service it renews the reserved serials in time; without it they are renewed at changes.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path | None,
        store: Store,
        reactor: IReactorTime,
        *,
        index: int = 0,
        responder: Responder | None = None,
        kept: Path | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.responder = responder or Responder()
        self._directory = directory
        self._store = store
        self._index = index
        self._wall = wall
        self._files: dict[Path, Zone] = {}
        self._taken: dict[bytes, Zone] = {}
        self._live: dict[Key, RRset | bytes] = {}
        self._sets: Sets = {}
        self._dirty: set[bytes] = set()  # names at which something else is live than is laid
        self._coming: deque[_Coming] = deque()
        self._untold: list[Served] = []  # versions in service, of which nobody was told
        self._under_way: list[Deferred[None]] = []
        self._slices = Slices(reactor)
        self._reactor = reactor
        self._large = LargeFiles(kept)
        self._reload_lock = DeferredLock()
        self._served: dict[bytes, Served] = {}
        self._merged: dict[bytes, tuple[Zone, Merged]] = {}
        self._journals: dict[bytes, Journal] = {}
        self._told: list[Callable[[Zone], None]] = []
        self._told_static: list[Callable[[Zone, int], None]] = []
        self._last: dict[bytes, int] = {}
        self._renewing = False
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = reactor

    @property
    def apexes(self) -> frozenset[bytes]:
        """The apexes of the zones in service."""
        return frozenset(self._served)

    @property
    def busy(self) -> bool:
        """Whether something is being laid that is not in service yet."""
        return self._slices.busy

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        """The version of each zone that is being served, by apex."""
        return self.responder.zones

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The live records that a static record keeps out, of all zones."""
        return tuple(conflict for served in self._served.values() for conflict in served.conflicts)

    def journal(self, apex: bytes) -> Journal:
        """What changed in the zone `apex`, one of those in service, since the start."""
        return self._journals.setdefault(apex, Journal())

    def on_published(self, told: Callable[[Zone], None]) -> None:
        """`told` hears of every new version, once it is being served and its change is in the journal."""
        self._told.append(told)

    def on_static(self, told: Callable[[Zone, int], None]) -> None:
        """`told` hears of each zone without its live records when that changes, and of the serial that is
        published since."""
        self._told_static.append(told)

    def take(self, zone: Zone) -> None:
        """Serve `zone`, as it came from its primary, in place of the version before, under the live records.

        Waits for the disk when it needs a serial, and raises StoreFailed (nothing has changed then) when it
        gets none.
        """
        self._taking({**self._taken, zone.apex: zone})

    def drop(self, apex: bytes) -> None:
        """No longer serve the zone `apex`, which was taken."""
        self._taking({other: zone for other, zone in self._taken.items() if other != apex})

    def _taking(self, taken: dict[bytes, Zone]) -> None:
        self._slices.finish()
        before, self._taken = self._taken, taken
        try:
            finish(self._serving_and_telling(may_wait=True))
        except StoreFailed:
            self._taken = before
            raise

    def load(self) -> None:
        """Read all files and serve them, waiting for the disk. Raises ZonesRefused or StoreFailed."""
        self._slices.finish()
        zones, errors = self._read()
        if errors:
            raise ZonesRefused(_flat(errors))
        self._files = zones
        finish(self._serving_and_telling(may_wait=True))

    def reload(self) -> list[str]:
        """Read all files again; the errors (`file:line: what`). A bad file's zone stays as it was.

        A zone whose file is gone is no longer served; when no file can be found everything stays. Waits for
        the disk, and raises StoreFailed (nothing has changed then) when a zone needs a serial and gets none.
        """
        self._slices.finish()
        return finish(self._reloading())

    def reload_soon(self) -> Deferred[list[str]]:
        """`reload`, while questions are answered: large files are read by children, the rest in slices."""
        return self._reload_lock.run(self._reload_soon)

    def _reload_soon(self) -> Deferred[list[str]]:
        paths = _paths_if_any(self._directory)
        prepared = self._large.prepare(self._reactor, paths)
        reloaded: Deferred[list[str]] = prepared.addCallback(lambda _: self._slices.run(self._reloading()))
        return reloaded.addBoth(self._reloaded)

    def _reloaded(self, result: T) -> T:
        """What came meanwhile is laid now."""
        if self._coming and not self._slices.busy:
            self._slices.run(self._changing()).addErrback(self._change_failed)
        return result

    def _reloading(self) -> Generator[None, None, list[str]]:
        try:
            zones, errors = self._read()
        except ZonesRefused as refused:
            for error in refused.errors:
                self._log.error("{error}; all zones stay as they were", error=error)
            return list(refused.errors)
        apexes = {zone.apex for zone in zones.values()}
        bad = {path: self._files[path] for path in errors if path in self._files}
        kept = {path: zone for path, zone in bad.items() if zone.apex not in apexes}
        for error in _flat(errors):
            self._log.error("{error}", error=error)
        for path, zone in kept.items():
            apex = names.to_text(zone.apex)
            self._log.warn("{path} was not loaded: {apex} stays as it was", path=path, apex=apex)
        before, self._files = self._files, {**zones, **kept}
        try:
            yield from self._serving_and_telling(may_wait=True)
        except StoreFailed:
            self._files = before
            raise
        return _flat(errors)

    def lay(self, live: Live) -> None:
        """From now on `live` are the live records, all of them; as `change`."""
        self.change(chain(((key, None) for key in tuple(self._live) if key not in live), live.items()))

    def change(
        self, changes: Iterable[LiveChange], sets: Callable[[], Sets] | None = None
    ) -> Deferred[None]:
        """From now on these live records are others, or none. Fires when that is in service.

        `sets`, asked when all `changes` are read, are all that any live record is from then on. Only zones
        whose content that changes get a new version, each of them one. That is done in slices, and begins at
        once; never waits for the disk.
        """
        in_service: Deferred[None] = Deferred()
        self._coming.append((iter(changes), sets, in_service))
        if not self._slices.busy:
            self._slices.run(self._changing()).addErrback(self._change_failed)
        return in_service

    def finish(self) -> None:
        """Do at once what is under way of it."""
        self._slices.finish()

    def _changing(self) -> Generator[None, None, None]:
        while self._coming:
            for _ in range(len(self._coming)):  # what comes meanwhile waits for the next version
                changes, sets, in_service = self._coming.popleft()
                self._under_way.append(in_service)
                yield from self._take(changes)
                if sets is not None:
                    self._sets = sets()
            yield from self._serving(may_wait=False)
            self._are_in_service()
            yield from self._telling()

    def _take(self, changes: Iterator[LiveChange]) -> Generator[None, None, None]:
        for number, (key, rrset) in enumerate(changes):
            if self._live.get(key) != rrset:
                self._dirty.add(key[0])
                if rrset is not None:
                    self._live[key] = rrset
                else:
                    del self._live[key]
            if not number % CHANGES_A_STEP:
                yield

    def _are_in_service(self) -> None:
        done, self._under_way = self._under_way, []
        for in_service in done:
            in_service.callback(None)

    def _change_failed(self, failure: Failure) -> None:
        """A mistake of ours: what is published stays published."""
        self._log.failure("live records were not published", failure)
        self._are_in_service()

    def served(self, apex: bytes) -> Served | None:
        """What is in service as the zone `apex`."""
        return self._served.get(apex)

    def amended(self, file: Zone, static: Zone) -> None:
        """The store has amendments of `file`, a zone in service, that make it `static`: serve that.

        Where the file has been replaced meanwhile the amendments are laid over the new one. Never waits.
        """
        self._slices.finish()
        apex = file.apex
        if (served := self._served.get(apex)) is None:
            return
        if served.file is file:
            self._merged[apex] = file, Merged(static, ())
        else:
            self._merged.pop(apex, None)
        finish(self._serving_and_telling(may_wait=False))

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._renewal.start(RENEW_SECONDS, now=False)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self._slices.finish()
        self._renewal.stop()

    def _read(self) -> tuple[dict[Path, Zone], dict[Path, list[str]]]:
        """As _read_all; a file that says of a live name what only live records may say is bad, too."""
        if self._directory is None:
            return {}, {}
        zones, errors = _read_all(self._directory, self._large.zone)
        live_of = _by_zone(self._live, {zone.apex for zone in zones.values()})
        for path, zone in list(zones.items()):
            entries = {key: one for key, one in live_of[zone.apex].items() if key[1] in zone.node(key[0])}
            beside = LiveRecords(entries, self._sets)
            wrong = [f"{path}: {one}" for one in conflicts_at_load(zone, beside) if one.is_error]
            if wrong:
                errors[path] = wrong
                del zones[path]
        return zones, errors

    def _serving_and_telling(self, *, may_wait: bool) -> Generator[None, None, None]:
        yield from self._serving(may_wait=may_wait)
        yield from self._telling()

    def _telling(self) -> Generator[None, None, None]:
        """Into the journal with what has changed, and tell of it. The answers are those of the new version
        already: who asks for its changes before they are found gets the whole zone (RFC 1995 2).
        """
        while self._untold:
            served = self._untold.pop(0)
            zone = served.zone
            if served.before is None:
                self.journal(zone.apex).clear()
            else:
                where = served.laid.changed_names()
                change = yield from finding_difference(served.before, zone, where)
                self.journal(zone.apex).add(change)
            for told in self._told:
                told(zone)

    def _serving(self, *, may_wait: bool) -> Generator[None, None, None]:
        """Make what is in service equal to the files and the live records."""
        files = {zone.apex: zone for zone in self._files.values()} | self._taken
        live_of = yield from self._live_of(files)
        next_ones: dict[bytes, Served] = {}
        for apex, file in files.items():
            static = self._with_amendments(file)
            live, dirty = live_of[apex]
            before = self._served.get(apex)
            is_live_same = not dirty and before is not None and live.sets is before.live.sets
            if before is not None and before.static is static and is_live_same:
                next_ones[apex] = before
            else:
                next_ones[apex] = yield from self._laid(file, static, live, dirty, may_wait=may_wait)
        if may_wait:
            zones = (served.zone for served in next_ones.values())
            fresh = [zone for zone in zones if not self._is_reserved(zone.apex, zone.serial)]
            self._store.reserve_now({zone.apex: self._ahead(zone.serial) for zone in fresh})
        self._dirty.clear()
        self._publish(next_ones)
        self._renew()

    def _live_of(
        self, apexes: Collection[bytes]
    ) -> Generator[None, None, dict[bytes, tuple[LiveRecords, set[bytes]]]]:
        """The live records of each zone, and the names at which they are others than it has in service."""
        found: dict[bytes, tuple[LiveRecords, set[bytes]]] = {}
        if set(apexes) != self._served.keys():
            for apex, live in _by_zone(self._live, apexes).items():
                before = self._served[apex].live.entries if apex in self._served else {}
                keys = (key for key in {**before, **live} if before.get(key) != live.get(key))
                found[apex] = LiveRecords(live, self._sets), {name for name, _ in keys}
            return found
        dirty: dict[bytes, set[bytes]] = {apex: set() for apex in apexes}
        changes: dict[bytes, dict[Key, RRset | bytes | None]] = {apex: {} for apex in apexes}
        for name in self._dirty:
            closest = _closest(name, apexes)
            if closest is not None:
                dirty[closest].add(name)
                before = self._served[closest].live.entries
                for key in ((name, rtype) for rtype in LIVE_TYPES):
                    if (one := self._live.get(key)) is not before.get(key):
                        changes[closest][key] = one
            yield
        for apex in apexes:
            entries = with_changes(self._served[apex].live.entries, changes[apex])
            found[apex] = LiveRecords(entries, self._sets), dirty[apex]
        return found

    def _with_amendments(self, file: Zone) -> Zone:
        """The zone of `file` with what UPDATE changed; of a taken one, its primary has done that."""
        if file.apex in self._taken:
            return file
        before = self._merged.get(file.apex)
        if before is None or before[0] is not file:
            before = self._merged[file.apex] = file, merge(file, self._store.amendments(file.apex).values())
        return before[1].zone

    def _laid(
        self, file: Zone, static: Zone, live: LiveRecords, dirty: set[bytes], *, may_wait: bool
    ) -> Generator[None, None, Served]:
        """The next version of a zone; the very one in service when only its number would differ."""
        before = self._served.get(static.apex)
        serial = self._next_serial(static, may_wait=may_wait)
        laid = yield from laying(static, live, serial, before.laid if before else None, dirty)
        if before is None:
            return Served(file, laid, None)
        if (
            laid.names is None
            and max(len(zone.rrsets) for zone in (before.zone, laid.zone)) > MAX_COMPARED_NAMES
        ):
            return Served(file, laid, None)
        is_same = _same_content(before.zone, laid.zone) if laid.touched is None else not laid.touched
        is_raised = is_newer(static.serial, before.zone.serial)  # by hand, in the file
        if is_same and not is_raised:
            return Served(file, replace(laid, zone=before.zone), None)
        return Served(file, laid, before.zone)

    def _publish(self, next_ones: dict[bytes, Served]) -> None:
        known_conflicts = set(self.conflicts)
        for apex in self._served.keys() - next_ones.keys():
            self.responder.remove(apex)
            self._journals.pop(apex, None)
            self._log.info("{apex} is no longer served", apex=names.to_text(apex))
        for apex, served in next_ones.items():
            before = self._served.get(apex)
            if before is None or served.zone is not before.zone:
                self._last[apex] = served.zone.serial
                self._untold.append(served)
                self.responder.replace(served.zone, None if before is None else served.laid.touched)
            if apex not in self._taken:
                if before is None or served.file is not before.file:
                    self._tell_loaded(served.file)
                if before is None or served.static is not before.static:
                    self._drop_amendments(apex)
        static = [
            one
            for apex, one in next_ones.items()
            if apex not in self._served or one.static is not self._served[apex].static
        ]
        self._served = next_ones
        for conflict in self.conflicts:
            if conflict not in known_conflicts:
                self._log.warn("{conflict}", conflict=conflict)
        for served in static:
            for told_static in self._told_static:
                told_static(served.static, served.zone.serial)

    def _drop_amendments(self, apex: bytes) -> None:
        """Keep no longer what the file has taken over or contradicts."""
        _, merged = self._merged[apex]
        for amendment, reason in merged.dropped:
            if reason:
                self._log.warn(
                    "{what} is again as the zone file says, not as UPDATE changed it: {reason}",
                    what=text_of(*amendment.key),
                    reason=reason,
                )
        if merged.dropped:
            dropped = {amendment.key: None for amendment, _ in merged.dropped}
            self._store.amend(apex, dropped).addErrback(_already_told)

    def _tell_loaded(self, file: Zone) -> None:
        before = self._store.file_serial(file.apex)
        if before == file.serial:
            return
        if before is not None and is_newer(before, file.serial):
            self._log.warn(
                "the serial in the zone file of {apex} went back from {before} to {now}:"
                " the published one goes on rising",
                apex=names.to_text(file.apex),
                before=before,
                now=file.serial,
            )
        self._store.loaded(file.apex, file.serial).addErrback(_already_told)

    # Serials: what is published is reserved on disk first, so that a killed process never repeats one.

    def _next_serial(self, static: Zone, *, may_wait: bool) -> int:
        apex = static.apex
        last = self._last.get(apex) or self._store.reserved(apex) or 0
        serial = next_serial(last, static.serial, int(self._wall()), self._index)
        if may_wait or self._is_reserved(apex, (serial + KEPT_FOR_CHANGES) % MODULUS):
            return serial
        # The clock would use the block up, and a live change does not wait for the disk: the nearest number.
        # Should the disk fail for longer than the block lasts, a change is still worth more than its number:
        # it can be repeated only if we are killed then, and where the file's serial is ahead of the clock.
        return next_serial(last, last, last, self._index)

    def _is_reserved(self, apex: bytes, serial: int) -> bool:
        reserved = self._store.reserved(apex)
        return reserved is not None and not is_newer(serial, reserved)

    def _ahead(self, serial: int) -> int:
        """Where a block ends that is good for changes and for the clock to run on."""
        wall = int(self._wall()) % MODULUS
        return ((wall if is_newer(wall, serial) else serial) + RESERVED_AHEAD) % MODULUS

    def _renew(self) -> None:
        """Reserve further serials, of all zones in one commit, when half of a block is used up."""
        if self._renewing:
            return
        upto: dict[bytes, int] = {}
        for apex, served in self._served.items():
            wanted = self._ahead(served.zone.serial)
            if not self._is_reserved(apex, (wanted - RESERVED_AHEAD // 2) % MODULUS):
                upto[apex] = wanted
        if upto:
            self._renewing = True
            self._store.reserve_all(upto).addErrback(_already_told).addBoth(self._renewed)

    def _renewed(self, _: object) -> None:
        self._renewing = False


def _already_told(failure: Failure) -> None:
    """The store has logged that the disk fails; the next change, or the next round, tries again."""
    failure.trap(StoreFailed)


def _read_all(
    directory: Path, large: Callable[[Path], Zone]
) -> tuple[dict[Path, Zone], dict[Path, list[str]]]:
    """The zones of the good files, and the errors of the bad ones. Raises ZonesRefused without any file."""
    zones: dict[Path, Zone] = {}
    errors: dict[Path, list[str]] = {}
    for path in _paths(directory):
        try:
            if is_large(path):
                zones[path] = large(path)
            else:
                zones[path] = read_zone(path.read_text("utf-8"), filename=str(path))
        except LargeFileRefused as problem:
            errors[path] = problem.errors
        except OSError as problem:
            errors[path] = [f"{path}: cannot be read: {problem.strerror}"]
        except UnicodeDecodeError as problem:
            line = problem.object.count(b"\n", 0, problem.start) + 1
            errors[path] = [f"{path}:{line}: is not text in UTF-8"]
        except ZoneFileError as problem:
            errors[path] = str(problem).splitlines()
    holders: dict[bytes, list[Path]] = {}
    for path, zone in zones.items():
        holders.setdefault(zone.apex, []).append(path)
    for apex, paths in holders.items():
        for path in paths if len(paths) > 1 else ():
            others = ", ".join(str(other) for other in paths if other != path)
            errors[path] = [f"{path}: is the zone {names.to_text(apex)}, and so is {others}"]
            del zones[path]
    return zones, errors


def _paths_if_any(directory: Path | None) -> list[Path]:
    try:
        return [] if directory is None else _paths(directory)
    except ZonesRefused:
        return []


def _paths(directory: Path) -> list[Path]:
    """The zone files by name; those that begin with a dot are an editor's."""
    try:
        found = [path for path in directory.iterdir() if path.suffix == ".zone" and path.name[0] != "."]
    except OSError as problem:
        raise ZonesRefused([f"{directory}: cannot be read: {problem.strerror}"]) from None
    if not found:
        raise ZonesRefused([f"{directory}: has no file *.zone"])
    return sorted(found)


def _flat(errors: Mapping[Path, list[str]]) -> list[str]:
    return [error for path in sorted(errors) for error in errors[path]]


def _by_zone(
    live: Mapping[Key, RRset | bytes], apexes: Collection[bytes]
) -> dict[bytes, dict[Key, RRset | bytes]]:
    """The live records of each zone: a name belongs to the zone with the longest apex at or above it."""
    found: dict[bytes, dict[Key, RRset | bytes]] = {apex: {} for apex in apexes}
    for key, one in live.items():
        apex = _closest(key[0], apexes)
        if apex is not None:
            found[apex][key] = one
    return found


def _closest(name: bytes, apexes: Collection[bytes]) -> bytes | None:
    while name not in apexes:
        if name == names.ROOT:
            return None
        name = names.parent(name)
    return name


def _same_content(one: Zone, other: Zone) -> bool:
    return _unnumbered(one) == _unnumbered(other)


def _unnumbered(zone: Zone) -> dict[bytes, Mapping[int, RRset]]:
    soa = soa_with(zone.soa, serial=0, minimum=soa_minimum(zone.soa))
    return {**zone.rrsets, zone.apex: {**zone.node(zone.apex), SOA: soa}}

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher

from appliance.dns import names
from appliance.dns.numbers import TXT, A
from appliance.dns.overlay import Reason
from appliance.dns.serial import is_newer
from appliance.dns.zone import RRset, Shared, Zone
from appliance.dns.zonefile import read_zone
from appliance.service.nameserver.zonefiles import (
    RENEW_SECONDS,
    RESERVED_AHEAD,
    LiveChange,
    Zonefiles,
    ZonesRefused,
    read_zones,
)
from appliance.service.store import Store, StoreFailed
from tests.effort import examples

WALL = 1_800_000_000
DEMO = names.from_text("demo.test")
OTHER = names.from_text("other.test")
CHILD = names.from_text("child.demo.test")


def _text(apex: str, *lines: str, serial: int = 1) -> str:
    return "\n".join(
        [
            f"$ORIGIN {apex}.",
            "$TTL 300",
            f"@ SOA ns1 hostmaster {serial} 3600 600 86400 300",
            "@ NS ns1",
            "ns1 A 192.0.2.53",
            *lines,
            "",
        ]
    )


def _address(name: str, last: int = 1) -> RRset:
    return RRset(names.from_text(name), A, 15, (bytes((192, 0, 2, last)),))


def _discovery(name: str) -> RRset:
    text = b"r=superprotocol;ip=192.0.2.1"
    return RRset(names.from_text(name), TXT, 15, (bytes((len(text),)) + text,))


def _live(*rrsets: RRset) -> dict[tuple[bytes, int], RRset]:
    return {(rrset.name, rrset.rtype): rrset for rrset in rrsets}


class _Site:
    """A directory of zone files, a store, and what is in service of them; the wall clock stands."""

    def __init__(self, base: Path, index: int = 0) -> None:
        self.directory = base / "zones"
        self.directory.mkdir()
        self.clock = Clock()
        self.wall = WALL
        self._state = base / "state.db"
        self._index = index
        self.start()

    def restart(self) -> None:
        self.store.close()
        self.start()

    def start(self) -> None:
        self.store = Store(self._state, self.clock)
        self.store.open()
        self.zonefiles = Zonefiles(
            self.directory, self.store, self.clock, index=self._index, wall=lambda: float(self.wall)
        )

    def write(self, filename: str, text: str) -> Path:
        path = self.directory / filename
        path.write_text(text)
        return path

    def zone(self, apex: bytes = DEMO) -> Zone:
        return self.zonefiles.responder.zones[apex]

    def rdatas(self, name: str, rtype: int = A, apex: bytes = DEMO) -> list[bytes]:
        node = self.zone(apex).node(names.from_text(name))
        return list(node[rtype].rdatas) if rtype in node else []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[_Site]:
    site = _Site(tmp_path)
    yield site
    site.store.close()


@pytest.fixture
def logged() -> Iterator[Callable[[], list[str]]]:
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(cast(ILogObserver, events.append))
    yield lambda: [str(event["log_format"]).format(**event) for event in events]
    globalLogPublisher.removeObserver(cast(ILogObserver, events.append))


def test_all_files_are_served_whatever_their_names(site: _Site) -> None:
    site.write("10-main.zone", _text("demo.test", "www A 192.0.2.80"))
    site.write("x.zone", _text("other.test"))
    site.write("notes.txt", "no zone")
    site.write(".#x.zone", "an editor's")
    site.zonefiles.load()
    assert site.zonefiles.apexes == {DEMO, OTHER}
    assert site.rdatas("www.demo.test") == [b"\xc0\x00\x02\x50"]
    assert site.zone().serial == WALL


def test_all_errors_of_all_files_at_once(site: _Site) -> None:
    site.write("a.zone", _text("demo.test", "www A not-an-address", "ftp A 192.0.2.999"))
    site.write("b.zone", "$INCLUDE a.zone\n")
    (site.directory / "c.zone").write_bytes(b"; fine\n\xff\xfe\n")
    (site.directory / "d.zone").mkdir()
    site.write("e.zone", _text("other.test"))
    site.write("f.zone", _text("other.test"))
    with pytest.raises(ZonesRefused) as refused:
        site.zonefiles.load()
    text = str(refused.value)
    assert text == "\n".join(refused.value.errors)
    folder = site.directory
    for start in ("a.zone:6: ", "a.zone:7: ", "b.zone:1: $INCLUDE is not supported"):
        assert any(error.startswith(f"{folder}/{start}") for error in refused.value.errors), start
    assert f"{folder}/c.zone:2: is not text in UTF-8" in text
    assert f"{folder}/d.zone: cannot be read: Is a directory" in text
    assert f"{folder}/e.zone: is the zone other.test, and so is {folder}/f.zone" in text
    assert f"{folder}/f.zone: is the zone other.test, and so is {folder}/e.zone" in text
    assert not site.zonefiles.apexes
    with pytest.raises(ZonesRefused, match="not-an-address"):
        read_zones(folder)


def test_a_directory_without_zones_is_refused(site: _Site) -> None:
    with pytest.raises(ZonesRefused, match=r"zones: has no file \*\.zone"):
        site.zonefiles.load()
    site.directory.rmdir()
    with pytest.raises(ZonesRefused, match="cannot be read: No such file"):
        site.zonefiles.load()


def test_a_bad_file_keeps_the_old_zone_and_the_others_change(
    site: _Site, logged: Callable[[], list[str]]
) -> None:
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.80"))
    site.write("other.zone", _text("other.test"))
    site.zonefiles.load()
    before = site.zone()
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.81", "oops"))
    site.write("other.zone", _text("other.test", "www A 192.0.2.82"))
    (error,) = site.zonefiles.reload()
    assert error.startswith(f"{site.directory}/demo.zone:7: ")
    assert error in logged()
    assert f"{site.directory}/demo.zone was not loaded: demo.test stays as it was" in logged()
    assert site.zone() is before
    assert site.rdatas("www.other.test", apex=OTHER) == [b"\xc0\x00\x02\x52"]
    site.zonefiles.lay(_live(_address("live.demo.test")))  # over the old one, too
    assert site.rdatas("live.demo.test")
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.81"))
    assert site.zonefiles.reload() == []
    assert site.rdatas("www.demo.test") == [b"\xc0\x00\x02\x51"]
    assert site.rdatas("live.demo.test")


def test_a_removed_file_removes_the_zone(site: _Site) -> None:
    path = site.write("demo.zone", _text("demo.test"))
    site.write("other.zone", _text("other.test"))
    site.zonefiles.load()
    last = site.zone().serial
    path.unlink()
    assert site.zonefiles.reload() == []
    assert site.zonefiles.apexes == {OTHER}
    site.write("again.zone", _text("demo.test"))
    assert site.zonefiles.reload() == []
    assert is_newer(site.zone().serial, last)


def test_with_no_file_left_everything_stays(site: _Site) -> None:
    path = site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    path.unlink()
    (error,) = site.zonefiles.reload()
    assert error.endswith("has no file *.zone")
    assert site.zonefiles.apexes == {DEMO}


def test_a_renamed_file_is_the_same_zone(site: _Site) -> None:
    path = site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    before = site.zone()
    path.rename(site.directory / "z.zone")
    assert site.zonefiles.reload() == []
    assert site.zone() is before
    site.write("demo.zone", "oops")  # a bad file under the old name has nothing to keep
    assert len(site.zonefiles.reload()) == 1
    assert site.zonefiles.apexes == {DEMO}
    site.write("z.zone", "oops")  # both at once: the good file is the zone
    site.write("good.zone", _text("demo.test", "www A 192.0.2.80"))
    assert len(site.zonefiles.reload()) == 2
    assert site.rdatas("www.demo.test")


def test_two_files_for_one_zone_keep_the_one_in_service(site: _Site) -> None:
    site.write("a.zone", _text("demo.test", "www A 192.0.2.80"))
    site.zonefiles.load()
    site.write("b.zone", _text("demo.test", "www A 192.0.2.99"))
    assert len(site.zonefiles.reload()) == 2
    assert site.rdatas("www.demo.test") == [b"\xc0\x00\x02\x50"]


def test_a_file_may_become_another_zone(site: _Site) -> None:
    site.write("a.zone", _text("demo.test"))
    site.zonefiles.load()
    site.write("a.zone", _text("other.test"))
    assert site.zonefiles.reload() == []
    assert site.zonefiles.apexes == {OTHER}


def test_only_content_makes_a_version(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.write("other.zone", _text("other.test"))
    site.zonefiles.load()
    first, other = site.zone(), site.zone(OTHER)
    site.zonefiles.lay({})
    site.zonefiles.lay(_live(_address("www.nowhere.test")))  # of no zone of ours
    site.zonefiles.lay(_live(_address("ns1.demo.test")))  # kept out by a static record
    site.write("demo.zone", "; a remark\n" + _text("demo.test"))
    site.zonefiles.reload()
    assert site.zone() is first
    site.zonefiles.lay(_live(_address("www.demo.test")))
    second = site.zone()
    assert is_newer(second.serial, first.serial)
    site.zonefiles.lay(_live(_address("www.demo.test")))
    assert site.zone() is second
    assert site.zone(OTHER) is other


def test_a_serial_raised_by_hand_is_published(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test", serial=2026112301))
    site.zonefiles.load()
    assert site.zone().serial >= 2026112301
    site.zonefiles.lay(_live(_address("www.demo.test")))
    last = site.zone().serial
    site.write("demo.zone", _text("demo.test", serial=2026112401))
    site.zonefiles.reload()
    assert site.zone().serial >= 2026112401 > last
    assert site.store.file_serial(DEMO) == 2026112401
    reserved = site.store.reserved(DEMO)
    assert reserved is not None
    assert reserved > 2026112401


def test_a_serial_that_goes_back_in_the_file_is_told(site: _Site, logged: Callable[[], list[str]]) -> None:
    site.write("demo.zone", _text("demo.test", serial=2026112301))
    site.zonefiles.load()
    first = site.zone().serial
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.1", serial=20261123))
    site.zonefiles.reload()
    assert is_newer(site.zone().serial, first)
    assert any("went back from 2026112301 to 20261123" in line for line in logged())


def test_the_low_bits_are_the_nameservers_index(tmp_path: Path) -> None:
    site = _Site(tmp_path, index=5)
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    for last in range(5):
        assert site.zone().serial & 7 == 5
        site.zonefiles.lay(_live(_address("www.demo.test", last)))
    site.store.close()


def test_live_records_go_to_the_closest_zone_and_move_with_it(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test"))
    path = site.write("child.zone", _text("child.demo.test"))
    site.zonefiles.lay(_live(_address("www.child.demo.test"), _address("child.demo.test")))  # before load
    site.zonefiles.load()
    assert site.rdatas("www.child.demo.test", apex=CHILD)
    assert not site.rdatas("www.child.demo.test", apex=DEMO)
    path.unlink()
    site.zonefiles.reload()
    assert site.rdatas("www.child.demo.test", apex=DEMO)


def test_conflicts_are_kept_and_logged_once(site: _Site, logged: Callable[[], list[str]]) -> None:
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.80"))
    site.zonefiles.load()
    assert not site.zonefiles.conflicts
    site.zonefiles.lay(_live(_address("www.demo.test")))
    site.zonefiles.lay(_live(_address("www.demo.test", 2), _address("b.demo.test")))
    (conflict,) = site.zonefiles.conflicts
    assert conflict.reason is Reason.ADDRESS
    assert [line for line in logged() if "www.demo.test" in line] == [str(conflict)]
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.reload()
    assert not site.zonefiles.conflicts


def test_a_discovery_text_beside_live_ones_refuses_the_file(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    site.zonefiles.lay(_live(_discovery("www.demo.test")))
    site.write("demo.zone", _text("demo.test", 'www TXT "r=superprotocol;ip=192.0.2.9"'))
    (error,) = site.zonefiles.reload()
    assert error.startswith(f"{site.directory}/demo.zone: www.demo.test TXT: ")
    assert len(site.rdatas("www.demo.test", TXT)) == 1


def test_a_restart_never_repeats_a_serial(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test"))
    published = []
    for _ in range(5):
        site.zonefiles.load()
        published.append(site.zone().serial)
        for last in range(3):
            site.zonefiles.lay(_live(_address("www.demo.test", last)))
            published.append(site.zone().serial)
        site.restart()
    assert all(is_newer(later, earlier) for earlier, later in pairwise(published))


def test_a_live_change_does_not_wait_for_the_disk(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    on_disk = site.store.reserved(DEMO)
    assert on_disk is not None
    waiting: Deferred[None] = Deferred()
    asked: list[dict[bytes, int]] = []

    def reserve_all(upto: dict[bytes, int]) -> Deferred[None]:
        asked.append(upto)
        return waiting

    monkeypatch.setattr(site.store, "reserve_all", reserve_all)
    last = site.zone().serial
    for change in range(80):
        site.wall += 100  # the clock runs away from what is reserved
        site.zonefiles.lay(_live(_address("www.demo.test", change)))
        assert site.zone().serial > last
        last = site.zone().serial
        assert last <= on_disk
    assert len(asked) == 1  # one reservation at a time
    monkeypatch.undo()
    waiting.callback(None)
    site.zonefiles.lay(_live(_address("www.demo.test", 81)))
    site.zonefiles.lay(_live(_address("www.demo.test", 82)))
    assert site.zone().serial >= site.wall


def test_a_disk_that_fails_stops_no_change(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    monkeypatch.setattr(site.store, "reserve_all", lambda upto: fail(StoreFailed("full")))
    for change in range(400):  # more than are reserved
        site.zonefiles.lay(_live(_address("www.demo.test", change % 256)))
    assert site.zone().serial > WALL + RESERVED_AHEAD


def test_a_reload_that_gets_no_serial_changes_nothing(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    before = site.zone()

    def fails(upto: dict[bytes, int]) -> None:
        if upto:
            raise StoreFailed("full")

    monkeypatch.setattr(site.store, "reserve_now", fails)
    site.write("demo.zone", _text("demo.test", serial=2026112301))
    site.write("other.zone", _text("other.test"))
    with pytest.raises(StoreFailed):
        site.zonefiles.reload()
    site.zonefiles.lay(_live(_address("www.keep.test")))
    assert site.zone() is before
    assert site.zonefiles.apexes == {DEMO}
    monkeypatch.undo()
    assert site.zonefiles.reload() == []
    assert site.zonefiles.apexes == {DEMO, OTHER}


def test_a_quiet_nameserver_keeps_up_with_the_clock(site: _Site) -> None:
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    site.zonefiles.startService()
    for _ in range(50):
        site.wall += int(RENEW_SECONDS)
        site.clock.advance(RENEW_SECONDS)
        reserved = site.store.reserved(DEMO)
        assert reserved is not None
        assert reserved >= site.wall + RESERVED_AHEAD // 2
    site.zonefiles.lay(_live(_address("www.demo.test")))
    assert site.zone().serial >= site.wall
    site.zonefiles.stopService()
    assert site.clock.getDelayedCalls() == []


_TEXTS = (
    _text("demo.test"),
    _text("demo.test", "a A 192.0.2.7"),
    _text("demo.test", "a CNAME b", serial=WALL + 5000),
    _text("other.test"),
    "oops",
)
_STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from("ab"), st.sampled_from(_TEXTS)),
    st.tuples(st.just("unlink"), st.sampled_from("ab")),
    st.tuples(
        st.just("lay"),
        st.sets(st.sampled_from(["a.demo.test", "b.demo.test", "a.other.test"])),
        st.integers(1, 3),
    ),
    st.tuples(st.just("reload")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("wall"), st.sampled_from([1, 10_000, -500])),
)


@settings(max_examples=examples(60), deadline=None)
@given(steps=st.lists(_STEPS, max_size=25))
def test_any_order_of_files_reloads_live_records_and_restarts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """Serials only rise, one serial is one content, and the live records are those of the last lay."""
    site = _Site(tmp_path_factory.mktemp("site"))
    site.write("keep.zone", _text("keep.test"))
    site.zonefiles.load()
    published: dict[bytes, Zone] = {}
    live: dict[tuple[bytes, int], RRset] = {}
    for kind, *values in [*steps, ("reload",)]:
        if kind == "write":
            site.write(f"{values[0]}.zone", values[1])
        elif kind == "unlink":
            (site.directory / f"{values[0]}.zone").unlink(missing_ok=True)
        elif kind == "lay":
            live = _live(*(_address(name, values[1]) for name in sorted(values[0])))
            site.zonefiles.lay(live)
        elif kind == "reload":
            site.zonefiles.reload()
        elif kind == "wall":
            site.wall += values[0]
        else:
            site.restart()
            try:
                site.zonefiles.load()
            except ZonesRefused:
                for bad in "ab":
                    (site.directory / f"{bad}.zone").unlink(missing_ok=True)
                site.zonefiles.load()
            live = {}
        for apex, zone in site.zonefiles.responder.zones.items():
            before = published.get(apex)
            assert before is None or before is zone or is_newer(zone.serial, before.serial)
            published[apex] = zone
            reserved = site.store.reserved(apex)
            assert reserved is not None
            assert not is_newer(zone.serial, reserved)
            refused = {(conflict.name, conflict.rtype) for conflict in site.zonefiles.conflicts}
            for (name, rtype), rrset in live.items():
                if names.is_at_or_below(name, apex) and (name, rtype) not in refused:
                    assert zone.node(name)[rtype].rdatas == rrset.rdatas
    site.store.close()


def test_every_version_is_told_and_its_change_is_in_the_journal(site: _Site) -> None:
    path = site.write("demo.zone", _text("demo.test", "www A 192.0.2.80"))
    told: list[Zone] = []
    site.zonefiles.on_published(told.append)
    site.zonefiles.load()
    first = site.zone()
    assert told == [first]
    site.zonefiles.lay(_live(_address("live.demo.test")))
    site.write("demo.zone", _text("demo.test", "www A 192.0.2.81"))
    site.zonefiles.reload()
    assert [zone.serial for zone in told[1:]] == [
        change.new_serial for change in site.zonefiles.journal(DEMO).since(first.serial) or ()
    ]
    assert told[-1] is site.zone()
    site.zonefiles.reload()
    assert len(told) == 3
    path.rename(site.write("other.zone", _text("other.test")).with_name("demo.old"))
    site.zonefiles.reload()
    assert len(site.zonefiles.journal(DEMO)) == 0


class Ticking(Clock):
    """A millisecond passes whenever somebody looks at it, so that long work is seen to be long."""

    def seconds(self) -> float:
        self.rightNow += 0.001
        return self.rightNow


def test_a_version_is_in_service_before_its_change_is_in_the_journal(site: _Site) -> None:
    """Who asks for the changes in between gets the whole zone; the version is told of when they are there."""
    site.clock = Ticking()
    site.restart()
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    journal = site.zonefiles.journal(DEMO)
    wanted = [names.from_text(f"n{number}.demo.test") for number in range(100)]
    told: list[int] = []
    site.zonefiles.on_published(lambda zone: told.append(zone.serial))
    in_service: list[int] = []

    def lay(*last: int) -> None:
        rdatas = tuple(bytes((192, 0, 2, one)) for one in last)
        before = site.zone().serial

        def served(_: None) -> None:
            serial = site.zone().serial
            assert site.rdatas("n7.demo.test") == list(rdatas)
            assert serial not in told
            assert journal.since(before) in (None, ())
            assert journal.since(serial) is None
            in_service.append(serial)

        changes = (((name, A), b"servers") for name in wanted)
        site.zonefiles.change(changes, lambda: {b"servers": Shared(15, rdatas)}).addCallback(served)
        site.clock.advance(0)

    lay(1, 2, 3)
    (first,) = in_service
    lay(1, 3)
    (change,) = journal.since(first) or ()
    assert {rrset.name for rrset in change.removed} == set(wanted)
    assert {rrset.rdatas for rrset in change.removed} == {(bytes((192, 0, 2, 2)),)}
    assert not change.added
    lay(4)
    assert told == in_service
    assert [change.old_serial for change in journal.since(first) or ()] == told[:2]


def test_zones_taken_from_their_primary(site: _Site) -> None:
    zonefiles = Zonefiles(None, site.store, site.clock, index=3, wall=lambda: float(WALL))
    heard: list[tuple[int, int]] = []
    zonefiles.on_static(lambda static, serial: heard.append((static.serial, serial)))
    zonefiles.load()
    assert not zonefiles.apexes
    zonefiles.lay(_live(_address("live.demo.test")))
    zonefiles.take(read_zone(_text("demo.test", "www A 192.0.2.80", serial=WALL + 100), filename="z"))
    zone = zonefiles.responder.zones[DEMO]
    assert (zone.serial % 8, zone.serial >= WALL + 100) == (3, True)
    assert {names.from_text(f"{name}.demo.test") for name in ("www", "live")} < set(zone.rrsets)
    zonefiles.take(read_zone(_text("demo.test", serial=WALL + 200), filename="z"))
    assert is_newer(zonefiles.responder.zones[DEMO].serial, zone.serial)
    zonefiles.lay({})
    assert [static for static, _ in heard] == [WALL + 100, WALL + 200]
    assert zonefiles.reload() == []
    assert zonefiles.apexes == {DEMO}
    zonefiles.drop(DEMO)
    assert not zonefiles.apexes


def test_what_comes_while_a_version_is_made_waits_for_the_next(site: _Site) -> None:
    """Else changes that keep coming would let no version be finished at all."""
    site.write("demo.zone", _text("demo.test"))
    site.zonefiles.load()
    serials: list[int] = []
    site.zonefiles.on_published(lambda zone: serials.append(zone.serial))
    fired: list[int] = []

    def address(number: int) -> Iterator[LiveChange]:
        rrset = _address(f"n{number}.demo.test", number)
        yield (rrset.name, A), rrset
        if number < 3:
            site.zonefiles.change(address(number + 1)).addCallback(lambda _: fired.append(number + 1))

    site.zonefiles.change(address(1)).addCallback(lambda _: fired.append(1))
    while site.clock.getDelayedCalls():
        site.clock.advance(1)
    assert len(serials) == 3
    assert sorted(fired) == [1, 2, 3]
    assert site.rdatas("n3.demo.test") == [bytes((192, 0, 2, 3))]

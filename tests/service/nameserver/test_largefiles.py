"""Large zone files are read by a child, kept, and the same zones as small ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from appliance.dns import names
from appliance.dns.numbers import A
from appliance.dns.packed import Packed
from appliance.dns.zone import RRset, Zone
from appliance.dns.zonefile import read_zone
from appliance.service.nameserver import largefiles
from appliance.service.nameserver.largefiles import LARGE_OCTETS, LargeFileRefused, LargeFiles, checked
from appliance.service.nameserver.zonefiles import Zonefiles, ZonesRefused, read_zones
from appliance.service.store import Store

HEAD = "$ORIGIN large.test.\n$TTL 300\n@ SOA ns1 h 1 3600 600 86400 300\n@ NS ns1\nns1 A 192.0.2.53\n"
COUNT = 4000
LINES = "".join(f"n{number} A 10.0.{number >> 8}.{number & 255}\n" for number in range(COUNT))
APEX = names.from_text("large.test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "zones").mkdir()
    path = tmp_path / "zones" / "large.zone"
    path.write_text(HEAD + LINES)
    assert path.stat().st_size > LARGE_OCTETS
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def test_it_is_the_zone_of_the_file(path: Path, kept: Path) -> None:
    zone = LargeFiles(kept).zone(path)
    assert isinstance(zone.rrsets, Packed)
    assert zone == read_zone(path.read_text(), filename="z")
    (place,) = kept.iterdir()
    assert place.stat().st_mode & 0o077 == 0


def test_what_is_kept_is_used_as_long_as_it_is_whole_and_of_the_file(path: Path, kept: Path) -> None:
    zone = LargeFiles(kept).zone(path)
    (place,) = kept.iterdir()
    made = place.stat().st_mtime_ns
    assert LargeFiles(kept).zone(path) == zone
    assert place.stat().st_mtime_ns == made
    octets = bytearray(place.read_bytes())
    octets[-10] ^= 1
    place.write_bytes(octets)
    assert LargeFiles(kept).zone(path) == zone
    assert place.read_bytes() != octets
    path.write_text(HEAD + LINES + "more A 192.0.2.1\n")
    assert names.from_text("more.large.test") in LargeFiles(kept).zone(path).rrsets


def test_the_check_before_the_fork_writes_nothing_and_is_not_done_twice(path: Path, kept: Path) -> None:
    zone = checked(path, kept)
    assert not kept.exists()
    files = LargeFiles(kept)
    assert files.zone(path) is zone
    assert files.zone(path) is zone
    (place,) = kept.iterdir()
    assert LargeFiles(kept).zone(path) == zone
    assert list(kept.iterdir()) == [place]
    assert not largefiles._checked


def test_every_mistake_has_its_line(path: Path, tmp_path: Path) -> None:
    path.write_text(HEAD + LINES + "bad A x\nworse A y\n")
    with pytest.raises(ZonesRefused) as refused:
        read_zones(path.parent)
    last = COUNT + 6
    lines = [error.split(": ")[0] for error in refused.value.errors]
    assert lines == [f"{path}:{last}", f"{path}:{last + 1}"]
    path.write_bytes((HEAD + LINES).encode() + b"\xff\n")
    with pytest.raises(LargeFileRefused, match=f":{last}: is not text in UTF-8"):
        LargeFiles(None).zone(path)


def test_a_child_that_dies_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largefiles, "_CHILD", "no.such.module")
    with pytest.raises(LargeFileRefused, match="could not be read by a process of its own"):
        LargeFiles(None).zone(path)


def test_a_kept_zone_that_cannot_be_written_is_no_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert LargeFiles(tmp_path / "file" / "kept").zone(path).serial == 1


async def sleep(seconds: float) -> None:
    done: Deferred[None] = task.deferLater(reactor, seconds, lambda: None)
    await done


@pytest_twisted.ensureDeferred
async def test_a_reload_gives_way_and_keeps_live_records(path: Path, kept: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite", reactor)
    store.open()
    zonefiles = Zonefiles(path.parent, store, reactor, kept=kept)
    zonefiles.load()
    file = zonefiles.zones[APEX]
    www, later = (names.from_text(f"{name}.large.test") for name in ("www", "later"))
    zonefiles.change([((www, A), RRset(www, A, 15, (b"\x01\x02\x03\x04",)))])
    before = zonefiles.zones[APEX]
    assert before is not file
    assert await zonefiles.reload_soon() == []
    assert zonefiles.zones[APEX] is before, "the same file is the same zone"
    path.write_text(HEAD + LINES + "more A 192.0.2.1\n")
    descriptors = len(os.listdir("/proc/self/fd"))
    reloading = zonefiles.reload_soon()
    assert zonefiles.zones[APEX] is before
    zonefiles.change([((later, A), RRset(later, A, 15, (b"\x01\x02\x03\x04",)))])
    assert later in zonefiles.zones[APEX].rrsets
    assert await reloading == []
    after: Zone = zonefiles.zones[APEX]
    assert {www, later, names.from_text("more.large.test")} <= set(after.rrsets)
    assert len(after.rrsets) == COUNT + 5
    path.write_text(HEAD + LINES + "bad A x\n")
    errors: Any = await zonefiles.reload_soon()
    assert [error.split(": ")[0] for error in errors] == [f"{path}:{COUNT + 6}"]
    assert zonefiles.zones[APEX] is after
    path.unlink()
    assert len(await zonefiles.reload_soon()) == 1
    await sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # of the memory of the zone before
    await store.close()

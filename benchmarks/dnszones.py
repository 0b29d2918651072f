"""`python -m benchmarks.dnszones FILE`: what a zone file costs its nameserver's process.

For `make bench-dns`, in a process of its own, so that memory and garbage are its own. One line each: the time
until the zone is loaded (from the file, then from what was kept of it), the CPU of a live change beside
10,000 live names (the median), how long it takes until the death of their server is in service and what it
costs until its changes are in the journal, the longest turn of the reactor, in CPU time, during a reload and
those; and the same change once more, with 4,000 questions a second beside it, of which none may be lost: then
what counts is how long it takes until it is in service.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from appliance.dns.names import from_text, to_text
from appliance.dns.numbers import A
from appliance.dns.zone import RRset
from appliance.service.nameserver.registry import Registry
from appliance.service.nameserver.udp import UdpNameserver
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store
from appliance.tunnel.discovery import ServerAddress

NAMES = 10_000
CHANGES = 300
VISITORS = 4_000  # questions a second
EXPIRES = 4e9
CHANGED = bytes((192, 0, 2, 77))
GONE, STAYS = ServerAddress("192.0.2.1"), ServerAddress("192.0.2.2")

reactor: Any = installed
reactor.seconds = time.monotonic


class Turns:
    """The longest turn since `reset`, in ms of this process's CPU: what else runs here does not count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.process_time()
        self._beat()

    def reset(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest * 1e3

    def _beat(self) -> None:
        now = time.process_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        reactor.callLater(0, self._beat)


def measured(name: str, value: float, unit: str) -> None:
    print(f"measured {name} {value:.4g} {unit}", flush=True)


def sleep(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


async def published(zonefiles: Zonefiles) -> None:
    """Wait until everything that came is in service."""
    while zonefiles.busy:
        await sleep(0)


async def measure(base: Path, file: Path) -> None:
    (base / "zones").mkdir()
    path = base / "zones" / "bench.zone"
    shutil.copy(file, path)
    store = Store(base / "state.sqlite", reactor)
    store.open()
    for title in ("load", "start"):
        zonefiles = Zonefiles(path.parent, store, reactor, kept=base / "kept")
        began = time.monotonic()
        zonefiles.load()
        measured(f"{title}_seconds", time.monotonic() - began, "s")
    gc.collect()
    gc.freeze()
    registry = Registry(reactor, store, zonefiles, listed=(GONE, STAYS), private_addresses=True)
    registry.startService()
    apex = next(iter(zonefiles.apexes))
    zone = to_text(apex)
    names = {f"live{number}.{zone}": EXPIRES for number in range(NAMES)}
    turns = Turns()
    registry.joined([GONE], "gone", "1", names)
    registry.joined([STAYS], "stays", "1", names)
    await sleep(1.1)
    await published(zonefiles)
    measured("live_names_turn", turns.reset(), "ms")
    whole, began, spending = zonefiles.zones[apex], time.monotonic(), time.process_time()
    registry.dead(GONE, "1")
    while zonefiles.zones[apex] is whole:
        await sleep(0)
    measured("death_seconds", time.monotonic() - began, "s")
    await published(zonefiles)
    measured("death_cpu", (time.process_time() - spending) * 1e3, "ms")
    measured("death_turn", turns.reset(), "ms")
    spent = []
    for number in range(CHANGES):
        name = from_text(f"live{number}.{zone}")
        before = time.process_time()
        zonefiles.change([((name, A), RRset(name, A, 15, (CHANGED,)))])
        await published(zonefiles)
        spent.append(time.process_time() - before)
        await sleep(0)
    measured("live_change", statistics.median(spent) * 1e6, "us")
    turns.reset()
    await measure_beside_visitors(zonefiles, zone, base / "asked")
    measured("visitors_turn", turns.reset(), "ms")
    with path.open("a") as text:
        text.write("reloaded A 192.0.2.9\n")
    assert await zonefiles.reload_soon() == []
    registry.zones_changed()
    await published(zonefiles)
    measured("reload_turn", turns.reset(), "ms")
    registry.stopService()
    await store.close()


async def measure_beside_visitors(zonefiles: Zonefiles, zone: str, asked: Path) -> None:
    """Live changes while a dnsperf asks for the live names."""
    nameserver = UdpNameserver(reactor, zonefiles.responder, "127.0.0.1", 0)
    nameserver.startService()
    asked.write_text("".join(f"live{number}.{zone} A\n" for number in range(NAMES)))
    program = ["dnsperf", "-s", "127.0.0.1", "-p", str(nameserver.port), "-d", str(asked)]
    visitors = subprocess.Popen(
        [*program, "-Q", str(VISITORS), "-l", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert visitors.stdout is not None
    took = []
    number = 0
    while visitors.poll() is None:
        name = from_text(f"live{number % NAMES}.{zone}")
        number += 1
        address = bytes((198, 51, 100, number % 256))
        began = time.monotonic()
        zonefiles.change([((name, A), RRset(name, A, 15, (address,)))])
        await published(zonefiles)
        took.append(time.monotonic() - began)
        await sleep(0.005)
    figures = dict(line.strip().split(":", 1) for line in visitors.stdout if ":" in line)
    lost = int(figures["Queries lost"].split()[0])
    if lost or int(figures["Queries completed"].split()[0]) < VISITORS:
        raise SystemExit(f"with {VISITORS} questions a second {lost} were lost: {figures}")
    nameserver.stopService()
    measured("live_change_beside_visitors", statistics.median(took) * 1e6, "us")


def main() -> None:
    failed: list[Any] = []

    def begin() -> None:
        done = ensureDeferred(measure(base, Path(sys.argv[1])))
        done.addErrback(failed.append)
        done.addBoth(lambda _: reactor.stop())

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        reactor.callWhenRunning(begin)
        reactor.run()
    if failed:
        raise SystemExit(failed[0].getTraceback())


if __name__ == "__main__":
    main()

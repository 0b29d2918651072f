"""A registry on a clock, with a real store and real zone files, and what it lays and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from appliance.dns.names import from_text
from appliance.dns.overlay import LiveRecords
from appliance.dns.zone import RRset, Sets
from appliance.service.nameserver.registry import Registry
from appliance.service.nameserver.zonefiles import LiveChange, Zonefiles
from appliance.service.store import Store
from appliance.tunnel.discovery import ServerAddress, read_txt

WALL = 1_800_000_000.0
YEAR = WALL + 365 * 86400
A, B, C = (ServerAddress(f"192.0.2.{number}") for number in (1, 2, 3))
ZONE = """\
$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 300
@ NS ns1
ns1 A 192.0.2.53
"""


class Laying(Zonefiles):
    """Zone files that remember what was laid, and when."""

    laid: list[tuple[float, Mapping[tuple[bytes, int], RRset]]]

    def change(
        self, changes: Iterable[LiveChange], sets: Callable[[], Sets] | None = None
    ) -> Deferred[None]:
        in_service = super().change(changes, sets)
        live = LiveRecords(dict(self._live), self._sets)
        self.laid.append((self._renewal.clock.seconds(), live))
        return in_service


class Bench:
    """A registry on a clock, with a real store and real zone files."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.store = Store(directory / "state.sqlite", self.clock)
        self.store.open()
        zones = directory / "zones"
        zones.mkdir(exist_ok=True)
        (zones / "demo.test.zone").write_text(ZONE)
        self.zonefiles = Laying(zones, self.store, self.clock, wall=lambda: WALL)
        self.zonefiles.laid = []
        self.zonefiles.load()
        listed = settings.pop("listed", (A, B, C))
        settings.setdefault("private_addresses", True)
        starts = settings.pop("starts", True)
        self.registry = Registry(
            self.clock, self.store, self.zonefiles, listed=listed, wall=lambda: self.wall, **settings
        )
        self.wall = WALL
        self.told: list[tuple[str, ...]] = []
        self.registry.on_names(
            lambda names: self.told.append(("known", *names)),
            lambda names: self.told.append(("forgotten", *names)),
        )
        if starts:
            self.registry.startService()

    def stop(self) -> None:
        self.registry.stopService()
        self.store.close()
        assert not self.clock.getDelayedCalls()

    @property
    def lays(self) -> list[float]:
        return [when for when, _ in self.zonefiles.laid]

    def txt(self, name: str = "demo.test") -> list[ServerAddress | None]:
        live = self.zonefiles.laid[-1][1]
        rrset = live.get((from_text(name), 16))
        return [] if rrset is None else [read_txt(rdata[1:].decode()) for rdata in rrset.rdatas]

    def a(self, name: str) -> list[str]:
        rrset = self.zonefiles.laid[-1][1].get((from_text(name), 1))
        return [] if rrset is None else [".".join(map(str, rdata)) for rdata in rrset.rdatas]

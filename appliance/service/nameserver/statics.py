"""Zones without their live records, version by version: what the nameservers that follow us copy, for each of
them lays its own live records.

Hides which serials these versions have. One is new when what is not live changes, and never stands for two
contents: it is the serial that was published with the change, or the next one of ours where that is not
higher. So it comes from the numbers that are reserved on disk, also after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from appliance.dns.journal import Journal, difference
from appliance.dns.numbers import SOA
from appliance.dns.serial import is_newer, next_serial
from appliance.dns.zone import Zone, soa_minimum, soa_with
from appliance.service.nameserver.zonefiles import MAX_COMPARED_NAMES, Zonefiles


class Statics:
    """The static versions of what `zonefiles` serves; `index` is its index."""

    def __init__(self, zonefiles: Zonefiles, index: int) -> None:
        self._zonefiles = zonefiles
        self._index = index
        self._zones: dict[bytes, Zone] = {}
        self._journals: dict[bytes, Journal] = {}
        self._told: list[Callable[[Zone], None]] = []
        zonefiles.on_static(self._changed)

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        """The newest versions, by apex."""
        for apex in self._zones.keys() - self._zonefiles.apexes:
            del self._zones[apex]
            self._journals.pop(apex, None)
        return MappingProxyType(self._zones)

    def journal(self, apex: bytes) -> Journal:
        """What changed since the start."""
        return self._journals.setdefault(apex, Journal())

    def on_published(self, told: Callable[[Zone], None]) -> None:
        """`told` hears of every new version, once its change is in the journal."""
        self._told.append(told)

    def _changed(self, static: Zone, published: int) -> None:
        before = self.zones.get(static.apex)
        serial = published
        if before is not None and not is_newer(serial, before.serial):
            serial = next_serial(before.serial, before.serial, before.serial, self._index)
        soa = soa_with(static.soa, serial=serial, minimum=soa_minimum(static.soa))
        zone, _ = static.changed({static.apex: {**static.node(static.apex), SOA: soa}})
        if before is not None and len(zone.rrsets) <= MAX_COMPARED_NAMES:
            change = difference(before, zone)
            if not change.removed and not change.added and _is_same_soa(before, zone):
                return  # a file that was read again and says the same
            self.journal(static.apex).add(change)
        else:
            self.journal(static.apex).clear()
        self._zones[static.apex] = zone
        for told in self._told:
            told(zone)


def _is_same_soa(one: Zone, other: Zone) -> bool:
    first, second = (soa_with(zone.soa, serial=0, minimum=soa_minimum(zone.soa)) for zone in (one, other))
    return first == second

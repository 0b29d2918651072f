"""How many answers were given, by zone, type, rcode and transport.

Hidden here: that counting costs one addition. A finished answer knows its tally; nothing is looked up when
it is given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from appliance.dns import numbers

OTHER: Final = 0  # any type without a name here: a stranger can ask for 65,536 of them, and each has tallies

_TYPES: Final = frozenset(
    (
        *(numbers.A, numbers.NS, numbers.CNAME, numbers.SOA, numbers.PTR, numbers.MX, numbers.TXT),
        *(numbers.AAAA, numbers.SRV, numbers.DNAME, numbers.DS, numbers.DNSKEY, numbers.TLSA),
        *(numbers.SVCB, numbers.HTTPS, numbers.CAA, numbers.IXFR, numbers.AXFR, numbers.ANY),
    )
)


class Kind(NamedTuple):
    """What is counted as one: `zone` is the apex, None where no zone of ours was found or looked for."""

    zone: bytes | None
    qtype: int
    rcode: int
    udp: bool


class Tally:
    """How often something happened."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Counts:
    """The tallies of all kinds of answers."""

    def __init__(self) -> None:
        self._tallies: dict[Kind, Tally] = {}

    def tally(self, zone: bytes | None, qtype: int, rcode: int, udp: bool) -> Tally:
        """Where answers of this kind are counted."""
        kind = Kind(zone, qtype if qtype in _TYPES else OTHER, rcode, udp)
        found = self._tallies.get(kind)
        if found is None:
            found = self._tallies[kind] = Tally()
        return found

    def read(self) -> Mapping[Kind, int]:
        """All counts so far."""
        return {kind: tally.count for kind, tally in self._tallies.items()}

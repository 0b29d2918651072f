"""Which number the next version of a zone gets, and which of two numbers is newer.

Hidden here: the rule by which several nameservers publish versions of one zone and never use one number
twice.
"""

from __future__ import annotations

from typing import Final

MODULUS: Final = 1 << 32
HALF: Final = 1 << 31

# The low three bits of a serial are the nameserver's index in the zone, so there can be eight of them.
INDEXES: Final = 8


def is_newer(one: int, other: int) -> bool:
    """Whether serial `one` comes after `other` (RFC 1982 3.2). Exactly opposite numbers: neither is newer."""
    return 0 < (one - other) % MODULUS < HALF


def next_serial(last: int, file_serial: int, wall: int, index: int) -> int:
    """The serial of the version after `last`, for the nameserver that has this `index` (0 to 7) in the zone.

    It is newer than `last` (0: none was ever used), not below the zone file's serial nor the Unix time
    `wall` as long as that is itself a step forward, and its low three bits are `index`: two nameservers
    never publish different contents under one number, which secondaries that follow both would mix up.
    """
    if not 0 <= index < INDEXES:
        raise ValueError(f"a nameserver's index is 0 to {INDEXES - 1}, not {index}")
    floor = _own(max(file_serial, wall % MODULUS), index)
    following = _own(last + 1, index)
    return floor if last == 0 or (is_newer(floor, following) and is_newer(floor, last)) else following


def _own(serial: int, index: int) -> int:
    """The first number from `serial` on that is this index's. 0 is passed over: it reads as "none" in
    some programs."""
    return (serial + (index - serial) % INDEXES) % MODULUS or INDEXES

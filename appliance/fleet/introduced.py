"""What a nameserver remembers of what a tunnel server has announced, and which announcements count.

Hides the order of announcements. Within one start (boot) of a server the higher `n` is the later one. Which
of two starts is the later one, no announcement says: the server has no number that outlives its disk, and
its clock may have been set back. That is the watch's to say: the start that answers there is the present
one, and the one that answered before it is over. So an announcement that is late, or sent again by somebody
who listened, never wins: of a start that is over it is refused, and of one that nobody met it does no more
than to make its addresses be dialled until its lease ends.

A value, replaced whole by each change. `now` and `until` are seconds of the same clock, whichever it is.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from appliance.fleet.announcement import Announcement
from appliance.tunnel.discovery import ServerAddress

LEASE_SECONDS = 60
MIN_LEASE_SECONDS = 10
REFRESH_SHARE, REFRESH_SPREAD = 0.80, 0.05
"""A lease is asked for again at 80 % of it, and up to 5 % later (RFC 9664 5.2), so that servers which began
together do not go on together.
"""
REMEMBER_SECONDS = 600.0
"""After the last lease has ended: a signature may be good for 300 s on both sides of our clock (TSIG's
fudge), so that nothing signed before is good any more.
"""
MAX_STARTS = 4
"""Starts of one server that have a lease: the one met, and a few that nobody met."""
MAX_OVER = 16
"""Starts that are over and remembered as such, the latest ones."""


class Verdict(enum.Enum):
    """What an announcement is worth."""

    TAKEN = "taken"
    AGAIN = "the same once more"
    LATE = "older than what is known"


@dataclass(frozen=True, slots=True)
class Lease:
    """What one start of a server announced last, and until when that holds."""

    said: Announcement
    until: float


@dataclass(frozen=True, slots=True)
class Introduced:
    """One server. `serial` is that of the certificate which the key of its last announcement goes with, `met`
    the start that a watch met last (empty: nobody was met yet), `over` those that were met before, the
    latest first. `leases` are those of different starts, the one announced last first.
    """

    server_id: str
    serial: int
    met: str = ""
    leases: tuple[Lease, ...] = ()
    over: tuple[str, ...] = ()

    def lease_of(self, boot: str) -> Lease | None:
        return next((lease for lease in self.leases if lease.said.boot == boot), None)

    def running(self, now: float) -> Iterator[Lease]:
        """The leases that have not ended."""
        return (lease for lease in self.leases if lease.until > now)

    def addresses(self, now: float) -> frozenset[ServerAddress]:
        """Where it is to be watched."""
        return frozenset(at for lease in self.running(now) for at in lease.said.addresses)

    def is_done(self, now: float) -> bool:
        """Whether nothing of it need be remembered any more."""
        return all(lease.until + REMEMBER_SECONDS <= now for lease in self.leases)


def announced(
    before: Introduced, said: Announcement, serial: int, until: float
) -> tuple[Verdict, Introduced]:
    """What becomes of `before` when its server announces this."""
    lease = before.lease_of(said.boot)
    if said.boot in before.over or (lease is not None and said.n < lease.said.n):
        return Verdict.LATE, before
    if lease is not None and said.n == lease.said.n:
        return Verdict.AGAIN, before
    others = [one for one in before.leases if one is not lease]
    if len(others) == MAX_STARTS:
        others.remove([one for one in others if one.said.boot != before.met][-1])
    return Verdict.TAKEN, replace(before, serial=serial, leases=(Lease(said, until), *others))


def greeted(before: Introduced, boot: str) -> Introduced:
    """What becomes of `before` when a watch meets this start of its server."""
    if boot == before.met:
        return before
    gone = (before.met, *before.over) if before.met else before.over
    over = tuple(one for one in gone if one != boot)[:MAX_OVER]
    leases = tuple(lease for lease in before.leases if lease.said.boot not in over)
    return replace(before, met=boot, leases=leases, over=over)


def encode(introduced: Introduced, later: float = 0.0) -> str:
    """As text, for the disk; `later` is how much the disk's clock is ahead of the one of `until`."""
    leases = [
        [
            lease.said.boot,
            lease.said.n,
            [[at.host, at.port] for at in lease.said.addresses],
            lease.until + later,
        ]
        for lease in introduced.leases
    ]
    return json.dumps([f"{introduced.serial:x}", introduced.met, leases, introduced.over])


def decode(server_id: str, text: str, later: float = 0.0, most: float = float("inf")) -> Introduced:
    """The reverse; no lease ends later than `most`, whatever the disk's clock did meanwhile. Raises
    ValueError.
    """
    try:
        serial, met, leases, over = json.loads(text)
        return Introduced(
            server_id,
            int(serial, 16),
            str(met),
            tuple(_lease(boot, n, places, min(until - later, most)) for boot, n, places, until in leases),
            tuple(map(str, over)),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"what server {server_id} announced cannot be read: {error}") from None


def _lease(boot: str, n: int, places: list[Any], until: float) -> Lease:
    addresses = tuple(ServerAddress(host, port) for host, port in places)
    return Lease(Announcement(str(boot), int(n), addresses), until)

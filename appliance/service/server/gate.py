"""Who may still come in: the limits of each source, and the descriptors of this process.

Visitors are let in until the descriptors run low; what is left then is for the lanes of those who are inside,
for links and watches, DNS by TCP and the database. Who is ours cannot be told before his first octets are
read, so a connection over a limit is either sent away at once, which costs one answer, or it is read, and
sent away when it turns out to be a visitor's. Those inside are never touched.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from appliance.ingress import refusal
from appliance.ingress.limits import Limits, Over, Sources
from appliance.service.fewlines import FewLines

#: Kept of the descriptors: a tenth (facts of other servers: 10 %), at least what a small process needs, and
#: no more than the lanes of some thousand visitors at once.
_RESERVE_PART = 10
_RESERVE_AT_LEAST = 16
_RESERVE_AT_MOST = 4096
#: Of the descriptors for visitors, those that may be held by connections that have said nothing yet.
_SILENT_PART = 2
_READ_OCTETS = 1 << 16

_WORDS = {
    Over.SOURCE_OPEN: "has as many connections open as a source may (source_open); further ones are refused",
    Over.SOURCE_NEW: "opens more connections a second than a source may (source_new); those are refused",
    Over.NAME_OPEN: "has as many visitors as a name may (name_open); further ones are refused",
    Over.FULL: "this server is full; new visitors are refused (all_open, LimitNOFILE)",
}


class Port(enum.Enum):
    """Where a visitor came; the value is what he is told when there is no room."""

    TLS = refusal.alert(refusal.INTERNAL_ERROR)
    HTTP = refusal.full()


class Gate:
    """Counts the connections that may be visitors', from accept to their end."""

    def __init__(
        self,
        clock: Any,
        limits: Limits,
        *,
        linked: Callable[[str], bool],
        complaints: FewLines,
        descriptors: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    ) -> None:
        """``linked(address)``: whether a client is linked from there, whose lanes come from there as well."""
        self._clock = clock
        self._limits = limits
        self._sources = Sources(open_at_most=limits.source_open, new_a_second=limits.source_new)
        self._linked = linked
        self._complaints = complaints
        self._descriptors = descriptors
        self._all_at_most = limits.all_open or 1 << 62
        self.inside = 0
        """Connections that were let in and have not gone."""
        self.refused: Counter[Over] = Counter()
        self.measure()

    def measure(self) -> None:
        """Look how many descriptors there may be: when the service starts."""
        most = self._descriptors()
        reserve = max(_RESERVE_AT_LEAST, min(most // _RESERVE_PART, _RESERVE_AT_MOST))
        self._visitors_below = most - reserve
        self.lanes_below = most - reserve // 2
        """From this descriptor on there is room for links, watches and the rest only."""
        self.silent_at_most = max(1, self._visitors_below // _SILENT_PART)

    def take(self, address: str, descriptor: int) -> Over | None:
        """A connection from this address was accepted. None: it is let in, and ``went`` follows, once. Else
        why it has no room if it is a visitor's.

        The kernel gives the lowest free descriptor (POSIX), so its number says how many are in use.
        """
        source = source_of(address)
        over = self._sources.take(source, self._clock.seconds())
        if over is not None:
            if not self._is_exempt(address):
                return over
            self._sources.came(source)
        if descriptor >= self._visitors_below or self.inside >= self._all_at_most:
            self._sources.went(source)  # it stays one of this second's
            return Over.FULL
        self.inside += 1
        return None

    def may_be_ours(self, address: str, over: Over) -> bool:
        """Whether one without room is worth reading: a link, a watch or a lane has bounds of its own."""
        return over is Over.FULL or self._linked(address)

    def came(self, address: str) -> None:
        """It is let in all the same, for it may be ours; ``went`` follows, once."""
        self.inside += 1
        self._sources.came(source_of(address))

    def went(self, address: str) -> None:
        """It is closed, or is no visitor's."""
        self.inside -= 1
        self._sources.went(source_of(address))

    def turn_away(self, sock: socket.socket, port: Port, over: Over, about: str) -> None:
        """Answer, and close at once: under a flood there is no time, and no descriptor, to wait until it is
        read. ``about``: whose limit that is, in the log.
        """
        self.tell(over, about)
        with contextlib.suppress(OSError):
            # Closing on unread octets is a reset, which may overtake the answer.
            with contextlib.suppress(BlockingIOError):
                sock.recv(_READ_OCTETS)
            sock.send(port.value)
        sock.close()

    def tell(self, over: Over, about: str) -> None:
        """Count one who is refused, and log it, seldom."""
        self.refused[over] += 1
        self._complaints.warn("entry" if over is Over.FULL else about, _WORDS[over])

    def status(self) -> dict[str, int]:
        """Plain values for the operator."""
        refused = {f"refused_{over.value}": self.refused[over] for over in Over}
        return {"open": self.inside, "sources": len(self._sources), **refused}

    def _is_exempt(self, address: str) -> bool:
        with contextlib.suppress(ValueError):
            host = ipaddress.ip_address(address)
            return any(host in network for network in self._limits.exempt)
        return False


def source_of(address: str) -> str | bytes:
    """What connections are counted by: an IPv4 address, the /64 of an IPv6 one, for that is one site's."""
    if ":" not in address:
        return address
    try:
        octets = socket.inet_pton(socket.AF_INET6, address)
    except OSError:  # link-local, with its zone
        return address
    return octets[:8]

"""NOTIFY to the secondaries, over UDP. Hides sockets and timers; what is said when is dns/notify's."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.application import service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from appliance.dns import names
from appliance.dns.notify import Event, Noticed, NoticeGivenUp, Notices, Secondary
from appliance.dns.zone import Zone
from appliance.service.fewlines import FewLines

_ANYWHERE = {False: "0.0.0.0", True: "::"}


class Versions(Protocol):
    """Zones that have new versions from time to time."""

    @property
    def zones(self) -> Mapping[bytes, Zone]:
        """The newest, by apex."""

    def on_published(self, told: Callable[[Zone], None]) -> None:
        """`told` hears of every new version."""


class Notifier(service.Service):
    """Tells `secondaries` of every version of every zone, from the first address of `hosts` (those that DNS
    listens on) that is of their family: they know us by it. `counters` say what came of it.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        versions: Versions,
        secondaries: Sequence[Secondary],
        hosts: Sequence[str],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._versions = versions
        self._wall = wall
        chance = random.SystemRandom()
        self._notices = Notices(secondaries, lambda: chance.getrandbits(16))
        families = {":" in secondary.host for secondary in secondaries}
        self._hosts = {
            is_v6: next((host for host in hosts if (":" in host) is is_v6), _ANYWHERE[is_v6])
            for is_v6 in families
        }
        self._sockets: dict[bool, _Socket] = {}
        self._lines = FewLines(reactor, self._log)
        self._call: IDelayedCall | None = None
        versions.on_published(self._published)

    def startService(self) -> None:
        """Tells of all zones: secondaries may have missed what we published before."""
        super().startService()  # type: ignore[no-untyped-call]
        for is_v6, host in self._hosts.items():
            made = self._sockets[is_v6] = _Socket(self._received)
            try:
                self._reactor.listenUDP(0, made, interface=host)
            except CannotListenError as error:
                self._log.error("NOTIFY cannot be sent from {host}: {error}", host=host, error=error)
                del self._sockets[is_v6]
        for zone in self._versions.zones.values():
            self._notices.published(zone.soa, self._reactor.seconds())
        self._tick()

    def stopService(self) -> Deferred[Any]:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._call is not None:
            self._call.cancel()
            self._call = None
        made, self._sockets = self._sockets, {}
        return gatherResults([maybeDeferred(one.stop) for one in made.values()])

    def status(self) -> list[dict[str, Any]]:
        """Of which version of each zone each secondary has heard (None: of none since we started)."""
        return [
            {"secondary": str(secondary), "zone": names.to_text(apex), "serial": serial}
            for secondary, apex, serial in self._notices.told()
        ]

    def _published(self, zone: Zone) -> None:
        if self.running:
            self._notices.published(zone.soa, self._reactor.seconds())
            self._tick()

    def _tick(self) -> None:
        gone = {apex for _, apex, _ in self._notices.told()} - self._versions.zones.keys()
        for apex in gone:
            self._notices.removed(apex)
        to_send, events = self._notices.tick(self._reactor.seconds(), int(self._wall()))
        for one in to_send:
            self.counters["sent"] += 1
            sending = self._sockets.get(":" in one.secondary.host)
            if sending is None or not sending.send(one.octets, (one.secondary.host, one.secondary.port)):
                self.counters["not sent"] += 1  # and is repeated
        for event in events:
            self._tell(event)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        deadline = self._notices.next_deadline()
        if deadline is not None:
            self._call = self._reactor.callLater(max(0.0, deadline - self._reactor.seconds()), self._due)

    def _due(self) -> None:
        self._call = None
        self._tick()

    def _received(self, octets: bytes, host: str, port: int) -> None:
        event = self._notices.received(octets, host, port, int(self._wall()))
        if event is None:
            self.counters["answers to nothing"] += 1
        else:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        zone = names.to_text(event.apex)
        if isinstance(event, Noticed):
            self.counters["answered"] += 1
        elif isinstance(event, NoticeGivenUp):
            self.counters["given up"] += 1
            self._lines.warn(str(event.secondary), f"the secondary does not answer NOTIFY of {zone}")
        else:
            self.counters["refused"] += 1
            self._lines.warn(str(event.secondary), f"the secondary refuses NOTIFY of {zone}: {event.what}")


class _Socket(DatagramProtocol):
    """One local address to send from."""

    def __init__(self, received: Callable[[bytes, str, int], None]) -> None:
        self._told = received

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._told(datagram, addr[0], addr[1])

    def send(self, octets: bytes, address: tuple[str, int]) -> bool:
        """Whether the kernel took it."""
        assert self.transport is not None
        try:
            self.transport.write(octets, address)
        except OSError:
            return False
        return True

    def stop(self) -> Any:
        return self.transport.stopListening() if self.transport is not None else None

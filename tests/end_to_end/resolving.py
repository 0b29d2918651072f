"""Visitors who believe the DNS, and do not try again: what an orderly end has to be good enough for."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

from tests.end_to_end.site import Appliance
from tests.end_to_end.visitors import Crowd, Visit, fetch


class Cache:
    """A stub resolver: an A set, kept for as long as its TTL says."""

    def __init__(self, nameserver: Appliance, name: str) -> None:
        self._nameserver = nameserver
        self._name = name
        self._addresses: list[str] = []
        self._until = 0.0
        self.empty = 0

    def addresses(self) -> list[str]:
        """The set now; the last one while nobody answers."""
        asked_at = time.monotonic()
        if asked_at >= self._until:
            answer = self._nameserver.answer(self._name, "A", 1.0)
            if answer is not None:
                self._addresses = [rdata.to_text() for rrset in answer.answer for rdata in rrset]
                self.empty += not self._addresses
                self._until = asked_at + min((rrset.ttl for rrset in answer.answer), default=0)
        return self._addresses


class NoRetry(Crowd):
    """Each visitor goes to one of the addresses in his cache, and what fails there is lost."""

    def __init__(
        self, context: ssl.SSLContext, name: str, nameserver: Appliance, port: int, *, threads: int = 3
    ) -> None:
        super().__init__(context, name, (), port, threads=threads)
        self._cache: Callable[[], Cache] = lambda: Cache(nameserver, name)
        self.empty = 0

    def _come(self) -> None:
        cache = self._cache()
        while not self.over.wait(self.pause_seconds):
            number = next(self._numbers)
            visit = Visit(number, time.monotonic())
            addresses = cache.addresses()
            address = addresses[number % len(addresses)]
            visit.addresses.append(address)
            try:
                visit.body = fetch(self._context, address, self._port, self._name, f"/asked/{number}")
                assert visit.body.endswith(f" /asked/{number}\n"), visit
            except (OSError, AssertionError) as error:
                visit.failures.append(f"{address}: {error!r}")
            visit.seconds = time.monotonic() - visit.began
            self.visits.append(visit)
        self.empty += cache.empty

    @property
    def lost(self) -> list[Visit]:
        return [visit for visit in list(self.visits) if visit.failures]

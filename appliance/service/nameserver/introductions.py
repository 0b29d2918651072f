"""Tunnel servers that announce themselves: what becomes of their UPDATEs, and whom the watcher is told of.

Hides the disk and the clock of the leases. An introduction publishes nothing: it makes the watcher dial, and
what is met there is the truth (fleet/introduced has the rules). So the end of a lease takes nothing out of
the DNS, either; it ends the dialling of an address at which nobody was ever met.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns.numbers import NOERROR, REFUSED, SERVFAIL, YXRRSET
from appliance.dns.update import UpdateAsked, UpdateRefused
from appliance.dns.updatelease import lease_option
from appliance.fleet.announcement import Announcement, read_update
from appliance.fleet.introduced import (
    LEASE_SECONDS,
    MIN_LEASE_SECONDS,
    Introduced,
    Verdict,
    announced,
    decode,
    encode,
    greeted,
)
from appliance.fleet.pace import Paces
from appliance.fleet.serverkeys import whose
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.registry import Registry
from appliance.service.nameserver.watcher import Watcher
from appliance.service.store import Store, StoreFailed
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress

PER_SECOND = 10.0
"""Announcements of one key. A server that starts sends one, and one more in 48 s."""
TEND_SECONDS = 5.0
"""How often it is looked whether a lease has ended."""


class Introductions(Service):
    """The introductions at this nameserver. `may_announce(server_id, serial)` is whether the key that goes
    with that certificate is good. `counters` count what came of announcements.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        registry: Registry,
        watcher: Watcher,
        *,
        may_announce: Callable[[str, int], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._store = store
        self._registry = registry
        self._watcher = watcher
        self._may_announce = may_announce
        self._wall = wall
        self._introduced: dict[str, Introduced] = {}
        self._paces = Paces(PER_SECOND)
        self._lines = FewLines(reactor, self._log)
        self._tending = LoopingCall(self._tend)
        self._tending.clock = reactor
        watcher.on_greeted(self._greeted)

    def load(self) -> None:
        """Read what was announced before the restart; the store is open, the registry not started."""
        ahead = self._wall() - self._reactor.seconds()
        soon = self._reactor.seconds() + LEASE_SECONDS
        for server_id, state in self._store.introduced().items():
            try:
                self._introduced[server_id] = decode(server_id, state, ahead, soon)
            except ValueError as error:
                self._log.error("{error}", error=error)

    def introduced(self, server_id: str) -> bool:
        """Whether this server has announced itself here."""
        return server_id in self._introduced

    def startService(self) -> None:
        """Have everybody watched who was introduced before."""
        super().startService()  # type: ignore[no-untyped-call]
        self._watcher.introduce(self._wanted())
        self._tending.start(TEND_SECONDS, now=False)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._tending.running:
            self._tending.stop()

    def update(self, asked: UpdateAsked) -> Deferred[bytes]:
        """Fires with the answer, when what it says is on disk. Never fails."""
        owner = whose(asked.signed.key.name)
        assert owner is not None, "the key is one of fleet/serverkeys"
        server_id, serial = owner
        try:
            said = self._read(asked, server_id, serial)
        except UpdateRefused as refused:
            return self._refused(asked, server_id, refused.rcode, str(refused))
        now = self._reactor.seconds()
        seconds = max(MIN_LEASE_SECONDS, min(asked.update.lease or LEASE_SECONDS, LEASE_SECONDS))
        before = self._introduced.get(server_id)
        if before is None:  # who may be watched all the same: the settings can list him
            met = self._registry.boot_of(server_id)
            before = Introduced(server_id, serial, met or "")
        verdict, after = announced(before, said, serial, now + seconds)
        if verdict is Verdict.LATE:
            return self._refused(asked, server_id, YXRRSET, f"of its start {said.boot}, {verdict.value}")
        if verdict is Verdict.AGAIN:
            self.counters["repeated"] += 1
            return succeed(self._granted(asked, after, said))
        # Only what would be taken counts: who sends recorded ones again must not use up the server's share.
        if not self._paces.allows(server_id, now):
            return self._refused(asked, server_id, SERVFAIL, f"more than {PER_SECOND:g} a second")
        self.counters["taken"] += 1
        if before.lease_of(said.boot) is None:
            at = ", ".join(map(str, said.addresses))
            self._log.info("server {id} announces itself at {at}", id=server_id, at=at)
        kept = self._keep(after)
        self._watcher.introduce(said.addresses)
        return kept.addCallbacks(
            lambda _: self._granted(asked, after, said), partial(self._not_kept, asked=asked)
        )

    def revoke(self, revoked: RevocationList) -> None:
        """Forget the servers whose certificates are on the list."""
        for one in list(self._introduced.values()):
            if one.serial in revoked.serials:
                self._forget(one.server_id)

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator: every lease, and whether that start was met on a watch."""
        now = self._reactor.seconds()
        return [
            {
                "server": one.server_id,
                "boot": lease.said.boot,
                "n": lease.said.n,
                "addresses": list(map(str, lease.said.addresses)),
                "seconds_left": round(lease.until - now, 1),
                "met": lease.said.boot == one.met,
            }
            for one in self._introduced.values()
            for lease in one.running(now)
        ]

    def _read(self, asked: UpdateAsked, server_id: str, serial: int) -> Announcement:
        """What is announced. Raises UpdateRefused."""
        if not self._may_announce(server_id, serial):
            raise UpdateRefused(REFUSED, "its certificate is revoked, or all that it had have expired")
        said = read_update(asked.update, server_id)
        for address in said.addresses:
            if not self._registry.admits(address):
                what = f"{address} is not reachable from the internet (private_addresses = true allows it)"
                raise UpdateRefused(REFUSED, what)
        return said

    def _refused(self, asked: UpdateAsked, server_id: str, rcode: int, why: str) -> Deferred[bytes]:
        self.counters["late" if rcode == YXRRSET else "refused"] += 1
        self._lines.warn(f"server {server_id}", f"an announcement is refused: {why}")
        return succeed(asked.answer(rcode, self._wall()))

    def _granted(self, asked: UpdateAsked, held: Introduced, said: Announcement) -> bytes:
        lease = held.lease_of(said.boot)
        left = lease.until - self._reactor.seconds() if lease is not None else 0.0
        return asked.answer(NOERROR, self._wall(), lease_option(max(0, round(left))))

    def _not_kept(self, failure: Failure, asked: UpdateAsked) -> bytes:
        failure.trap(StoreFailed)  # which the store has logged
        return asked.answer(SERVFAIL, self._wall())

    def _greeted(self, server_id: str, boot: str) -> None:
        """A watch says which start is the present one."""
        before = self._introduced.get(server_id)
        if before is not None:
            after = greeted(before, boot)
            if after is not before:
                self._keep(after).addErrback(_already_told)

    def _keep(self, introduced: Introduced) -> Deferred[None]:
        self._introduced[introduced.server_id] = introduced
        ahead = self._wall() - self._reactor.seconds()
        return self._store.introduce(introduced.server_id, encode(introduced, ahead))

    def _forget(self, server_id: str) -> None:
        del self._introduced[server_id]
        self._paces.forget(server_id)
        self._store.forget_introduced(server_id).addErrback(_already_told)

    def _wanted(self) -> set[ServerAddress]:
        """The addresses in all leases, and those where an introduced server was verified: a lease that has
        ended takes nobody out, it may be this nameserver that is cut off.
        """
        now = self._reactor.seconds()
        wanted = self._registry.places_of(self.introduced)
        return wanted.union(*(one.addresses(now) for one in self._introduced.values()))

    def _tend(self) -> None:
        now = self._reactor.seconds()
        members = self._registry.members()
        for one in list(self._introduced.values()):
            if one.is_done(now) and one.server_id not in members:
                self._forget(one.server_id)
        self._watcher.retain(self._wanted())


def _already_told(failure: Failure) -> None:
    """The store has logged that the disk fails."""
    failure.trap(StoreFailed)

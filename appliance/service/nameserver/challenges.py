"""The challenges that servers tell of, as live TXT records: there within a second, gone when they are over.

Hides when they are laid. They are not kept on disk: a nameserver that has restarted is told of them again
with the snapshot of each watch, and what nobody says any more ends by its own time.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from appliance.dns.names import from_text
from appliance.dns.numbers import TXT
from appliance.dns.zone import RRset
from appliance.fleet.publish import LIVE_TTL_SECONDS
from appliance.fleet.watch import MAX_CHALLENGES_OF_SERVER
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.tunnel.challenge import owner_of
from appliance.tunnel.noticeboard import EXPIRE_SECONDS, Noticeboard, TooManyChallenges

LAY_SECONDS = 1.0
"""Between two versions of the zones because of challenges, as the registry has it: many names that are
challenged together are one."""


class Challenges:
    """What stands now, published in the zones of `zonefiles`."""

    _log = Logger()

    def __init__(self, reactor: Any, zonefiles: Zonefiles) -> None:
        self._reactor = reactor
        self._zonefiles = zonefiles
        self._board: Noticeboard[str] = Noticeboard(MAX_CHALLENGES_OF_SERVER)
        self._complaints = FewLines(reactor, self._log)
        self._dirty: set[str] = set()
        self._laid_at = float("-inf")
        self._lay: Any = None
        self._timer: Any = None

    def said(self, server_id: str, name: str, value: str, seconds: int) -> None:
        """A server says so, of a client whose certificate grants the name."""
        until = self._reactor.seconds() + seconds
        try:
            self._board.say(server_id, name, value, until)
        except TooManyChallenges as error:
            self._complaints.warn(owner_of(name), f"a challenge is not published: {error}")
            return
        self._look_by(until)
        self._soon(name)

    def withdrawn(self, server_id: str, name: str, value: str) -> None:
        """A server says so no more."""
        if self._board.withdraw(server_id, name, value):
            self._soon(name)

    def stop(self) -> None:
        """Change nothing any more."""
        for call in (self._lay, self._timer):
            if call is not None:
                call.cancel()
        self._lay = self._timer = None

    def _soon(self, *names: str) -> None:
        self._dirty.update(map(owner_of, names))
        now = self._reactor.seconds()
        if self._lay is None and self._dirty:
            self._lay = self._reactor.callLater(max(0.0, self._laid_at + LAY_SECONDS - now), self._publish)

    def _look_by(self, due: float) -> None:
        if self._timer is None or due < self._timer.getTime():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._reactor.callLater(due - self._reactor.seconds(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        self._soon(*(name for name, _ in self._board.expire(now)))
        deadline = self._board.next_deadline()
        if deadline is not None:
            self._look_by(max(deadline, now + EXPIRE_SECONDS))

    def _publish(self) -> None:
        self._lay = None
        self._laid_at = self._reactor.seconds()
        owners, self._dirty = self._dirty, set()
        self._zonefiles.change([self._record(owner) for owner in sorted(owners)])

    def _record(self, owner: str) -> tuple[tuple[bytes, int], RRset | None]:
        key = from_text(owner), TXT
        values = self._board.values(owner)
        rdatas = tuple(bytes((len(value),)) + value.encode("ascii") for value in values)
        return key, RRset(*key, LIVE_TTL_SECONDS, rdatas) if rdatas else None

"""What becomes of UPDATEs: one after the other, on the disk before anybody hears of it, then in service.

Hides the order of updates of a zone, what is remembered against replay, and how many may wait. What an update
may do, and what comes of it, is dns/update's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.amendments import MAX_AMENDMENTS, amend
from appliance.dns.followed import Asked
from appliance.dns.numbers import NOERROR, NOTAUTH, REFUSED, SERVFAIL
from appliance.dns.policy import Policy
from appliance.dns.tsig import FUDGE_SECONDS
from appliance.dns.update import UpdateAsked, UpdateRefused, changed, check_prerequisites
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store, StoreFailed

MAX_WAITING = 100
"""Updates that wait for the disk or for one before them, BIND's update-quota: at 5 ms each half a second."""
MAX_REMEMBERED = 65_536
"""Signatures that are still good and were used: a hundred updates a second for as long as one may be (some 10
MB). More than that are not done, rather than that one could be done twice.
"""


_WORDS = {NOERROR: "done", SERVFAIL: "failed"}


Update = Callable[[Asked], "Deferred[bytes]"]
"""Does what an UPDATE or a NOTIFY asks for; fires with its answer and never fails."""


def refused(asked: Asked) -> Deferred[bytes]:
    """Where nobody may change anything."""
    assert isinstance(asked, UpdateAsked)
    return succeed(asked.answer(REFUSED, asked.signed.signed_at))


@dataclass(slots=True)
class _Outcome:
    """What came of a message: nothing yet as long as `rcode` is None, and then `asking` wait for it."""

    good_until: int
    rcode: int | None = None
    asking: list[Deferred[int]] = field(default_factory=list)


class Updates:
    """Does what UPDATEs ask for. `policies`, by the names of keys, say what each may change.

    `counters` count by what came of them.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        zonefiles: Zonefiles,
        policies: Mapping[bytes, tuple[Policy, ...]],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._store = store
        self._zonefiles = zonefiles
        self._policies = policies
        self._wall = wall
        self._lines = FewLines(reactor, self._log)
        # Those of each zone, in order; the first one is being done.
        self._queues: dict[bytes, deque[UpdateAsked]] = {}
        self._waiting = 0
        self._outcomes: dict[bytes, _Outcome] | None = None  # by MAC, of signatures that are still good
        self._tidied_at = 0.0

    def update(self, asked: UpdateAsked) -> Deferred[bytes]:
        """Fires with the answer: NOERROR when the change is on disk and in service. Never fails.

        The same octets again, sent by a client that heard nothing or by somebody who listened, get the same
        answer and change nothing.
        """
        outcomes = self._remembered()
        outcome = outcomes.get(asked.signed.mac)
        if outcome is not None:
            self.counters["repeated"] += 1
        elif self._waiting >= MAX_WAITING or len(outcomes) >= MAX_REMEMBERED:
            self.counters["too many"] += 1
            return succeed(asked.answer(SERVFAIL, self._wall()))
        else:
            outcome = outcomes[asked.signed.mac] = _Outcome(asked.signed.good_until)
            self._enqueue(asked)
        if outcome.rcode is not None:
            return succeed(asked.answer(outcome.rcode, self._wall()))
        told: Deferred[int] = Deferred()
        outcome.asking.append(told)
        return told.addCallback(lambda rcode: asked.answer(rcode, self._wall()))

    def _enqueue(self, asked: UpdateAsked) -> None:
        self._waiting += 1
        queue = self._queues.setdefault(asked.update.apex, deque())
        queue.append(asked)
        if len(queue) == 1:
            self._begin(asked)

    def _begin(self, asked: UpdateAsked) -> None:
        try:
            done = self._do(asked)
        except UpdateRefused as refused:
            self._say_refused(asked, refused)
            done = succeed(refused.rcode)
        except Exception:
            done = fail(Failure())
        done.addErrback(self._failed).addCallback(self._ended, asked)

    def _failed(self, failure: Failure) -> int:
        if not failure.check(StoreFailed):  # which the store has logged
            self._log.failure("an UPDATE was not done", failure)  # a mistake of ours costs one update
        return SERVFAIL

    def _ended(self, rcode: int, asked: UpdateAsked) -> None:
        self.counters[_WORDS.get(rcode, "refused")] += 1
        outcomes = self._remembered()
        outcome = outcomes[asked.signed.mac]
        outcome.rcode = rcode
        if rcode == SERVFAIL:  # nothing was done: the same message may be tried again
            del outcomes[asked.signed.mac]
        self._waiting -= 1
        queue = self._queues[asked.update.apex]
        queue.popleft()
        if queue:
            self._begin(queue[0])
        else:
            self._queues.pop(asked.update.apex, None)
        for told in outcome.asking:
            told.callback(rcode)

    def _do(self, asked: UpdateAsked) -> Deferred[int]:
        """Fires with NOERROR, or fails with StoreFailed. Raises UpdateRefused."""
        apex = asked.update.apex
        policies = self._policies.get(asked.signed.key.name)
        if policies is None:
            raise UpdateRefused(REFUSED, "the key is not one for updates")
        served = self._zonefiles.served(apex)
        if served is None:
            raise UpdateRefused(NOTAUTH, "the zone is no longer served")
        check_prerequisites(asked.update, served.zone)
        static, differing = changed(
            asked.update, merged=served.zone, static=served.static, live=served.live, policies=policies
        )
        if not differing:
            return succeed(NOERROR)
        kept = self._store.amendments(apex)
        amendments = amend(served.file, kept, differing)
        if len(kept.keys() | amendments.keys()) > MAX_AMENDMENTS:
            raise UpdateRefused(REFUSED, f"more than {MAX_AMENDMENTS} rrsets would differ from the zone file")
        accepted = asked.signed.mac, asked.signed.good_until
        written = self._store.amend(apex, amendments, accepted, wall=int(self._wall()))

        def publish(_: None) -> int:
            self._zonefiles.amended(served.file, static)
            what = f"UPDATE of {_of(asked)}: {len(differing)} rrsets changed"
            self._log.info("{what}", what=what)
            return NOERROR

        return written.addCallback(publish)

    def _say_refused(self, asked: UpdateAsked, refused: UpdateRefused) -> None:
        self._lines.warn(f"UPDATE of {_of(asked)}", f"refused: {refused}")

    def _remembered(self) -> dict[bytes, _Outcome]:
        """The outcomes that count, those from before the start among them."""
        wall = self._wall()
        if self._outcomes is None:
            self._outcomes = {mac: _Outcome(until, NOERROR) for mac, until in self._store.accepted().items()}
        if not 0 <= wall - self._tidied_at < FUDGE_SECONDS:
            self._tidied_at = wall
            old = [
                mac
                for mac, outcome in self._outcomes.items()
                if outcome.good_until < int(wall) and outcome.rcode is not None  # as TSIG is checked
            ]
            for mac in old:
                del self._outcomes[mac]
        return self._outcomes


def _of(asked: UpdateAsked) -> str:
    return f"{names.to_text(asked.update.apex)} with the key {names.to_text(asked.signed.key.name)}"

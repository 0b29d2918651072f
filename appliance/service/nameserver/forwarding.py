"""UPDATEs of zones that have their primary elsewhere: to the primary, and its answer back (RFC 2136 6).

Hides which of the primary's addresses answers, and how many UPDATEs may be on their way; fewer of those
that anybody can have made, so that they never take the places of those that we know to be good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from appliance.dns import names
from appliance.dns.followed import ForwardAsked
from appliance.dns.numbers import NOERROR, SERVFAIL, UPDATE
from appliance.service.fewlines import FewLines
from appliance.service.nameserver.conversation import CONNECT_SECONDS, Conversation
from appliance.service.nameserver.places import source_of

MAX_FORWARDED = 100
"""At once, each on a connection of its own, as many as the primary does at once."""
MAX_UNCHECKED = 10
"""Of them with a signature that we cannot check, which anybody can make up: half of the connections that the
primary keeps for its own (KEPT_PLACES), which one that comes from here is to it.
"""
MAX_UNCHECKED_OF_SOURCE = 4
"""More than one program that changes records has at once, and three sources are needed to take all."""
ANSWER_SECONDS = 5.0
"""For each of the primary's addresses: nsupdate waits for 20 s in all."""


class Forwarding(service.Service):
    """Passes UPDATEs on to the primary at `addresses` (host, port). `changed` hears of the apex of a zone
    that the primary has changed. `counters` count by what came of them.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[tuple[str, int]],
        changed: Callable[[bytes], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._addresses = tuple(addresses)
        self._changed = changed
        self._wall = wall
        self._lines = FewLines(reactor, self._log)
        self._running: set[_Forwarded] = set()

    def forward(self, asked: ForwardAsked) -> Deferred[bytes]:
        """Fires with the answer of the primary as it came, or with a SERVFAIL of ours. Never fails.

        Where the primary has done it and its answer was lost, the same message again changes nothing more:
        the primary knows it by its signature.
        """
        too_many = self._too_many(asked)
        if too_many is not None:
            self.counters[too_many] += 1
            return succeed(asked.answer(SERVFAIL, self._wall()))
        forwarded = _Forwarded(self._reactor, asked, self._addresses)
        self._running.add(forwarded)

        def done(answer: bytes | None) -> bytes:
            self._running.discard(forwarded)
            zone = names.to_text(asked.apex)
            if answer is None:
                self.counters["not passed on"] += 1
                what = f"an UPDATE was not passed on, for the primary does not answer: {forwarded.why}"
                self._lines.warn(zone, what)
                return asked.answer(SERVFAIL, self._wall())
            self.counters["passed on"] += 1
            if answer[3] & 0xF == NOERROR:
                self._changed(asked.apex)
            return answer

        return forwarded.answered.addCallback(done)

    def _too_many(self, asked: ForwardAsked) -> str | None:
        """What there are too many of for `asked` to go, too."""
        if len(self._running) >= MAX_FORWARDED:
            return "too many"
        if asked.signed is None:
            sources = [source_of(one.asked.source) for one in self._running if one.asked.signed is None]
            if len(sources) >= MAX_UNCHECKED:
                return "too many unchecked"
            if sources.count(source_of(asked.source)) >= MAX_UNCHECKED_OF_SOURCE:
                return "too many unchecked of one source"
        return None

    def stopService(self) -> None:
        """Nothing that is on its way is waited for."""
        super().stopService()  # type: ignore[no-untyped-call]
        for forwarded in tuple(self._running):
            forwarded.stop()


class _Forwarded:
    """One UPDATE on its way; `answered` fires with the answer, or None."""

    def __init__(self, reactor: Any, asked: ForwardAsked, addresses: Sequence[tuple[str, int]]) -> None:
        self.answered: Deferred[bytes | None] = Deferred()
        self.asked = asked
        self.why = ""
        self._reactor = reactor
        self._left = list(addresses)
        self._answer: bytes | None = None
        self._next()

    def stop(self) -> None:
        self._left.clear()
        self._conversation.end("we stop")

    def _next(self) -> None:
        self._at = self._left.pop(0)
        self._until = self._reactor.seconds() + CONNECT_SECONDS + ANSWER_SECONDS
        message = self.asked.message
        self._conversation = Conversation(
            self._reactor,
            *self._at,
            message,
            heard=self._heard,
            ended=self._ended,
            silence_seconds=ANSWER_SECONDS,
        )

    def _heard(self, message: bytes) -> bool:
        is_answer = len(message) >= 12 and message[2] & 0xF8 == 0x80 | UPDATE << 3
        if is_answer and message[:2] == self.asked.message[:2]:
            self._answer = message
        # Whatever else comes begins its silence anew, but not for ever.
        return self._answer is not None or self._reactor.seconds() >= self._until

    def _ended(self, why: str | None) -> None:
        if self._answer is None:
            why = why or "it sends something else"
            host, port = self._at
            self.why = ", ".join(filter(None, (self.why, f"{host} port {port}: {why}")))
            if self._left:
                self._next()
                return
        self.answered.callback(self._answer)

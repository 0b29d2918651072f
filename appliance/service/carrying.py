"""Carries requests for a renewal to whoever may have them signed, one after the other, and the answers back.

Hides who is asked next: a refusal, or no answer in time, and it is the next one's turn. Whoever asks looks at
the certificate that comes back himself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail

from appliance.tunnel.renewal import RenewalRefused, Request

ANSWER_SECONDS = 10.0
"""Of one who signs: a commit on a slow disk, twice over."""
ASKED_ON_SECONDS = 25.0
"""Of one who may have to ask on, and to do so twice."""
MAX_PENDING = 256
"""Requests under way: what a few seconds of a restarted fleet bring. The next one is told to come again."""

End = tuple[object, Callable[[Request], None]]
"""Whoever is asked, and how."""


@dataclass(slots=True)
class _Pending:
    request: Request
    answer: Deferred[str]
    left: list[End]
    asked: object = None
    timer: Any = None
    words: list[str] = field(default_factory=list)


class Carrying:
    """`ends()` are those who can be asked now, each for `seconds`."""

    def __init__(
        self, reactor: Any, ends: Callable[[], Sequence[End]], seconds: float = ANSWER_SECONDS
    ) -> None:
        self._reactor = reactor
        self._ends = ends
        self._seconds = seconds
        self._pending: dict[str, _Pending] = {}
        self._turn = 0

    def ask(self, request: Request) -> Deferred[str] | None:
        """Fires with a certificate, PEM, or fails with RenewalRefused; None: there is nobody to ask."""
        ends = list(self._ends())
        if not ends:
            return None
        digest = request.digest
        if digest in self._pending or len(self._pending) >= MAX_PENDING:
            return fail(RenewalRefused("it, or too many others, are being renewed at this moment"))
        self._turn += 1
        first = self._turn % len(ends)  # who does not answer is not always the first
        answer: Deferred[str] = Deferred(lambda _: self._forget(digest))
        pending = self._pending[digest] = _Pending(request, answer, ends[first:] + ends[:first])
        self._next(pending)
        return answer

    def answered(self, asked: object, certificate: str, text: str, digest: str | None = None) -> None:
        """`asked` has an answer for the request of that digest, or (None) for the only one that there is: a
        certificate, or a text why there is none.
        """
        if digest is None:
            digest = next(iter(self._pending), None)
        pending = self._pending.get(digest) if digest is not None else None
        if pending is None:
            return
        if certificate:
            self._forget(pending.request.digest)
            pending.answer.callback(certificate)
        elif asked == pending.asked:  # and nobody who is late
            self._refused(pending, text)

    def _next(self, pending: _Pending) -> None:
        pending.asked, say = pending.left.pop(0)
        pending.timer = self._reactor.callLater(
            self._seconds, self._refused, pending, "there was no answer in time"
        )
        say(pending.request)

    def _refused(self, pending: _Pending, text: str) -> None:
        if pending.timer.active():
            pending.timer.cancel()
        if text not in pending.words:
            pending.words.append(text)
        if pending.left:
            self._next(pending)
        else:
            self._forget(pending.request.digest)
            pending.answer.errback(RenewalRefused("; ".join(pending.words)))

    def _forget(self, digest: str) -> None:
        pending = self._pending.pop(digest, None)
        if pending is not None and pending.timer.active():
            pending.timer.cancel()

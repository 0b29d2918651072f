"""Whether the other end of a watch is alive: pings with nonces, and how long nothing was heard.

Hides the numbers. A TCP connect is no sign of life, and neither are acknowledged octets: a kernel gives both
for a process that is stopped. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.fleet.messages import Ping
from appliance.tunnel.lines import MessageError

PING_SECONDS = 3.0
SILENCE_SECONDS = 5.0
"""Without any message from the other end. Both ends ping every 3 s; with the 2.5 s of the check behind it a
server whose network went silent is out within 8 s.
"""
PONG_SECONDS = 10.0
"""A process that talks but does not answer is no healthy one, either."""


class Pulse:
    """Pings with nonces, and how long the other end has said nothing."""

    def __init__(self, nonce: Callable[[], str], now: float) -> None:
        self._nonce = nonce
        self._heard_at = now
        self._ping_at = now + PING_SECONDS
        self._unanswered: dict[str, float] = {}  # nonce -> when it was sent, oldest first

    def heard(self, now: float) -> None:
        self._heard_at = now

    def answered(self, nonce: str) -> None:
        if self._unanswered.pop(nonce, None) is None:
            raise MessageError("pong: no ping had that nonce")

    def next_deadline(self) -> float:
        return min(self._ping_at, self._silent_at())

    def silence(self, now: float) -> str | None:
        """The sentence that says why this watch is over, once it is."""
        if now < self._silent_at():
            return None
        if now >= self._heard_at + SILENCE_SECONDS:
            return f"nothing was heard for {SILENCE_SECONDS:g} s"
        return f"a ping was not answered within {PONG_SECONDS:g} s"

    def ping(self, now: float) -> Ping | None:
        """The ping that is due, if one is."""
        if now < self._ping_at:
            return None
        self._ping_at = now + PING_SECONDS
        nonce = self._nonce()
        self._unanswered[nonce] = now
        return Ping(nonce)

    def _silent_at(self) -> float:
        silent_at = self._heard_at + SILENCE_SECONDS
        for sent_at in self._unanswered.values():
            return min(silent_at, sent_at + PONG_SECONDS)
        return silent_at

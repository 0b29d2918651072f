"""How the TCP connections share a turn of the reactor: who asks one thing is not kept waiting by those who
ask a thousand at once.

Hides the budget of a turn. A message that comes alone is answered at once. What else was sent with it is
answered at once, too, as long as the turn has something left; then it waits, and those that wait go on in the
order in which they came to wait, a little each time.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

TURN_MESSAGES = 50  # answered in one turn of the reactor: 1.5 ms
TURN_OCTETS = 32 * 1024  # of answers in one turn: 1.5 ms, too, if they are large and have to be composed
SHARE_MESSAGES = 10  # of it at a time, where several wait
SHARE_OCTETS = 8 * 1024


class Waiting(Protocol):
    """A connection with messages that wait."""

    def go_on(self) -> None:
        """Answer some of them."""


class Turns:
    """The turns of all connections of a socket."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: dict[Waiting, None] = {}
        self._messages = TURN_MESSAGES
        self._octets = TURN_OCTETS
        self._next: IDelayedCall | None = None

    def share(self) -> tuple[int, int]:
        """How many messages, and octets of answers, may be answered now; a first message in any case."""
        if len(self._waiting):
            return min(max(1, self._messages), SHARE_MESSAGES), min(self._octets, SHARE_OCTETS)
        return max(1, self._messages), self._octets

    def used(self, messages: int, octets: int) -> None:
        """So much of it was used."""
        self._messages -= messages
        self._octets -= octets

    def wait(self, connection: Waiting) -> None:
        """`connection` has more: let it go on when it is its turn."""
        self._waiting[connection] = None
        if self._next is None:
            self._next = self._reactor.callLater(0, self._turn)

    def is_waiting(self, connection: Waiting) -> bool:
        return connection in self._waiting

    def leave(self, connection: Waiting) -> None:
        """`connection` waits no longer."""
        self._waiting.pop(connection, None)
        if not self._waiting and self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        self._messages, self._octets = TURN_MESSAGES, TURN_OCTETS
        while self._waiting and self._messages > 0 and self._octets > 0:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            connection.go_on()
        if self._waiting and self._next is None:
            self._next = self._reactor.callLater(0, self._turn)

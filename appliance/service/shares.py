"""How the connections of links and watches share a turn of the reactor: whoever says ten thousand things at
once is heard a little at a time, and in between are visitors, questions and the others.

Hides the queue. What comes while a turn has something left is heard at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

TURN_SECONDS = 0.002
"""Of a turn, for all of them together, and a piece more: so long do questions and other links wait. Visitors
do not: they are looked for between two pieces.
"""
PIECE_OCTETS = 2048
"""At a time: 20 to 30 messages, of which the dearest (a registration) costs 0.2 ms."""
MOST_OCTETS = 64 * 1024
"""Held of one connection; from then on nothing is read from it."""


class Producing(Protocol):
    """What may be told to bring no more for a while: a transport."""

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...


class Share:
    """One connection's part: `received` what comes, and `hear` is called with it, in pieces."""

    def __init__(self, shares: Shares, hear: Callable[[bytes], None], transport: Producing) -> None:
        self._shares = shares
        self._hear = hear
        self._transport = transport
        self._held = bytearray()
        self._is_paused = False

    def received(self, octets: bytes) -> None:
        """These have come."""
        self._held += octets
        if len(self._held) > MOST_OCTETS and not self._is_paused:
            self._is_paused = True
            self._transport.pauseProducing()
        self._shares._wants(self)

    def finish(self) -> None:
        """Nothing more comes: hear the rest now."""
        self._shares._leaves(self)
        held, self._held = bytes(self._held), bytearray()
        if held:
            self._hear(held)

    def _hear_a_piece(self) -> bool:
        """Whether something is left."""
        piece = bytes(self._held[:PIECE_OCTETS])
        del self._held[:PIECE_OCTETS]
        if self._is_paused and not self._held:
            self._is_paused = False
            self._transport.resumeProducing()
        self._hear(piece)
        return bool(self._held)


class Shares:
    """The turns of one reactor."""

    def __init__(self, reactor: Any, look: Callable[[], None] = lambda: None) -> None:
        """``look`` serves those who go first: before each piece, and behind the last."""
        self._reactor = reactor
        self._look = look
        self._waiting: dict[Share, None] = {}
        self._turn: Any = None
        self._until = 0.0
        self._is_going_on = False

    def share(self, hear: Callable[[bytes], None], transport: Producing) -> Share:
        """The part of one more connection."""
        return Share(self, hear, transport)

    def _wants(self, share: Share) -> None:
        self._waiting.setdefault(share)
        if self._turn is None:
            self._begin_turn()
        # What is heard below TLS gives something to hear above it: that comes next, not in between.
        if not self._is_going_on and self._reactor.seconds() < self._until:
            self._go_on()

    def _leaves(self, share: Share) -> None:
        self._waiting.pop(share, None)
        if not self._waiting and self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _begin_turn(self) -> None:
        self._turn = self._reactor.callLater(0, self._next_turn)
        self._until = self._reactor.seconds() + TURN_SECONDS

    def _next_turn(self) -> None:
        self._turn = None
        if self._waiting:
            self._begin_turn()
            self._go_on()

    def _go_on(self) -> None:
        self._is_going_on = True
        try:
            while self._waiting:
                self._look()
                share = next(iter(self._waiting), None)
                if share is None:
                    return
                del self._waiting[share]
                if share._hear_a_piece():
                    self._waiting.setdefault(share)
                if self._reactor.seconds() >= self._until:
                    return
        finally:
            self._is_going_on = False
            self._look()

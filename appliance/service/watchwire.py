"""One end of a watch on a Twisted transport: octets in, octets out, one timer.

Hides what is the same at both ends: a long snapshot goes out in bursts, a turn of the reactor for each, and
waits while the other end does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

E = TypeVar("E")


class Machine(Protocol[E]):
    """What `fleet.watch` has one of for each end."""

    def receive(self, octets: bytes, now: float) -> list[E]: ...

    def tick(self, now: float) -> list[E]: ...

    def next_deadline(self) -> float | None: ...

    def data_to_send(self) -> bytes: ...


@implementer(IPushProducer)
class WatchWire(TwistedProtocol):
    """Carries a machine's octets, from `begin` to the end of the connection."""

    def __init__(self, reactor: Any, heard: Callable[[list[Any]], None]) -> None:
        """`heard` gets the machine's events; it may call `end`."""
        self._reactor = reactor
        self._heard = heard
        self._machine: Machine[Any] | None = None
        self._timer: Any = None
        self._burst: Any = None
        self._paused = False

    def begin(self, machine: Machine[Any]) -> None:
        """The connection is made and the peer is known: from now on this machine speaks on it."""
        self._machine = machine
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self.flush()

    def flush(self) -> None:
        """The machine has something to say, or another deadline."""
        if self._machine is None:
            return
        if not self._paused and self._burst is None:
            octets = self._machine.data_to_send()
            if octets:
                transport: Any = self.transport
                transport.write(octets)
                self._burst = self._reactor.callLater(0, self._next_burst)
        self._set_timer()

    def end(self) -> None:
        """Say what is left to say, and close."""
        machine = self._machine
        transport: Any = self.transport
        if machine is not None:
            while octets := machine.data_to_send():
                transport.write(octets)
            self._stop()
            transport.unregisterProducer()
        transport.loseConnection()

    def cut(self) -> None:
        """Close at once: the other end does not answer, or is not to hear more."""
        self._stop()
        transport: Any = self.transport
        transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._machine is not None:
            self._tell(self._machine.receive(data, self._reactor.seconds()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop()

    def pauseProducing(self) -> None:
        """Twisted: the other end does not read for the moment."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Twisted: it reads again."""
        self._paused = False
        self.flush()

    def stopProducing(self) -> None:
        """Twisted: the connection is over."""
        self._paused = True

    def _next_burst(self) -> None:
        self._burst = None
        self.flush()

    def _tick(self) -> None:
        self._timer = None
        if self._machine is not None:
            self._tell(self._machine.tick(self._reactor.seconds()))

    def _tell(self, events: list[Any]) -> None:
        if events:
            self._heard(events)
        self.flush()

    def _set_timer(self) -> None:
        deadline = None if self._machine is None else self._machine.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            wait = max(0.0, deadline - self._reactor.seconds())
            self._timer = self._reactor.callLater(wait, self._tick)

    def _stop(self) -> None:
        self._machine = None
        for call in (self._timer, self._burst):
            if call is not None:
                call.cancel()
        self._timer = self._burst = None

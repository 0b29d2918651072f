"""A reactor for sockets only: its clock stands still, and a turn is what the test asks for."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.task import Clock

from appliance.service.readiness import Readiness


class Turning(Clock):
    """``IReactorFDSet`` for readers, on a Clock."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def turn(self, wait_milliseconds: int = 0) -> None:
        """One reactor turn: what is due now, then the readers that are ready."""
        self.advance(0)
        poll = select.poll()
        by_descriptor = {reader.fileno(): reader for reader in self.readers}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(wait_milliseconds):
            by_descriptor[descriptor].doRead()

    def until(self, condition: Callable[[], object], turns: int = 20_000) -> None:
        """Turn until the condition holds; kernel buffers need a few turns, never a clock."""
        for _ in range(turns):
            if condition():
                return
            self.turn(1)
        raise AssertionError(f"not reached in {turns} turns: {condition}")


@contextmanager
def turning() -> Iterator[tuple[Turning, Readiness]]:
    """A reactor of this kind with a started readiness on it."""
    reactor = Turning()
    readiness = Readiness(reactor)
    readiness.start()
    try:
        yield reactor, readiness
    finally:
        readiness.stop()
    assert not reactor.readers
    assert not reactor.getDelayedCalls()


def tcp_pair(buffer_octets: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback, non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket()
        if buffer_octets is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_octets)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_octets)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far

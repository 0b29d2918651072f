"""Which bare sockets are ready: one edge-triggered epoll, seen by the Twisted reactor as a single reader.

Visitors and lanes are bare sockets, thousands of them; one descriptor of ours in the reactor instead of one
per socket is 15 to 25 % cheaper per event. The price is the rule of every edge-triggered poll: *an edge is
told once.* Whoever is called, or takes a socket over with :meth:`change`, reads (or writes) until
``BlockingIOError`` or remembers that it did not.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
#: The peer has closed his side, both sides are closed, or an error waits: reading will tell which.
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
FAILED = select.EPOLLERR

_EVERYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

#: Events taken from the kernel in one call, and in one reactor turn. A turn of the reactor costs as much as
#: three or four events, so it goes on while there are some; few enough that DNS and links, which are readers
#: of their own, get their turn after about 5 ms at most.
_EVENTS_A_CALL = 128
_EVENTS_A_TURN = 256
#: Bulky calls in one turn of the reactor, for the same reason: a relay's slice is a quarter of a millisecond.
_AGAIN_A_TURN = 16

Ready = Callable[[int], None]


class HasFileno(Protocol):
    """Anything with a descriptor: a socket, or a wire around one."""

    def fileno(self) -> int: ...


@implementer(IReadDescriptor)
class Readiness:
    """Calls ``ready(events)`` for each registered socket whose state changed; ``events`` are epoll's bits."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.clock = reactor
        self._epoll: select.epoll | None = None
        self._ready: dict[int, Ready] = {}
        self._gone: set[int] = set()  # forgotten since the last poll
        self._again: deque[Callable[[], None]] = deque()
        self._again_call: Any = None
        self._is_telling = False

    def start(self) -> None:
        """Open the epoll: after twistd's fork, for a child does not share its parent's."""
        self._epoll = select.epoll()
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Leave the reactor. The sockets are their owners' to close."""
        if self._epoll is None:
            return
        self._reactor.removeReader(self)
        self._epoll.close()
        self._epoll = None
        self._ready.clear()
        self._gone.clear()
        self._again.clear()
        if self._again_call is not None:
            self._again_call.cancel()
            self._again_call = None

    def register(self, sock: HasFileno, ready: Ready) -> None:
        """Begin to watch a non-blocking socket; the first edge tells its state as it is now."""
        assert self._epoll is not None, "register() before start()"
        fd = sock.fileno()
        self._ready[fd] = ready
        self._epoll.register(fd, _EVERYTHING)

    def change(self, sock: HasFileno, ready: Ready) -> None:
        """Give a registered socket a new owner, who tries his I/O at once: an edge may have gone to the old
        one.
        """
        self._ready[sock.fileno()] = ready

    def forget(self, sock: HasFileno) -> None:
        """Stop watching, before the socket is closed; unknown and closed ones are ignored."""
        fd = sock.fileno()
        if self._ready.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)
            self._gone.add(fd)

    def again(self, call: Callable[[], None]) -> None:
        """Call in the next reactor turn: for bulky work, or what of it was cut to a slice. Between any two
        such calls everybody else gets his turn.
        """
        self._again.append(call)
        self._book_turn()

    def look(self) -> None:
        """Tell now what there is to tell, in the midst of something long that is not ours; nothing, where an
        owner is being told something anyway.
        """
        if not self._is_telling:
            self._tell_events()

    def _book_turn(self) -> None:
        if self._again_call is None:
            self._again_call = self._reactor.callLater(0, self._run_again)

    def _run_again(self) -> None:
        self._again_call = None
        for _ in range(min(len(self._again), _AGAIN_A_TURN)):
            call = self._again.popleft()
            try:
                call()
            except Exception:
                self._failed()
            self._tell_events()
            if self._epoll is None:
                return
        if self._again:
            self._book_turn()

    def _failed(self) -> None:
        # One visitor's fault must not stop the others; the fault itself is a bug, so it is logged whole.
        self._log.failure("a socket's owner failed")

    def doRead(self) -> None:
        """Twisted: the epoll has events."""
        left = _EVENTS_A_TURN
        while left > 0:
            left -= self._tell_events()
            if not self._next_is_ours():
                return

    def _tell_events(self) -> int:
        """Tell each socket its events, without waiting for any; how many there were."""
        if self._epoll is None:
            return 0
        events = self._epoll.poll(0, _EVENTS_A_CALL)
        self._gone.clear()
        self._is_telling = True
        for fd, event in events:
            ready = self._ready.get(fd)
            # The number of a socket that was closed in this round may be a new one's already; the event
            # is not his, and his own is still to come.
            if ready is not None and fd not in self._gone:
                try:
                    ready(event)
                except Exception:
                    self._failed()
        self._is_telling = False
        return len(events)

    def _next_is_ours(self) -> bool:
        """Wait for what the reactor waits for; whether it is ours, and nothing else is due.

        Then its turn need not end. A turn costs as much as several events, and where each request of a
        visitor wakes the process by itself it would be the most of what he costs.
        """
        everything = getattr(self._reactor, "_poller", None)  # Twisted has no public name for its epoll
        if everything is None or self._epoll is None:
            return False
        seconds = self._reactor.timeout()
        if seconds is not None and seconds <= 0:
            return False
        ready = everything.poll(-1 if seconds is None else seconds, 2)
        return len(ready) == 1 and ready[0][0] == self._epoll.fileno()

    def fileno(self) -> int:
        """Twisted: the descriptor to watch, -1 when stopped."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Twisted: who this is in a log."""
        return "readiness"

    def connectionLost(self, reason: object) -> None:
        """Twisted: the reactor is shutting down."""
        self.stop()

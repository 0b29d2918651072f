"""Joining two connections (HOT): octets in order both ways, back-pressure, half-close, and a reset passed on
as a reset.

Each direction is a *flow*. Its invariant is that *a source is read exactly while nothing read from it waits
to be written*, so what a flow holds is bounded by one read (or one pipe), and a peer that does not read stops
the one that sends. Small reads go through ``recv``/``send``; a flow between two sockets that fills whole
reads turns bulky and moves its octets through a borrowed pipe by ``splice``, until its source is drained. The
end of a source is passed on when its last octet is out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from appliance.service.deadlines import Deadlines
from appliance.service.readiness import ENDING, FAILED, READABLE, WRITABLE, Readiness

#: One read into memory; a flow that fills it turns bulky. 64 KiB is what HAProxy and nginx move at a time at
#: most.
_READ_OCTETS = 1 << 16
#: What a flow may move before others get their turn: a quarter of a millisecond's work, so that ten bulky
#: visitors delay a small one by a few milliseconds.
_SLICE_OCTETS = 1 << 18
#: The pipe of a bulky flow. Past the per-user limit (16,384 pages without CAP_SYS_RESOURCE) the kernel
#: refuses to grow one (EPERM) and makes new ones of 8 KiB; at most this many of this size stay within it.
_PIPE_OCTETS = 1 << 18
_PIPES_AT_MOST = 192
#: An idle pipe is closed after this: a download pauses for less, and soon costs no descriptors any more.
_PIPE_IDLE_SECONDS = 10.0
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_ARRIVED = READABLE | ENDING

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Wire(Protocol):
    """What can be joined: the five calls of a non-blocking ``socket.socket`` (which is one)."""

    def fileno(self) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def send(self, octets: bytes, /) -> int: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


class _HoldingWire(Wire, Protocol):
    """A wire that may keep octets it was given (a TLS connection its records): ``flush()`` is True when none
    are left.
    """

    def flush(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """A joined pair is over: the octets each source gave, and the error that ended it, or None."""

    octets_from_a: int
    octets_from_b: int
    error: OSError | None


class Pipes:
    """The pipes of bulky flows: a few, none is kept by an idle flow, and none for long by nobody."""

    def __init__(self, clock: Any) -> None:
        self._idle = Deadlines[tuple[int, int]](clock, _PIPE_IDLE_SECONDS, self.discard)
        self.open = 0

    def borrow(self) -> tuple[int, int] | None:
        """A pipe's (read, write) descriptors, or None: then the flow goes on without."""
        if len(self._idle):
            pipe = self._idle.newest()  # so that those too many come of age
            self._idle.discard(pipe)
            return pipe
        if self.open >= _PIPES_AT_MOST:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # no descriptors left: copying needs none
            return None
        self.open += 1
        with suppress(PermissionError):  # past the per-user limit; a small one works as well, with more calls
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_OCTETS)
        return pipe

    def give_back(self, pipe: tuple[int, int], *, clean: bool) -> None:
        if clean:
            self._idle.add(pipe)
            return
        self.discard(pipe)

    def discard(self, pipe: tuple[int, int]) -> None:
        os.close(pipe[0])
        os.close(pipe[1])
        self.open -= 1

    def close(self) -> None:
        for pipe in self._idle.all():
            self.discard(pipe)
        self._idle.stop()


class _Flow:
    """One direction of a pair, from its source to its sink.

    =======  ==================================  =========================  ==============================
    state    what it holds                       its source is ready        its sink is ready
    =======  ==================================  =========================  ==============================
    quick    nothing, and its source is drained  one read, one write        nothing to do
    pumping  what one read gave, or one pipe,    if nothing is held: read   write; then read and write on,
             or the source's end                 and write until one end    or pass the end on
                                                 would block
    over     nothing: the sink was told the end  nothing to do              nothing to do
    =======  ==================================  =========================  ==============================
    """

    __slots__ = (
        "again_due",
        "back",
        "bare",
        "blocked",
        "finished",
        "holding",
        "joined",
        "octets",
        "pipe",
        "pipe_octets",
        "quick",
        "read_end",
        "sink",
        "source",
        "unsure",
        "waiting",
    )

    back: _Flow
    """The other direction."""

    def __init__(self, joined: Joined, source: Wire, sink: Wire, first: bytes, bare: bool) -> None:
        """``bare``: both ends are sockets, and nothing stands before them."""
        self.joined = joined
        self.source = source
        self.sink = sink
        self.bare = bare
        self.waiting = first  # read and not yet written
        self.pipe: tuple[int, int] | None = None  # borrowed while bulky
        self.pipe_octets = 0
        self.octets = len(first)
        self.quick = False
        self.read_end = False  # the source has ended
        self.finished = False  # and the sink was told so
        self.blocked = False  # the sink takes nothing more for now
        self.again_due = False  # its slice was used up, and its next one is booked
        # An end of stream may stand behind the octets although no further edge will tell: read until EAGAIN.
        self.unsure = True
        self.holding: _HoldingWire | None = cast(_HoldingWire, sink) if hasattr(sink, "flush") else None

    def ready(self, events: int) -> None:
        """The source's socket is ready (HOT)."""
        if self.quick and not events & ENDING:
            try:
                octets = self.source.recv(_READ_OCTETS)
            except BlockingIOError:  # it is writable, and nobody waits for that
                return
            except OSError as error:
                self.joined.end(error)
                return
            size = len(octets)
            self.octets += size
            try:
                sent = self.sink.send(octets)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.joined.end(error)
                return
            # A short read took all there was: what comes later, the end as well, is a new edge.
            if sent != size or not 0 < size < _READ_OCTETS:
                self._go_on(octets, sent)
            return
        if events & _ARRIVED:
            self._source_ready(events)
        if events & WRITABLE and self.back.blocked:
            self.back._pump_or_wait()

    def _go_on(self, octets: bytes, sent: int) -> None:
        """What was read does not fit, filled the read, or is the end: no longer quick."""
        self._took(octets)
        self.waiting = octets[sent:]
        self._pump_or_wait()

    def _pump_or_wait(self) -> None:
        """A bulky flow waits for its turn, so that those that are not go first."""
        if self.pipe is None and not self.again_due:
            self.pump()
        else:
            self._book()

    def _book(self) -> None:
        self.quick = False
        if not self.again_due:
            self.again_due = True
            self.joined.relay.readiness.again(self._pump_again)

    def _source_ready(self, events: int) -> None:
        if events & ENDING:
            self.unsure = True
            # Reading tells of a reset, except where the flow does not read: there one has to ask.
            if events & FAILED and (self.blocked or self.read_end):
                error = _error_of(self.source)
                if error is not None:
                    self.joined.end(error)
                    return
        if not self.blocked:
            self._pump_or_wait()

    def pump(self) -> None:
        """Move what can be moved now, if the pair is not over."""
        joined = self.joined
        if joined.over:
            return
        try:
            if self._move():
                self._book()
        except OSError as error:
            joined.end(error)
            return
        if self.finished:
            if self.back.finished:
                joined.end(None)
            return
        self._judge()
        self.back._judge()

    def _judge(self) -> None:
        """Whether the next event of the source can only mean: read, and write what was read."""
        self.quick = self.bare and not (
            self.blocked or self.back.blocked or self.unsure or self.read_end or self.again_due
        )

    def _pump_again(self) -> None:
        self.again_due = False
        self.pump()

    def _move(self) -> bool:
        """Write what waits, read, write, until one end would block. True: only the slice is used up, go on
        soon.
        """
        budget = _SLICE_OCTETS
        drained = False
        try:
            while True:
                self.blocked = True
                if not self._written():
                    return False
                self.blocked = False
                if self.read_end:
                    self._finish()
                    return False
                if drained:
                    return False
                if budget <= 0:
                    return True
                got = self._read()
                if got == 0:
                    continue  # the source's end, or a step from one way of moving to the other
                self.octets += got
                budget -= got
                drained = got < _READ_OCTETS and self.pipe is None and self.bare and not self.unsure
        except BlockingIOError:
            return False

    def _written(self) -> bool:
        """Write out what is held. False (or BlockingIOError) when the sink does not take all of it."""
        while self.pipe_octets:
            assert self.pipe is not None
            sink = self.sink.fileno()
            self.pipe_octets -= os.splice(self.pipe[0], sink, self.pipe_octets, flags=_SPLICE_FLAGS)
        while self.waiting:
            self.waiting = self.waiting[self.sink.send(self.waiting) :]
        return self.holding is None or self.holding.flush()

    def _read(self) -> int:
        """One read; the number of octets that it gave, 0 where another look is needed. Raises BlockingIOError
        when drained.
        """
        if self.pipe is not None:
            try:
                # A length of 0 would return 0 as well, without meaning the end: the pipe is empty here.
                got = os.splice(self.source.fileno(), self.pipe[1], _PIPE_OCTETS, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self.release_pipe()
                self.unsure = False
                raise
            self.pipe_octets = got
            if not got:
                self.read_end = True
            return got
        try:
            octets = self.source.recv(_READ_OCTETS)
        except BlockingIOError:
            self.unsure = False
            raise
        self._took(octets)
        return len(octets)

    def _took(self, octets: bytes) -> None:
        """One read into memory gave these: none are the end, and a full read is bulk."""
        self.waiting = octets
        if not octets:
            self.read_end = True
        elif len(octets) == _READ_OCTETS and self.bare:
            self.pipe = self.joined.relay.pipes.borrow()

    def _finish(self) -> None:
        """The source's end is passed on, once all of it is out."""
        self.release_pipe()
        if self.bare and self.back.finished:
            self.finished = True  # both are closed now, and that says it
            return
        if not self.finished:
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # the sink has already closed both ways
                    raise
        self.finished = self.holding is None or self.holding.flush()
        self.blocked = not self.finished

    def release_pipe(self) -> None:
        """Give the pipe back; one with octets in it is closed, so that nobody gets another's octets."""
        if self.pipe is not None:
            self.joined.relay.pipes.give_back(self.pipe, clean=self.pipe_octets == 0)
            self.pipe = None
            self.pipe_octets = 0


class Among(Protocol):
    """Pairs that may have to end together."""

    def add(self, joined: Joined, /) -> object: ...

    def discard(self, joined: Joined, /) -> object: ...


class Joined:
    """Two wires that are one connection now."""

    __slots__ = ("_among", "_ended", "from_a", "from_b", "over", "relay")

    def __init__(
        self,
        relay: Relay,
        a: Wire,
        b: Wire,
        to_a: bytes,
        to_b: bytes,
        among: Among,
        ended: Callable[[Ended], None] | None,
    ) -> None:
        self.relay = relay
        self.over = False
        self._among = among
        self._ended = ended
        bare = isinstance(a, socket.socket) and isinstance(b, socket.socket)
        self.from_a = _Flow(self, a, b, to_b, bare)
        self.from_b = _Flow(self, b, a, to_a, bare)
        self.from_a.back = self.from_b
        self.from_b.back = self.from_a

    def abort(self) -> None:
        """End both at once, with a reset: what is under way is lost and both ends learn that it is."""
        self.end(OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def end(self, error: OSError | None) -> None:
        """Close both wires, with a reset where there was an error, and tell whoever joined them."""
        if self.over:
            return
        self.over = True
        for flow in (self.from_a, self.from_b):
            flow.release_pipe()
            if error is not None:
                reset_on_close(flow.source)
            self.relay.readiness.forget(flow.source)
            flow.source.close()
        self.relay.joined.discard(self)
        self._among.discard(self)
        if self._ended is not None:
            self._ended(Ended(self.from_a.octets, self.from_b.octets, error))


def _error_of(wire: Wire) -> OSError | None:
    """What has failed at a wire, for which nobody has asked yet."""
    sock = socket_of(wire)
    number = 0 if sock is None else sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


def socket_of(wire: Wire) -> socket.socket | None:
    """The bare socket that a wire is, or stands in front of."""
    return wire if isinstance(wire, socket.socket) else getattr(wire, "sock", None)


def reset_on_close(wire: Wire) -> None:
    """Make the coming ``close()`` a reset, so that the peer cannot take what he has for the whole."""
    sock = socket_of(wire)
    if sock is not None:
        with suppress(OSError):  # already gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


class Relay:
    """All joined pairs of a process, and the pipes that they share."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self.joined: set[Joined] = set()
        self.pipes = Pipes(readiness.clock)

    def join(
        self,
        a: Wire,
        b: Wire,
        *,
        among: Among,
        ended: Callable[[Ended], None] | None = None,
        to_a: bytes = b"",
        to_b: bytes = b"",
    ) -> Joined:
        """Make ``a`` and ``b``, both registered with the readiness, one connection, and own them until it has
        ended.

        ``to_a`` and ``to_b`` go out first: what an earlier owner read and did not use. Until the end it is
        ``among`` those whom the caller may have to end together. ``ended`` is called once, when both wires
        are closed; it may be called before ``join`` returns.
        """
        joined = Joined(self, a, b, to_a, to_b, among, ended)
        self.joined.add(joined)
        among.add(joined)
        for flow in (joined.from_a, joined.from_b):
            self.readiness.change(flow.source, flow.ready)
        joined.from_a.pump()
        joined.from_b.pump()
        return joined

    def stop(self) -> None:
        """End every pair and close the pipes."""
        for joined in list(self.joined):
            joined.abort()
        self.pipes.close()

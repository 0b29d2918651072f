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
from typing import Protocol, cast

from appliance.service import keepalive
from appliance.service.readiness import ENDING, FAILED, READABLE, WRITABLE, Readiness

#: One read into memory; a flow that fills it turns bulky. 64 KiB is what HAProxy and nginx move at a time at
#: most.
_READ_OCTETS = 1 << 16
#: What a flow may move before others get their turn: about a millisecond's work.
_SLICE_OCTETS = 1 << 20
#: The pipe of a bulky flow. Past the per-user limit (16,384 pages without CAP_SYS_RESOURCE) the kernel
#: refuses to grow one (EPERM) and makes new ones of 8 KiB; at most this many of this size stay within it.
_PIPE_OCTETS = 1 << 18
_PIPES_AT_MOST = 192
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

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


class _Pipes:
    """The pipes of bulky flows: a few, and none is kept by an idle one."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []
        self.open = 0

    def borrow(self) -> tuple[int, int] | None:
        """A pipe's (read, write) descriptors, or None: then the flow goes on without."""
        if self._idle:
            return self._idle.pop()
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
            self._idle.append(pipe)
            return
        self.discard(pipe)

    def discard(self, pipe: tuple[int, int]) -> None:
        os.close(pipe[0])
        os.close(pipe[1])
        self.open -= 1

    def close(self) -> None:
        while self._idle:
            self.discard(self._idle.pop())


class _Flow:
    """One direction of a pair."""

    __slots__ = (
        "again_due",
        "blocked",
        "finished",
        "holding",
        "octets",
        "pipe",
        "pipe_octets",
        "read_end",
        "sink",
        "source",
        "spliceable",
        "unsure",
        "waiting",
    )

    def __init__(self, source: Wire, sink: Wire, first: bytes) -> None:
        self.source = source
        self.sink = sink
        self.waiting = first  # read and not yet written
        self.pipe: tuple[int, int] | None = None  # borrowed while bulky
        self.pipe_octets = 0
        self.octets = len(first)
        self.read_end = False  # the source has ended
        self.finished = False  # and the sink was told so
        self.blocked = False  # the sink takes nothing more for now
        self.again_due = False  # its slice was used up, and its next one is booked
        # An end of stream may stand behind the octets although no further edge will tell: read until EAGAIN.
        self.unsure = True
        self.spliceable = _is_tcp(source) and _is_tcp(sink)
        self.holding: _HoldingWire | None = cast(_HoldingWire, sink) if hasattr(sink, "flush") else None


class Joined:
    """Two wires that are one connection now."""

    __slots__ = ("_a_to_b", "_b_to_a", "_ended", "_over", "_relay")

    def __init__(
        self, relay: Relay, a: Wire, b: Wire, to_a: bytes, to_b: bytes, ended: Callable[[Ended], None]
    ) -> None:
        self._relay = relay
        self._ended = ended
        self._over = False
        self._a_to_b = _Flow(a, b, to_b)
        self._b_to_a = _Flow(b, a, to_a)

    def a_ready(self, events: int) -> None:
        self._ready(events, self._a_to_b, self._b_to_a)

    def b_ready(self, events: int) -> None:
        self._ready(events, self._b_to_a, self._a_to_b)

    def abort(self) -> None:
        """End both at once, with a reset: what is under way is lost and both ends learn that it is."""
        self._end(OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def _ready(self, events: int, outward: _Flow, inward: _Flow) -> None:
        """``outward`` comes from the wire that is ready, ``inward`` goes to it."""
        if events & (READABLE | ENDING):
            if events & ENDING:
                outward.unsure = True
                # Reading tells of a reset, except where the flow does not read: there one has to ask.
                if events & FAILED and (outward.blocked or outward.read_end) and self._failed(outward.source):
                    return
            if not outward.blocked:
                self.pump(outward)
        if events & WRITABLE and inward.blocked and not self._over:
            self.pump(inward)

    def _failed(self, wire: Wire) -> bool:
        sock = _socket_of(wire)
        number = 0 if sock is None else sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number:
            return False
        self._end(OSError(number, os.strerror(number)))
        return True

    def pump(self, flow: _Flow) -> None:
        """Move what can be moved now."""
        if self._over:
            return
        try:
            if self._relay.move(flow) and not flow.again_due:
                flow.again_due = True
                self._relay.readiness.again(lambda: self._pump_again(flow))
        except OSError as error:
            self._end(error)
            return
        if flow.finished and self._a_to_b.finished and self._b_to_a.finished:
            self._end(None)

    def _pump_again(self, flow: _Flow) -> None:
        flow.again_due = False
        self.pump(flow)

    def _end(self, error: OSError | None) -> None:
        if self._over:
            return
        self._over = True
        for flow in (self._a_to_b, self._b_to_a):
            self._relay.release_pipe(flow)
            source = flow.source
            if error is not None:
                reset_on_close(source)
            self._relay.readiness.forget(source)
            source.close()
        self._relay.joined.discard(self)
        self._ended(Ended(self._a_to_b.octets, self._b_to_a.octets, error))


def _is_tcp(wire: Wire) -> bool:
    return isinstance(wire, socket.socket) and wire.family in (socket.AF_INET, socket.AF_INET6)


def _socket_of(wire: Wire) -> socket.socket | None:
    """The bare socket that a wire is, or stands in front of."""
    return wire if isinstance(wire, socket.socket) else getattr(wire, "sock", None)


def reset_on_close(wire: Wire) -> None:
    """Make the coming ``close()`` a reset, so that the peer cannot take what he has for the whole."""
    sock = _socket_of(wire)
    if sock is not None:
        with suppress(OSError):  # already gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


class Relay:
    """All joined pairs of a process, and the pipes that they share."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self.joined: set[Joined] = set()
        self._pipes = _Pipes()

    def join(
        self,
        a: Wire,
        b: Wire,
        *,
        ended: Callable[[Ended], None],
        to_a: bytes = b"",
        to_b: bytes = b"",
    ) -> Joined:
        """Make ``a`` and ``b``, both registered with the readiness, one connection, and own them until it has
        ended.

        ``to_a`` and ``to_b`` go out first: what an earlier owner read and did not use. ``ended`` is called
        once, when both wires are closed; it may be called before ``join`` returns.
        """
        joined = Joined(self, a, b, to_a, to_b, ended)
        self.joined.add(joined)
        for wire, ready in ((a, joined.a_ready), (b, joined.b_ready)):
            sock = _socket_of(wire)
            if sock is not None:
                with suppress(OSError):  # already reset by its peer: the first read will tell
                    keepalive.of_joined(sock)
            self.readiness.change(wire, ready)
        joined.pump(joined._a_to_b)
        joined.pump(joined._b_to_a)
        return joined

    @property
    def pipes_open(self) -> int:
        """The pipes there are now, borrowed or idle."""
        return self._pipes.open

    def stop(self) -> None:
        """End every pair and close the pipes."""
        for joined in list(self.joined):
            joined.abort()
        self._pipes.close()

    def move(self, flow: _Flow) -> bool:
        """Write what waits, read, write, until one end would block. True: only the slice is used up, go on
        soon.
        """
        budget = _SLICE_OCTETS
        # A short read from a socket that has not ended took all there was; an octet that comes later is a new
        # edge.
        drained = False
        try:
            while True:
                flow.blocked = True
                if not self._written(flow):
                    return False
                flow.blocked = False
                if flow.read_end:
                    self._finish(flow)
                    return False
                if drained:
                    return False
                if budget <= 0:
                    return True
                got = self._read(flow)
                if got == 0:
                    continue  # the source's end, or a step from one way of moving to the other
                flow.octets += got
                budget -= got
                drained = got < _READ_OCTETS and flow.pipe is None and flow.spliceable and not flow.unsure
        except BlockingIOError:
            return False

    def _written(self, flow: _Flow) -> bool:
        """Write out what the flow holds. False (or BlockingIOError) when the sink does not take all of it."""
        while flow.pipe_octets:
            assert flow.pipe is not None
            sink = flow.sink.fileno()
            flow.pipe_octets -= os.splice(flow.pipe[0], sink, flow.pipe_octets, flags=_SPLICE_FLAGS)
        while flow.waiting:
            flow.waiting = flow.waiting[flow.sink.send(flow.waiting) :]
        return flow.holding is None or flow.holding.flush()

    def _read(self, flow: _Flow) -> int:
        """One read; the number of octets that it gave, 0 where another look is needed. Raises BlockingIOError
        when drained.
        """
        if flow.pipe is not None:
            try:
                # A length of 0 would return 0 as well, without meaning the end: the pipe is empty here.
                got = os.splice(flow.source.fileno(), flow.pipe[1], _PIPE_OCTETS, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self.release_pipe(flow)
                flow.unsure = False
                raise
            flow.pipe_octets = got
            if not got:
                flow.read_end = True
            return got
        try:
            octets = flow.source.recv(_READ_OCTETS)
        except BlockingIOError:
            flow.unsure = False
            raise
        if not octets:
            flow.read_end = True
            return 0
        flow.waiting = octets
        if len(octets) == _READ_OCTETS and flow.spliceable:
            flow.pipe = self._pipes.borrow()
        return len(octets)

    def _finish(self, flow: _Flow) -> None:
        """The source's end is passed on, once all of it is out."""
        self.release_pipe(flow)
        if not flow.finished:
            try:
                flow.sink.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # the sink has already closed both ways
                    raise
        flow.finished = flow.holding is None or flow.holding.flush()
        flow.blocked = not flow.finished

    def release_pipe(self, flow: _Flow) -> None:
        """Give the pipe back; one with octets in it is closed, so that nobody gets another's octets."""
        if flow.pipe is not None:
            self._pipes.give_back(flow.pipe, clean=flow.pipe_octets == 0)
            flow.pipe = None
            flow.pipe_octets = 0

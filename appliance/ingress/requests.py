"""All requests of one visitor's connection on port 80: each for the same host, or the connection ends
there.

The name is chosen by the first request, but a connection carries many, and the origin's web server may
serve more names than this visitor was routed to: with octets passed unexamined, one tenant got another's
request through the keep-alive connections of a shared nginx. So each request is framed, from the visitor to
the origin only, and no octet of it is passed on before its head was read as strictly as the first. The
octets themselves are not altered, but for the fields that say who the visitor is, where the origin wants them
(``forwarded``).

Two readers see them all: ours, which decides (``httphead``, ``framing``), and h11, which has to agree on
every request and on its last octet.

**Upgrade.** After ``101 Switching Protocols`` the visitor's octets are not HTTP/1 any more, and are passed
on unexamined. So that nobody gets there by pretence, it must be certain that the 101 is the origin's answer
*to the Upgrade*, and answers are not framed here: octets that look like a 101 may as well stand in the body
of an earlier answer, where the visitor himself can have put them. It is certain in one case: the Upgrade is
the connection's first request, for then the origin's first octets answer it. Hence

- an Upgrade behind another request, whether that was answered or not, is refused (400). Browsers open a
  connection for each WebSocket, so this costs them nothing;
- what follows an Upgrade is held back until the origin's answer: it is either HTTP/1 to be examined or the
  new protocol, and nobody can tell before (a visitor has to wait for the answer anyway: RFC 9110 7.8);
- any other final answer means that nothing was switched, and HTTP/1 goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto

import h11

from appliance.ingress import refusal
from appliance.ingress.forwarded import forwarded
from appliance.ingress.framing import Body, body_of
from appliance.ingress.httphead import HEAD_OCTETS_MAX, HeadReader, HeadRefused, RequestHead

_FRAMING = (b"content-length", b"transfer-encoding")

# h11 moves what it holds to the front for every piece that it gives: larger ones cost more an octet.
_H11_OCTETS = 16 * 1024

HELD_OCTETS_MAX = 64 * 1024
"""What is held back behind an Upgrade. A visitor who waits for the answer, as he has to, sends none."""

# A head is read in steps of this, so that what is pipelined behind it is not copied for each.
_HEAD_READ_OCTETS = 4 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")
_STATUS_LINE_OCTETS = len(b"HTTP/1.1 101 ")


class _State(Enum):
    HEAD = auto()  # of the next request
    BODY = auto()
    ASKED = auto()  # for another protocol; the origin has not answered
    BLIND = auto()  # another protocol
    LAST = auto()  # no further request may come: the visitor said so
    REFUSED = auto()


class _Seen(Enum):
    REQUEST = auto()
    END = auto()
    END_OF_UPGRADE = auto()
    END_OF_LAST = auto()
    SWITCHED = auto()
    NOT_SWITCHED = auto()
    FAULT = auto()


_NEXT: Mapping[tuple[_State, _Seen], _State] = {
    (_State.HEAD, _Seen.REQUEST): _State.BODY,
    (_State.BODY, _Seen.END): _State.HEAD,
    (_State.BODY, _Seen.END_OF_UPGRADE): _State.ASKED,
    (_State.BODY, _Seen.END_OF_LAST): _State.LAST,
    (_State.ASKED, _Seen.SWITCHED): _State.BLIND,
    (_State.ASKED, _Seen.NOT_SWITCHED): _State.HEAD,
    (_State.HEAD, _Seen.FAULT): _State.REFUSED,
    (_State.BODY, _Seen.FAULT): _State.REFUSED,
    (_State.ASKED, _Seen.FAULT): _State.REFUSED,
    (_State.LAST, _Seen.FAULT): _State.REFUSED,
}


class Requests:
    """One connection. Holds less than a head (16 KiB) or a line of a chunked body, and what waits for an
    answer.
    """

    def __init__(self, host: str, scheme: str = "http") -> None:
        """``host``: of the first request's head, which is fed like everything else. ``scheme``: how the
        visitor's octets came, "http" or "https".
        """
        self.refusal: bytes | None = None
        """The page to end the connection with, once something was refused; nothing more comes out then."""
        self.heads = 0
        """Requests that were let through."""
        self.first_method = ""
        """Of the first request, when its head was read."""
        self.forwarded_for: str | None = None
        """The visitor's IP address, while the heads that are let through have to say it."""
        self._host = host
        self._scheme = scheme
        self._state = _State.HEAD
        self._unread = bytearray()
        self._head = HeadReader(scheme)
        self._method = "GET"  # of the request that a refusal would answer, where that is known
        self._request: RequestHead
        self._body: Body
        self._second: _SecondReader
        self._answer: _FirstAnswer | None = None

    def from_visitor(self, octets: bytes) -> bytes:
        """Take octets of the visitor; give those, of these and earlier ones, that may be passed on to the
        origin.
        """
        if self._state is _State.BLIND:
            return octets
        if self._state is _State.REFUSED:
            return b""
        if self._state is _State.BODY and not self._unread and len(octets) < self._body.left:
            return self._pass_middle(octets)
        self._unread += octets
        return self._pass_on()

    @property
    def whole(self) -> bool:
        """Whether the last request, of one at least, was let through to its end."""
        return self.heads > 0 and self._state is not _State.BODY

    @property
    def head_begun(self) -> bool:
        """Whether a part of a head is here, and not all of it."""
        return self._state is _State.HEAD and bool(self._head.octets)

    def too_slow(self) -> None:
        """Refuse the head that has begun: it did not come in time."""
        self._go(_Seen.FAULT)
        self._unread.clear()
        self.refusal = refusal.http(408, method=self._method)

    @property
    def certain(self) -> int:
        """How many of the visitor's next octets are in the middle of a body, whatever they are."""
        return self._body.left - len(self._unread) if self._state is _State.BODY else 0

    def written(self, head: RequestHead) -> bytes:
        """A head as the origin gets it."""
        if self.forwarded_for is None:
            return head.octets
        return forwarded(head.octets, source=self.forwarded_for, proto=self._scheme)

    def from_origin(self, octets: bytes) -> bytes:
        """See octets on their way to the visitor; give those of the visitor that waited for them and may go
        now.
        """
        if self._answer is None:
            return b""
        self._answer.feed(octets)
        return self._pass_on() if self._state is _State.ASKED else b""

    def _pass_middle(self, octets: bytes) -> bytes:
        """Octets in the middle of a body: what `_read_body` does, without a copy."""
        try:
            self._body.take(octets)
            self._second.feed(octets, ended=False)
        except HeadRefused as refused:
            self._refuse(refused)
            return b""
        return octets

    def _pass_on(self) -> bytes:
        passed = bytearray()
        try:
            while self._step(passed):
                pass
        except HeadRefused as refused:
            self._refuse(refused)
        return bytes(passed)

    def _refuse(self, refused: HeadRefused) -> None:
        self._go(_Seen.FAULT)
        self._unread.clear()
        self.refusal = refusal.http(refused.status, method=self._method, why=refused.text)

    def _go(self, seen: _Seen) -> None:
        self._state = _NEXT[self._state, seen]

    def _step(self, passed: bytearray) -> bool:
        """One step; False when more octets, or an answer, are needed for the next."""
        if self._state is _State.HEAD:
            return self._read_head(passed)
        if self._state is _State.BODY:
            return self._read_body(passed)
        if self._state is _State.ASKED:
            return self._ask()
        if self._state is _State.BLIND:
            passed += self._unread
            self._unread.clear()
        elif self._unread:
            raise HeadRefused(400, "Something follows the last request of the connection.")
        return False

    def _read_head(self, passed: bytearray) -> bool:
        if not self._unread:
            return False
        octets = bytes(self._unread[:_HEAD_READ_OCTETS])
        head = self._head.feed(octets)
        del self._unread[: len(octets) - (len(head.rest) if head else 0)]
        if head is None:
            return True
        self._head = HeadReader(self._scheme)
        self._method = head.method
        self.first_method = self.first_method or head.method
        if head.host != self._host:
            raise HeadRefused(421, "It began with a request for another site.")
        if head.upgrade:
            if self.heads:
                raise HeadRefused(400, "An upgrade has to be the first request of a connection.")
            self._answer = _FirstAnswer()
        self.heads += 1
        self._request = head
        self._body = body_of(head.length)
        self._second = _SecondReader(head)
        self._go(_Seen.REQUEST)
        passed += self.written(head)
        self._end_body()
        return True

    def _read_body(self, passed: bytearray) -> bool:
        if not self._unread:
            return False
        octets = bytes(self._unread)
        count = self._body.take(octets)
        self._second.feed(octets[:count], ended=self._body.ended)
        passed += octets[:count]
        del self._unread[:count]
        self._end_body()
        return self._state is not _State.BODY

    def _end_body(self) -> None:
        if not self._body.ended:
            return
        self._method = "GET"
        if self._request.upgrade:
            self._go(_Seen.END_OF_UPGRADE)
        else:
            self._go(_Seen.END_OF_LAST if self._request.closing else _Seen.END)

    def _ask(self) -> bool:
        assert self._answer is not None
        switched = self._answer.switched
        if switched is None:
            if len(self._unread) > HELD_OCTETS_MAX:
                raise HeadRefused(400, "Too much was sent before the upgrade was answered.")
            return False
        self._answer = None
        self._go(_Seen.SWITCHED if switched else _Seen.NOT_SWITCHED)
        return True


class _SecondReader:
    """h11 on one request: it raises no objection, and ends where ours does."""

    def __init__(self, head: RequestHead) -> None:
        # A connection of its own for each request: h11 would hold the next one back until an answer was sent.
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_OCTETS_MAX)
        request = self._next(head.octets)
        if not isinstance(request, h11.Request) or (request.method, request.target) != (
            head.method.encode(),
            head.target.encode(),
        ):
            raise HeadRefused(400, "The head can be read in two ways.")
        if head.length == 0 and not any(name in _FRAMING for name, _ in request.headers):
            return  # neither has read a field that could say of a body
        self.feed(b"", ended=head.length == 0)

    def feed(self, octets: bytes, *, ended: bool) -> None:
        """Octets of the body that ours has read; ``ended``: they are its last."""
        for at in range(0, max(len(octets), 1), _H11_OCTETS):
            event = self._next(octets[at : at + _H11_OCTETS])
            while isinstance(event, h11.Data):
                event = self._next(b"")
            is_last = at + _H11_OCTETS >= len(octets)
            if isinstance(event, h11.EndOfMessage) != (ended and is_last):
                raise HeadRefused(400, "The body can be read in two ways.")
        if ended and self._h11.trailing_data[0]:
            raise HeadRefused(400, "The body can be read in two ways.")

    def _next(self, octets: bytes) -> object:
        if octets:  # none would mean the end of the stream to h11
            self._h11.receive_data(octets)
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError:
            raise HeadRefused(400, "The request is malformed.") from None


class _FirstAnswer:
    """The origin's first octets: did it switch protocols?"""

    def __init__(self) -> None:
        self.switched: bool | None = None
        self._octets = bytearray()

    def feed(self, octets: bytes) -> None:
        """Look at further octets until it is clear. What is no answer at all has not switched."""
        if self.switched is not None:
            return
        self._octets += octets
        while len(self._octets) >= _STATUS_LINE_OCTETS:
            line = _STATUS_LINE.match(self._octets)
            if line is None or line[1] == b"101" or not line[1].startswith(b"1"):
                self.switched = line is not None and line[1] == b"101"
                return
            end = self._octets.find(
                b"\r\n\r\n", 0, HEAD_OCTETS_MAX
            )  # an interim answer (100, 103): the next one counts
            if end < 0:
                if len(self._octets) >= HEAD_OCTETS_MAX:
                    self.switched = False
                return
            del self._octets[: end + 4]

"""Where the body of a request ends (RFC 9112 6.3, 7.1). Hides the two framings, and chunks with their
trailers.

A body says of the octets in front of it how many are its own and beyond doubt; those may be passed on. A
line of the chunked framing counts only when all of it is there, so what is kept waiting is less than a
line.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Protocol

from appliance.ingress.forwarded import is_forwarding
from appliance.ingress.httphead import (
    FIELDS_MAX,
    HEAD_OCTETS_MAX,
    ROUTING_AND_FRAMING,
    HeadRefused,
    read_field,
)

CHUNK_LINE_OCTETS_MAX = 256
"""A size with its extensions. The longest extension in use, the signature of S3 uploads, makes it about 90.
"""

TRAILER_OCTETS_MAX = HEAD_OCTETS_MAX
"""All trailer lines of a body: what is right for a head is ample for them."""

# 15 digits, so that no origin's 64-bit number overflows; no space behind the size, which RFC 9112 never
# allowed and some read; no control octet in an extension, for a bare CR or LF there is a line's end to some
# (chunk-ext smuggling).
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?")


class Body(Protocol):
    """One request's body while it arrives."""

    ended: bool
    left: int
    """Octets that are still to come before anything else can: of the body, or of this chunk of it."""

    def take(self, octets: bytes) -> int:
        """How many octets, from the front of these, belong to the body and are whole. Raises HeadRefused.

        The others are to be given again, with more behind them; once ``ended``, they belong to the next
        request.
        """


def body_of(length: int | None) -> Body:
    """The body of a head with this ``length`` (None: chunked)."""
    return _Chunked() if length is None else _Counted(length)


class _Counted:
    def __init__(self, length: int) -> None:
        self.left = length
        self.ended = length == 0

    def take(self, octets: bytes) -> int:
        taken = min(self.left, len(octets))
        self.left -= taken
        self.ended = self.left == 0
        return taken


class _Part(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()


class _Chunked:
    def __init__(self) -> None:
        self.ended = False
        self._part = _Part.SIZE
        self.left = 0
        self._trailer_octets = 0
        self._trailer_fields = 0

    def take(self, octets: bytes) -> int:
        at = 0
        while not self.ended:
            if self._part is _Part.DATA:
                step = min(self.left, len(octets) - at)
                self.left -= step
                if self.left == 0:
                    self._part = _Part.DATA_END
            else:
                step = self._take_line(octets, at)
            if step == 0:
                break
            at += step
        return at

    def _take_line(self, octets: bytes, at: int) -> int:
        longest = self._line_octets_max()
        end = octets.find(b"\n", at, at + longest)
        if end < 0:
            if len(octets) - at >= longest:
                raise HeadRefused(400, "A line of the chunked body is too long.")
            return 0
        if octets[end - 1 : end] != b"\r" or end == at:
            raise HeadRefused(400, "A line of the chunked body does not end with CRLF.")
        self._end_line(octets[at : end - 1])
        return end + 1 - at

    def _line_octets_max(self) -> int:
        if self._part is _Part.SIZE:
            return CHUNK_LINE_OCTETS_MAX
        return 2 if self._part is _Part.DATA_END else TRAILER_OCTETS_MAX - self._trailer_octets

    def _end_line(self, line: bytes) -> None:
        if self._part is _Part.SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise HeadRefused(400, "The size of a chunk is malformed.")
            self.left = int(match[1], 16)
            self._part = _Part.DATA if self.left else _Part.TRAILER
        elif self._part is _Part.DATA_END:
            self._part = _Part.SIZE
        elif line:
            self._trailer_octets += len(line) + 2
            self._trailer_fields += 1
            name, _ = read_field(line)
            # RFC 9110 6.5.1: a sender must not, and an origin that merges trailers into the head would obey
            # them.
            if name in ROUTING_AND_FRAMING or is_forwarding(name) or self._trailer_fields > FIELDS_MAX:
                raise HeadRefused(400, "A trailer holds what belongs into the head, or too much.")
        else:
            self.ended = True

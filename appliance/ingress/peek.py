"""The first octets on the TLS port: a visitor's (or a link's, or a watch's) ClientHello, or the preface of
a lane.

Hides how the two are told apart: no TLS record begins with 0xf5, and the preface of a lane does. Links and
watches are TLS, too; their ALPN tells them from visitors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.ingress.clienthello import DECODE_ERROR, ClientHello, HelloReader, HelloRefused

LANE_MAGIC = b"\xf5tunnel\x01"
"""What a lane's preface begins with; the same constant as in ``tunnel/lane.py``, which a test compares."""

LANE_PREFACE_OCTETS = 40
"""Magic 8, session id 8, counter 8, authentication 16."""


@dataclass(frozen=True, slots=True)
class LanePreface:
    """A client opened a lane. ``octets40`` is the preface, not verified; ``rest`` what came behind it:
    nothing, usually.
    """

    octets40: bytes = field(repr=False)
    rest: bytes = field(repr=False)


class Peek:
    """Reads until it is clear who connected."""

    def __init__(self) -> None:
        self._preface: bytearray | None = None
        self._hello: HelloReader | None = None

    def feed(self, octets: bytes) -> ClientHello | LanePreface | None:
        """Take further octets; None while it is not clear yet. Raises HelloRefused. Not to be fed after
        either.
        """
        if self._hello is not None:
            return self._hello.feed(octets)
        if self._preface is None:
            if not octets:
                return None
            if octets[0] != LANE_MAGIC[0]:
                self._hello = HelloReader()
                return self._hello.feed(octets)
            self._preface = bytearray()
        read = self._preface
        read += octets
        if not LANE_MAGIC.startswith(read[: len(LANE_MAGIC)]):
            raise HelloRefused(DECODE_ERROR, "neither TLS nor the preface of a lane")
        if len(read) < LANE_PREFACE_OCTETS:
            return None
        return LanePreface(bytes(read[:LANE_PREFACE_OCTETS]), bytes(read[LANE_PREFACE_OCTETS:]))

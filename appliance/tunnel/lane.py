"""How a lane begins: whose it is (the preface), for whom it is taken (the sealed header), and the answer
(the status).

A lane's keys come from the exporter of its link, so only the two ends of that link can open or seal one. A
lane for TLS visitors is plain TCP: what follows the status is already encrypted between visitor and origin.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"\xf5tunnel\x01"
"""Not TLS (0x16), not HTTP (a letter), not UTF-8, not a PROXY header; the last octet is the version."""
PREFACE_OCTETS = 40
EXPORTER_LABEL = b"EXPORTER-tunnel-appliance-lane"
"""RFC 8446 7.5, as in RFC 9266; the context is empty."""
EXPORTED_OCTETS = 64
MAX_SEALED_OCTETS = 2048
"""The longest header of ours has 701 octets: addresses, an ALPN of 255, a name of 253, an id of 128."""
WINDOW_COUNTERS = 4096
"""How far lanes may overtake each other: eight times the lanes that a client opens to one server."""

_PREFACE = struct.Struct("!8s8sQ16s")
_LENGTH = struct.Struct("!H")
_NONCE = struct.Struct("!4xQ")
_MAC_OCTETS = 16
_TAG_OCTETS = 16


class LaneError(ValueError):
    """What arrived on a lane is not what the other end of its link sends."""


class Status(enum.IntEnum):
    """The one octet with which a client answers a sealed header. Behind JOINED come the origin's octets."""

    JOINED = 1
    ORIGIN_REFUSED = 2
    ORIGIN_UNREACHABLE = 3
    ORIGIN_SILENT = 4
    NO_ORIGIN = 5
    BUSY = 6
    NO_CERTIFICATE = 7


@dataclass(frozen=True, slots=True)
class LaneKeys:
    """The keys of all lanes of one session, 32 octets each."""

    preface: bytes = field(repr=False)
    header: bytes = field(repr=False)
    cipher: AESGCM = field(init=False, repr=False, compare=False)
    """Of the header's key, made once: its schedule costs as much as a header."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cipher", AESGCM(self.header))


class Preface(NamedTuple):
    """The first octets of a lane, believed or not."""

    session_id: bytes
    counter: int
    octets: bytes


def lane_keys(exported: bytes) -> LaneKeys:
    """The keys in the 64 octets that the link's TLS exporter gives for EXPORTER_LABEL."""
    if len(exported) != EXPORTED_OCTETS:
        raise LaneError(f"lane keys are made of {EXPORTED_OCTETS} exported octets, not {len(exported)}")
    return LaneKeys(exported[:32], exported[32:])


def write_preface(keys: LaneKeys, session_id: bytes, counter: int) -> bytes:
    """The 40 octets that open a lane. A session uses each counter (0 to 2^64-1) once."""
    unsigned = MAGIC + session_id + struct.pack("!Q", counter)
    return unsigned + _mac(keys, unsigned)


def read_preface(octets: bytes) -> Preface:
    """Takes 40 octets apart. Whether they are true only `verify` says. Raises LaneError."""
    if len(octets) != PREFACE_OCTETS or not octets.startswith(MAGIC):
        raise LaneError("not the preface of a lane")
    _, session_id, counter, _ = _PREFACE.unpack(octets)
    return Preface(session_id, counter, octets)


def verify(keys: LaneKeys, preface: Preface) -> bool:
    """Whether the client of these keys' session wrote it; in constant time."""
    split = PREFACE_OCTETS - _MAC_OCTETS
    return hmac.compare_digest(_mac(keys, preface.octets[:split]), preface.octets[split:])


def seal_header(keys: LaneKeys, preface: Preface, plaintext: bytes) -> bytes:
    """What the server writes when it takes the lane: a length, then AES-256-GCM of the PROXY header.

    The nonce is the lane's counter, which is used once; the preface is authenticated with it. Raises
    LaneError for a header that is too long.
    """
    sealed = keys.cipher.encrypt(_nonce(preface), plaintext, preface.octets)
    if len(sealed) > MAX_SEALED_OCTETS:
        raise LaneError(f"a header of {len(plaintext)} octets is too long")
    return _LENGTH.pack(len(sealed)) + sealed


class SealedHeader:
    """Reads at the client what `seal_header` wrote for the lane that it opened with this preface."""

    def __init__(self, keys: LaneKeys, preface: Preface) -> None:
        self._keys = keys
        self._preface = preface
        self._held = b""

    def feed(self, octets: bytes) -> tuple[bytes, bytes] | None:
        """The header and what was read behind it, once the header is complete; not to be called after that.

        Raises LaneError for one that is too short, too long, or sealed by somebody else or for another lane.
        """
        self._held += octets
        if len(self._held) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._held)
        if not _TAG_OCTETS <= length <= MAX_SEALED_OCTETS:
            raise LaneError(f"a sealed header cannot have {length} octets")
        end = _LENGTH.size + length
        if len(self._held) < end:
            return None
        sealed, rest = self._held[_LENGTH.size : end], self._held[end:]
        try:
            header = self._keys.cipher.decrypt(_nonce(self._preface), sealed, self._preface.octets)
        except InvalidTag:
            raise LaneError("the header was not sealed by this link's server for this lane") from None
        return header, rest


class CounterWindow:
    """Which counters of a session were used: a sliding window (RFC 6479), as lanes arrive unordered."""

    def __init__(self, size: int = WINDOW_COUNTERS) -> None:
        self._size = size
        self._highest = -1
        self._used = 0  # bit n: the counter `highest - n`

    def take(self, counter: int) -> bool:
        """Whether the counter is new, which it then is no more. One that fell out of the window is not."""
        if counter > self._highest:
            ahead = min(counter - self._highest, self._size)
            self._used = (self._used << ahead | 1) & ((1 << self._size) - 1)
            self._highest = counter
            return True
        behind = self._highest - counter
        if behind >= self._size:
            return False
        bit = 1 << behind
        if self._used & bit:
            return False
        self._used |= bit
        return True


def _mac(keys: LaneKeys, unsigned: bytes) -> bytes:
    return hmac.digest(keys.preface, unsigned, hashlib.sha256)[:_MAC_OCTETS]


def _nonce(preface: Preface) -> bytes:
    return _NONCE.pack(preface.counter)

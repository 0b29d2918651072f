"""Who sent this message: transaction signatures (TSIG, RFC 8945).

Hidden here: what exactly is signed, in which order a signature is judged, and how each refusal is answered.
Everything works on the octets as they came; no library has seen them before the signature was found right.
`wall` is the Unix time in seconds, for a signature is good for some minutes only.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from appliance.dns import names
from appliance.dns.numbers import FORMERR, NOTAUTH
from appliance.dns.sections import MessageError, Sections, name_at, read_sections

TSIG: Final = 250
_CLASS_ANY: Final = 255

# The RFC's recommendation (10), and the most that we allow a sender: what is remembered against replay lives
# as long as a signature may be good.
FUDGE_SECONDS: Final = 300

# Extended error codes (RFC 8945 3)
BADSIG: Final = 16
BADKEY: Final = 17
BADTIME: Final = 18
BADTRUNC: Final = 22
_ERROR_NAMES: Final = {BADSIG: "BADSIG", BADKEY: "BADKEY", BADTIME: "BADTIME", BADTRUNC: "BADTRUNC"}

# Name in wire form -> name of the hash. No MD5 (RFC 8945 6 forbids its use); SHA-1 must be there.
ALGORITHMS: Final = {
    names.from_text("hmac-sha1"): "sha1",
    names.from_text("hmac-sha224"): "sha224",
    names.from_text("hmac-sha256"): "sha256",
    names.from_text("hmac-sha384"): "sha384",
    names.from_text("hmac-sha512"): "sha512",
}
_MAC_OCTETS: Final = {"sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}
_MIN_MAC_OCTETS: Final = 10  # RFC 8945 5.2.2.1

# A message of a transfer that we receive. Each record has at least 11 octets.
MAX_STREAM_OCTETS: Final = 0xFFFF
_MAX_STREAM_RECORDS: Final = MAX_STREAM_OCTETS // 11
# RFC 8945 5.3.1: of a transfer, no more than this many messages may come without a signature.
_MAX_UNSIGNED: Final = 99

_HEAD: Final = Struct("!HHIH")
_U16: Final = Struct("!H")
_FIXED: Final = Struct("!HIHH")  # time signed (16 + 32 bits), fudge, MAC size
_REST: Final = Struct("!HHH")  # original ID, error, other length
_TIMERS: Final = Struct("!HIH")


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that two sides share. `name` and `algorithm` are names in wire form, lower-cased."""

    name: bytes
    algorithm: bytes
    secret: bytes = field(repr=False)

    @property
    def mac_octets(self) -> int:
        return _MAC_OCTETS[ALGORITHMS[self.algorithm]]

    @property
    def record_octets(self) -> int:
        """How long the record is that a signature adds to a message (16 more in an answer BADTIME)."""
        rdata = len(self.algorithm) + _FIXED.size + self.mac_octets + _REST.size
        return len(self.name) + _HEAD.size + rdata


Keys = Mapping[bytes, Key]
"""Keys by name."""


@dataclass(frozen=True, slots=True)
class Unsigned:
    """The message carries no signature."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The message was signed with `key`, and is as it was then.

    `message` is without the signature and has the ID of who signed it; `mac` is what a Signer of the answer
    needs. The same signature cannot be good after `good_until` (Unix time).
    """

    key: Key
    message: bytes
    mac: bytes
    signed_at: int
    good_until: int


@dataclass(frozen=True, slots=True)
class TsigError:
    """The message carries a signature that is not good.

    `rcode` is FORMERR, with `error` 0, where the record itself is no TSIG; else NOTAUTH.
    """

    rcode: int
    error: int = 0
    what: str = ""
    _name: bytes = b""
    _algorithm: bytes = b""
    _key: Key | None = None
    _mac: bytes = b""
    _signed_at: int = 0

    def answer(self, refusal: bytes, wall: int) -> bytes:
        """`refusal` (an answer with our `rcode` in it) with the TSIG record that RFC 8945 5.3.2 asks for."""
        if not self.error:
            return refusal
        if self._key is None:
            rdata = _rdata(self._algorithm, wall, b"", refusal[:2], self.error, b"")
            return _with_record(refusal, self._name, rdata)
        if self.error == BADTIME:  # with their time, that they can check the MAC, and ours
            other = wall.to_bytes(6, "big")
            return Signer(self._key, self._mac).sign(refusal, self._signed_at, error=BADTIME, other=other)
        return Signer(self._key, self._mac).sign(refusal, wall, error=self.error)


class TsigRefused(Exception):
    """An answer is not signed as it has to be; the text says why."""


def check(message: bytes, keys: Keys, wall: int) -> Signed | Unsigned | TsigError:
    """Who sent the request `message`, in the order of RFC 8945 5.2: form, key, MAC, time, length of the MAC.

    A bounded number of steps for any octets: what is larger than MAX_CHANGE_OCTETS, or has more than
    MAX_CHANGE_RECORDS records, is a FORMERR. Truncated MACs are refused (our policy, RFC 8945 5.2.4). Nothing
    is remembered: replay is for those who act on a message.
    """
    try:
        found = _find(read_sections(message), message)
    except MessageError as error:
        return TsigError(FORMERR, what=str(error))
    if found is None:
        return Unsigned()

    def refused(error: int, what: str, key: Key | None = None) -> TsigError:
        """With `key` the refusal is signed itself: only where we are sure who asked."""
        signed_at = found.signed_at
        return TsigError(NOTAUTH, error, what, found.name, found.algorithm, key, found.mac, signed_at)

    key = keys.get(found.name)
    if key is None or key.algorithm != found.algorithm:
        what = f"no key {names.to_text(found.name)} with {names.to_text(found.algorithm)}"
        return refused(BADKEY, what)
    if not max(_MIN_MAC_OCTETS, key.mac_octets // 2) <= len(found.mac) <= key.mac_octets:
        return TsigError(FORMERR, what=f"a MAC of {len(found.mac)} octets")
    right = _mac(key, b"", found.signed, found.variables())
    if not hmac.compare_digest(right[: len(found.mac)], found.mac):
        return refused(BADSIG, f"not signed with the key {names.to_text(key.name)}")
    fudge = min(found.fudge, FUDGE_SECONDS)
    if abs(wall - found.signed_at) > fudge:
        return refused(BADTIME, f"signed {wall - found.signed_at} seconds ago", key)
    if len(found.mac) < key.mac_octets:
        return refused(BADTRUNC, "a truncated MAC", key)
    return Signed(key, found.signed, found.mac, found.signed_at, found.signed_at + fudge)


class Signer:
    """Signs the answer to a request with the MAC `request_mac`, or each message of an answer of several; with
    an empty `request_mac`, a request."""

    def __init__(self, key: Key, request_mac: bytes = b"") -> None:
        self._key = key
        self._before = _counted(request_mac) if request_mac else b""
        self._is_first = True
        self.mac = b""
        """The MAC of the last message signed: after a request, what its answer is checked with."""

    def sign(self, message: bytes, wall: int, *, error: int = 0, other: bytes = b"") -> bytes:
        """`message` with a signature made at `wall`. It grows by the key's `record_octets` and `other`."""
        key = self._key
        timers = _timers(wall, FUDGE_SECONDS)
        if self._is_first:
            timers = _variables(key.name, key.algorithm, timers, error, other)
        self.mac = _mac(key, self._before, message, timers)
        self._before = _counted(self.mac)
        self._is_first = False
        return _with_record(
            message, key.name, _rdata(key.algorithm, wall, self.mac, message[:2], error, other)
        )


class Verifier:
    """Checks the answer to a request that we signed, message by message if it has several."""

    def __init__(self, key: Key, request_mac: bytes) -> None:
        self._key = key
        self._is_first = True
        self._unsigned = 0
        self._digest = self._begun(request_mac)

    @property
    def is_settled(self) -> bool:
        """Whether the last message was signed. An answer that ends otherwise is not whole."""
        return not self._is_first and not self._unsigned

    def check(self, message: bytes, wall: int) -> bytes:
        """`message` without its signature. Raises TsigRefused."""
        try:
            sections = read_sections(
                message,
                max_octets=MAX_STREAM_OCTETS,
                max_records=_MAX_STREAM_RECORDS,
                needs_question=False,
            )
            found = _find(sections, message)
        except MessageError as error:
            raise TsigRefused(f"the answer is malformed: {error}") from None
        if found is None:
            self._unsigned += 1
            if self._is_first or self._unsigned > _MAX_UNSIGNED:
                raise TsigRefused("the answer is not signed")
            self._digest.update(message)
            return message
        key = self._key
        if found.error:
            raise TsigRefused(f"our signature was refused: {_ERROR_NAMES.get(found.error, found.error)}")
        if (found.name, found.algorithm) != (key.name, key.algorithm):
            raise TsigRefused("the answer is signed with another key")
        self._digest.update(found.signed)
        self._digest.update(found.variables() if self._is_first else _timers(found.signed_at, found.fudge))
        if not hmac.compare_digest(self._digest.digest(), found.mac):
            raise TsigRefused("the signature of the answer is wrong")
        if abs(wall - found.signed_at) > min(found.fudge, FUDGE_SECONDS):
            raise TsigRefused("the answer was signed at another time: are both clocks right?")
        self._is_first = False
        self._unsigned = 0
        self._digest = self._begun(found.mac)
        return found.signed

    def _begun(self, mac: bytes) -> hmac.HMAC:
        return hmac.new(self._key.secret, _counted(mac), ALGORITHMS[self._key.algorithm])


@dataclass(frozen=True, slots=True)
class _Found:
    """A TSIG record, and the message that was signed: without it, and with its original ID."""

    name: bytes
    algorithm: bytes
    signed_at: int
    fudge: int
    mac: bytes
    error: int
    other: bytes
    signed: bytes

    def variables(self) -> bytes:
        return _variables(
            self.name, self.algorithm, _timers(self.signed_at, self.fudge), self.error, self.other
        )


def _find(sections: Sections, message: bytes) -> _Found | None:
    """The TSIG record of `message`. Raises MessageError where it has one in a wrong place or form."""
    spans = (*sections.answer, *sections.authority, *sections.additional)
    if any(span.rtype == TSIG for span in spans[:-1]):
        raise MessageError("a TSIG that is not the last record")  # RFC 8945 5.1
    last = sections.additional[-1] if sections.additional else None
    if last is None and any(span.rtype == TSIG for span in spans):
        raise MessageError("a TSIG in the wrong section")
    if last is None or last.rtype != TSIG:
        return None
    if last.rclass != _CLASS_ANY or last.ttl != 0:
        raise MessageError("a TSIG of another class than ANY or with a TTL")
    name, _ = name_at(message, last.owner)
    algorithm, at = name_at(message, last.rdata)
    mac_at = at + _FIXED.size
    if mac_at > last.end:
        raise MessageError("a TSIG that is cut off")
    high, low, fudge, mac_octets = _FIXED.unpack_from(message, at)
    rest = mac_at + mac_octets
    other_at = rest + _REST.size
    if other_at > last.end:
        raise MessageError("a TSIG that is cut off")
    original_id, error, other_octets = _REST.unpack_from(message, rest)
    if other_at + other_octets != last.end:
        raise MessageError("a TSIG of another length than it says")
    signed = b"".join(
        (
            _U16.pack(original_id),
            message[2:10],
            _U16.pack(len(sections.additional) - 1),
            message[12 : last.owner],
        )
    )
    mac, other = message[mac_at:rest], message[other_at : last.end]
    return _Found(name, algorithm, high << 32 | low, fudge, mac, error, other, signed)


def _mac(key: Key, before: bytes, message: bytes, after: bytes) -> bytes:
    return hmac.digest(key.secret, before + message + after, ALGORITHMS[key.algorithm])


def _counted(mac: bytes) -> bytes:
    return _U16.pack(len(mac)) + mac


def _timers(signed_at: int, fudge: int) -> bytes:
    return _TIMERS.pack(signed_at >> 32, signed_at & 0xFFFFFFFF, fudge)


def _variables(name: bytes, algorithm: bytes, timers: bytes, error: int, other: bytes) -> bytes:
    """RFC 8945 4.3.3."""
    head = name + _U16.pack(_CLASS_ANY) + b"\x00\x00\x00\x00" + algorithm
    return head + timers + _U16.pack(error) + _counted(other)


def _rdata(
    algorithm: bytes, signed_at: int, mac: bytes, message_id: bytes, error: int, other: bytes
) -> bytes:
    timers = _timers(signed_at, FUDGE_SECONDS)
    return algorithm + timers + _counted(mac) + message_id + _U16.pack(error) + _counted(other)


def _with_record(message: bytes, name: bytes, rdata: bytes) -> bytes:
    count = int.from_bytes(message[10:12], "big") + 1
    head = name + _HEAD.pack(TSIG, _CLASS_ANY, 0, len(rdata))
    return message[:10] + _U16.pack(count) + message[12:] + head + rdata

"""A tunnel server and one nameserver that it announces itself to: what is sent, and what an answer means.

Hides the signature, which of the keys is the right one, and when to say it again. `wall` is the Unix time in
seconds, which signatures go by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.dns.numbers import (
    FORMERR,
    NOERROR,
    NOTAUTH,
    NOTIMP,
    REFUSED,
    SERVFAIL,
    UPDATE,
    YXRRSET,
)
from appliance.dns.tsig import Key, Signer, TsigRefused, Verifier
from appliance.dns.updatelease import lease_granted
from appliance.fleet.announcement import Announcement, compose
from appliance.fleet.introduced import LEASE_SECONDS, MIN_LEASE_SECONDS, REFRESH_SHARE, REFRESH_SPREAD

RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 16.0
"""Whoever refuses on principle, as a stock secondary among the zone's nameservers does, is asked less often;
a clock that is set right is still noticed within 2 s.
"""
TAKEN = "taken"
_WORDS = {
    FORMERR: "FORMERR",
    SERVFAIL: "SERVFAIL",
    NOTIMP: "NOTIMP",
    REFUSED: "REFUSED",
    NOTAUTH: "NOTAUTH",
    YXRRSET: "it knows of a later announcement",
}
_PASSING = (SERVFAIL, YXRRSET)
_BAD_TIME = "BADTIME"
_HEADER_OCTETS = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an announcement, in words for the log, and in how many seconds comes the next one."""

    words: str
    next_seconds: float

    @property
    def is_taken(self) -> bool:
        return self.words == TAKEN


class Announcing:
    """The announcements of a server to one nameserver. `keys` are those that may be the right one there, the
    likeliest first; `chance()` is between 0 and 1, a new one each time.
    """

    def __init__(self, apex: bytes, server_id: str, keys: Sequence[Key], chance: Callable[[], float]) -> None:
        self._apex = apex
        self._server_id = server_id
        self._keys = keys
        self._chance = chance
        self._key = 0
        self._refusals = 0
        self._message_id = 0
        self._mac = b""

    def announce(self, said: Announcement, message_id: int, wall: float) -> bytes:
        """The signed message to send. Raises BadName."""
        signer = Signer(self._keys[self._key])
        message = compose(message_id, self._apex, self._server_id, said, LEASE_SECONDS)
        octets = signer.sign(message, int(wall))
        self._message_id, self._mac = message_id, signer.mac
        return octets

    def judge(self, octets: bytes, wall: float) -> Outcome | None:
        """What this message says of the last one sent; None: it is not its answer."""
        if len(octets) < _HEADER_OCTETS or octets[2] & 0xF8 != 0x80 | UPDATE << 3:
            return None
        if int.from_bytes(octets[:2], "big") != self._message_id:
            return None
        rcode = octets[3] & 0xF
        problem, plain = "", b""
        try:
            plain = Verifier(self._keys[self._key], self._mac).check(octets, int(wall))
        except TsigRefused as refused:
            problem = str(refused)
        if rcode == NOERROR:
            return self._taken(plain) if not problem else None  # anybody can say yes
        if rcode == NOTAUTH and problem:
            return self._bad_signature(problem)
        words = _WORDS.get(rcode, f"RCODE {rcode}")
        return Outcome(words, RETRY_SECONDS) if rcode in _PASSING else self._refused(words)

    def unanswered(self, why: str, waited_seconds: float) -> Outcome:
        """Nothing came back in this time."""
        return Outcome(why, max(0.0, RETRY_SECONDS - waited_seconds))

    def _taken(self, plain: bytes) -> Outcome:
        self._refusals = 0
        granted = lease_granted(plain)
        seconds = LEASE_SECONDS if granted is None else max(MIN_LEASE_SECONDS, min(granted, LEASE_SECONDS))
        return Outcome(TAKEN, seconds * (REFRESH_SHARE + REFRESH_SPREAD * self._chance()))

    def _bad_signature(self, problem: str) -> Outcome:
        if _BAD_TIME in problem:
            return Outcome(f"{problem}: its clock or ours is wrong by more than 5 minutes", RETRY_SECONDS)
        self._key = (self._key + 1) % len(self._keys)
        return Outcome(problem, RETRY_SECONDS) if self._key else self._refused(problem)

    def _refused(self, words: str) -> Outcome:
        seconds = min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(self._refusals, 10))
        self._refusals += 1
        return Outcome(words, seconds)

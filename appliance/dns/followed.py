"""What comes to a nameserver about a zone whose primary is another one: NOTIFY (RFC 1996), and UPDATE, which
it passes on (RFC 2136 6).

Hidden here: who is believed. A NOTIFY has to be signed with the key that the primary shares with us. The keys
of those who change records are the primary's to know: what they signed goes on as it is, octet for octet, and
it is the primary who checks it and signs the answer. Only a signature of a key that we happen to hold is
checked here as well; and what carries none never goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.dns.answer import refuse
from appliance.dns.numbers import NOERROR, NOTAUTH, REFUSED
from appliance.dns.tsig import BADKEY, Key, Keys, Signed, Signer, TsigError, check
from appliance.dns.update import UpdateAsked

Followed = Mapping[bytes, Key]
"""By the apex of each zone that has its primary elsewhere: the key that we share with that primary."""


@dataclass(frozen=True, slots=True)
class NotifyHeard:
    """The primary of the zone `apex` says that it has a newer version; `octets` answer it."""

    apex: bytes
    octets: bytes

    def answer(self, rcode: int, wall: float) -> bytes:
        """What was heard is answered at once."""
        return self.octets


@dataclass(frozen=True, slots=True)
class ForwardAsked:
    """An UPDATE of the zone `apex` for its primary. `message` is as it came from the address `source`, its
    zone section ends at `end`; `signed` where the key is one of ours: else anybody can have made it.
    """

    apex: bytes
    message: bytes
    end: int
    source: str
    signed: Signed | None

    def answer(self, rcode: int, wall: float) -> bytes:
        """An answer of our own; signed where we can."""
        refusal = refuse(self.message, rcode, self.end)
        if self.signed is None:
            return refusal
        return Signer(self.signed.key, self.signed.mac).sign(refusal, int(wall))


Asked = UpdateAsked | ForwardAsked | NotifyHeard
ASKED = (UpdateAsked, ForwardAsked, NotifyHeard)
"""What a message may ask for that is done elsewhere, and then answered."""


def hear(message: bytes, apex: bytes, end: int, key: Key, wall: int) -> NotifyHeard | TsigError | bytes:
    """What the NOTIFY `message` of the zone `apex`, whose question ends at `end`, is to us."""
    checked = check(message, {key.name: key}, wall)
    if isinstance(checked, TsigError):
        return checked
    if not isinstance(checked, Signed):
        return refuse(message, REFUSED, end)
    return NotifyHeard(apex, Signer(key, checked.mac).sign(refuse(message, NOERROR, end), wall))


def pass_on(
    message: bytes, apex: bytes, end: int, keys: Keys, *, source: str, wall: int
) -> ForwardAsked | TsigError | bytes:
    """What the UPDATE `message` of the zone `apex`, whose zone section ends at `end`, is to us."""
    checked = check(message, keys, wall)
    if isinstance(checked, Signed):
        return ForwardAsked(apex, message, end, source, checked)
    if not isinstance(checked, TsigError):
        return refuse(message, REFUSED, end)
    if (checked.rcode, checked.error) == (NOTAUTH, BADKEY):
        return ForwardAsked(apex, message, end, source, None)
    return checked

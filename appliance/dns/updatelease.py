"""For how long a change by UPDATE is asked for, and granted: the Update Lease option (RFC 9664).

Hidden here: the two forms of the option. The second one has a lease of its own for KEY records, which we have
none of.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from appliance.dns.answer import option
from appliance.dns.numbers import OPT, UPDATE_LEASE
from appliance.dns.sections import MessageError, Sections, read_sections

_HEAD: Final = Struct("!HH")
_SECONDS: Final = Struct("!I")
_SIZES: Final = (4, 8)  # RFC 9664 4: with and without KEY-LEASE


class LeaseMalformed(Exception):
    """The options of the message have no form, or its Update Lease option has another size than one has."""


def lease_option(seconds: int) -> bytes:
    """The option that asks for, or grants, a lease of so many seconds."""
    return option(UPDATE_LEASE, _SECONDS.pack(seconds))


def lease_in(message: bytes, sections: Sections) -> int | None:
    """The seconds in the Update Lease option of `message`; None: it has none. Raises LeaseMalformed."""
    for span in sections.additional:
        at = span.rdata
        while span.rtype == OPT and at < span.end:
            if at + _HEAD.size > span.end:
                raise LeaseMalformed
            code, length = _HEAD.unpack_from(message, at)
            at += _HEAD.size
            if at + length > span.end or (code == UPDATE_LEASE and length not in _SIZES):
                raise LeaseMalformed
            if code == UPDATE_LEASE:
                seconds: int = _SECONDS.unpack_from(message, at)[0]
                return seconds
            at += length
    return None


def lease_granted(answer: bytes) -> int | None:
    """What `answer`, whose signature was found right, grants; None where it says nothing of it."""
    try:
        return lease_in(answer, read_sections(answer, needs_question=False))
    except (MessageError, LeaseMalformed):
        return None

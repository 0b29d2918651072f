"""What an answer depends on, and what a change touches, in one vocabulary: an answer that depends on
something that was touched is no longer true.

Hidden here: how the three kinds are told apart. They are octets, for they are keys of the table: a name is
itself, and the first octet of a name is never above 63.
"""

from __future__ import annotations

_STANDING = b"\xff"
_SOA = b"\xfe"
_ZONE = b"\xfd"

# Touched as the name itself: which records are there. Whatever begins or ceases to exist is touched so, too.


def standing(name: bytes) -> bytes:
    """That `name` exists, be it without records, and whether it is a cut or has a DNAME: what is asked of the
    names above the one that a question is for."""
    return _STANDING + name


def soa_of(apex: bytes) -> bytes:
    """The SOA of the zone `apex`, but for its serial."""
    return _SOA + apex


def zone_at(apex: bytes) -> bytes:
    """Anything at all in the zone `apex`."""
    return _ZONE + apex

"""Types of records as they are written: "A", "TYPE65280".

Hidden here: dnspython, which knows the names of them all.
"""

from __future__ import annotations

import dns.exception
import dns.rdatatype

from appliance.dns import names


class BadType(ValueError):
    """There is no such type of records."""


def from_text(text: str) -> int:
    """The number of the type `text`, in any case. Raises BadType, also for types of questions (ANY, AXFR)."""
    try:
        rtype = dns.rdatatype.from_text(text)
    except (dns.exception.DNSException, ValueError):
        raise BadType(f"there is no record type '{text}'") from None
    if dns.rdatatype.is_metatype(rtype) or rtype == 0:
        raise BadType(f"{text.upper()} is a type of questions, not of records")
    return int(rtype)


def to_text(rtype: int) -> str:
    """How the type `rtype` is written."""
    return dns.rdatatype.to_text(rtype)  # type: ignore[arg-type]


def text_of(name: bytes, rtype: int) -> str:
    """Which rrset that is: "www.demo.test A"."""
    return f"{names.to_text(name)} {to_text(rtype)}"

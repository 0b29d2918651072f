"""How a host name is written, so that two spellings of one name are one name everywhere else.

A host name is a `str`: lower case, A-labels, no trailing dot. A wildcard is one whose first label is `*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_NAME_OCTETS = 253
"""RFC 1035 2.3.4: 255 octets on the wire, less the first length octet and the root's."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")  # RFC 1123 2.1, and "_" as in SRV names
_HOST_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadHostName(ValueError):
    """That is not a host name."""


def normal(text: str) -> str:
    """The one spelling of a host name or wildcard: `"WWW.Example.org."` gives `"www.example.org"`.

    Raises BadHostName for anything that is not letters, digits, hyphens and underscores in labels of 1 to 63
    octets, 253 octets in all; for a `*` anywhere but as the first label of several; and for an IP address, or
    what a browser would take for one (WHATWG URL 3.5: a last label that is a number).
    """
    if len(text) > MAX_NAME_OCTETS + 1:
        raise BadHostName(f"a host name has at most {MAX_NAME_OCTETS} octets, this one has {len(text)}")
    if not text.isascii():
        raise BadHostName(f"{text!r} is not in A-label form (xn--…)")
    name = text.lower().removesuffix(".")
    if len(name) > MAX_NAME_OCTETS:
        raise BadHostName(f"a host name has at most {MAX_NAME_OCTETS} octets, this one has {len(name)}")
    labels = name.removeprefix("*.").split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise BadHostName(f"{text!r} is not a host name: the label {label!r}")
    if _NUMBER.fullmatch(labels[-1]):
        raise BadHostName(f"{text!r} is an IP address or would be taken for one, not a host name")
    return name


def is_host(text: str) -> bool:
    """Whether this is the one spelling of a host that a visitor may ask for: a normal name that is no
    wildcard, but labels may begin and end with a hyphen.

    Nobody registers such a name (RFC 1123 2.1), but under a wildcard there are such hosts, and browsers ask
    for them. These are exactly what `appliance.ingress.hostname` lets through: a server sends each of them to
    a client.
    """
    labels = text.split(".")
    return (
        len(text) <= MAX_NAME_OCTETS
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not _NUMBER.fullmatch(labels[-1])
    )


def is_wildcard(name: str) -> bool:
    """Whether a normal name stands for all names below its parent."""
    return name.startswith("*.")


def wildcards_over(name: str) -> Iterator[str]:
    """The wildcards that a normal name falls under, the closest first.

    `www.apps.example.org` gives `*.apps.example.org`, `*.example.org`, `*.org`. A wildcard gives those above
    it.
    """
    rest = name.removeprefix("*.") if is_wildcard(name) else name
    while "." in rest:
        rest = rest.partition(".")[2]
        yield f"*.{rest}"


def covers(pattern: str, name: str) -> bool:
    """Whether a normal name or wildcard matches a normal name, as in the DNS (RFC 4592: at any depth)."""
    return pattern == name or pattern in wildcards_over(name)

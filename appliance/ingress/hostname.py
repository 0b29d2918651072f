"""Which octets may name a host. Hides the one rule that a ClientHello and a Host field share.

A name is a key to look up and nothing else: it is never dialled and never resolved (CVE-2023-25076 of
sniproxy is what comes of more). So the rule has only to make equal names equal, and to let nothing through
that another program would read as something else.
"""

from __future__ import annotations

import re
from functools import lru_cache

NAME_OCTETS_MAX = 253
"""RFC 1035 2.3.4: 255 octets on the wire are 253 in text."""

LABEL_OCTETS_MAX = 63
"""RFC 1035 2.3.4."""

# LDH and the underscore. A hyphen at either end of a label is let through: such hosts exist, and browsers
# ask for them. A client must take what is let through here: `is_host` of appliance.tunnel.names.
_LABEL = re.compile(rb"[a-z0-9_-]{1,%d}" % LABEL_OCTETS_MAX)

# What ends in a number is an IPv4 address to a browser, in any of its spellings: 127.0.0.1, 127.1, 0x7f.1
# (WHATWG URL, "ends in a number"; no top-level domain is numeric, RFC 3696 2).
_NUMBER = re.compile(rb"[0-9]+|0x[0-9a-f]*")


@lru_cache(4096)  # the names of one server are asked for again and again
def host_name(octets: bytes) -> str | None:
    """The name in lower case without its trailing dot; None if these octets cannot be the name of a host.

    Refused are: an address in any spelling, an empty name or label, more than 253 octets, a label of more
    than 63, and every octet but letters, digits, ``-``, ``_`` and the dots between labels.
    """
    name = octets.lower().removesuffix(b".")
    if len(name) > NAME_OCTETS_MAX:
        return None
    labels = name.split(b".")
    if not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        return None
    return name.decode("ascii")

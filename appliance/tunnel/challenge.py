"""What a challenge of ACME by DNS (dns-01, RFC 8555 8.4) is on a link and on a watch: where, what, whose.

A certificate's name, which may be a wildcard, is challenged by a TXT record below it; the wildcard
`*.example.org` where `example.org` is.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.tunnel.names import MAX_NAME_OCTETS, covers

LABEL = "_acme-challenge"
VALUE_PATTERN = "[A-Za-z0-9_-]{43}"
"""RFC 8555 8.4: the base64url of a SHA-256 digest, without padding."""
LIFE_SECONDS = 600
"""How long a challenge is published at most, unless it is said again. Let's Encrypt is done in a minute; an
hour more would help nobody, and a client that died must not leave its records."""
MAX_OF_CLIENT = 256
"""At a time, of one client: as many as there are names in a session."""


def owner_of(name: str) -> str:
    """Where the challenge of a normal name or wildcard is."""
    return f"{LABEL}.{name.removeprefix('*.')}"


def may_be_challenged(granted: Iterable[str], name: str) -> bool:
    """Whether whoever is granted these names or wildcards may get a certificate for a normal name.

    Below a wildcard for any name: its visitors are his, and a certificate of the wildcard is good for them.
    """
    fits = len(owner_of(name)) <= MAX_NAME_OCTETS
    return fits and any(covers(one, name) for one in granted)

"""What a challenge of ACME by DNS (dns-01, RFC 8555 8.4) is on a link and on a watch: where, what, whose.

The client signs it with the key of its certificate, and each nameserver looks at that: so a stolen server,
which sees the certificates of all, cannot have a challenge of its own published for any of their names.
A certificate's name, which may be a wildcard, is challenged by a TXT record below it; the wildcard
`*.example.org` where `example.org` is.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from appliance.tunnel.names import MAX_NAME_OCTETS, covers
from appliance.tunnel.signature import is_signature
from appliance.tunnel.signature import signature as made

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


def sign(key: EllipticCurvePrivateKey, name: str, value: str) -> str:
    """The signature of a client under a challenge of a normal name."""
    return made(key, _signed(name, value))


def is_signed(certificate: x509.Certificate, name: str, value: str, signature: str) -> bool:
    """Whether the client with this certificate signed that."""
    return is_signature(certificate, _signed(name, value), signature)


def _signed(name: str, value: str) -> bytes:
    """It needs no time: a value is good for one order of one account at a CA."""
    return f"tunnel-appliance challenge/1 {name} {value}".encode("ascii")

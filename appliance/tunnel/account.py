"""A client's account at a CA, as it is said on a link and on a watch, so that CAA records may be bound to it.

The client signs it with the key of its certificate, and each nameserver looks at that: so a stolen server
cannot have an account of its own named in anybody's CAA. Two running clients of one certificate have an
account each, and are told apart by their instance; of one instance's the account that was said last counts,
so that an old one, said again by somebody else, replaces nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from appliance.tunnel.signature import is_signature, signature

URL_PATTERN = "https?://[!-:<-~]{1,247}"
"""Of what can stand in a parameter of CAA (RFC 8659 4.2: printable, without blanks and semicolons), 255
octets at most."""
ISSUER_PATTERN = r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
"""What a CA calls itself in CAA (RFC 8659 4.2), in lower case."""
MAX_ISSUERS = 16
"""Sectigo has most, with a dozen or so."""
MAX_OF_CLIENT = 16
"""Accounts of one client: as many as it may have running instances."""
MAX_AT = 1 << 40
"""Unix time, 34,000 years of it."""


def sign(key: EllipticCurvePrivateKey, instance: str, at: int, url: str, issuers: Sequence[str]) -> str:
    """The signature of a client's instance under its account, said at that Unix time."""
    return signature(key, signed_octets(instance, at, url, issuers))


def is_signed(
    certificate: x509.Certificate, instance: str, at: int, url: str, issuers: Sequence[str], made: str
) -> bool:
    """Whether the client with this certificate signed that."""
    return is_signature(certificate, signed_octets(instance, at, url, issuers), made)


def signed_octets(instance: str, at: int, url: str, issuers: Sequence[str]) -> bytes:
    """What the signature is of."""
    return f"tunnel-appliance account/1 {instance} {at} {url} {','.join(issuers)}".encode("ascii")

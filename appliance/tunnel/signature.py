"""What a client signs with the key of its certificate, for nameservers that it never meets.

Hides the algorithm: ECDSA with P-256 and SHA-256, base64 of the DER. What is signed begins with words that
say what it is, so that a signature is good for nothing else.
"""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256

SIGNATURE_PATTERN = "[A-Za-z0-9+/=]{1,128}"
"""Base64 of an ECDSA signature with P-256 in DER, at most 72 octets."""


def signature(key: EllipticCurvePrivateKey, octets: bytes) -> str:
    """Of these octets, with this key."""
    return base64.b64encode(key.sign(octets, ECDSA(SHA256()))).decode("ascii")


def is_signature(certificate: x509.Certificate, octets: bytes, made: str) -> bool:
    """Whether the client with this certificate signed that."""
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        return False
    try:
        key.verify(base64.b64decode(made, validate=True), octets, ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True

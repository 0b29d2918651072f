"""A web server's certificate with its key, as PEM files hold them: is it one, and for which names?

What is judged here is what would otherwise show only at the first visitor: files that do not belong
together, are cut off, or are another name's. Dates are not: a certificate that has expired is still more
than none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

Part = Literal["certificate", "key"]

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


class KeypairRefused(ValueError):
    """That is no certificate with its key"""

    def __init__(self, part: Part, text: str) -> None:
        """``part``: which of the two is at fault. ``text``: what follows the file's name in a sentence."""
        super().__init__(text)
        self.part: Part = part
        self.text = text


@dataclass(frozen=True, slots=True)
class Keypair:
    """A certificate, those between it and its root behind it, and its key, all as PEM.

    ``names`` are its dNSNames, lower case.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    names: tuple[str, ...]
    serial_number: int
    expires: datetime

    def is_for(self, name: str) -> bool:
        """Whether a browser takes it for this normal name or wildcard: ``*`` is one label (RFC 9525 6.3)."""
        return name in self.names or f"*.{name.partition('.')[2]}" in self.names


def read_keypair(certificate_pem: bytes, key_pem: bytes) -> Keypair:
    """What two files hold. Raises KeypairRefused."""
    leaf = _leaf(certificate_pem)
    try:
        public = _public(leaf.public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise KeypairRefused("certificate", "is of a key that cannot be read") from None
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except TypeError:  # what cryptography says of a key with a password
        raise KeypairRefused("key", "its key is encrypted; a program that starts by itself cannot") from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeypairRefused("key", "holds no private key in PEM that can be read whole") from None
    if _public(key.public_key()) != public:
        raise KeypairRefused("key", "is not the key of the first certificate")
    try:
        named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(name.lower() for name in named.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        names = ()
    return Keypair(certificate_pem, key_pem, names, leaf.serial_number, leaf.not_valid_after_utc)


def _leaf(certificate_pem: bytes) -> x509.Certificate:
    # A file that is cut off between two certificates is whole to a reader of PEM; within one it shows.
    if certificate_pem.count(_BEGIN) != certificate_pem.count(_END):
        raise KeypairRefused("certificate", "is cut off")
    try:
        return x509.load_pem_x509_certificates(certificate_pem)[0]
    except (ValueError, UnsupportedAlgorithm):
        raise KeypairRefused("certificate", "holds no certificate in PEM that can be read whole") from None


def _public(key: object) -> bytes:
    octets: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return octets

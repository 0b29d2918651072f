"""What a CA that speaks ACME is sent about a certificate (RFC 8555 7.4, RFC 9773), and how long one lives."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.tunnel.issuance import Lifetime


class WindowRefused(ValueError):
    """That is no window for a renewal"""


def new_key() -> str:
    """A key for a certificate, P-256, as PEM."""
    octets = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return octets.decode("ascii")


def request_for(name: str, key_pem: str) -> x509.CertificateSigningRequest:
    """What a certificate for `name` is asked for with. Its subject is empty: the CA looks at SANs only."""
    key: Any = serialization.load_pem_private_key(key_pem.encode("ascii"), None)
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    return asked.add_extension(names, critical=True).sign(key, hashes.SHA256())  # RFC 5280 4.1.2.6


def lifetime_of(certificate_pem: bytes) -> Lifetime:
    """Of the first certificate."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    return Lifetime(leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def certificate_id(certificate_pem: bytes) -> str | None:
    """What a CA calls the first certificate (RFC 9773 4.1); None where it does not say who signed it."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    try:
        signer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None
    if signer is None:
        return None
    serial = leaf.serial_number
    # As in DER: with a leading zero bit, since it is not negative.
    return f"{_base64(signer)}.{_base64(serial.to_bytes(serial.bit_length() // 8 + 1))}"


def read_window(said: Any) -> tuple[datetime, datetime]:
    """The first and last moment that a RenewalInfo object names (RFC 9773 4.2). Raises WindowRefused."""
    try:
        window = said["suggestedWindow"]
        first, last = (datetime.fromisoformat(window[end]) for end in ("start", "end"))
        if first > last:  # raises TypeError where one of them has a zone and one has not
            raise ValueError("it ends before it starts")
    except (TypeError, KeyError, ValueError) as error:
        raise WindowRefused(f"{type(error).__name__}: {error}") from None
    if first.tzinfo is None:
        raise WindowRefused("it has no time zone")
    return first, last


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")

"""How a certificate of ours is renewed: when, what is asked for, whose word counts, and what is taken for it.

Who holds a certificate makes a new key, asks for a certificate of it with a CSR (RFC 2986) that has the names
of the one he holds, and signs that CSR with the old key. So a tunnel server or nameserver that passes it on
can neither put its own key in nor ask for itself; what it brings back is looked at as a stranger's. `wall` is
an aware datetime.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.tunnel.certificates import SKEW, CertificateRefused, Credential, Peer, read_peer
from appliance.tunnel.signature import is_signature, signature

PEM_PATTERN = "[A-Za-z0-9+/= \n-]{1,31000}"
"""Of a certificate or a CSR with 256 names; two of them fit a line of 64 KiB, with a line feed as two octets.
"""
DIGEST_DIGITS = 64
SPREAD_SHARE = 0.2
"""Of the last third, the part over which those who were invited together ask one after the other."""


class RenewalRefused(Exception):
    """The certificate is not renewed; the text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the certificate held, the CSR for the next one (both PEM), and the signature of both."""

    certificate: str
    request: str
    signature: str = field(repr=False)

    @property
    def digest(self) -> str:
        """What an answer names it by: SHA-256 of the CSR as it was sent, 64 hexadecimal digits."""
        return hashlib.sha256(self.request.encode("ascii")).hexdigest()

    @property
    def fits(self) -> bool:
        """Whether it can be said on a watch."""
        return all(re.fullmatch(PEM_PATTERN, pem) for pem in (self.certificate, self.request))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request says, by whoever holds the key of the certificate in it."""

    peer: Peer
    key: ec.EllipticCurvePublicKey

    @property
    def digest(self) -> str:
        """Of the new key: SHA-256 of its SubjectPublicKeyInfo, 64 hexadecimal digits."""
        return _digest_of(self.key)


def renewable_from(certificate: x509.Certificate) -> datetime:
    """From when on it may be renewed: a third of its lifetime is left."""
    return certificate.not_valid_after_utc - _lifetime(certificate) / 3


def due_at(certificate: x509.Certificate, share: float) -> datetime:
    """When its holder asks: `share` (0 to 1), which is his own, spreads a fleet that was invited together."""
    return renewable_from(certificate) + _lifetime(certificate) / 3 * SPREAD_SHARE * share


def overdue_from(certificate: x509.Certificate) -> datetime:
    """From when on somebody has to look after it: half of the time for its renewal is over."""
    return certificate.not_valid_after_utc - _lifetime(certificate) / 6


def share_of(text: str) -> float:
    """A share that is always the same for the same text, and for each text another."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def ask(held: Credential, key: ec.EllipticCurvePrivateKey) -> Request:
    """The request of who holds `held` for a certificate of `key`."""
    sans = held.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(sans.value, critical=False).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode("ascii")
    signed = signature(held.key, _signed(held.certificate, pem))
    return Request(held.certificate_pem().decode("ascii"), pem, signed)


def judge(request: Request) -> Wanted:
    """What is asked, if it is the holder of the certificate who asks, for a key that he has, and for no other
    names. Whether the certificate is good is not looked at. Raises RenewalRefused.
    """
    try:
        certificate = x509.load_pem_x509_certificate(request.certificate.encode("ascii"))
        csr = x509.load_pem_x509_csr(request.request.encode("ascii"))
        sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_possessed = csr.is_signature_valid
        key, old = csr.public_key(), certificate.public_key()
        peer = read_peer(certificate)
    except CertificateRefused as refused:
        raise RenewalRefused(refused.text) from None
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise RenewalRefused(f"the request cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RenewalRefused("the new key is not a P-256 key")
    if not is_possessed:
        raise RenewalRefused("the request is not signed with the new key")
    if not is_signature(certificate, _signed(certificate, request.request), request.signature):
        raise RenewalRefused("the request is not signed with the key of the certificate")
    if key == old:
        raise RenewalRefused("the new key is the old one")
    if sans != held:
        raise RenewalRefused("the request has other names than the certificate")
    return Wanted(peer, key)


def take(
    held: x509.Certificate, key: ec.EllipticCurvePrivateKey, pem: str, ca: x509.Certificate
) -> Credential:
    """The new credential, if the certificate in `pem` is what was asked for in the place of `held`. No clock
    is asked: one that is wrong must not lose what was given. Raises RenewalRefused.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, x509.InvalidVersion, InvalidSignature, UnsupportedAlgorithm):
        raise RenewalRefused("the answer is not a certificate of the CA") from None
    if certificate.public_key() != key.public_key():
        raise RenewalRefused("the answer is a certificate of another key")
    if not is_of_same(certificate, held):
        raise RenewalRefused("the answer is the certificate of somebody else, or of other names")
    if certificate.not_valid_after_utc <= held.not_valid_after_utc:
        raise RenewalRefused("the answer ends no later than what it is to replace")
    return Credential(certificate, key)


def is_of_same(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether two certificates name the same holder, and grant and address the same."""
    try:
        first, second = read_peer(one), read_peer(other)
    except CertificateRefused:
        return False
    return (first.role, first.id, frozenset(first.names), frozenset(first.addresses)) == (
        second.role,
        second.id,
        frozenset(second.names),
        frozenset(second.addresses),
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key of our kind."""
    return ec.generate_private_key(ec.SECP256R1())


def is_too_early(certificate: x509.Certificate, wall: datetime) -> bool:
    """Whether it may not be renewed yet, by a clock that may be behind the asker's."""
    return wall < renewable_from(certificate) - SKEW


def _lifetime(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


def _signed(certificate: x509.Certificate, request: str) -> bytes:
    """It needs no time: said again, it gets what it got before."""
    held = certificate.fingerprint(hashes.SHA256()).hex()
    return f"tunnel-appliance renewal/1 {held} {hashlib.sha256(request.encode('ascii')).hexdigest()}".encode()


def _digest_of(key: ec.EllipticCurvePublicKey) -> str:
    octets = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(octets).hexdigest()

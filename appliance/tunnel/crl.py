"""Which certificates were revoked: an X.509 CRL (RFC 5280 5) of the appliance's CA, with a rising number.

The highest number that was seen counts, and for ever: a list has no end of its own, for one that nobody could
renew in time would otherwise end every link of a healthy fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.tunnel.certificates import SKEW, Credential

MAX_CRL_OCTETS = 1 << 20
"""Over 20,000 revoked certificates; a stranger's list is not read at all, for it is not signed by our CA."""
MAX_CRL_NUMBER = 2**63 - 1
"""What every JSON library and database can hold; RFC 5280 5.2.3 allows 20 octets."""

_ERRORS = (  # of cryptography's parser, which have no common base
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
)


class CrlRefused(ValueError):
    """That is not a revocation list of the appliance's CA."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """The serial numbers of revoked certificates. Of two lists the one with the higher number counts."""

    number: int
    serials: frozenset[int]
    pem: bytes = field(default=b"", compare=False, repr=False)


class Revocations(Protocol):
    """Who keeps the newest list of a process on disk: an appliance's authority, or a client."""

    revoked: RevocationList

    def take(self, crl_pem: bytes, /) -> bool:
        """Take over a list that somebody brought; False if the one that is held is as new.

        Everybody who has to obey it hears of it before this returns. Raises CrlRefused.
        """


def make_crl(ca: Credential, revoked: Mapping[int, datetime], number: int, wall: datetime) -> bytes:
    """A new list in PEM. `revoked` maps serial numbers to when each was revoked (aware); `wall` is now."""
    identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(wall - SKEW)
        .next_update(ca.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    for serial, when in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_crl(pem: bytes, ca_certificate: x509.Certificate) -> RevocationList:
    """Reads a list that this CA signed. Raises CrlRefused."""
    if len(pem) > MAX_CRL_OCTETS:
        raise CrlRefused(f"a revocation list of {len(pem)} octets is too long")
    public = ca_certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise CrlRefused("the CA's key is not an elliptic curve key")
    try:
        crl = x509.load_pem_x509_crl(pem)
        if crl.issuer != ca_certificate.subject or not crl.is_signature_valid(public):
            raise CrlRefused("the revocation list is not signed by this CA")
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(entry.serial_number for entry in crl)
    except CrlRefused:
        raise
    except _ERRORS as error:
        raise CrlRefused(f"not a revocation list: {error}") from None
    if number > MAX_CRL_NUMBER:
        raise CrlRefused(f"the revocation list's number {number} is too high")
    return RevocationList(number, serials, pem)

"""Who is who: what the appliance's CA issues, what such a certificate says, and why one is refused.

A certificate has exactly one role. A client's dNSNames are the names that it may serve (its *grant*), so a
server keeps no secret of any client, and a new server needs no list of them. All keys are P-256. `wall` is
an aware datetime.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.tunnel.names import BadHostName, covers, normal

if TYPE_CHECKING:
    from appliance.tunnel.crl import RevocationList

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)

SERVICE_NAME = "tunnel-server.internal"
"""The name in every server's certificate, never in the DNS: what a client asks for, whatever address it
dialled.
"""
MAX_NAMES = 256
"""Names in one grant, and so in one session: what one `hello` burst of 64 KiB can register."""
EXAMINED_REMEMBERED = 256
"""Certificates whose signature and contents are known: a client's is examined at the link, and again by a
nameserver in the same process. (Dates and revocation are looked at each time.)
"""
SKEW = timedelta(minutes=5)
"""How far before its issue a certificate begins to hold, for clocks that are behind."""

_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")  # so that an id can become a DNS label


class Role(enum.Enum):
    """What the owner of a certificate may be. The value is the scheme of its URI SAN, `<scheme>:<id>`."""

    SERVER = "tunnel-server"
    CLIENT = "tunnel-client"
    NAMESERVER = "tunnel-nameserver"


_USAGES = {
    Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.NAMESERVER: ExtendedKeyUsageOID.CLIENT_AUTH,
}
_USAGE_WORDS = {ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}
_CALLED = {Role.SERVER: "a tunnel server", Role.CLIENT: "a tunnel client", Role.NAMESERVER: "a nameserver"}


class Reason(enum.Enum):
    """Why a certificate is refused. The value is the word that goes over the wire."""

    NO_CERTIFICATE = "no_certificate"
    ANOTHER_CA = "another_ca"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    WRONG_USAGE = "wrong_usage"
    WRONG_NAME = "wrong_name"


class CertificateRefused(Exception):
    """The certificate of the other end is refused."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class CertificateNotIssued(ValueError):
    """The appliance's CA does not issue such a certificate."""


class CredentialRefused(ValueError):
    """That is not a private key with its certificate in PEM."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its private key, P-256."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def pem(self) -> bytes:
        """The key (PKCS #8, not encrypted) and behind it the certificate."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key + self.certificate_pem()

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Peer:
    """What a certificate says. Names are normal and in the certificate's order; `expires` is aware."""

    role: Role
    id: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    serial: int
    expires: datetime
    certificate: x509.Certificate = field(repr=False)


def read_credential(pem: bytes) -> Credential:
    """Reads what `Credential.pem` writes, in either order. Raises CredentialRefused."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CredentialRefused(f"not a private key with its certificate in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialRefused("the private key is not a P-256 key")
    if certificate.public_key() != key.public_key():
        raise CredentialRefused("the private key is not the certificate's")
    return Credential(certificate, key)


def read_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM text. Raises CredentialRefused."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise CredentialRefused(f"not a certificate in PEM: {error}") from None


def make_authority(name: str, wall: datetime, days: int = 3650) -> Credential:
    """A new CA. It can sign certificates of ends and CRLs, and no further CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(_serial())
        .not_valid_before(wall - SKEW)
        .not_valid_after(wall + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return Credential(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    ca: Credential,
    *,
    server_id: str,
    service_name: str,
    addresses: Sequence[str],
    wall: datetime,
    days: int = 365,
) -> Credential:
    """A tunnel server's certificate: the service name, and the IP addresses that may be published for it."""
    try:
        sans: list[x509.GeneralName] = [x509.DNSName(normal(service_name))]
        sans += [x509.IPAddress(ipaddress.ip_address(address)) for address in dict.fromkeys(addresses)]
    except ValueError as error:  # BadHostName is one
        raise CertificateNotIssued(str(error)) from None
    return _issue(ca, Role.SERVER, server_id, sans, wall, days)


def issue_nameserver(ca: Credential, *, nameserver_id: str, wall: datetime, days: int = 365) -> Credential:
    """The certificate with which a nameserver watches tunnel servers. It grants no name."""
    return _issue(ca, Role.NAMESERVER, nameserver_id, [], wall, days)


def issue_client(
    ca: Credential,
    *,
    client_id: str,
    names: Sequence[str],
    service_name: str,
    wall: datetime,
    days: int = 365,
) -> Credential:
    """A tunnel client's certificate, whose dNSNames are its grant: 1 to 256 names or wildcards.

    Raises CertificateNotIssued also for a name that covers the service name: its owner could pose as a
    server.
    """
    try:
        granted = tuple(dict.fromkeys(normal(name) for name in names))
    except BadHostName as error:
        raise CertificateNotIssued(str(error)) from None
    if not 1 <= len(granted) <= MAX_NAMES:
        raise CertificateNotIssued(f"a client is granted 1 to {MAX_NAMES} names, not {len(granted)}")
    for name in granted:
        if covers(name, service_name):
            raise CertificateNotIssued(
                f"{name} covers {service_name}, the name of the tunnel servers themselves"
            )
    return _issue(ca, Role.CLIENT, client_id, [x509.DNSName(name) for name in granted], wall, days)


def issue_again(
    ca: Credential,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    *,
    wall: datetime,
    days: int,
) -> x509.Certificate:
    """What `certificate`, which this CA issued, says of its owner, once more, for another key of his."""
    peer = read_peer(certificate)
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    sans = [san for san in held if not isinstance(san, x509.UniformResourceIdentifier)]
    return _certify(ca, peer.role, peer.id, sans, key, wall, days)


def examine(
    certificate: x509.Certificate | None,
    *,
    role: Role,
    ca: x509.Certificate,
    revoked: RevocationList | None,
    wall: datetime,
    service_name: str = SERVICE_NAME,
) -> Peer:
    """Who presents this certificate, if our CA issued it directly and it holds now, for exactly this role.

    `service_name` is what a server's certificate must carry and a client's must not. Raises
    CertificateRefused.
    """
    if certificate is None:
        raise CertificateRefused(
            Reason.NO_CERTIFICATE, f"no certificate was presented, {_CALLED[role]} needs one"
        )
    try:
        _verify_issued(certificate, ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        issuer = _printable(certificate.issuer)
        raise CertificateRefused(
            Reason.ANOTHER_CA,
            f"the certificate was issued by another CA ({issuer}), not by {_printable(ca.subject)}",
        ) from None
    _check_dates(certificate, wall, "the certificate")
    _check_dates(ca, wall, "the certificate of the CA")
    if revoked is not None and certificate.serial_number in revoked.serials:
        raise CertificateRefused(Reason.REVOKED, f"the certificate {certificate.serial_number:x} was revoked")
    peer = read_peer(certificate)
    if peer.role is not role:
        raise CertificateRefused(
            Reason.WRONG_USAGE,
            f"the certificate is that of {_CALLED[peer.role]} ({peer.id}), not of {_CALLED[role]}",
        )
    if role is Role.SERVER and service_name not in peer.names:
        held = ", ".join(peer.names) or "none"
        raise CertificateRefused(
            Reason.WRONG_NAME,
            f"the server's certificate is for another name ({held}), not for {service_name}",
        )
    if role is Role.CLIENT and any(covers(name, service_name) for name in peer.names):
        raise CertificateRefused(
            Reason.WRONG_NAME,
            f"the certificate grants {service_name}, the name of the tunnel servers themselves",
        )
    return peer


@lru_cache(EXAMINED_REMEMBERED)
def _verify_issued(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    certificate.verify_directly_issued_by(ca)


@lru_cache(EXAMINED_REMEMBERED)
def read_peer(certificate: x509.Certificate) -> Peer:
    """What a certificate says, believed or not: no signature, date or list is looked at.

    Raises CertificateRefused (WRONG_USAGE, WRONG_NAME) if its role is not one of ours, whole and unmixed.
    """
    try:
        extensions = certificate.extensions
        for extension in extensions:
            if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
                raise CertificateRefused(
                    Reason.WRONG_USAGE,
                    f"the certificate has a critical extension {extension.oid.dotted_string}",
                )
        constraints = _extension(extensions, x509.BasicConstraints)
        if constraints is not None and constraints.ca:
            raise CertificateRefused(Reason.WRONG_USAGE, "the certificate is that of a CA")
        sans = _extension(extensions, x509.SubjectAlternativeName) or x509.SubjectAlternativeName([])
        role, peer_id = _identity(sans.get_values_for_type(x509.UniformResourceIdentifier))
        _check_usage(extensions, role)
        names = tuple(dict.fromkeys(normal(name) for name in sans.get_values_for_type(x509.DNSName)))
        addresses = tuple(str(address) for address in sans.get_values_for_type(x509.IPAddress))
    except ValueError as error:  # what does not parse, and BadHostName
        raise CertificateRefused(Reason.WRONG_NAME, f"the certificate cannot be read: {error}") from None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateRefused(Reason.WRONG_NAME, f"the certificate cannot be read: {error}") from None
    if len(names) > MAX_NAMES:
        raise CertificateRefused(
            Reason.WRONG_NAME, f"the certificate has {len(names)} names, at most {MAX_NAMES}"
        )
    if role is Role.CLIENT and not names:
        raise CertificateRefused(Reason.WRONG_NAME, "the certificate grants no name")
    return Peer(
        role,
        peer_id,
        names,
        addresses,
        certificate.serial_number,
        certificate.not_valid_after_utc,
        certificate,
    )


def grants(names: Iterable[str], wanted: str) -> bool:
    """Whether a grant of these normal names holds the normal name or wildcard `wanted`.

    Exactly: `*.apps.example.org` grants that wildcard only, and each name below it needs a grant of its own.
    """
    return wanted in names


def _identity(uris: Sequence[str]) -> tuple[Role, str]:
    if len(uris) == 1:
        scheme, _, peer_id = uris[0].partition(":")
        for role in Role:
            if role.value == scheme and _ID.fullmatch(peer_id):
                return role, peer_id
    shown = ", ".join(uris)[:100] or "none"
    raise CertificateRefused(
        Reason.WRONG_NAME, f"the certificate names no server, client or nameserver (URI names: {shown})"
    )


def _check_usage(extensions: x509.Extensions, role: Role) -> None:
    usages = _extension(extensions, x509.ExtendedKeyUsage)
    wanted = _USAGES[role]
    if usages is None or list(usages) != [wanted]:
        held = ", ".join(map(_word, usages)) if usages else "none"
        raise CertificateRefused(
            Reason.WRONG_USAGE,
            f"the certificate's key usage is {held}, that of {_CALLED[role]} is {_word(wanted)}",
        )
    key_usage = _extension(extensions, x509.KeyUsage)
    if key_usage is not None and not key_usage.digital_signature:
        raise CertificateRefused(Reason.WRONG_USAGE, "the certificate's key may not sign")


def _word(usage: x509.ObjectIdentifier) -> str:
    return _USAGE_WORDS.get(usage, usage.dotted_string)


def _extension(extensions: x509.Extensions, kind: type[_Kind]) -> _Kind | None:
    for extension in extensions:
        if isinstance(extension.value, kind):
            return extension.value
    return None


def _check_dates(certificate: x509.Certificate, wall: datetime, what: str) -> None:
    if wall >= certificate.not_valid_after_utc:
        raise CertificateRefused(
            Reason.EXPIRED, f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    if wall < certificate.not_valid_before_utc:
        raise CertificateRefused(
            Reason.NOT_YET_VALID,
            f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC "
            "(is a clock wrong?)",
        )


def _issue(
    ca: Credential, role: Role, peer_id: str, sans: list[x509.GeneralName], wall: datetime, days: int
) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    return Credential(_certify(ca, role, peer_id, sans, key.public_key(), wall, days), key)


def _certify(
    ca: Credential,
    role: Role,
    peer_id: str,
    sans: list[x509.GeneralName],
    public: ec.EllipticCurvePublicKey,
    wall: datetime,
    days: int,
) -> x509.Certificate:
    if not _ID.fullmatch(peer_id):
        raise CertificateNotIssued(
            f"{peer_id!r} is not an id: 1 to 63 lower-case letters, digits, dots, hyphens and underscores"
        )
    expires = min(wall + timedelta(days=days), ca.certificate.not_valid_after_utc)
    if expires <= wall:
        raise CertificateNotIssued(
            f"a certificate that ends on {expires:%Y-%m-%d %H:%M} UTC has ended already"
        )
    identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(peer_id))
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(_serial())
        .not_valid_before(wall - SKEW)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[role]]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{role.value}:{peer_id}"), *sans]),
            critical=False,
        )
    )
    return builder.sign(ca.key, hashes.SHA256())


def _serial() -> int:
    # 63 of the random bits: RFC 5280 4.1.2.2 allows 159, but a signed 64-bit column of a database does not.
    return (x509.random_serial_number() >> 96) | 1


def _subject(name: str) -> x509.Name:
    short = name.encode()[:64].decode(errors="ignore")  # RFC 5280 A.1: ub-common-name
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, short)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _printable(name: x509.Name) -> str:
    # A stranger writes this into our log: ASCII only, and not more than a line.
    text = name.rfc4514_string().encode("ascii", "backslashreplace").decode("ascii")
    return "".join(character if character.isprintable() else "?" for character in text)[:100]

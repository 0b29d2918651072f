"""One CA and its certificates, made once for the tests of this folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Credential,
    issue_client,
    issue_nameserver,
    issue_server,
    make_authority,
)

WALL = datetime.now(UTC).replace(microsecond=0)
CA = make_authority("Test appliance", WALL)
OTHER_CA = make_authority("Test appliance", WALL)
SERVER = issue_server(
    CA, server_id="s1", service_name=SERVICE_NAME, addresses=["192.0.2.1", "2001:db8::1"], wall=WALL
)
CLIENT = issue_client(
    CA, client_id="c1", names=["www.example.org", "*.apps.example.org"], service_name=SERVICE_NAME, wall=WALL
)
NAMESERVER = issue_nameserver(CA, nameserver_id="ns1", wall=WALL)


def forge(
    *extensions: tuple[x509.ExtensionType, bool], ca: Credential = CA, common_name: str = "forged"
) -> x509.Certificate:
    """A certificate of this CA with these extensions (value, critical) only, as a careless operator makes."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(WALL - timedelta(days=1))
        .not_valid_after(WALL + timedelta(days=1))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(ca.key, hashes.SHA256())

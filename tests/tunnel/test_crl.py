from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.crl import MAX_CRL_OCTETS, CrlRefused, RevocationList, make_crl, read_crl
from tests.effort import examples
from tests.tunnel.authority import CA, CLIENT, OTHER_CA, WALL

GOOD = make_crl(CA, {7: WALL, 1 << 62: WALL - timedelta(days=3)}, 12, WALL)


def test_written_and_read_back() -> None:
    assert read_crl(GOOD, CA.certificate) == RevocationList(12, frozenset({7, 1 << 62}))
    assert read_crl(make_crl(CA, {}, 0, WALL), CA.certificate) == RevocationList(0, frozenset())


def test_a_list_of_another_ca_of_the_same_name() -> None:
    with pytest.raises(CrlRefused, match="not signed by this CA"):
        read_crl(make_crl(OTHER_CA, {7: WALL}, 13, WALL), CA.certificate)


def test_a_list_that_a_client_signed() -> None:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(CA.certificate.subject)
        .last_update(WALL)
        .next_update(WALL + timedelta(days=1))
        .add_extension(x509.CRLNumber(99), critical=False)
    )
    pem = builder.sign(CLIENT.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CrlRefused):
        read_crl(pem, CA.certificate)


def test_a_list_without_a_number_cannot_be_ordered() -> None:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(CA.certificate.subject)
        .last_update(WALL)
        .next_update(WALL + timedelta(days=1))
    )
    pem = builder.sign(CA.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CrlRefused, match="not a revocation list"):
        read_crl(pem, CA.certificate)


def test_a_list_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(CrlRefused, match="too long"):
        read_crl(b"-" * (MAX_CRL_OCTETS + 1), CA.certificate)


def test_a_ca_with_another_kind_of_key() -> None:
    key = rsa.generate_private_key(65537, 2048)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(CA.certificate.subject)
        .issuer_name(CA.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(WALL)
        .not_valid_after(WALL + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(CrlRefused):
        read_crl(GOOD, certificate)


DER = base64.b64decode(b"".join(GOOD.split(b"\n")[1:-2]))


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
@settings(max_examples=examples(100), deadline=None)
def test_one_changed_octet_is_the_one_error(place: int, change: int) -> None:
    der = bytearray(DER)
    der[place] ^= change
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(bytes(der)) + b"-----END X509 CRL-----\n"
    with pytest.raises(CrlRefused):
        read_crl(pem, CA.certificate)


@given(st.binary(max_size=300))
@settings(max_examples=examples(50), deadline=None)
def test_any_octets_are_the_one_error(octets: bytes) -> None:
    with pytest.raises(CrlRefused):
        read_crl(octets, CA.certificate)

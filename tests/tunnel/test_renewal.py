"""When a certificate is renewed, what is asked for, and whose word counts."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from appliance.tunnel.certificates import (
    MAX_NAMES,
    SERVICE_NAME,
    SKEW,
    Credential,
    issue_again,
    issue_client,
    read_peer,
)
from appliance.tunnel.lines import MAX_LINE_OCTETS
from appliance.tunnel.renewal import (
    PEM_PATTERN,
    RenewalRefused,
    Request,
    ask,
    due_at,
    is_of_same,
    is_too_early,
    judge,
    new_key,
    overdue_from,
    renewable_from,
    share_of,
    take,
)
from appliance.tunnel.signature import SIGNATURE_PATTERN
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, OTHER_CA, SERVER, WALL
from tests.tunnel.test_vectors import BLOCKS

DAYS_90 = issue_client(
    CA, client_id="c90", names=["a.example"], service_name=SERVICE_NAME, wall=WALL, days=90
)
ENDS = DAYS_90.certificate.not_valid_after_utc
LATER = WALL + timedelta(days=300)


def other_client(client_id: str = "c1", names: tuple[str, ...] = ("www.example.org",)) -> Credential:
    return issue_client(CA, client_id=client_id, names=names, service_name=SERVICE_NAME, wall=LATER)


def test_when_it_is_renewed_and_when_somebody_has_to_look_after_it() -> None:
    near = timedelta(minutes=5)  # the skew makes a lifetime of 90 days a little longer
    assert abs(renewable_from(DAYS_90.certificate) - (ENDS - timedelta(days=30))) <= near
    assert abs(overdue_from(DAYS_90.certificate) - (ENDS - timedelta(days=15))) <= near
    assert due_at(DAYS_90.certificate, 0) == renewable_from(DAYS_90.certificate)
    assert abs(due_at(DAYS_90.certificate, 1) - (ENDS - timedelta(days=24))) <= near


@given(st.text(max_size=40))
def test_every_holder_has_a_share_of_his_own_that_stays(text: str) -> None:
    assert 0 <= share_of(text) < 1
    assert share_of(text) == share_of(text)
    assert renewable_from(DAYS_90.certificate) <= due_at(DAYS_90.certificate, share_of(text))
    assert due_at(DAYS_90.certificate, share_of(text)) < overdue_from(DAYS_90.certificate)


def test_the_shares_of_a_fleet_are_spread() -> None:
    shares = sorted(share_of(f"client {number}") for number in range(1000))
    assert all(after - before < 0.02 for before, after in pairwise(shares))


def test_a_clock_that_is_a_little_behind_is_not_too_early() -> None:
    begins = renewable_from(DAYS_90.certificate)
    assert not is_too_early(DAYS_90.certificate, begins - SKEW)
    assert is_too_early(DAYS_90.certificate, begins - SKEW - timedelta(seconds=1))


@pytest.mark.parametrize("held", [CLIENT, SERVER, NAMESERVER])
def test_what_a_holder_asks_is_understood_signed_and_taken(held: Credential) -> None:
    key = new_key()
    request = ask(held, key)
    assert request.fits
    assert re.fullmatch(SIGNATURE_PATTERN, request.signature)
    wanted = judge(request)
    assert wanted.peer == read_peer(held.certificate)
    certificate = issue_again(CA, wanted.peer.certificate, wanted.key, wall=LATER, days=90)
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    renewed = take(held.certificate, key, pem, CA.certificate)
    assert renewed.key == key
    assert is_of_same(renewed.certificate, held.certificate)
    assert renewed.certificate.serial_number != held.certificate.serial_number
    assert renewed.certificate.not_valid_after_utc == LATER + timedelta(days=90)
    again = issue_again(CA, held.certificate, wanted.key, wall=LATER, days=90)
    assert {one.oid: one.critical for one in again.extensions} == {
        one.oid: one.critical for one in held.certificate.extensions
    }


def test_the_request_of_the_specification() -> None:
    text = {
        what: BLOCKS[f"text renewal {what}"] for what in ("certificate", "request", "octets", "signature")
    }
    request = Request(text["certificate"], text["request"], text["signature"].rstrip("\n"))
    wanted = judge(request)
    assert (wanted.peer.id, wanted.peer.names) == ("home", ("www.example.org",))
    certificate = x509.load_pem_x509_certificate(text["certificate"].encode())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    octets = text["octets"].rstrip("\n").encode()
    key.verify(base64.b64decode(request.signature), octets, ec.ECDSA(hashes.SHA256()))
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    assert octets.decode().split(" ")[2:] == [fingerprint, request.digest]


def test_the_longest_request_fits_a_line() -> None:
    names = [f"{number:03d}.{'n' * 45}.example.org" for number in range(MAX_NAMES)]
    held = issue_client(CA, client_id="c1", names=names, service_name=SERVICE_NAME, wall=WALL)
    assert ask(held, new_key()).fits
    most = re.search(r"\{1,(\d+)\}", PEM_PATTERN)
    assert most is not None
    assert 2 * int(most[1]) * 66 / 65 + 400 < MAX_LINE_OCTETS  # a line feed of a PEM text is two octets
    too_long = [f"{number:03d}.{'n' * 60}.{'n' * 60}.example.org" for number in range(MAX_NAMES)]
    held = issue_client(CA, client_id="c1", names=too_long, service_name=SERVICE_NAME, wall=WALL)
    assert not ask(held, new_key()).fits


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, sans: x509.SubjectAlternativeName) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(sans, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def signed_anew(held: Credential, request: str) -> Request:
    """A request with another CSR, signed as it should be."""
    print_ = held.certificate.fingerprint(hashes.SHA256()).hex()
    octets = f"tunnel-appliance renewal/1 {print_} {hashlib.sha256(request.encode()).hexdigest()}".encode()
    signature = base64.b64encode(held.key.sign(octets, ec.ECDSA(hashes.SHA256()))).decode()
    return Request(held.certificate_pem().decode(), request, signature)


def sans_of(held: Credential) -> x509.SubjectAlternativeName:
    return held.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


GOOD = ask(CLIENT, new_key())
MORE = x509.SubjectAlternativeName([*sans_of(CLIENT), x509.DNSName("more.example.org")])
POSSESSED_BY_ANOTHER = csr_of(new_key(), sans_of(CLIENT))


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (replace(GOOD, signature="AAAA"), "not signed with the key of the certificate"),
        (replace(GOOD, signature="not base64"), "not signed with the key of the certificate"),
        (replace(GOOD, request=csr_of(new_key(), sans_of(CLIENT))), "not signed with the key of the cert"),
        (replace(GOOD, certificate=other_client().certificate_pem().decode()), "not signed with the key of"),
        (replace(GOOD, certificate="nothing"), "cannot be read"),
        (replace(GOOD, request="nothing"), "cannot be read"),
        (replace(GOOD, certificate=CA.certificate_pem().decode()), "cannot be read"),
        (signed_anew(CLIENT, csr_of(new_key(), MORE)), "other names"),
        (signed_anew(CLIENT, csr_of(new_key(), sans_of(SERVER))), "other names"),
        (signed_anew(CLIENT, csr_of(CLIENT.key, sans_of(CLIENT))), "the new key is the old one"),
        (signed_anew(CLIENT, csr_of(rsa.generate_private_key(65537, 2048), sans_of(CLIENT))), "P-256"),
        (signed_anew(CLIENT, csr_of(ec.generate_private_key(ec.SECP384R1()), sans_of(CLIENT))), "P-256"),
    ],
)
def test_what_is_refused(request_: Request, why: str) -> None:
    with pytest.raises(RenewalRefused, match=why):
        judge(request_)


def test_a_csr_that_is_not_signed_with_its_own_key() -> None:
    csr = x509.load_pem_x509_csr(POSSESSED_BY_ANOTHER.encode())
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(RenewalRefused, match="not signed with the new key"):
        judge(signed_anew(CLIENT, pem))


@given(st.text(alphabet="ab+/= \n-", max_size=60), st.text(alphabet="ab+/= \n-", max_size=60))
def test_whatever_comes_is_refused_in_words(certificate: str, request: str) -> None:
    with pytest.raises(RenewalRefused):
        judge(Request(certificate, request, ""))


KEY = new_key()
TWICE = issue_again(CA, CLIENT.certificate, KEY.public_key(), wall=LATER, days=90)


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def again(
    held: Credential,
    key: ec.EllipticCurvePrivateKey = KEY,
    ca: Credential = CA,
    wall: datetime = LATER,
) -> str:
    return pem_of(issue_again(ca, held.certificate, key.public_key(), wall=wall, days=90))


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        ("nothing", "not a certificate of the CA"),
        (again(CLIENT, ca=OTHER_CA), "not a certificate of the CA"),
        (again(CLIENT, new_key()), "another key"),
        (again(SERVER), "somebody else"),
        (again(other_client()), "other names"),
        (again(CLIENT, wall=WALL), "ends no later"),
    ],
)
def test_what_is_not_taken(pem: str, why: str) -> None:
    with pytest.raises(RenewalRefused, match=why):
        take(CLIENT.certificate, KEY, pem, CA.certificate)


def test_what_is_taken_whatever_the_clock() -> None:
    assert take(CLIENT.certificate, KEY, pem_of(TWICE), CA.certificate).certificate == TWICE

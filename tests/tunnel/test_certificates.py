from __future__ import annotations

import ssl
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.certificates import (
    MAX_NAMES,
    SERVICE_NAME,
    CertificateNotIssued,
    CertificateRefused,
    Credential,
    CredentialRefused,
    Reason,
    Role,
    examine,
    grants,
    issue_client,
    issue_nameserver,
    issue_server,
    make_authority,
    read_certificate,
    read_credential,
)
from appliance.tunnel.crl import RevocationList, make_crl
from tests.effort import examples
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, OTHER_CA, SERVER, WALL, forge

SERVER_AUTH = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
CLIENT_AUTH = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)


def sans(*values: str) -> tuple[x509.SubjectAlternativeName, bool]:
    general = [
        x509.UniformResourceIdentifier(value) if ":" in value else x509.DNSName(value) for value in values
    ]
    return x509.SubjectAlternativeName(general), False


def raw_sans(der: str) -> tuple[x509.UnrecognizedExtension, bool]:
    return x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex(der)), False


def refusal(certificate: x509.Certificate | None, role: Role, **changed: object) -> CertificateRefused:
    arguments: dict[str, object] = {"ca": CA.certificate, "revoked": None, "wall": WALL, **changed}
    with pytest.raises(CertificateRefused) as caught:
        examine(certificate, role=role, **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == caught.value.text
    assert caught.value.text.isprintable()
    assert len(caught.value.text) < 300
    return caught.value


def test_a_server_says_who_it_is_and_where() -> None:
    peer = examine(SERVER.certificate, role=Role.SERVER, ca=CA.certificate, revoked=None, wall=WALL)
    assert (peer.role, peer.id, peer.names) == (Role.SERVER, "s1", (SERVICE_NAME,))
    assert peer.addresses == ("192.0.2.1", "2001:db8::1")
    assert peer.serial == SERVER.certificate.serial_number
    assert peer.expires == WALL + timedelta(days=365)


def test_a_client_says_who_it_is_and_what_it_may_serve() -> None:
    peer = examine(CLIENT.certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=WALL)
    assert (peer.role, peer.id) == (Role.CLIENT, "c1")
    assert peer.names == ("www.example.org", "*.apps.example.org")
    assert peer.addresses == ()


def test_a_nameserver_grants_nothing() -> None:
    peer = examine(NAMESERVER.certificate, role=Role.NAMESERVER, ca=CA.certificate, revoked=None, wall=WALL)
    assert (peer.role, peer.id, peer.names) == (Role.NAMESERVER, "ns1", ())


def test_no_certificate() -> None:
    refused = refusal(None, Role.CLIENT)
    assert refused.reason is Reason.NO_CERTIFICATE
    assert refused.text == "no certificate was presented, a tunnel client needs one"


def test_another_ca_even_of_the_same_name() -> None:
    refused = refusal(CLIENT.certificate, Role.CLIENT, ca=OTHER_CA.certificate)
    assert refused.reason is Reason.ANOTHER_CA
    assert "another CA" in refused.text


def test_a_chain_is_not_followed() -> None:
    # CLIENT's key signs for another end; its issuer is in our CA's tree, but is not our CA.
    issuer = Credential(CLIENT.certificate, CLIENT.key)
    certificate = forge(sans("tunnel-client:c2", "a.example"), CLIENT_AUTH, ca=issuer)
    assert refusal(certificate, Role.CLIENT).reason is Reason.ANOTHER_CA


def test_the_name_of_another_ca_cannot_write_into_a_log() -> None:
    hostile = make_authority("\x1b[31mroot\r\nroot: all is well" + "é" * 30, WALL)
    certificate = issue_nameserver(hostile, nameserver_id="x", wall=WALL).certificate
    assert refusal(certificate, Role.NAMESERVER).text.isascii()


@pytest.mark.parametrize("days", [365, 3650])
def test_expired(days: int) -> None:
    refused = refusal(CLIENT.certificate, Role.CLIENT, wall=WALL + timedelta(days=days))
    assert refused.reason is Reason.EXPIRED
    assert f"expired on {WALL + timedelta(days=365):%Y-%m-%d}" in refused.text


def test_expired_to_the_second() -> None:
    examine(
        CLIENT.certificate,
        role=Role.CLIENT,
        ca=CA.certificate,
        revoked=None,
        wall=WALL + timedelta(days=365, seconds=-1),
    )


def test_an_expired_ca() -> None:
    brief = make_authority("Brief", WALL, days=1)
    certificate = issue_nameserver(brief, nameserver_id="x", wall=WALL, days=900).certificate
    assert certificate.not_valid_after_utc == brief.certificate.not_valid_after_utc
    late = WALL + timedelta(days=2)
    assert refusal(certificate, Role.NAMESERVER, ca=brief.certificate, wall=late).reason is Reason.EXPIRED
    with pytest.raises(CertificateNotIssued):
        issue_nameserver(brief, nameserver_id="x", wall=late)


def test_a_clock_that_is_a_little_behind_is_forgiven() -> None:
    for credential, role in ((CLIENT, Role.CLIENT), (SERVER, Role.SERVER)):
        examine(
            credential.certificate,
            role=role,
            ca=CA.certificate,
            revoked=None,
            wall=WALL - timedelta(minutes=4),
        )


def test_not_yet_valid() -> None:
    assert refusal(CLIENT.certificate, Role.CLIENT, wall=WALL - timedelta(minutes=6)).reason is (
        Reason.NOT_YET_VALID
    )


def test_revoked() -> None:
    revoked = RevocationList(1, frozenset({CLIENT.certificate.serial_number}))
    assert refusal(CLIENT.certificate, Role.CLIENT, revoked=revoked).reason is Reason.REVOKED
    examine(SERVER.certificate, role=Role.SERVER, ca=CA.certificate, revoked=revoked, wall=WALL)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("credential", [SERVER, CLIENT, NAMESERVER])
def test_each_certificate_is_good_for_one_role(role: Role, credential: Credential) -> None:
    own = {SERVER: Role.SERVER, CLIENT: Role.CLIENT, NAMESERVER: Role.NAMESERVER}[credential]
    if role is not own:
        assert refusal(credential.certificate, role).reason is Reason.WRONG_USAGE


def test_the_ca_itself_is_nobody() -> None:
    assert refusal(CA.certificate, Role.SERVER).reason is Reason.WRONG_USAGE


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "a.example")], Reason.WRONG_USAGE),
        ([sans("tunnel-client:c1", "a.example"), SERVER_AUTH], Reason.WRONG_USAGE),
        (
            [
                sans("tunnel-client:c1", "a.example"),
                (
                    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                    False,
                ),
            ],
            Reason.WRONG_USAGE,
        ),
        (
            [
                sans("tunnel-client:c1", "a.example"),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
            ],
            Reason.WRONG_USAGE,
        ),
        ([sans("a.example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "tunnel-client:c2", "a.example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "tunnel-server:s1", "a.example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:", "a.example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:C 1", "a.example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "a..example"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "*"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", SERVICE_NAME), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", "*.internal"), CLIENT_AUTH], Reason.WRONG_NAME),
        ([sans("tunnel-client:c1", *(f"n{n}.example" for n in range(257))), CLIENT_AUTH], Reason.WRONG_NAME),
        (
            [
                sans("tunnel-client:c1", "a.example"),
                CLIENT_AUTH,
                (x509.BasicConstraints(ca=True, path_length=None), True),
            ],
            Reason.WRONG_USAGE,
        ),
        (
            [
                sans("tunnel-client:c1", "a.example"),
                CLIENT_AUTH,
                (CA.certificate.extensions.get_extension_for_class(x509.KeyUsage).value, True),
            ],
            Reason.WRONG_USAGE,
        ),
        ([raw_sans("3002a300"), CLIENT_AUTH], Reason.WRONG_NAME),  # an x400Address
        ([raw_sans("30058203"), CLIENT_AUTH], Reason.WRONG_NAME),  # cut off
        ([raw_sans("30038201e9"), CLIENT_AUTH], Reason.WRONG_NAME),  # not ASCII
        (
            [
                sans("tunnel-client:c1", "a.example"),
                CLIENT_AUTH,
                (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
            ],
            Reason.WRONG_USAGE,
        ),
    ],
)
def test_what_a_careless_operator_issues(
    extensions: list[tuple[x509.ExtensionType, bool]], reason: Reason
) -> None:
    assert refusal(forge(*extensions), Role.CLIENT).reason is reason


def test_what_a_careful_operator_issues_with_a_ca_of_his_own() -> None:
    certificate = forge(sans("tunnel-client:c1", "A.example"), CLIENT_AUTH)
    peer = examine(certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=WALL)
    assert peer.names == ("a.example",)


def test_a_server_of_another_service() -> None:
    other = issue_server(
        CA, server_id="s2", service_name="tunnel.example", addresses=[], wall=WALL
    ).certificate
    refused = refusal(other, Role.SERVER)
    assert refused.reason is Reason.WRONG_NAME
    assert refused.text == (
        "the server's certificate is for another name (tunnel.example), not for tunnel-server.internal"
    )


@pytest.mark.parametrize(
    ("wanted", "granted"),
    [
        ("www.example.org", True),
        ("*.apps.example.org", True),
        ("foo.apps.example.org", False),
        ("*.foo.apps.example.org", False),
        ("apps.example.org", False),
        ("example.org", False),
        ("a.www.example.org", False),
        (SERVICE_NAME, False),
    ],
)
def test_a_grant_is_exact(wanted: str, granted: bool) -> None:
    assert grants(("www.example.org", "*.apps.example.org"), wanted) is granted


@pytest.mark.parametrize(
    "names",
    [
        [], ["a..b"], ["10.0.0.1"], [SERVICE_NAME], [SERVICE_NAME.upper() + "."], ["*.internal"],
        [f"n{n}.example" for n in range(MAX_NAMES + 1)],
    ],
)  # fmt: skip
def test_grants_that_are_not_issued(names: list[str]) -> None:
    with pytest.raises(CertificateNotIssued):
        issue_client(CA, client_id="c", names=names, service_name=SERVICE_NAME, wall=WALL)


@pytest.mark.parametrize("peer_id", ["", "A", "a b", "-a", "a-", "a" * 64, "é", "a:b", "a\n"])
def test_ids_that_are_not_issued(peer_id: str) -> None:
    with pytest.raises(CertificateNotIssued):
        issue_nameserver(CA, nameserver_id=peer_id, wall=WALL)


def test_addresses_that_are_not_issued() -> None:
    with pytest.raises(CertificateNotIssued):
        issue_server(CA, server_id="s", service_name=SERVICE_NAME, addresses=["host"], wall=WALL)
    with pytest.raises(CertificateNotIssued):
        issue_server(CA, server_id="s", service_name="*", addresses=[], wall=WALL)


def test_a_credential_is_read_back() -> None:
    again = read_credential(CLIENT.pem())
    assert again.certificate == CLIENT.certificate
    assert again.pem() == CLIENT.pem()
    assert read_certificate(CLIENT.certificate_pem()) == CLIENT.certificate
    assert "PRIVATE" not in repr(again)
    assert "key" not in repr(again)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        CLIENT.certificate_pem(),
        CLIENT.pem().removesuffix(CLIENT.certificate_pem()),
        CLIENT.pem().replace(CLIENT.certificate_pem(), SERVER.certificate_pem()),
        CLIENT.pem()[:200] + CLIENT.certificate_pem(),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + CLIENT.certificate_pem(),
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + CLIENT.certificate_pem(),
    ],
)
def test_what_is_no_credential(pem: bytes) -> None:
    with pytest.raises(CredentialRefused):
        read_credential(pem)


@given(st.binary(max_size=200))
@settings(max_examples=examples(50), deadline=None)
def test_any_octets_are_the_one_error(octets: bytes) -> None:
    with pytest.raises(CredentialRefused):
        read_credential(octets)
    with pytest.raises(CredentialRefused):
        read_certificate(b"-----BEGIN CERTIFICATE-----\n" + octets + b"\n-----END CERTIFICATE-----\n")


def test_the_extensions_that_others_look_at() -> None:
    authority = CA.certificate.extensions
    own = authority.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.get_extension_for_class(x509.KeyUsage).critical
    for credential in (SERVER, CLIENT, NAMESERVER):
        extensions = credential.certificate.extensions
        assert (
            extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own.digest
        )
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert 0 < credential.certificate.serial_number < 1 << 63
    names = SERVER.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]


class Handshake:
    """OpenSSL at both ends, over memory: it checks chain, purpose and name as the real link will."""

    def __init__(self, folder: Path, server: Credential, client: Credential, crl: bytes = b"") -> None:
        self.folder = folder
        offered = self._context(ssl.PROTOCOL_TLS_SERVER, server, crl)
        taken = self._context(ssl.PROTOCOL_TLS_CLIENT, client, b"")
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ends = (
            offered.wrap_bio(there, back, server_side=True),
            taken.wrap_bio(back, there, server_hostname=SERVICE_NAME),
        )

    def _context(self, protocol: int, credential: Credential, crl: bytes) -> ssl.SSLContext:
        path = self.folder / f"{protocol}.pem"
        path.write_bytes(credential.pem())
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=CA.certificate_pem().decode())
        if crl:
            path.write_bytes(crl)
            context.load_verify_locations(cafile=path)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    def run(self) -> None:
        waiting = 2
        while waiting:
            waiting = 0
            for end in reversed(self.ends):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    waiting += 1


def test_openssl_accepts_a_server_and_a_client(tmp_path: Path) -> None:
    Handshake(tmp_path, SERVER, CLIENT).run()
    Handshake(tmp_path, SERVER, NAMESERVER, make_crl(CA, {}, 1, WALL)).run()


@pytest.mark.parametrize(
    ("server", "client", "words"),
    [
        (CLIENT, CLIENT, "unsuitable certificate purpose"),
        (SERVER, SERVER, "unsuitable certificate purpose"),
        (
            issue_server(CA, server_id="s2", service_name="x.example", addresses=[], wall=WALL),
            CLIENT,
            "Hostname mismatch",
        ),
        (
            SERVER,
            issue_client(OTHER_CA, client_id="c", names=["a.example"], service_name="x", wall=WALL),
            "unable to get|signature failure",
        ),
    ],
)
def test_openssl_refuses_what_we_refuse(
    tmp_path: Path, server: Credential, client: Credential, words: str
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=words):
        Handshake(tmp_path, server, client).run()


def test_openssl_refuses_what_our_list_revokes(tmp_path: Path) -> None:
    crl = make_crl(CA, {CLIENT.certificate.serial_number: WALL}, 2, WALL)
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        Handshake(tmp_path, SERVER, CLIENT, crl).run()

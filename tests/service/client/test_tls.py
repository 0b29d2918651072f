"""TLS between a client and a server in memory: who is believed, the words for who is not, and resumption."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from OpenSSL import SSL

from appliance.service.client.tls import (
    LANE_ALPN,
    LINK_ALPN,
    ClientTls,
    ServerProof,
    ServerRefused,
    tls_words,
)
from appliance.service.tls import ServerTls
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Credential,
    issue_client,
    issue_server,
    make_authority,
)

NOW = datetime.now(UTC)
CA = make_authority("ours", NOW)
OTHER_CA = make_authority("theirs", NOW)
CLIENT = issue_client(CA, client_id="c1", names=["www.example.com"], service_name=SERVICE_NAME, wall=NOW)


def server(ca: Credential = CA, name: str = SERVICE_NAME, wall: datetime = NOW, days: int = 30) -> Credential:
    return issue_server(ca, server_id="s1", service_name=name, addresses=["127.0.0.1"], wall=wall, days=days)


def client_tls() -> ClientTls:
    return ClientTls(SERVICE_NAME, CA.certificate, CLIENT, lambda: NOW)


def shake(near: SSL.Connection, far: SSL.Connection) -> None:
    """Both handshakes, and what is sent behind them. Raises SSL.Error."""
    for _ in range(4):
        for one, other in ((near, far), (far, near)):
            try:
                one.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(one.bio_read(1 << 16))
            except SSL.WantReadError:
                pass


def connect(
    tls: ClientTls,
    far: ServerTls,
    alpn: bytes = LINK_ALPN,
    resume: SSL.Session | None = None,
) -> tuple[ServerProof, SSL.Connection]:
    proof = tls.connection(alpn)
    if resume is not None:
        proof.connection.set_session(resume)
    accepted = far.connection()
    shake(proof.connection, accepted)
    return proof, accepted


def server_tls(credential: Credential, alpn: list[bytes] | None = None) -> ServerTls:
    return ServerTls(credential, [LINK_ALPN, LANE_ALPN] if alpn is None else alpn)


def test_a_server_of_ours_is_believed_and_gets_the_clients_certificate() -> None:
    tls = client_tls()
    proof, accepted = connect(tls, server_tls(server()))
    assert proof.check(tls).id == "s1"
    assert not proof.refusal
    assert proof.connection.get_protocol_version_name() == "TLSv1.3"
    assert accepted.get_servername() == SERVICE_NAME.encode()
    assert accepted.get_peer_certificate(as_cryptography=True) == CLIENT.certificate


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        (server(OTHER_CA), "issued by another CA"),
        (server(wall=NOW - timedelta(days=9), days=3), "expired"),
        (server(wall=NOW + timedelta(days=9)), "not valid before"),
        (server(name="www.example.com"), "for another name (www.example.com)"),
        (CLIENT, "that of a tunnel client (c1)"),
    ],
    ids=["another CA", "expired", "not yet valid", "another name", "a grant"],
)
def test_a_server_that_is_not_ours_is_refused_in_words(credential: Credential, words: str) -> None:
    tls = client_tls()
    proof = tls.connection(LINK_ALPN)
    with pytest.raises(SSL.Error):
        shake(proof.connection, server_tls(credential).connection())
    assert words in proof.refusal
    with pytest.raises(ServerRefused):
        proof.check(tls)


def test_a_server_that_speaks_something_else_is_refused() -> None:
    tls = client_tls()
    proof, _ = connect(tls, server_tls(server(), [b"h2"]))
    with pytest.raises(ServerRefused, match="no ALPN tunnel/1"):
        proof.check(tls)


def test_a_lane_resumes_the_session_of_its_link() -> None:
    credential = server()
    tls, far = client_tls(), server_tls(credential)
    link, accepted = connect(tls, far)
    accepted.send(b"welcome")
    link.connection.bio_write(accepted.bio_read(1 << 16))
    assert link.connection.recv(16) == b"welcome"
    lane, _ = connect(tls, far, LANE_ALPN, link.connection.get_session())
    assert lane.check(tls).id == "s1"
    session = link.connection.get_session()
    assert first_flight(tls, far, session) + len(credential.certificate_pem()) // 2 < first_flight(
        tls, far, None
    )


def first_flight(tls: ClientTls, far: ServerTls, session: SSL.Session | None) -> int:
    """The octets of the server's first flight: with a certificate, unless a session is resumed."""
    proof, accepted = tls.connection(LANE_ALPN), far.connection()
    if session is not None:
        proof.connection.set_session(session)
    with pytest.raises(SSL.WantReadError):
        proof.connection.do_handshake()
    accepted.bio_write(proof.connection.bio_read(1 << 16))
    with pytest.raises(SSL.WantReadError):
        accepted.do_handshake()
    return len(accepted.bio_read(1 << 16))


def test_what_openssl_says() -> None:
    assert tls_words([("SSL routines", "", "unexpected eof")]) == "unexpected eof"
    assert tls_words([]) == "closed"

"""The server's TLS: everybody gets through the handshake, and what he is stays readable afterwards."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from OpenSSL import SSL

from appliance.service.tls import ServerTls
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Credential,
    issue_client,
    issue_server,
    make_authority,
)

WALL = datetime.now(UTC)
CA = make_authority("test", WALL)
SERVER = issue_server(CA, server_id="s1", service_name=SERVICE_NAME, addresses=["127.0.0.1"], wall=WALL)
CLIENT = issue_client(CA, client_id="home", names=["www.example.com"], service_name=SERVICE_NAME, wall=WALL)
TLS = ServerTls(SERVER, [b"tunnel/1", b"watch/1"])


def context_of(credential: Credential | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if credential is not None:
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
    return context


def client(context: SSL.Context, alpn: list[bytes]) -> SSL.Connection:
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    connection.set_alpn_protos(alpn)
    return connection


def shake_hands(one: SSL.Connection, other: SSL.Connection) -> None:
    """Carry octets until neither end has any more to say."""
    for _ in range(6):
        for this, that in ((one, other), (other, one)):
            try:
                this.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                that.bio_write(this.bio_read(65536))
            except SSL.WantReadError:
                pass


@pytest.mark.parametrize("credential", [CLIENT, None, SERVER])
def test_everybody_gets_through_and_is_known(credential: Credential | None) -> None:
    far = TLS.connection()
    near = client(context_of(credential), [b"h2", b"watch/1"])
    shake_hands(near, far)
    assert far.get_alpn_proto_negotiated() == b"watch/1"
    met = far.get_peer_certificate(as_cryptography=True)
    assert met == (None if credential is None else credential.certificate)
    exports = [end.export_keying_material(b"EXPORTER-test", 32, b"") for end in (near, far)]
    assert exports[0] == exports[1]


def test_older_tls_is_refused() -> None:
    context = context_of(CLIENT)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with pytest.raises(SSL.Error, match="unsupported protocol"):
        shake_hands(client(context, [b"tunnel/1"]), TLS.connection())


def test_a_resumed_session_remembers_the_certificate() -> None:
    """A lane resumes its link's session, and the certificate is examined again."""
    context = context_of(CLIENT)
    near, far = client(context, [b"tunnel/1"]), TLS.connection()
    shake_hands(near, far)
    far.send(b"x")
    near.bio_write(far.bio_read(65536))
    assert near.recv(1) == b"x"  # the tickets came with it
    session = near.get_session()
    assert session is not None
    again, other = client(context, [b"tunnel/1"]), TLS.connection()
    again.set_session(session)
    shake_hands(again, other)
    assert other.get_peer_certificate(as_cryptography=True) == CLIENT.certificate

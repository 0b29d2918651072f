"""A client's end of TLS to the servers: who is believed to be one, and in which words one is not.

One context for links and lanes, so that a lane resumes a session of its link. The server's certificate must
be issued by the invitation's CA, for a server, and carry the invitation's service name (service-identity,
RFC 9525): never the name or address that the DNS gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, verify_service_identity
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from appliance.tunnel.certificates import CertificateRefused, Credential, Peer, Role, examine
from appliance.tunnel.crl import RevocationList

LINK_ALPN = b"tunnel/1"
LANE_ALPN = b"tunnel-lane/1"


class ServerRefused(ConnectionError):
    """The server does not prove that it is one"""


class ClientTls:
    """Makes connections to servers that ``ca`` issued a certificate for ``service_name`` to.

    ``credential`` proves the client; ``wall()`` is the time now, aware; ``revoked()`` is the newest
    revocation list.
    """

    def __init__(
        self,
        service_name: str,
        ca: x509.Certificate,
        credential: Credential,
        wall: Callable[[], datetime],
        revoked: Callable[[], RevocationList | None] = lambda: None,
    ) -> None:
        self._service_name = service_name
        self._ca = ca
        self._wall = wall
        self._revoked = revoked
        self.use(credential)

    def use(self, credential: Credential) -> None:
        """Prove the client with this one from now on."""
        self.credential = credential
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(self._ca))
        self._context = context

    def connection(self, alpn: bytes) -> ServerProof:
        """A connection over memory, ready to begin the handshake, and the proof that comes with it."""
        connection = SSL.Connection(self._context, None)
        connection.set_connect_state()
        connection.set_tlsext_host_name(self._service_name.encode("ascii"))
        connection.set_alpn_protos([alpn])
        proof = ServerProof(connection, alpn, self.credential)
        connection.set_verify(SSL.VERIFY_PEER, self._verifier(proof))
        return proof

    def examine(self, certificate: x509.Certificate | None) -> Peer:
        """Who the server is. Raises CertificateRefused."""
        peer = examine(
            certificate,
            role=Role.SERVER,
            ca=self._ca,
            revoked=self._revoked(),
            wall=self._wall(),
            service_name=self._service_name,
        )
        verify_service_identity(extract_patterns(peer.certificate), [DNS_ID(self._service_name)], [])
        return peer

    def _verifier(self, proof: ServerProof) -> Callable[[SSL.Connection, Any, int, int, int], bool]:
        believed = True

        def verify(_connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
            # OpenSSL calls from the CA down to the leaf and takes the last word: what it found wrong above is
            # kept until the leaf, where examine() has the words for it. Nothing may be raised through it.
            nonlocal believed
            believed = believed and bool(ok)
            if depth:
                return True
            try:
                self.examine(certificate.to_cryptography())
                if not believed:
                    proof.refusal = f"its certificate does not verify (OpenSSL: {error})"
            except CertificateRefused as refused:
                proof.refusal = refused.text
            except VerificationError:
                proof.refusal = f"its certificate is not for {self._service_name}"
            except Exception as failure:
                proof.refusal = f"its certificate cannot be read: {failure}"
            return not proof.refusal

        return verify


@implementer(IOpenSSLClientConnectionCreator)
class ServerProof:
    """One connection, on which ``credential`` is shown. ``refusal`` says why the server is not believed, and
    is empty as long as it is.
    """

    def __init__(self, connection: SSL.Connection, alpn: bytes, credential: Credential) -> None:
        self.connection = connection
        self.credential = credential
        self.refusal = ""
        self._alpn = alpn

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Twisted: the connection of a link."""
        return self.connection

    def check(self, tls: ClientTls) -> Peer:
        """After the handshake: who the server is. Raises ServerRefused."""
        try:
            peer = tls.examine(self.connection.get_peer_certificate(as_cryptography=True))
        except CertificateRefused as refused:
            raise ServerRefused(refused.text) from None
        if self.connection.get_alpn_proto_negotiated() != self._alpn:
            raise ServerRefused(f"it is not a tunnel server (no ALPN {self._alpn.decode()})")
        return peer


def tls_words(errors: Sequence[Any]) -> str:
    """What OpenSSL says about a handshake that failed, for a log."""
    return ", ".join(str(entry[-1]) for entry in errors) or "closed"

"""The server's end of TLS for links, watches and lanes. TLS 1.3 only.

A server asks for a certificate but lets every handshake through:
:func:`appliance.tunnel.certificates.examine` judges afterwards, and the refusal then goes over the link in
words instead of as a bare TLS alert. A client checks the server's name with service-identity during the
handshake: it has said nothing yet that would need an answer. So OpenSSL is given no CA: it would verify the
client's chain a second time, and ours before it sends it, for a third of what a handshake costs. That the
other end holds its certificate's key it checks in any case.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from appliance.tunnel.certificates import Credential

#: Sessions of different contexts must not mix (RFC 8446 4.6.1 leaves the tickets' meaning to the server);
#: OpenSSL refuses to resume one that was made with a client's certificate where this is not set.
_SESSION_ID_CONTEXT = b"tunnel-appliance"


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the server's end of a connection: one context, so that a lane can resume its link's session."""

    def __init__(self, credential: Credential, alpn: list[bytes]) -> None:
        self._alpn = alpn
        self.use(credential)

    def use(self, credential: Credential) -> None:
        """Show this one from now on. A lane of a link from before does not resume: it shakes hands anew."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # a quarter of what an idle link holds
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        context.set_session_id(_SESSION_ID_CONTEXT)
        context.set_verify(SSL.VERIFY_PEER, _everybody)
        context.set_alpn_select_callback(lambda _connection, offered: _first_common(self._alpn, offered))
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Twisted: the connection of one accepted transport."""
        return SSL.Connection(self._context, None)

    def connection(self) -> SSL.Connection:
        """A connection over memory for a :class:`~appliance.service.tlswire.TlsWire`."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        return connection


def _everybody(_connection: SSL.Connection, _certificate: object, _error: int, _depth: int, _ok: int) -> bool:
    return True


def _first_common(ours: list[bytes], offered: list[bytes]) -> Any:
    for protocol in ours:
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS

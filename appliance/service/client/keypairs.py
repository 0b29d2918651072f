"""Which certificate this client shows for which name, now. Whoever has a newer one puts it here; the next
handshake shows it, and no connection notices.

Hides what TLS is spoken to visitors: 1.2 and 1.3, forward secret and authenticated ciphers only (RFC 9325),
``http/1.1``, tickets with the keys of ``tickets.py``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping

from appliance.service.client.libssl import set_ticket_keys
from appliance.service.client.tickets import Tickets
from appliance.tunnel.keypair import Keypair, KeypairRefused
from appliance.tunnel.names import covers, wildcards_over

ALPN = "http/1.1"

_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""RFC 9325 4.2 without DHE, which no browser has any more."""


class Keypairs:
    """Contexts by name. ``lasting_tickets`` is False where tickets end with this process."""

    def __init__(self, tickets: Tickets) -> None:
        self.lasting_tickets = True
        self._tickets = tickets
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._current: dict[str, Keypair] = {}

    @property
    def current(self) -> Mapping[str, Keypair]:
        """The certificates in use, by normal name or wildcard."""
        return self._current

    def put(self, name: str, keypair: Keypair) -> None:
        """Show this one for ``name``, a normal name or wildcard, from now on. Raises KeypairRefused."""
        context = self.check(name, keypair)
        context.sni_callback = _checked(name)
        self._seal(name, context)
        self._contexts[name] = context
        self._current[name] = keypair

    def check(self, name: str, keypair: Keypair) -> ssl.SSLContext:
        """Whether ``put`` would take this one: its context. Raises KeypairRefused."""
        if not keypair.is_for(name):
            others = ", ".join(keypair.names) or "no name"
            raise KeypairRefused("certificate", f"is not for {name} but for {others}")
        return _context(keypair)

    def context(self, host: str) -> ssl.SSLContext | None:
        """The context for a visitor of ``host``: its own, or that of the closest wildcard over it."""
        for name in (host, *wildcards_over(host)):
            if name in self._contexts:
                return self._contexts[name]
        return None

    def renew_tickets(self) -> None:
        """The tickets' secret is another one."""
        for name, context in self._contexts.items():
            self._seal(name, context)

    def _seal(self, name: str, context: ssl.SSLContext) -> None:
        self.lasting_tickets = set_ticket_keys(context, self._tickets.keys(name))


def _context(keypair: Keypair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a whole handshake for one record
    context.set_ciphers(_TLS_1_2_CIPHERS)
    context.set_alpn_protocols([ALPN])
    certificate, key = _in_memory(keypair.certificate_pem), _in_memory(keypair.key_pem)
    try:
        context.load_cert_chain(f"/proc/self/fd/{certificate}", f"/proc/self/fd/{key}")
    except (ssl.SSLError, OSError) as error:  # OpenSSL's own bounds: an RSA key of 1024 bits, say
        raise KeypairRefused("certificate", f"is not taken by OpenSSL: {_words(error)}") from None
    finally:
        os.close(certificate)
        os.close(key)
    return context


def _words(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)


def _in_memory(octets: bytes) -> int:
    """A file in memory only: ``ssl`` reads certificates from files, and these were read and judged."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(octets)
    return descriptor


def _checked(name: str) -> Callable[[ssl.SSLObject, str, ssl.SSLContext], int | None]:
    """A check of the SNI (RFC 6066 3): the tunnel server has routed the visitor by it, and may be wrong."""

    def check(_: ssl.SSLObject, server_name: str, __: ssl.SSLContext) -> int | None:
        if not server_name:  # None, where there is no SNI
            return None
        # RFC 6066 3 has no dot at the end of it. Some send one, and the server has routed without it.
        if covers(name, server_name.lower().removesuffix(".")):
            return None
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    return check

"""A CA that speaks ACME (RFC 8555), as calls that block: for a thread, one at a time.

Hides the libraries ``acme`` and ``josepy``, which are not loaded before the first call, and the account. It
is made once: its key is on disk before the CA hears of it, and who asks for an account twice with one key
gets the same one (RFC 8555 7.3).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from appliance import __version__
from appliance.acmesettings import AcmeSettings
from appliance.service.client.acmestate import Account, AcmeState
from appliance.tunnel.certificaterequest import new_key, read_window, request_for

TIMEOUT_SECONDS = 20.0
#: For a nonce that the CA does not take (RFC 8555 6.5); the library tries twice by itself. Of a CA that
#: rejects three in ten, as pebble is set in the tests, one call in 10^8 fails: with 3 it was one in 1,400.
NONCE_TRIES = 8
#: What a CA may say before it is somebody else's text: names of its errors are longer than none of ours.
MAX_WORDS = 300

_PREFIX = "urn:ietf:params:acme:error:"
_POOL = re.compile(r"^HTTPS?Connection\w*\(.*?\): ")
_STANDS = {"badNonce", "orderNotReady", "rateLimited", "serverInternal"}
"""Errors that say nothing about the order."""

T = TypeVar("T")


class IssuerFailed(Exception):
    """The CA has given no certificate"""

    def __init__(self, words: str, retry_after: float = 0.0) -> None:
        super().__init__(words[:MAX_WORDS])
        self.retry_after = retry_after


class IssuerSilent(IssuerFailed):
    """It does not answer, or not now"""


class IssuerLimits(IssuerSilent):
    """It has had too many requests"""


class IssuerRefused(IssuerFailed):
    """It has said no"""


@dataclass(frozen=True, slots=True)
class Seen:
    """An order as the CA shows it. ``value`` is for the TXT record; ``challenge`` is where to say that it is
    there, ``""`` where that was said or need not be.
    """

    url: str
    status: str
    finalize: str = ""
    certificate: str = ""
    value: str = ""
    challenge: str = ""
    words: str = ""
    retry_after: float = 0.0


class Issuer:
    """The CA of the settings, for the account in the state directory."""

    def __init__(self, settings: AcmeSettings, state: AcmeState) -> None:
        self._settings = settings
        self._state = state
        self._directory: Any = None
        self._net: Any = None
        self._account: Account | None = None
        self._retry_after = 0.0

    @property
    def account(self) -> str:
        """The URL of the account; ``""`` before the first call."""
        return "" if self._account is None else self._account.url

    @property
    def caa_identities(self) -> tuple[str, ...]:
        """What the CA calls itself in CAA records (RFC 8555 7.1.1)."""
        return () if self._directory is None else tuple(self._directory.meta.caa_identities or ())

    # An order

    def place(self, name: str, replaces: str | None) -> Seen:
        """A new order; ``replaces`` is the certificate_id of one that it renews."""
        return self._asked(lambda: self._place(name, replaces))

    def look(self, url: str) -> Seen:
        """What has become of an order."""
        return self._asked(lambda: self._seen(url, self._post(url)))

    def answer(self, seen: Seen) -> None:
        """Say that the challenge can be looked at."""
        from acme import challenges

        self._asked(lambda: self._post(seen.challenge, challenges.DNS01Response()))

    def finalize(self, seen: Seen, name: str, key_pem: str) -> None:
        """Ask for the certificate of this key."""
        from acme import messages

        asked = messages.CertificateRequest(csr=request_for(name, key_pem))
        self._asked(lambda: self._post(seen.finalize, asked))

    def fetch(self, seen: Seen) -> bytes:
        """The certificate, and those between it and its root, as PEM."""
        return self._asked(lambda: bytes(self._post(seen.certificate).content))

    def window(self, certificate: str) -> tuple[tuple[datetime, datetime], float] | None:
        """When the CA would have the certificate with this certificate_id renewed, and in how many seconds to
        ask again; None where it has no opinion.
        """

        def ask() -> tuple[tuple[datetime, datetime], float] | None:
            self._open()
            url = self._directory.to_partial_json().get("renewalInfo")
            if url is None:
                return None
            answer = self._net.get(f"{str(url).rstrip('/')}/{certificate}")
            return read_window(answer.json()), self._retry_after

        return self._asked(ask)

    # The way to it

    def _place(self, name: str, replaces: str | None) -> Seen:
        from acme import errors, messages
        from josepy.json_util import field

        class NewOrder(messages.NewOrder):
            """With the field of RFC 9773 5: a renewal in its window is in no rate limit."""

            replaces: str | None = field("replaces", omitempty=True)

        self._open()
        wanted = messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=name)
        if "renewalInfo" not in self._directory.to_partial_json():
            replaces = None
        try:
            answer = self._post(
                self._directory["newOrder"], NewOrder(identifiers=[wanted], replaces=replaces)
            )
        except (messages.Error, errors.ClientError) as error:
            # RFC 9773 5: it "SHOULD reject" what replaces a certificate of another account, such as ours was
            # before account.json was lost, or one that an order replaces already, whose place was perhaps
            # never heard of. What it replaces is a favour to ask for, and never worth the certificate.
            if replaces is None or not _is_no(error):
                raise
            answer = self._post(self._directory["newOrder"], NewOrder(identifiers=[wanted]))
        return self._seen(answer.headers["Location"], answer)

    def _seen(self, url: str, answer: Any) -> Seen:
        """One name an order, so one authorization."""
        from acme import challenges, messages

        retry_after = self._retry_after
        order = messages.Order.from_json(answer.json())
        value = challenge = ""
        words = "" if order.error is None else _said(order.error)
        if order.status in (messages.STATUS_PENDING, messages.STATUS_INVALID):
            authorization = messages.Authorization.from_json(self._post(order.authorizations[0]).json())
            for one in authorization.challenges:
                if isinstance(one.chall, challenges.DNS01):
                    value = one.chall.validation(self._net.key)
                    challenge = one.uri if one.status == messages.STATUS_PENDING else ""
                    words = words if one.error is None else _said(one.error)
        return Seen(
            url,
            order.status.to_partial_json(),
            order.finalize or "",
            order.certificate or "",
            value,
            challenge,
            words,
            retry_after,
        )

    def _post(self, url: str, body: Any = None) -> Any:
        from acme import messages

        self._open()
        for tries in itertools.count(1):
            try:
                return self._net.post(url, body, new_nonce_url=self._directory["newNonce"])
            except messages.Error as error:
                if error.code != "badNonce" or tries == NONCE_TRIES:
                    raise
        raise AssertionError

    def _open(self) -> None:
        """Have the directory and the account."""
        if self._account is not None and self._account.url:
            return
        from acme import client
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from josepy.jwa import ES256
        from josepy.jwk import JWKEC

        account = self._state.account()
        if account is None:
            account = Account(new_key())
            self._state.put_account(account)
        key: Any = load_pem_private_key(account.key_pem.encode("ascii"), None)
        root: Any = str(self._settings.root) if self._settings.root else True
        net = client.ClientNetwork(
            JWKEC(key=key),
            alg=ES256,
            verify_ssl=root,
            user_agent=f"tunnel-appliance/{__version__}",
            timeout=int(TIMEOUT_SECONDS),
        )
        net.session.hooks["response"].append(self._note)
        self._net = net
        self._directory = client.ClientV2.get_directory(self._settings.url, net)
        if not account.url:
            account = Account(account.key_pem, self._register())
            self._state.put_account(account)
        net.account = {"uri": account.url}  # type: ignore[assignment]  # all that is read of it
        self._account = account

    def _register(self) -> str:
        from acme import client, errors, messages

        bound = None
        if self._settings.external_account is not None and self._settings.external_account_key is not None:
            bound = messages.ExternalAccountBinding.from_data(
                self._net.key.public_key(),
                self._settings.external_account,
                self._settings.external_account_key.read_text(encoding="ascii").strip(),
                self._directory,
            )
        wanted = messages.NewRegistration(
            contact=tuple(f"mailto:{address}" for address in self._settings.contact),
            terms_of_service_agreed=True,
            external_account_binding=bound,
        )
        for tries in itertools.count(1):
            try:
                return str(client.ClientV2(self._directory, self._net).new_account(wanted).uri)
            except errors.ConflictError as known:  # the process ended before it could keep the answer
                return str(known.location)
            except messages.Error as error:
                if error.code != "badNonce" or tries == NONCE_TRIES:
                    raise
        raise AssertionError

    def _note(self, answer: Any, *_: object, **__: object) -> None:
        self._retry_after = _seconds(answer.headers.get("Retry-After", ""))

    def _asked(self, call: Callable[[], T]) -> T:
        """What `call` returns, or one of our errors."""
        import requests
        from acme import errors, messages
        from josepy.errors import Error as JoseError

        self._retry_after = 0.0
        try:
            return call()
        except messages.Error as error:
            code = _code(error)
            words = f"the CA says: {_said(error)}"
            if code == "accountDoesNotExist":
                self._forget()
            if code == "rateLimited":
                raise IssuerLimits(words, self._retry_after) from None
            raise (IssuerRefused if _is_no(error) else IssuerSilent)(words, self._retry_after) from None
        except requests.RequestException as error:
            raise IssuerSilent(f"the CA cannot be reached: {_cause(error)}") from None
        except OSError as error:  # the state directory
            raise IssuerSilent(error.strerror or str(error)) from None
        except errors.ClientError as error:  # no problem document: of a proxy, say
            status = _status(error)
            words = f"the CA answers with {status}" if status else str(error)
            raise (IssuerRefused if _is_no(error) else IssuerSilent)(words, self._retry_after) from None
        except (errors.Error, JoseError, ValueError, KeyError, IndexError) as error:
            words = f"the CA's answer cannot be used: {type(error).__name__}: {error}"
            raise IssuerSilent(words, self._retry_after) from None

    def _forget(self) -> None:
        """The CA knows no such account: next time this key asks for one again."""
        if self._account is not None:
            with contextlib.suppress(OSError):
                self._state.put_account(Account(self._account.key_pem))
        self._account = None


def _said(error: Any) -> str:
    """A problem document in words."""
    return f"{error.detail or error.title or 'it does not say why'} ({_code(error)})"


def _code(error: Any) -> str:
    """The type of a problem document, without what all of ACME's begin with."""
    return str(error.typ or "").removeprefix(_PREFIX)


def _status(error: Exception) -> int:
    """What the library says of an answer without a problem document; 0 where it was none of HTTP's."""
    from acme import errors

    if isinstance(error, errors.ConflictError):
        return 409
    return int(getattr(error.args[0] if error.args else None, "status_code", 0))


def _is_no(error: Exception) -> bool:
    """Whether the CA has said no, and not that it cannot now."""
    from acme import messages

    if isinstance(error, messages.Error):
        return _code(error) not in _STANDS
    return 400 <= (status := _status(error)) < 500 and status != 429


def _cause(error: BaseException) -> str:
    """requests wraps urllib3, which wraps what happened."""
    inner: Any = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    inner = getattr(inner, "reason", inner)
    return _POOL.sub("", str(inner)) or type(inner).__name__


def _seconds(retry_after: str) -> float:
    """Of a Retry-After (RFC 9110 10.2.3), which is a number or a date."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0

"""The gate of answers that the settings ask for: cookies, rate limit, NSID, extended errors.

Hides where cookie secrets come from: the file that the nameservers of a zone share, or nowhere, and then they
are made anew at each start (who has a cookie of before gets another; nobody waits for that).
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.dns.cookies import (
    SECRET_OCTETS,
    Cookies,
    CookieSecretsRefused,
    Function,
    read_secrets,
)
from appliance.dns.gate import Gate
from appliance.dns.ratelimit import RateLimit
from appliance.settings import NameserverSettings

_FUNCTIONS = {"own": Function.BLAKE2S, "rfc9018": Function.SIPHASH}


class SecretsUnreadable(Exception):
    """The file of cookie secrets cannot be used; the text is `file:line: what`."""


def gate_of(settings: NameserverSettings) -> Gate:
    """The gate; reads the file of secrets. Raises SecretsUnreadable."""
    cookies = None
    if settings.cookies != "off":
        path = settings.cookie_secrets
        secrets = read_secrets_of(path) if path is not None else (os.urandom(SECRET_OCTETS),)
        cookies = Cookies(secrets, _FUNCTIONS[settings.cookies])
    limit = RateLimit(settings.rate_limit, settings.slip) if settings.rate_limit else None
    nsid = settings.nsid.encode() if settings.nsid is not None else b""
    return Gate(cookies=cookies, rate_limit=limit, nsid=nsid, explain=settings.extended_errors)


def reload_secrets(gate: Gate, settings: NameserverSettings) -> list[str]:
    """Read the file of secrets again; the error, and then those from before stay."""
    if gate.cookies is None or settings.cookie_secrets is None:
        return []
    try:
        gate.cookies.renew(read_secrets_of(settings.cookie_secrets))
    except SecretsUnreadable as error:
        return [str(error)]
    return []


def read_secrets_of(path: Path) -> tuple[bytes, ...]:
    """The secrets in a file. Raises SecretsUnreadable."""
    try:
        return read_secrets(path.read_text("ascii"))
    except OSError as error:
        raise SecretsUnreadable(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretsUnreadable(f"{path}:1: is not text in ASCII") from None
    except CookieSecretsRefused as error:
        raise SecretsUnreadable(f"{path}:{error}") from None

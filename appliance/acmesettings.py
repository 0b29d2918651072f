"""`[acme]` of a client's settings: which CA certificates are got from, and what it is to know.

Hides what `production` and `staging` stand for, and the file of an external account's key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from appliance.settingsfile import SettingsFile, described

PRODUCTION, STAGING = "production", "staging"
DIRECTORIES = {
    PRODUCTION: "https://acme-v02.api.letsencrypt.org/directory",
    STAGING: "https://acme-staging-v02.api.letsencrypt.org/directory",
}
"""Let's Encrypt's."""
TERMS = "https://letsencrypt.org/repository/"


@attrs.frozen
class AcmeSettings:
    """With `[acme]` the client gets a certificate for each name that has an `http_origin` and neither a
    `certificate` nor a `tls_origin`, renews it, and ends the TLS of visitors itself.
    """

    terms_agreed: bool = described(
        "`true` says that you have read the CA's terms of service and agree to them: for Let's Encrypt"
        f" {TERMS}. Without it there is no account and no certificate.",
        "`false`: the client does not start",
        default=False,
    )
    directory: str = described(
        "The CA: `production` or `staging` (Let's Encrypt's; the latter's certificates are for tests, and no"
        " browser believes them), or the URL of another one's ACME directory.",
        '`"production"`',
        default=PRODUCTION,
    )
    contact: tuple[str, ...] = described(
        "Mail addresses that the CA may write to. Let's Encrypt writes to nobody.", "none", default=()
    )
    root: Path | None = described(
        "A PEM file: the root that the directory's own certificate is verified with, for a CA in your own"
        " network.",
        "the roots that every browser has",
        default=None,
    )
    external_account: str | None = described(
        "The key identifier of an account that you have at the CA (external account binding).",
        "none",
        default=None,
    )
    external_account_key: Path | None = described(
        "The file with the key of `external_account` as the CA gave it, base64url. Others may not be able to"
        " read it.",
        "none",
        default=None,
    )

    @property
    def url(self) -> str:
        """Of the directory."""
        return DIRECTORIES.get(self.directory, self.directory)

    @property
    def called(self) -> str:
        """What the log calls the CA."""
        if self.directory in DIRECTORIES:
            return "Let's Encrypt" if self.directory == PRODUCTION else "Let's Encrypt's staging"
        return urlsplit(self.url).hostname or self.url


def with_whole_paths(file: SettingsFile, settings: AcmeSettings) -> AcmeSettings:
    """The settings with paths that do not depend on the current directory."""
    base = file.path("acme")
    return attrs.evolve(
        settings,
        root=settings.root and base / settings.root,
        external_account_key=settings.external_account_key and base / settings.external_account_key,
    )


def wrong_acme(file: SettingsFile, settings: AcmeSettings) -> Iterator[str]:
    """An error for each of the settings that cannot be used."""
    if not settings.terms_agreed:
        where = f" ({TERMS})" if settings.directory in DIRECTORIES else ""
        what = f"say terms_agreed = true, if you have read the CA's terms of service{where} and agree to them"
        yield file.error(("acme",), what)
    if not settings.url.startswith("https://"):
        what = f'must be "{PRODUCTION}", "{STAGING}" or an https:// URL'
        yield file.error(("acme", "directory"), what)
    for address in settings.contact:
        if not address.isascii() or address.count("@") != 1 or ":" in address:
            yield file.error(("acme", "contact"), f'"{address}" is no mail address, as me@example.org is')
    for key, path in (("root", settings.root), ("external_account_key", settings.external_account_key)):
        if path is not None and not path.exists():
            yield file.error(("acme", key), f"{path} does not exist")
    if (settings.external_account is None) != (settings.external_account_key is None):
        yield file.error(("acme",), "external_account and external_account_key need each other")
    key_file = settings.external_account_key
    if key_file is not None and key_file.exists() and key_file.stat().st_mode & 0o007:
        what = f"{key_file} can be read by everybody: chmod o-rwx {key_file}"
        yield file.error(("acme", "external_account_key"), what)

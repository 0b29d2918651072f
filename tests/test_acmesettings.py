"""`[acme]`: what it means for each name, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.acmesettings import DIRECTORIES
from appliance.settings import ClientSettings, SettingsRefused, read_client

AGREED = "[acme]\nterms_agreed = true\n"


def read(tmp_path: Path, text: str) -> ClientSettings:
    (tmp_path / "invitation").touch()
    path = tmp_path / "client.toml"
    path.write_text(f'invitation = "invitation"\n{text}')
    return read_client(path, {})


def test_with_it_a_plain_origin_gets_a_certificate_and_port_80_redirects(tmp_path: Path) -> None:
    settings = read(tmp_path, f'http_origin = "127.0.0.1:80"\n{AGREED}')
    www = settings.for_name("www.example.com")
    assert (www.certified, www.terminated, www.http) == (True, True, "redirect")
    assert settings.acme is not None
    assert (settings.acme.url, settings.acme.called) == (DIRECTORIES["production"], "Let's Encrypt")


def test_without_it_there_is_none(tmp_path: Path) -> None:
    www = read(tmp_path, 'http_origin = "127.0.0.1:80"\n').for_name("www.example.com")
    assert (www.certified, www.terminated, www.http) == (False, False, "serve")


@pytest.mark.parametrize(
    ("own", "certified", "terminated", "http"),
    [
        ("", True, True, "redirect"),
        ('http = "serve"', True, True, "serve"),
        ("acme = false", False, False, "serve"),
        ('certificate = "c"\nkey = "k"', False, True, "redirect"),
        ('tls_origin = "127.0.0.1:443"', False, False, "serve"),
    ],
)
def test_each_name_has_its_own_way(
    tmp_path: Path, own: str, certified: bool, terminated: bool, http: str
) -> None:
    text = f'http_origin = "127.0.0.1:80"\n[names."www.example.com"]\n{own}\n{AGREED}'
    www = read(tmp_path, text).for_name("www.example.com")
    assert (www.certified, www.terminated, www.http) == (certified, terminated, http)


@pytest.mark.parametrize("top", ['tls_origin = "127.0.0.1:443"', 'certificate = "c"\nkey = "k"'])
def test_a_name_that_wants_one_inherits_no_other_end_of_tls(tmp_path: Path, top: str) -> None:
    text = f'http_origin = "127.0.0.1:80"\n{top}\n[names."www.example.com"]\nacme = true\n{AGREED}'
    settings = read(tmp_path, text)
    assert settings.for_name("www.example.com").certified
    assert not settings.for_name("other.example.com").certified


def test_all_that_can_be_said(tmp_path: Path) -> None:
    for name in ("root.pem", "hmac"):
        (tmp_path / name).touch(0o600)
    text = (
        'directory = "https://ca.test/dir"\ncontact = ["me@example.org"]\nroot = "root.pem"\n'
        'external_account = "kid"\nexternal_account_key = "hmac"\n'
    )
    acme = read(tmp_path, f'http_origin = "127.0.0.1:80"\n{AGREED}{text}').acme
    assert acme is not None
    assert (acme.url, acme.called) == ("https://ca.test/dir", "ca.test")
    assert acme.contact == ("me@example.org",)
    assert (acme.root, acme.external_account_key) == (tmp_path / "root.pem", tmp_path / "hmac")


def test_staging_is_one_word(tmp_path: Path) -> None:
    acme = read(tmp_path, f'http_origin = "127.0.0.1:80"\n{AGREED}directory = "staging"\n').acme
    assert acme is not None
    assert "staging" in acme.url
    assert "staging" in acme.called


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[acme]", "client.toml:3: acme: say terms_agreed = true"),
        ('[acme]\ndirectory = "staging"', "https://letsencrypt.org/repository/"),
        (f'{AGREED}directory = "stagging"', 'acme.directory: must be "production", "staging" or an https://'),
        (f'{AGREED}directory = "http://ca.test/dir"', "acme.directory: must be"),
        (f'{AGREED}contact = ["mailto:me@example.org"]', 'acme.contact: "mailto:me@example.org" is no mail'),
        (f'{AGREED}root = "missing"', "missing does not exist"),
        (f'{AGREED}external_account = "kid"', "need each other"),
        (f'{AGREED}external_account = "kid"\nexternal_account_key = "open"', "chmod o-rwx"),
        (f"{AGREED}emails = []", "acme.emails: is not a setting"),
        ('acme = "staging"', "acme: must be a table"),
        ('[names."www.example.com"]\nacme = true', "acme: needs [acme]"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "open").touch(0o644)
    with pytest.raises(SettingsRefused) as refused:
        read(tmp_path, f'http_origin = "127.0.0.1:80"\n{text}\n')
    assert what in str(refused.value)

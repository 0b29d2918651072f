"""Where certificate and key stand in a client's settings, and what they do there."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.addresses import Origin
from appliance.settings import ClientSettings, NameSettings, SettingsRefused, read_client

PLAIN = Origin("127.0.0.1", 8080)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "invitation.toml").touch()
    return tmp_path


def read(here: Path, text: str, **options: object) -> ClientSettings:
    path = here / "etc" / "client.toml"
    path.write_text('invitation = "invitation.toml"\n' + text)
    return read_client(path, options)


def refused(here: Path, text: str) -> list[str]:
    with pytest.raises(SettingsRefused) as caught:
        read(here, text)
    return [error.removeprefix(f"{here}/etc/client.toml:") for error in caught.value.errors]


def test_of_a_name(here: Path) -> None:
    made = read(
        here,
        '[names."www.example.com"]\n'
        'http_origin = "127.0.0.1:8080"\ncertificate = "www.pem"\nkey = "/etc/ssl/www.key"\n',
    )
    assert made.names["www.example.com"] == NameSettings(
        http_origin=PLAIN, certificate=here / "etc/www.pem", key=Path("/etc/ssl/www.key")
    )
    assert made.names["www.example.com"].terminated
    assert made.names["www.example.com"].http == "redirect"


def test_port_80_is_served_where_it_is_said(here: Path) -> None:
    table = 'http_origin = "127.0.0.1:8080"\ncertificate = "c"\nkey = "k"\nhttp = "serve"\n'
    assert read(here, table).for_name("www.example.com").http == "serve"
    assert read(here, f'[names."www.example.com"]\n{table}').names["www.example.com"].http == "serve"


def test_at_the_top_and_by_options(here: Path) -> None:
    made = read(
        here,
        'http_origin = "127.0.0.1:8080"\ncertificate = "all.pem"\nkey = "all.key"\n'
        '[names."www.example.com"]\n[names."tls.example.com"]\ntls_origin = "127.0.0.1:8443"\n',
        key="given.key",
    )
    top = made.for_name("other.example.com")
    assert (top.certificate, top.key) == (here / "etc/all.pem", here / "given.key")
    assert top.terminated
    assert made.names["www.example.com"] == top
    passed = made.names["tls.example.com"]
    assert (passed.terminated, passed.certificate, passed.http) == (False, None, "serve")


def test_a_name_with_a_certificate_inherits_no_tls_origin(here: Path) -> None:
    made = read(
        here,
        'tls_origin = "127.0.0.1:8443"\n'
        '[names."www.example.com"]\nhttp_origin = "127.0.0.1:8080"\ncertificate = "c"\nkey = "k"\n',
    )
    assert made.names["www.example.com"].terminated
    assert not made.for_name("other.example.com").terminated


ORIGIN = 'http_origin = "127.0.0.1:8080"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f'{ORIGIN}certificate = "c"\n', "3: certificate: needs a key"),
        (f'{ORIGIN}key = "c"\n', "3: key: needs a certificate"),
        (
            f'{ORIGIN}tls_origin = "127.0.0.1:8443"\ncertificate = "c"\nkey = "k"\n',
            "4: certificate: is of no use with a tls_origin, which has its own",
        ),
        (
            f'{ORIGIN}[names."www.example.com"]\ncertificate = "c"\n',
            '4: names."www.example.com".certificate: needs a key',
        ),
        (f"{ORIGIN}certificate = 7\n", "3: certificate: must be a string, not 7"),
    ],
)
def test_what_is_refused(here: Path, text: str, error: str) -> None:
    assert refused(here, text) == [error]


def test_an_origin_is_needed(here: Path) -> None:
    errors = refused(here, '[names."www.example.com"]\ncertificate = "c"\nkey = "k"\n')
    assert '3: names."www.example.com".certificate: needs an http_origin' in errors

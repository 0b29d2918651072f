"""What each program reads; that it does is shown in tests/end_to_end/test_acme_key."""

from __future__ import annotations

import configparser

import pytest

from appliance.acmekeyforms import FORMS, written
from appliance.dns import names
from appliance.dns.keyfile import read_keys
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import AcmeKey

KEY = AcmeKey("home.5f.client.internal", (ServerAddress("2001:db8::53", 53),), "AAECAwQFBgcICQoLDA0ODw==")


def test_a_key_file_is_one_that_we_read_ourselves() -> None:
    (key,) = read_keys(written(KEY, "nsupdate"), filename="x")
    assert names.to_text(key.name) == KEY.name
    assert key.secret == bytes(range(16))


def test_the_file_of_certbot_is_an_ini_file() -> None:
    read = configparser.ConfigParser()
    read.read_string("[x]\n" + written(KEY, "certbot"))
    assert dict(read["x"]) == {
        "dns_rfc2136_server": "2001:db8::53",
        "dns_rfc2136_port": "53",
        "dns_rfc2136_name": "home.5f.client.internal.",
        "dns_rfc2136_secret": KEY.secret,
        "dns_rfc2136_algorithm": "HMAC-SHA256",
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_key(form: str) -> None:
    text = written(KEY, form)
    assert KEY.secret in text
    assert KEY.name in text
    assert ("[2001:db8::53]:53" in text) == (form in ("lego", "caddy"))

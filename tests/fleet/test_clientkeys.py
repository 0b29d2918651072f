"""The key of each client may change the challenges of its names and nothing else."""

from __future__ import annotations

import pytest

from appliance.dns import names
from appliance.dns.numbers import TXT, A
from appliance.dns.policy import Kind, Policy, allowed
from appliance.fleet.clientkeys import ClientKeys, ClientPolicies, key_of
from appliance.fleet.serverkeys import key_of as key_of_server

SECRET = bytes(32)
HOME = key_of(SECRET, "home", 0x5F).name
LISTED = names.from_text("operators.key")
ALL = (Policy(Kind.UPDATE),)
GRANTED = {("home", 0x5F): ("www.example.org", "*.apps.example.org")}


def policies() -> ClientPolicies:
    return ClientPolicies({LISTED: ALL}, lambda client, serial: GRANTED.get((client, serial), ()))


def test_a_client_has_a_key_of_its_own() -> None:
    assert names.to_text(HOME) == "home.5f.client.internal"
    assert ClientKeys(SECRET)[HOME] == key_of(SECRET, "home", 0x5F)
    assert key_of(SECRET, "home", 0x5F).secret != key_of_server(SECRET, "home", 0x5F).secret
    assert ClientKeys(SECRET).get(key_of_server(SECRET, "home", 0x5F).name) is None


@pytest.mark.parametrize(
    ("name", "rtype", "may"),
    [
        ("_acme-challenge.www.example.org", TXT, True),
        ("_acme-challenge.apps.example.org", TXT, True),
        ("_acme-challenge.foo.apps.example.org", TXT, True),
        ("_acme-challenge.example.org", TXT, False),
        ("_acme-challenge.bank.example.org", TXT, False),
        ("_acme-challenge.www.example.org", A, False),
        ("www.example.org", TXT, False),
        ("x._acme-challenge.www.example.org", TXT, False),
    ],
)
def test_what_it_may_change(name: str, rtype: int, may: bool) -> None:
    assert allowed(policies()[HOME], names.from_text(name), rtype) is may


def test_other_keys() -> None:
    assert policies()[LISTED] == ALL
    assert list(policies()) == [LISTED]
    assert len(policies()) == 1
    for other in (key_of(SECRET, "home", 0x60).name, key_of_server(SECRET, "home", 0x5F).name):
        assert policies().get(other) is None  # a certificate that is revoked, for one

from __future__ import annotations

from typing import Any

import pytest

from appliance.caasettings import CaaTable, read_caa_table, wrong_caa
from appliance.dns.names import from_text
from appliance.fleet.mayissue import Issuers
from appliance.settingsfile import BadValue

NAMES, ISSUE = ("example.org",), ("letsencrypt.org",)
ACCOUNT = "https://acme-v02.api.letsencrypt.org/acme/acct/1"


def test_what_a_table_says() -> None:
    table = CaaTable(
        ("Example.ORG.", "*.apps.example.org"), ISSUE, ("dns-01",), "clients", False, "mailto:a@example.org"
    )
    assert read_caa_table(table) == Issuers(
        ("example.org", "*.apps.example.org"),
        ISSUE,
        ("dns-01",),
        "clients",
        wildcards=False,
        iodef="mailto:a@example.org",
    )
    assert read_caa_table(CaaTable(NAMES, ISSUE, account=ACCOUNT)) == Issuers(NAMES, ISSUE, (), ACCOUNT)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"names": ()}, "names must hold at least one"),
        ({"names": ("a..b",)}, "is not a host name"),
        ({"names": ("a.b", "A.b")}, "names names the same thing twice"),
        ({"issue": ()}, "issue must hold at least one"),
        ({"issue": ("Let's Encrypt",)}, "is not what a CA calls itself"),
        ({"issue": ("letsencrypt.org; accounturi=x",)}, "is not what a CA calls itself"),
        ({"methods": ("dns 01",)}, "is not the value of a CAA record"),
        ({"methods": ("dns.01",)}, "are not methods of validation"),
        ({"account": "client"}, 'account must be "clients" or the URL of an account'),
        ({"account": "https://a b"}, "the URL of an account"),
        ({"iodef": "a@example.org"}, "iodef must be mailto:ADDRESS"),
        ({"iodef": "mailto:" + "a" * 250 + "@b"}, "iodef must be"),
    ],
)
def test_what_cannot_be_said(more: dict[str, Any], what: str) -> None:
    with pytest.raises(BadValue, match=what):
        read_caa_table(CaaTable(**({"names": NAMES, "issue": ISSUE} | more)))


def test_what_is_wrong_beside_others() -> None:
    both = [Issuers(NAMES, ISSUE), Issuers(("example.org", "*.other.test"), ISSUE)]
    assert list(wrong_caa(both, ())) == ["example.org is in several entries"]
    assert list(wrong_caa(both[:1], {from_text("example.org")})) == []
    assert list(wrong_caa(both[1:], {from_text("example.org")})) == ["*.other.test is in none of the zones"]

from __future__ import annotations

import re

import pytest

from appliance.dns.caa import issue_value
from appliance.tunnel.account import ISSUER_PATTERN, URL_PATTERN, is_signed, sign
from tests.tunnel.authority import CLIENT, SERVER

INSTANCE, URL, ISSUERS = "0" * 32, "https://ca.test/account/1", ("ca.test", "other.test")


def test_every_part_is_signed() -> None:
    whole = (INSTANCE, 5, URL, ISSUERS)
    made = sign(CLIENT.key, *whole)
    assert is_signed(CLIENT.certificate, *whole, made)
    assert not is_signed(SERVER.certificate, *whole, made)
    others = [("1" * 32, 5, URL, ISSUERS), (INSTANCE, 6, URL, ISSUERS), (INSTANCE, 5, f"{URL}2", ISSUERS)]
    for other in [*others, (INSTANCE, 5, URL, ()), (INSTANCE, 5, URL, ISSUERS[:1])]:
        assert not is_signed(CLIENT.certificate, *other, made)


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        (URL, True),
        ("https://localhost:14000/my-account/1", True),
        ("http://ca.test/?a=1&b=2#c,d", True),
        ("https://" + "a" * 247, True),
        ("https://" + "a" * 248, False),
        ("https://", False),
        ("ftp://ca.test/1", False),
        ("https://ca.test/1; validationmethods=http-01", False),
        ("https://ca.test/1;x", False),
        ("https://ca.test/ 1", False),
        ("https://ca.test/\n1", False),
        ("https://ca.test/\u00e9", False),
    ],
)
def test_what_can_stand_in_a_record(url: str, is_one: bool) -> None:
    assert bool(re.fullmatch(URL_PATTERN, url)) is is_one
    if is_one:
        assert issue_value("ca.test", (), url)


@pytest.mark.parametrize(
    ("issuer", "is_one"),
    [
        ("letsencrypt.org", True),
        ("x", True),
        ("a-b.c9", True),
        ("", False),
        (".", False),
        ("-a.b", False),
        ("a..b", False),
        ("A.b", False),
        ("a.b;", False),
        ("a,b", False),
        ("a" * 254, False),
    ],
)
def test_what_a_ca_calls_itself(issuer: str, is_one: bool) -> None:
    assert bool(re.fullmatch(ISSUER_PATTERN, issuer)) is is_one
    if is_one:
        assert issue_value(issuer)

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from appliance.tunnel.challenge import (
    VALUE_PATTERN,
    is_signed,
    may_be_challenged,
    owner_of,
    sign,
)
from appliance.tunnel.signature import SIGNATURE_PATTERN
from tests.tunnel.authority import CLIENT, SERVER

LONG = ".".join(["a" * 60] * 3 + ["b" * 54])  # 237 octets: with the label before it 253


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("www.example.org", "_acme-challenge.www.example.org"),
        ("*.example.org", "_acme-challenge.example.org"),
        ("example.org", "_acme-challenge.example.org"),
    ],
)
def test_where_a_challenge_is(name: str, owner: str) -> None:
    assert owner_of(name) == owner


@pytest.mark.parametrize(
    ("granted", "name", "may"),
    [
        (("www.example.org",), "www.example.org", True),
        (("www.example.org",), "example.org", False),
        (("www.example.org",), "a.www.example.org", False),
        (("www.example.org",), "*.www.example.org", False),
        (("www.example.org",), "*.example.org", False),
        (("*.example.org",), "*.example.org", True),
        (("*.example.org",), "example.org", False),
        (("*.example.org",), "a.example.org", True),
        (("*.example.org",), "b.a.example.org", True),
        (("*.example.org",), "*.a.example.org", True),
        (("a.example.org", "b.example.org"), "b.example.org", True),
        ((), "a.example.org", False),
        ((LONG,), LONG, True),
        ((LONG + "b",), LONG + "b", False),
    ],
)
def test_whose_a_challenge_may_be(granted: tuple[str, ...], name: str, may: bool) -> None:
    assert may_be_challenged(granted, name) is may


def test_the_value_is_that_of_a_key_authorization() -> None:
    digest = hashlib.sha256(b"token.thumbprint").digest()
    assert re.fullmatch(VALUE_PATTERN, base64.urlsafe_b64encode(digest).rstrip(b"=").decode())


def test_only_who_has_the_key_can_sign() -> None:
    signature = sign(CLIENT.key, "www.example.org", "value")
    assert re.fullmatch(SIGNATURE_PATTERN, signature)
    assert is_signed(CLIENT.certificate, "www.example.org", "value", signature)
    assert not is_signed(CLIENT.certificate, "*.example.org", "value", signature)
    assert not is_signed(CLIENT.certificate, "www.example.org", "other", signature)
    assert not is_signed(SERVER.certificate, "www.example.org", "value", signature)
    for wrong in ("", "=", "AAAA", signature[:-4], signature.swapcase()):
        assert not is_signed(CLIENT.certificate, "www.example.org", "value", wrong)

"""A key for each server at each nameserver, and none in a list."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.fleet.serverkeys import ServerKeys, key_name, key_of, whose
from tests.effort import examples

SECRET, OTHER = bytes(32), bytes(range(32))


def test_the_derivation_is_that_of_rfc_5869() -> None:
    pseudo_random = hmac.digest(b"tunnel-appliance: key of a tunnel server at a nameserver", SECRET, "sha256")
    expected = hmac.new(pseudo_random, b"s2/5f\x01", hashlib.sha256).digest()
    key = key_of(SECRET, "s2", 0x5F)
    assert key.secret == expected
    assert names.to_text(key.name) == "s2.5f.server.internal"
    assert names.to_text(key.algorithm) == "hmac-sha256"


def test_each_server_certificate_and_nameserver_has_another() -> None:
    keys = {
        key_of(secret, server_id, serial).secret
        for secret in (SECRET, OTHER)
        for server_id in ("s2", "s3")
        for serial in (1, 2)
    }
    assert len(keys) == 8


def test_a_nameserver_knows_every_key_and_lists_none() -> None:
    keys = ServerKeys(SECRET)
    assert keys[key_name("s2", 7)] == keys.get(key_name("s2", 7)) == key_of(SECRET, "s2", 7)
    assert keys.get(names.from_text("s2.peer.internal")) is None
    assert len(keys) == 0
    assert list(keys) == []


@pytest.mark.parametrize(
    "text",
    [
        "server.internal",
        "5f.server.internal",
        "s2.server.internal",
        "s2.0x5f.server.internal",
        "s2.05f.server.internal",
        "s2.-5f.server.internal",
        "s2.5_f.server.internal",
        "s2.xserver.internal",
        f"s2.{'f' * 41}.server.internal",
        "s2\\.x.5f.server.internal",
        "s2\\200.5f.server.internal",
        "all",
    ],
)
def test_other_names_are_nobodys(text: str) -> None:
    assert whose(names.from_text(text)) is None


@given(
    st.from_regex(r"[a-z0-9](?:[a-z0-9_-]{0,20}[a-z0-9])?(\.[a-z0-9-]{1,9})?", fullmatch=True),
    st.integers(1, 2**159),
)
@settings(max_examples=examples(200), deadline=None)
def test_a_name_says_whose_key_it_is(server_id: str, serial: int) -> None:
    assert whose(key_name(server_id, serial)) == (server_id, serial)

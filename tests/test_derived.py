from __future__ import annotations

from pathlib import Path

import pytest

from appliance.addresses import Listen
from appliance.derived import (
    Zones,
    addresses_from_glue,
    everywhere,
    expanded,
    server_id,
    why_no_address,
)
from appliance.dns.zonefile import read_zone
from appliance.tunnel.discovery import ServerAddress

ZONE = """\
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 604800 15
@ NS NS1
@ NS ns2.elsewhere.test.
ns1 A 203.0.113.5
ns1 A 203.0.113.6
ns1 AAAA 2001:db8::5
www A 203.0.113.7
"""


PATH = Path("zones/example.org.zone")


def zones(text: str = ZONE) -> Zones:
    return {PATH: read_zone(f"$ORIGIN example.org.\n{text}", filename=str(PATH))}


def test_glue_that_is_ours() -> None:
    local = ["10.0.0.1", "203.0.113.5", "2001:db8::5", "203.0.113.7"]
    assert addresses_from_glue(zones(), local, 443) == (
        ServerAddress("203.0.113.5"),
        ServerAddress("2001:db8::5"),
    )
    assert addresses_from_glue(zones(), ["10.0.0.1"], 443) == ()


def test_loopback_glue_is_always_ours() -> None:
    only = zones("$TTL 9\n@ SOA ns1 h 1 2 3 4 5\n@ NS ns1\nns1 A 127.0.0.1\n")
    assert addresses_from_glue(only, [], 8443) == (ServerAddress("127.0.0.1", 8443),)


def test_why_there_is_no_address() -> None:
    text = why_no_address(zones(), ["10.0.0.1"])
    assert f"ns1.example.org 203.0.113.5 ({PATH})" in text
    assert "this machine is 10.0.0.1; give --public ADDRESS" in text
    assert "have no glue" in why_no_address({}, [])


def test_expanded() -> None:
    local = ["10.0.0.1", "2001:db8::1", "10.0.0.2"]
    wanted = [Listen("0.0.0.0", 53), Listen("::", 54), Listen("127.0.0.1", 55), Listen("::1", 56)]
    assert expanded(wanted, local) == (
        Listen("10.0.0.1", 53),
        Listen("10.0.0.2", 53),
        Listen("2001:db8::1", 54),
        Listen("127.0.0.1", 55),
        Listen("::1", 56),
    )


def test_everywhere() -> None:
    assert everywhere(443)[0] == Listen("0.0.0.0", 443)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("web1.example.org", "web1"),
        ("My_Box", "my-box"),
        ("", "server"),
        ("-", "server"),
        ("a" * 80, "a" * 63),
    ],
)
def test_server_id(host: str, wanted: str) -> None:
    assert server_id(host) == wanted

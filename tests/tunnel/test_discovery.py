from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.discovery import (
    MAX_SERVERS,
    REDIAL_ABSENT_SECONDS,
    BadServerAddress,
    Joiner,
    ServerAddress,
    read_address,
    read_txt,
    write_txt,
)
from tests.effort import examples

A, B, C = ServerAddress("10.5.0.5"), ServerAddress("10.5.0.6"), ServerAddress("2001:db8::5", 8443)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (ServerAddress("10.5.0.5"), "r=superprotocol;ip=10.5.0.5"),
        (ServerAddress("10.5.0.5", 443), "r=superprotocol;ip=10.5.0.5"),
        (ServerAddress("127.0.0.1", 8443), "r=superprotocol;ip=127.0.0.1;port=8443"),
        (ServerAddress("2001:DB8:0::5"), "r=superprotocol;ip=2001:db8::5"),
        (ServerAddress("2001:db8::5", 1), "r=superprotocol;ip=2001:db8::5;port=1"),
    ],
)
def test_written_exactly_and_read_back(address: ServerAddress, text: str) -> None:
    assert write_txt(address) == text
    assert read_txt(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "r=superprotocol;ip=10.5.0.5;",
        "r=superprotocol; ip = 10.5.0.5 ; weight=3; flag",
        "R=SuperProtocol;IP=10.5.0.5",
        "r=superprotocol;zone=eu;ip=10.5.0.5;port=443",
    ],
)
def test_what_later_versions_and_hands_may_write(text: str) -> None:
    assert read_txt(text) == A


@pytest.mark.parametrize(
    "text",
    [
        "", "v=spf1 -all", "r=superprotocol", "r=superprotocol;", "r=superprotocol;ip=",
        "r=superprotocolx;ip=10.5.0.5",
        "ip=10.5.0.5;r=superprotocol", "r=superprotocol;ip=10.5.0.5;ip=10.5.0.6", "r=superprotocol;ip=10.5.0",
        "r=superprotocol;ip=10.5.0.05", "r=superprotocol;ip=host.example", "r=superprotocol;ip=[2001:db8::5]",
        "r=superprotocol;ip=fe80::1%eth0", "r=superprotocol;ip=::ffff:10.5.0.5", "r=superprotocol;ip=0.0.0.0",
        "r=superprotocol;ip=224.0.0.1", "r=superprotocol;ip=255.255.255.255",
        "r=superprotocol;ip=10.5.0.5;port=0",
        "r=superprotocol;ip=10.5.0.5;port=65536", "r=superprotocol;ip=10.5.0.5;port=-1",
        "r=superprotocol;ip=10.5.0.5;port=", "r=superprotocol;ip=10.5.0.5;port=²",
        "r=superprotocol;ip=10.5.0.5" + ";" * 512,
        "r=superprotocol;ip=10.5.0.5;port=443;port=443", "r=superprotocol,ip=10.5.0.5",
    ],
)  # fmt: skip
def test_not_ours_or_not_usable(text: str) -> None:
    assert read_txt(text) is None


@given(st.text(alphabet=st.sampled_from("r=superprotocol;ip=10.5.0.5:port=443 %x"), max_size=60))
@settings(max_examples=examples(100), deadline=None)
def test_any_text_is_read_without_an_error(text: str) -> None:
    address = read_txt("r=superprotocol;" + text)
    assert address is None or read_txt(write_txt(address)) == address


@given(st.ip_addresses(), st.integers(-1, 65536))
@settings(max_examples=examples(100), deadline=None)
def test_an_address_is_canonical_or_refused(host: object, port: int) -> None:
    try:
        address = ServerAddress(str(host).upper(), port)
    except BadServerAddress:
        return
    assert address == read_address(str(address)) == read_txt(write_txt(address))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.5.0.5", A),
        ("10.5.0.5:443", A),
        ("2001:db8::5", ServerAddress("2001:db8::5")),
        ("[2001:db8::5]", ServerAddress("2001:db8::5")),
        ("[2001:db8::5]:8443", C),
    ],
)
def test_addresses_as_people_type_them(text: str, address: ServerAddress) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:443", "10.5.0.5:", "10.5.0.5:x", "[2001:db8::5", "[::1]443", "[]:1"]
)
def test_addresses_that_nobody_can_dial(text: str) -> None:
    with pytest.raises(BadServerAddress):
        read_address(text)


def test_every_server_of_the_answer_is_joined_in_its_order() -> None:
    joiner = Joiner()
    assert joiner.to_join(0.0) == []
    joiner.found([B, A, B, C], 0.0)
    assert joiner.to_join(0.0) == [B, A, C]


def test_an_absent_server_is_redialled_for_ten_minutes() -> None:
    joiner = Joiner()
    joiner.found([A, B], 0.0)
    joiner.found([A], 100.0)
    joiner.found([A], 500.0)
    assert joiner.to_join(100.0 + REDIAL_ABSENT_SECONDS - 1) == [A, B]
    assert joiner.to_join(100.0 + REDIAL_ABSENT_SECONDS) == [A]


def test_a_server_that_comes_back_to_the_dns_is_as_new() -> None:
    joiner = Joiner()
    joiner.found([A, B], 0.0)
    joiner.found([A], 100.0)
    joiner.found([A, B], 200.0)
    assert joiner.to_join(10_000.0) == [A, B]


def test_a_live_link_outlives_its_absence_and_is_redialled_when_it_ends() -> None:
    joiner = Joiner()
    joiner.found([A, B], 0.0)
    joiner.linked(B, "s2")
    joiner.found([A], 100.0)
    assert set(joiner.to_join(5000.0)) == {A, B}
    assert (joiner.is_linked(A), joiner.is_linked(B)) == (False, True)
    joiner.unlinked(B, 5000.0)
    assert not joiner.is_linked(B)
    assert set(joiner.to_join(5000.0 + REDIAL_ABSENT_SECONDS - 1)) == {A, B}
    assert joiner.to_join(5000.0 + REDIAL_ABSENT_SECONDS) == [A]


def test_alternates_of_one_server_are_left_alone_while_one_is_linked() -> None:
    joiner = Joiner()
    joiner.found([A, B, C], 0.0)
    joiner.linked(A, "s1")
    assert joiner.to_join(0.0) == [A, B, C]
    joiner.linked(B, "s1")
    assert joiner.to_join(0.0) == [B, C]
    joiner.unlinked(A, 1.0)
    assert joiner.to_join(1.0) == [B, C]
    joiner.unlinked(B, 2.0)
    assert joiner.to_join(2.0) == [A, B, C]
    joiner.linked(A, "s1")
    assert joiner.to_join(2.0) == [A, C]


def test_an_address_that_now_belongs_to_another_server_is_a_server_of_its_own() -> None:
    joiner = Joiner()
    joiner.found([A, B], 0.0)
    joiner.linked(A, "s1")
    joiner.linked(B, "s1")
    joiner.unlinked(A, 1.0)
    joiner.unlinked(B, 1.0)
    joiner.linked(A, "s1")
    joiner.found([A], 2.0)
    joiner.found([A], 3.0 + REDIAL_ABSENT_SECONDS)
    joiner.found([A, B], 4.0 + REDIAL_ABSENT_SECONDS)
    assert joiner.to_join(5.0 + REDIAL_ABSENT_SECONDS) == [A, B]
    joiner.linked(B, "s2")
    assert joiner.to_join(5.0 + REDIAL_ABSENT_SECONDS) == [A, B]


def test_a_forged_answer_makes_nobody_dial_the_world() -> None:
    joiner = Joiner()
    joiner.found([A, B], 0.0)
    joiner.linked(A, "s1")
    joiner.found([ServerAddress(f"192.0.2.{n}") for n in range(1, 200)], 1.0)
    assert len(joiner.to_join(1.0)) == MAX_SERVERS
    assert joiner.to_join(1.0)[0] == A
    joiner.found([A, B], 2.0)
    assert {A, B} < set(joiner.to_join(2.0))
    assert len(joiner.to_join(2.0)) == MAX_SERVERS

"""The membership record and the message that carries it."""

from __future__ import annotations

import dns.message
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.numbers import FORMERR, REFUSED
from appliance.dns.update import UpdateRefused, read_update
from appliance.fleet.announcement import (
    MAX_CHARACTERS,
    MAX_N,
    Announcement,
    BadAnnouncement,
    compose,
    owner_of,
    read_text,
    write_text,
)
from appliance.fleet.announcement import read_update as read_announcement
from appliance.tunnel.discovery import ServerAddress
from tests.effort import examples

APEX = names.from_text("demo.test")
HERE = ServerAddress("192.0.2.2")
SAID = Announcement("5f1c0de5", 7, (HERE, ServerAddress("2001:db8::2", 8443)))
TEXT = "boot=5f1c0de5;n=7;ip=192.0.2.2;ip=2001:db8::2;port=8443"


def test_the_form_of_the_record() -> None:
    assert write_text(SAID) == TEXT
    assert read_text(TEXT) == SAID
    assert read_text("ip=192.0.2.2;new=x;n=7;boot=5f1c0de5;") == Announcement("5f1c0de5", 7, (HERE,))
    assert read_text("boot=b;n=0;ip=192.0.2.2;ip=192.0.2.2").addresses == (HERE,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n=1;ip=192.0.2.2",
        "boot=;n=1;ip=192.0.2.2",
        "boot=b c;n=1;ip=192.0.2.2",
        f"boot={'b' * 65};n=1;ip=192.0.2.2",
        "boot=b;ip=192.0.2.2",
        "boot=b;n=-1;ip=192.0.2.2",
        "boot=b;n=\u0661;ip=192.0.2.2",
        f"boot=b;n={MAX_N + 1};ip=192.0.2.2",
        "boot=b;n=1",
        "boot=b;n=1;ip=www.demo.test",
        "boot=b;n=1;ip=0.0.0.0",
        "boot=b;n=1;ip=192.0.2.2;port=0",
        "boot=b;n=1;ip=192.0.2.2;port=70000",
        "boot=b;n=1;port=443;ip=192.0.2.2",
        "boot=b;n=1;ip=192.0.2.2;port=1;port=2",
        "boot=b;boot=b;n=1;ip=192.0.2.2",
        "boot=b;n=1;n=1;ip=192.0.2.2",
        "boot=b;n=1" + ";ip=192.0.2.2" * 17,
        "boot=b;n=1;ip=192.0.2.2;x=" + "x" * MAX_CHARACTERS,
    ],
)
def test_what_is_no_record(text: str) -> None:
    with pytest.raises(BadAnnouncement):
        read_text(text)


@given(st.text(max_size=80))
@settings(max_examples=examples(300), deadline=None)
def test_whatever_it_says_one_error_comes_of_it(text: str) -> None:
    try:
        said = read_text(text)
    except BadAnnouncement:
        return
    assert read_text(write_text(said)) == said


SIXTEEN = st.lists(
    st.builds(ServerAddress, st.sampled_from(["192.0.2.7", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"])
              | st.integers(1, 250).map(lambda number: f"2001:db8::{number:x}"), st.integers(1, 65535)),
    min_size=1, max_size=16, unique=True,
)  # fmt: skip


@given(st.integers(0, MAX_N), SIXTEEN)
@settings(max_examples=examples(100), deadline=None)
def test_what_a_server_composes_a_nameserver_reads(n: int, addresses: list[ServerAddress]) -> None:
    said = Announcement("5f" * 32, n, tuple(addresses))
    octets = compose(99, APEX, "s2", said, 60)
    assert len(octets) < 4096  # a nameserver reads no longer datagram
    update = read_update(octets, APEX)
    assert (read_announcement(update, "s2"), update.lease) == (said, 60)


def test_others_read_it_as_well() -> None:
    octets = compose(99, APEX, "s2", SAID, 60)
    assert len(octets) < 512
    message = dns.message.from_wire(octets)
    assert isinstance(message, dns.update.UpdateMessage)
    assert [rrset.to_text() for rrset in message.update] == [
        "s2._tunnel.demo.test. ANY TXT",
        f's2._tunnel.demo.test. 60 IN TXT "{TEXT}"',
    ]
    assert owner_of("s2", APEX) == names.from_text("s2._tunnel.demo.test")


def asked(*steps: tuple[str, ...]) -> bytes:
    message = dns.update.UpdateMessage("demo.test", id=7)
    for verb, *arguments in steps:
        getattr(message, verb)(*arguments)
    return message.to_wire()


GOOD = ("add", "s2._tunnel", "60", "TXT", f'"{TEXT}"')


def test_an_update_of_anybodys_tool_announces_as_well() -> None:
    for steps in (
        [GOOD],
        [("delete", "s2._tunnel", "TXT"), GOOD],
        [("delete", "s2._tunnel"), GOOD],
        [("add", "S2._Tunnel", "0", "TXT", f'"{TEXT[:20]}" "{TEXT[20:]}"')],
    ):
        assert read_announcement(read_update(asked(*steps), APEX), "s2") == SAID


@pytest.mark.parametrize(
    ("steps", "rcode"),
    [
        ([], REFUSED),
        ([("delete", "s2._tunnel", "TXT")], REFUSED),
        ([GOOD, ("add", "s2._tunnel", "60", "TXT", "boot=b;n=1;ip=192.0.2.3")], REFUSED),
        ([GOOD, ("add", "www", "60", "TXT", "x")], REFUSED),
        ([("add", "s3._tunnel", "60", "TXT", f'"{TEXT}"')], REFUSED),
        ([("add", "s2._tunnel", "60", "A", "192.0.2.2")], REFUSED),
        ([("absent", "s2._tunnel"), GOOD], REFUSED),
        ([("add", "s2._tunnel", "60", "TXT", "hello")], FORMERR),
        ([("add", "s2._tunnel", "60", "TXT", '"boot=b\\200;n=1;ip=192.0.2.2"')], FORMERR),
    ],
)
def test_the_key_of_a_server_may_do_nothing_else(steps: list[tuple[str, ...]], rcode: int) -> None:
    with pytest.raises(UpdateRefused) as refused:
        read_announcement(read_update(asked(*steps), APEX), "s2")
    assert refused.value.rcode == rcode

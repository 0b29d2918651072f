"""The Update Lease option, both ways, and what is none."""

from __future__ import annotations

import dns.edns
import dns.message
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.numbers import FORMERR
from appliance.dns.sections import read_sections
from appliance.dns.update import UpdateRefused, read_update
from appliance.dns.updatelease import LeaseMalformed, lease_granted, lease_in, lease_option
from tests.effort import examples

APEX = names.from_text("demo.test")


def message(*options: tuple[int, bytes]) -> bytes:
    update = dns.update.UpdateMessage("demo.test", id=7)
    update.add("s1._tunnel", 60, "TXT", "x")
    update.use_edns(
        0, options=[dns.edns.GenericOption(dns.edns.OptionType(code), content) for code, content in options]
    )
    return update.to_wire()


@pytest.mark.parametrize(
    ("content", "seconds"),
    [(b"\x00\x00\x00\x3c", 60), (b"\x00\x00\x00\x3c\x00\x00\x0e\x10", 60), (b"\xff\xff\xff\xff", 2**32 - 1)],
)
def test_both_forms_are_read(content: bytes, seconds: int) -> None:
    octets = message((10, b"12345678"), (2, content))
    assert lease_in(octets, read_sections(octets)) == seconds
    assert read_update(octets, APEX).lease == seconds


def test_without_the_option_there_is_no_lease() -> None:
    assert read_update(message(), APEX).lease is None
    assert read_update(message((3, b"")), APEX).lease is None


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x00" * 5, b"\x00" * 9])
def test_another_size_is_malformed(content: bytes) -> None:
    octets = message((2, content))
    with pytest.raises(LeaseMalformed):
        lease_in(octets, read_sections(octets))
    with pytest.raises(UpdateRefused) as refused:
        read_update(octets, APEX)
    assert refused.value.rcode == FORMERR


def test_what_we_write_others_read() -> None:
    octets = message()[:-2] + len(lease_option(60)).to_bytes(2, "big") + lease_option(60)
    (found,) = dns.message.from_wire(octets).options
    assert (found.otype, found.to_wire()) == (2, b"\x00\x00\x00\x3c")
    assert lease_granted(octets) == 60


@given(st.binary(max_size=40))
@settings(max_examples=examples(300), deadline=None)
def test_whatever_the_options_are_one_error_comes_of_it(content: bytes) -> None:
    octets = message()[:-2] + len(content).to_bytes(2, "big") + content
    try:
        lease_in(octets, read_sections(octets))
    except LeaseMalformed:
        assert lease_granted(octets) is None
    assert lease_granted(content) is None

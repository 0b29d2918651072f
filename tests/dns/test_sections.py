from __future__ import annotations

import random

import dns.message
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.sections import (
    MAX_CHANGE_OCTETS,
    MAX_CHANGE_RECORDS,
    MAX_POINTERS,
    MessageError,
    name_at,
    read_sections,
)
from tests.effort import examples


def update(count: int = 3) -> dns.update.UpdateMessage:
    message = dns.update.UpdateMessage("demo.test")
    message.present("www.demo.test", "A")
    for number in range(count):
        message.add(f"n{number}.sub", 300, "CNAME", "target.demo.test.")
    message.use_edns(0)
    return message


def test_every_record_is_found_where_it_is() -> None:
    octets = update().to_wire()
    sections = read_sections(octets)
    assert sections.name == names.from_text("demo.test")
    assert [len(part) for part in (sections.answer, sections.authority, sections.additional)] == [1, 3, 1]
    assert [name_at(octets, span.owner)[0] for span in sections.authority] == [
        names.from_text(f"n{number}.sub.demo.test") for number in range(3)
    ]
    for span in sections.authority:
        name, end = name_at(octets, span.rdata)
        assert (name, end) == (names.from_text("target.demo.test"), span.end)
    assert sections.additional[-1].end == len(octets)


def test_octets_left_over_or_missing() -> None:
    octets = update().to_wire()
    with pytest.raises(MessageError, match="after the end"):
        read_sections(octets + b"\x00")
    for end in range(len(octets)):
        with pytest.raises(MessageError):
            read_sections(octets[:end])


def test_bounds() -> None:
    with pytest.raises(MessageError, match="octets"):
        read_sections(bytes(MAX_CHANGE_OCTETS + 1))
    few = update(MAX_CHANGE_RECORDS - 2).to_wire(max_size=0xFFFF)
    assert len(read_sections(few).authority) == MAX_CHANGE_RECORDS - 2
    with pytest.raises(MessageError, match="records"):
        read_sections(update(MAX_CHANGE_RECORDS - 1).to_wire(max_size=0xFFFF))
    assert read_sections(bytes(4) + b"\x00\x01" + bytes(6) + bytes(5)).name == names.ROOT


@pytest.mark.parametrize(
    "octets",
    [
        b"\xc0\x0c",  # to itself
        b"\xc0\x20" + bytes(30),  # forwards
        b"\xc0\x02",  # into the header
        b"\xc0",
        b"\x40a",
        b"\x3f" + bytes(10),
        b"\x01a" * 128 + b"\x00",
    ],
)
def test_names_that_are_none(octets: bytes) -> None:
    with pytest.raises(MessageError):
        name_at(bytes(12) + octets, 12)


def test_pointers_in_a_row_are_bounded() -> None:
    def chain(count: int) -> tuple[bytes, int]:
        octets = bytes(12) + b"\x00"
        at = 12
        for _ in range(count):
            octets, at = octets + (0xC000 | at).to_bytes(2, "big"), len(octets)
        return octets, at

    octets, at = chain(MAX_POINTERS)
    assert name_at(octets, at) == (names.ROOT, at + 2)
    with pytest.raises(MessageError, match="too many"):
        name_at(*chain(MAX_POINTERS + 1))


def test_a_name_of_255_octets() -> None:
    longest = b"\x01a" * 127 + b"\x00"
    assert name_at(bytes(12) + longest, 12) == (longest, 12 + 255)
    with pytest.raises(MessageError, match="255"):
        name_at(bytes(12) + longest + b"\x01b\xc0\x0c", 12 + 255)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=600), st.integers(0, 600))
def test_any_octets_give_one_error_only(octets: bytes, at: int) -> None:
    for attempt in (lambda: read_sections(octets), lambda: name_at(octets, at)):
        try:
            attempt()
        except MessageError:
            pass


def test_a_message_with_changed_octets_gives_one_error_only() -> None:
    chance = random.Random(4)
    octets = update().to_wire()
    for _ in range(2000):
        changed = bytearray(octets)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice((0, 1, 0x3F, 0x40, 0xC0, 0xFF))
        try:
            sections = read_sections(bytes(changed))
            for span in sections.authority:
                name_at(bytes(changed), span.owner)
        except MessageError:
            pass

"""A list that travels in parts: there and back, in order or not at all."""

from __future__ import annotations

import pytest

from appliance.tunnel.crl import MAX_CRL_OCTETS, RevocationList
from appliance.tunnel.crlparts import MAX_PART_CHARACTERS, MAX_PARTS, Crl, CrlExchange
from appliance.tunnel.lines import MAX_LINE_OCTETS, MessageError
from appliance.tunnel.messages import encode

LONG = RevocationList(7, frozenset(), b"x" * (MAX_PART_CHARACTERS * 2 + 1))


def exchange(theirs: int | None = 0) -> CrlExchange:
    made = CrlExchange()
    made.theirs = theirs
    return made


def test_it_is_given_once_to_who_holds_a_lower_one() -> None:
    giving, taking = exchange(), exchange()
    parts = giving.to_give(LONG)
    assert [(one.number, one.part, one.parts) for one in parts] == [(7, 1, 3), (7, 2, 3), (7, 3, 3)]
    assert [taking.take(part) for part in parts] == [None, None, LONG.pem]
    assert giving.to_give(LONG) == taking.to_give(LONG) == ()
    assert len(giving.to_give(RevocationList(8, frozenset(), b"y"))) == 1


@pytest.mark.parametrize("theirs", [None, 7, 8])
def test_it_is_not_given_to_who_keeps_none_or_has_one(theirs: int | None) -> None:
    assert exchange(theirs).to_give(LONG) == ()


def test_the_longest_list_fits_and_every_part_fits_a_line() -> None:
    line = b"A" * 64 + b"\n"
    longest = RevocationList(1, frozenset(), (line * (MAX_CRL_OCTETS // 65 + 1))[:MAX_CRL_OCTETS])
    parts = exchange().to_give(longest)
    assert len(parts) == MAX_PARTS
    assert max(len(encode(part)) for part in parts) <= MAX_LINE_OCTETS


@pytest.mark.parametrize(
    "parts",
    [
        [Crl(1, 2, 2, "a")],
        [Crl(1, 1, 2, "a"), Crl(1, 1, 2, "a")],
        [Crl(1, 1, 3, "a"), Crl(1, 3, 3, "a")],
        [Crl(1, 1, 2, "a"), Crl(2, 2, 2, "a")],
        [Crl(1, 1, 2, "a"), Crl(1, 2, 3, "a")],
        [Crl(1, 1, 1, "é")],
    ],
)
def test_parts_out_of_order_are_an_error(parts: list[Crl]) -> None:
    taking = exchange()
    with pytest.raises(MessageError, match="crl: "):
        for part in parts:
            taking.take(part)

"""The serial of the next version."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.serial import INDEXES, MODULUS, is_newer, next_serial
from tests.effort import examples

UNIX = 1_790_000_000


@pytest.mark.parametrize(
    ("one", "other", "newer"),
    [
        (1, 0, True),
        (0, 1, False),
        (5, 5, False),
        (0, MODULUS - 1, True),
        (MODULUS - 1, 0, False),
        (1 << 31, 0, False),
        (0, 1 << 31, False),
        ((1 << 31) - 1, 0, True),
        (100, MODULUS - 100, True),
    ],
)
def test_is_newer_by_rfc_1982(one: int, other: int, newer: bool) -> None:
    assert is_newer(one, other) is newer


@pytest.mark.parametrize(
    ("last", "file_serial", "wall", "index", "expected"),
    [
        (0, 1, UNIX, 0, UNIX),  # UNIX is a multiple of 8
        (0, 1, UNIX, 3, UNIX + 3),
        (UNIX + 3, 1, UNIX, 3, UNIX + 11),
        (UNIX + 3, 1, UNIX + 100, 3, UNIX + 107),
        (UNIX + 800, 1, UNIX, 0, UNIX + 808),
        (0, 2026112301, UNIX, 5, 2026112301),  # a date is above Unix time; its low bits are 5
        (2026112301, 2026112301, UNIX, 5, 2026112309),
        (2026112301, 1, UNIX, 5, 2026112309),  # the file's serial going back takes nothing back
        (0, 3_000_000_000, UNIX, 0, 3_000_000_000),
        (MODULUS - 3, MODULUS - 3, UNIX, 0, 8),  # round the end, and 0 is left out
        (MODULUS - 8, MODULUS - 8, UNIX, 7, MODULUS - 1),
        (
            UNIX - (1 << 31) + 1 + MODULUS,
            1,
            UNIX,
            7,
            UNIX - (1 << 31) + 7 + MODULUS,
        ),  # Unix time is just too far ahead
    ],
)
def test_next_serial(last: int, file_serial: int, wall: int, index: int, expected: int) -> None:
    assert next_serial(last, file_serial, wall, index) == expected


@given(
    st.integers(1, MODULUS - 1),
    st.integers(0, MODULUS - 1),
    st.integers(UNIX, UNIX * 2),
    st.integers(0, INDEXES - 1),
)
@settings(max_examples=examples(200), deadline=None)
def test_the_next_is_newer_and_the_nameservers_own(
    last: int, file_serial: int, wall: int, index: int
) -> None:
    following = next_serial(last, file_serial, wall, index)
    assert 0 < following < MODULUS
    assert following % INDEXES == index
    assert is_newer(following, last)


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_is_three_bits(index: int) -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        next_serial(1, 1, UNIX, index)

"""Rotation is even."""

from __future__ import annotations

from collections import Counter

import pytest

from appliance.dns.rotation import SHIFTS, Rotation, rotated
from appliance.dns.table import MAX_ENTRIES
from appliance.dns.zone import RRset


def query(ident: int) -> bytes:
    return ident.to_bytes(2, "big") + bytes(10)


@pytest.mark.parametrize("count", range(1, 15))
def test_each_record_is_first_as_often_as_others(count: int) -> None:
    rrset = RRset(b"\0", 1, 15, tuple(bytes((number,)) for number in range(count)))
    firsts: Counter[bytes] = Counter()
    for ident in range(SHIFTS):
        (turned,) = rotated([rrset], query(ident))
        assert sorted(turned.rdatas) == sorted(rrset.rdatas)
        firsts[turned.rdatas[0]] += 1
    if count <= SHIFTS:
        assert max(firsts.values()) - min(firsts.values()) <= 1
        assert len(firsts) == count


def test_queries_of_one_shift_share_a_table() -> None:
    rotation = Rotation()
    assert len(list(rotation)) == SHIFTS
    for ident in range(0, 65536, 999):
        assert rotation.table(query(ident)) is rotation.table(query(ident % SHIFTS))
    assert sum(table._most for table in rotation) <= MAX_ENTRIES

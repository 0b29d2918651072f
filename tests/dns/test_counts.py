"""Counts are by kind, and of no more kinds than there are names for."""

from __future__ import annotations

from appliance.dns.counts import OTHER, Counts, Kind


def test_a_kind_has_one_tally() -> None:
    counts = Counts()
    first = counts.tally(b"\0", 1, 0, True)
    first.count += 2
    counts.tally(b"\0", 1, 0, True).count += 1
    counts.tally(b"\0", 1, 0, False).count += 1
    counts.tally(None, 1, 5, True).count += 1
    assert counts.read() == {
        Kind(b"\0", 1, 0, True): 3,
        Kind(b"\0", 1, 0, False): 1,
        Kind(None, 1, 5, True): 1,
    }


def test_a_stranger_makes_no_kinds() -> None:
    counts = Counts()
    for qtype in range(65536):
        counts.tally(b"\0", qtype, 0, True).count += 1
    assert len(counts.read()) < 32
    assert sum(counts.read().values()) == 65536
    assert counts.read()[Kind(b"\0", OTHER, 0, True)] > 65000

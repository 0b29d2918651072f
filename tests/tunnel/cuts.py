"""Cutting octets as a network does."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

CUTS = st.lists(st.integers(0, 400), max_size=8)


def cut(octets: bytes, places: list[int]) -> Iterator[bytes]:
    """The octets in pieces that end at these places (those beyond the end do not count)."""
    start = 0
    for place in sorted({place for place in places if place < len(octets)}):
        yield octets[start:place]
        start = place
    yield octets[start:]

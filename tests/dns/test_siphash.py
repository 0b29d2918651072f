"""SipHash-2-4 against the vectors of its paper and of RFC 9018."""

from __future__ import annotations

import pytest

from appliance.dns.siphash import siphash

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("octets", "hashed"),
    [(0, "310e0edd47db6f72"), (1, "fd67dc93c539f874"), (8, "6224939a79f5f593"), (15, "e545be4961ca29a1")],
)
def test_the_paper(octets: int, hashed: str) -> None:
    assert siphash(KEY, bytes(range(octets))).hex() == hashed

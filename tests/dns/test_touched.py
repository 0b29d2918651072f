"""The kinds of what can be touched are never taken for each other."""

from __future__ import annotations

from appliance.dns.names import from_text
from appliance.dns.touched import soa_of, standing, zone_at


def test_all_are_different() -> None:
    names = [from_text(text) for text in (".", "a", "b.a")]
    found = [kind(name) for name in names for kind in (bytes, standing, soa_of, zone_at)]
    assert len(set(found)) == len(found)

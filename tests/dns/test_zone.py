"""What a zone knows beyond its records."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.names import from_text
from appliance.dns.numbers import NS, SOA, A
from appliance.dns.touched import soa_of, standing
from appliance.dns.zone import Zone, soa_minimum, soa_serial, soa_with, zone_of
from tests.dns.asking import valid_zone, zone, zone_lines
from tests.effort import examples

ZONE = zone(
    "a.b.c A 192.0.2.1\n*.x.d A 192.0.2.1\nsub NS ns.sub\n"
    "ns.sub A 192.0.2.1\nold DNAME new\nc.c A 192.0.2.1\n"
)


def test_empty_non_terminals_cuts_and_dnames() -> None:
    assert ZONE.empty == {from_text(f"{name}.example.test") for name in ("b.c", "c", "x.d", "d")}
    assert set(ZONE.cuts) == {from_text("sub.example.test")}
    assert set(ZONE.dnames) == {from_text("old.example.test")}
    assert ZONE.exists(from_text("c.example.test"))
    assert not ZONE.exists(from_text("e.example.test"))
    assert ZONE.node(from_text("c.example.test")) == {}
    assert ZONE.node(from_text("c.c.example.test"))[A].rdatas == (b"\xc0\x00\x02\x01",)


def test_the_negative_soa_has_the_lower_ttl() -> None:
    assert (ZONE.soa.ttl, ZONE.negative_soa.ttl) == (300, 60)
    assert ZONE.negative_soa.rdatas == ZONE.soa.rdatas


def test_an_soa_with_another_serial_and_minimum() -> None:
    changed = soa_with(ZONE.soa, serial=0xFFFFFFFF, minimum=15)
    assert (soa_serial(changed), soa_minimum(changed)) == (0xFFFFFFFF, 15)
    assert soa_with(changed, serial=7, minimum=60) == ZONE.soa


@settings(max_examples=examples(150), deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_changed_zone_knows_what_a_new_one_knows(choose: random.Random) -> None:
    """And says what it touched: every name that is another, and every name that begins or ceases to stand."""
    version, _ = valid_zone(zone_lines(choose), "example.test")
    for _ in range(4):
        other, _ = valid_zone(zone_lines(choose), "example.test")
        pool = sorted(set(version.rrsets) | set(other.rrsets))
        nodes = {name: other.node(name) for name in choose.sample(pool, choose.randint(0, len(pool)))}
        before, (version, touched) = version, version.changed(nodes)
        new = Zone(version.apex, version.serial, dict(version.rrsets))
        assert version == new
        assert len(version.rrsets) == len(new.rrsets)
        for part in version.shape.__slots__:
            assert dict(getattr(version.shape, part)) == dict(getattr(new.shape, part)), part
        for name in {*before.rrsets, *version.rrsets, *before.empty, *version.empty}:
            if before.node(name) != version.node(name):
                assert name in touched
            if before.exists(name) is not version.exists(name):
                assert {name, standing(name)} <= touched
            if (name in before.cuts, name in before.dnames) != (name in version.cuts, name in version.dnames):
                assert standing(name) in touched


def test_another_serial_touches_nothing() -> None:
    apex = dict(ZONE.node(ZONE.apex))
    later, touched = ZONE.changed({ZONE.apex: {**apex, SOA: soa_with(ZONE.soa, serial=8, minimum=60)}})
    assert (later.serial, touched) == (8, frozenset())
    _, touched = ZONE.changed({ZONE.apex: {**apex, SOA: soa_with(ZONE.soa, serial=8, minimum=61)}})
    assert touched == {soa_of(ZONE.apex)}


def test_a_zone_of_rrsets() -> None:
    rrsets = [rrset for node in ZONE.rrsets.values() for rrset in node.values()]
    assert zone_of(ZONE.apex, rrsets) == ZONE
    with pytest.raises(ValueError, match="SOA"):
        zone_of(ZONE.apex, [rrset for rrset in rrsets if rrset.rtype != SOA])


def test_the_apex_is_not_a_cut() -> None:
    assert NS in ZONE.node(ZONE.apex)
    assert ZONE.apex not in ZONE.cuts

"""What a zone knows beyond its records."""

from __future__ import annotations

import pytest

from appliance.dns.names import from_text
from appliance.dns.numbers import NS, SOA, TXT, A
from appliance.dns.zone import RRset, Zone, soa_minimum, soa_serial, soa_with, zone_of
from tests.dns.asking import zone

ZONE = zone(
    "a.b.c A 192.0.2.1\n*.x.d A 192.0.2.1\nsub NS ns.sub\n"
    "ns.sub A 192.0.2.1\nold DNAME new\nc.c A 192.0.2.1\n"
)


def test_empty_non_terminals_cuts_and_dnames() -> None:
    assert ZONE.empty == {from_text(f"{name}.example.test") for name in ("b.c", "c", "x.d", "d")}
    assert ZONE.cuts == {from_text("sub.example.test")}
    assert ZONE.dnames == {from_text("old.example.test")}
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


def test_a_zone_over_another_knows_what_a_new_one_knows() -> None:
    name = from_text("n.b.c.example.test")
    deep = from_text("p.q.example.test")
    top = from_text("c.example.test")
    rrsets = {
        **ZONE.rrsets,
        **{at: {TXT: RRset(at, TXT, 1, (b"\x01t",))} for at in (name, deep, top)},
    }
    over, new = Zone(ZONE.apex, 7, rrsets, ZONE), Zone(ZONE.apex, 7, rrsets)
    assert over == new
    assert (over.empty, over.cuts, over.dnames) == (new.empty, new.cuts, new.dnames)


def test_a_zone_of_rrsets() -> None:
    rrsets = [rrset for node in ZONE.rrsets.values() for rrset in node.values()]
    assert zone_of(ZONE.apex, rrsets) == ZONE
    with pytest.raises(ValueError, match="SOA"):
        zone_of(ZONE.apex, [rrset for rrset in rrsets if rrset.rtype != SOA])


def test_the_apex_is_not_a_cut() -> None:
    assert NS in ZONE.node(ZONE.apex)
    assert ZONE.apex not in ZONE.cuts

"""A packed zone is the zone that was packed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.lookup import look_up
from appliance.dns.numbers import SOA, A
from appliance.dns.packed import Packed, PackedError, check, pack, source_of, unpack
from appliance.dns.zone import RRset, Zone, soa_minimum, soa_with
from tests.dns.asking import valid_zone, zone, zone_lines
from tests.effort import examples

SOURCE = source_of(b"the file")


def packed(made: Zone) -> Zone:
    return unpack(memoryview(pack(made, SOURCE)), made.apex)


@settings(max_examples=examples(80), deadline=None)
@given(st.randoms(use_true_random=False))
def test_it_holds_the_same(choose: random.Random) -> None:
    made, _ = valid_zone(zone_lines(choose), "example.test")
    read = packed(made)
    assert read == made
    assert (len(read.rrsets), read.soa, read.empty) == (len(made.rrsets), made.soa, made.empty)
    for part in made.shape.__slots__:
        there, expected = getattr(read.shape, part), getattr(made.shape, part)
        assert dict(there) == dict(expected), part
        assert (len(there), bool(there)) == (len(expected), bool(expected))
    pool = [*made.rrsets, *made.shape.children, names.from_text("nothing.example.test"), b"\0"]
    for name in pool:
        for asked in (name, b"\x01x" + name, names.wildcard_of(name)):
            assert (asked in read.rrsets, read.exists(asked)) == (asked in made.rrsets, made.exists(asked))
            assert look_up({read.apex: read}, asked, A) == look_up({made.apex: made}, asked, A)


def test_changes_are_laid_over_it() -> None:
    made = zone("a.b A 192.0.2.1\nwww A 192.0.2.2\n")
    read = packed(made)
    www, new = names.from_text("www.example.test"), names.from_text("x.b.example.test")
    changes = {www: {}, new: {A: RRset(new, A, 1, (b"\x01\x02\x03\x04",))}}
    assert read.changed(changes) == made.changed(changes)


def test_content_is_the_same_whatever_the_serial() -> None:
    made = zone("a.b A 192.0.2.1\n")
    later = {SOA: soa_with(made.soa, serial=99, minimum=soa_minimum(made.soa))}
    raised, _ = made.changed({made.apex: {**made.node(made.apex), **later}})
    other, _ = made.changed({names.from_text("a.b.example.test"): {}})

    def content(one: Zone) -> bytes:
        rrsets = packed(one).rrsets
        assert isinstance(rrsets, Packed)
        digest: bytes = rrsets.content
        return digest

    assert content(made) == content(Zone(raised.apex, 99, {name: raised.node(name) for name in made.rrsets}))
    assert content(made) != content(other)


@pytest.mark.parametrize("at", [0, 40, 70, 110, 200, -1])
def test_damage_is_seen(at: int) -> None:
    octets = pack(zone("a.b A 192.0.2.1\n"), SOURCE)
    check(memoryview(octets), SOURCE)
    with pytest.raises(PackedError):
        check(memoryview(octets), source_of(b"another file"))
    with pytest.raises(PackedError):
        check(memoryview(octets)[:-1], SOURCE)
    with pytest.raises(PackedError):
        check(memoryview(octets)[:10], SOURCE)
    if not 64 <= at < 96:  # the content's hash is no more than a comparison
        octets[at] ^= 1
        with pytest.raises(PackedError):
            check(memoryview(octets), SOURCE)

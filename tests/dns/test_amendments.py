from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.amendments import Amendment, Rrsets, amend, amended, decode, encode, faults_among, merge
from appliance.dns.numbers import AAAA, CNAME, NS, SOA, TXT, A
from appliance.dns.zone import Node, RRset, Zone
from appliance.dns.zonefile import read_zone
from tests.effort import examples

APEX = names.from_text("demo.test")
WWW = names.from_text("www.demo.test")
NEW = names.from_text("a.new.demo.test")
NS1 = names.from_text("ns1.demo.test")


def file(*lines: str, serial: int = 1) -> Zone:
    text = [
        "$ORIGIN demo.test.",
        "$TTL 300",
        f"@ SOA ns1 hostmaster {serial} 3600 600 86400 300",
        "@ NS ns1",
        "ns1 A 192.0.2.53",
        *lines,
        "",
    ]
    return read_zone("\n".join(text), filename="demo.zone")


def addresses(name: bytes, *last: int, ttl: int = 300) -> RRset:
    return RRset(name, A, ttl, tuple(bytes((192, 0, 2, octet)) for octet in last))


def kept(zone: Zone, changes: Rrsets) -> dict[tuple[bytes, int], Amendment]:
    return {key: one for key, one in amend(zone, {}, changes).items() if one is not None}


def test_what_update_made_holds_while_the_file_says_the_same_there() -> None:
    before = file("www A 192.0.2.80")
    changes: Rrsets = {(WWW, A): addresses(WWW, 81), (NEW, TXT): RRset(NEW, TXT, 60, (b"\x01x",))}
    amendments = kept(before, changes)
    assert amendments[WWW, A] == Amendment(WWW, A, addresses(WWW, 80), addresses(WWW, 81))
    assert amendments[NEW, TXT].was is None
    merged = merge(before, amendments.values())
    assert merged.zone == amended(before, changes)
    assert merged.dropped == ()
    edited = file("www A 192.0.2.80", "other A 192.0.2.90", "www MX 10 other", serial=2)
    merged = merge(edited, amendments.values())
    assert merged.dropped == ()
    assert merged.zone == amended(edited, changes)


def test_the_file_wins_for_what_it_changed_since() -> None:
    amendments = kept(file("www A 192.0.2.80"), {(WWW, A): addresses(WWW, 81), (NEW, A): addresses(NEW, 1)})
    edited = file("www A 192.0.2.82")
    merged = merge(edited, amendments.values())
    assert merged.zone.node(WWW)[A] == addresses(WWW, 82)
    assert merged.zone.node(NEW)[A] == addresses(NEW, 1)
    assert merged.dropped == ((amendments[WWW, A], "the zone file says something else there since"),)


@pytest.mark.parametrize("lines", [[], ["www A 192.0.2.80", "www A 192.0.2.99"], ["www 60 A 192.0.2.80"]])
def test_also_where_it_took_something_out_or_added_something(lines: list[str]) -> None:
    amendments = kept(file("www A 192.0.2.80"), {(WWW, A): addresses(WWW, 81)})
    edited = file(*lines)
    merged = merge(edited, amendments.values())
    assert merged.zone == edited
    assert len(merged.dropped) == 1


def test_the_order_of_records_in_the_file_says_nothing() -> None:
    amendments = kept(file("www A 192.0.2.80", "www A 192.0.2.81"), {(WWW, A): None})
    merged = merge(file("www A 192.0.2.81", "www A 192.0.2.80"), amendments.values())
    assert WWW not in merged.zone.rrsets


def test_what_the_operator_wrote_into_the_file_is_not_kept_beside_it() -> None:
    amendments = kept(file(), {(WWW, A): addresses(WWW, 81)})
    edited = file("www A 192.0.2.81")
    merged = merge(edited, amendments.values())
    assert merged.zone == edited
    assert merged.dropped == ((amendments[WWW, A], ""),)


def test_where_both_together_are_no_zone_the_file_wins() -> None:
    amendments = kept(
        file(),
        {
            (WWW, A): addresses(WWW, 81),
            (WWW, TXT): RRset(WWW, TXT, 60, (b"\x01x",)),
            (NEW, A): addresses(NEW, 1),
        },
    )
    merged = merge(file("www CNAME ns1"), amendments.values())
    assert set(merged.zone.node(WWW)) == {CNAME}
    assert merged.zone.node(NEW)
    assert len(merged.dropped) == 2
    assert all("can have no other records" in reason for _, reason in merged.dropped)

    amendments = kept(file("ns2 A 192.0.2.54"), {(names.from_text("ns2.demo.test"), A): None})
    edited = file("ns2 A 192.0.2.54", "@ NS ns2")
    merged = merge(edited, amendments.values())
    assert merged.zone == edited
    assert [reason for _, reason in merged.dropped] == [
        "with the zone file, the nameserver ns2.demo.test would have no A or AAAA record"
    ]

    amendments = kept(file(), {(NEW, A): addresses(NEW, 1)})
    merged = merge(file("new DNAME other.test."), amendments.values())
    assert NEW not in merged.zone.rrsets


def soa(serial: int, rest: bytes = bytes(16)) -> RRset:
    return RRset(APEX, SOA, 300, (NS1 + NS1 + serial.to_bytes(4, "big") + rest,))


def test_the_serial_of_a_file_goes_on_rising_under_an_soa_of_update() -> None:
    amendments = kept(file(serial=5), {(APEX, SOA): soa(100)})
    assert merge(file(serial=6), amendments.values()).zone.serial == 100
    merged = merge(file(serial=200), amendments.values())
    assert merged.zone.serial == 200
    assert merged.zone.soa.rdatas[0].endswith(bytes(16))
    assert merged.dropped == ()


def test_an_amendment_that_is_undone_is_not_kept() -> None:
    zone = file("www A 192.0.2.80")
    amendments = kept(zone, {(WWW, A): addresses(WWW, 81)})
    assert amend(zone, amendments, {(WWW, A): addresses(WWW, 80)}) == {(WWW, A): None}
    assert amend(zone, amendments, {(WWW, A): None}) == {
        (WWW, A): Amendment(WWW, A, addresses(WWW, 80), None)
    }
    assert amend(zone, {}, {(WWW, A): addresses(WWW, 80)}) == {}


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([(name, rtype) for name in (WWW, NEW, b"\x01b" + NEW) for rtype in (A, TXT)]),
            st.one_of(st.none(), st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True)),
            max_size=3,
        ),
        max_size=5,
    )
)
def test_change_after_change_is_what_the_amendments_give(
    steps: list[dict[tuple[bytes, int], list[int] | None]],
) -> None:
    zone = static = file("www A 192.0.2.1")
    amendments: dict[tuple[bytes, int], Amendment] = {}
    for step in steps:
        changes: dict[tuple[bytes, int], RRset | None] = {
            (name, rtype): RRset(name, rtype, 300, tuple(bytes((192, 0, 2, one)) for one in last))
            if last
            else None
            for (name, rtype), last in step.items()
        }
        for key, one in amend(zone, amendments, changes).items():
            if one is None:
                del amendments[key]
            else:
                amendments[key] = one
        static = amended(static, changes)
        assert static.empty == Zone(APEX, static.serial, static.rrsets).empty
    merged = merge(zone, amendments.values())
    assert merged.dropped == ()
    assert {
        (name, rtype): (rrset.ttl, frozenset(rrset.rdatas))
        for name, node in merged.zone.rrsets.items()
        for rtype, rrset in node.items()
    } == {
        (name, rtype): (rrset.ttl, frozenset(rrset.rdatas))
        for name, node in static.rrsets.items()
        for rtype, rrset in node.items()
    }


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, (1 << 31) - 1), st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_an_rrset_as_octets_and_back(ttl: int, rdatas: list[bytes]) -> None:
    rrset = RRset(WWW, TXT, ttl, tuple(rdatas))
    octets = encode(rrset)
    assert decode(WWW, TXT, octets) == rrset
    with pytest.raises(ValueError, match="rrset"):
        decode(WWW, TXT, octets[:-1] if rdatas[-1] else octets[:4])


# Nameservers

Blamed = dict[str, set[bytes]]
"""By what is wrong: which of the changed names are to blame."""


def whole_walk(zone: Zone) -> Iterator[tuple[frozenset[bytes], str]]:
    """What is wrong with the nameservers of `zone`, from a look at each of each delegation: the model."""
    for owner in (zone.apex, *zone.cuts):
        servers = zone.node(owner).get(NS)
        for rdata in servers.rdatas if servers is not None else ():
            target = rdata.lower()
            if not names.is_at_or_below(target, zone.apex):
                continue
            cut = target
            while cut != zone.apex and cut not in zone.cuts:
                cut = names.parent(cut)
            if cut != zone.apex and not names.is_at_or_below(target, owner):
                continue
            node = zone.node(target)
            if cut == zone.apex and not zone.exists(target):
                encloser = names.parent(target)
                while not zone.exists(encloser):
                    encloser = names.parent(encloser)
                node = zone.node(names.wildcard_of(encloser))
            text = names.to_text(target)
            if CNAME in node:
                yield frozenset((owner, target)), f"the nameserver {text} would be a CNAME"
            elif A not in node and AAAA not in node:
                yield frozenset((owner, target)), f"the nameserver {text} would have no A or AAAA record"
    if NS not in zone.node(zone.apex):
        yield frozenset((zone.apex,)), "the zone would have no NS record at its apex"


def blamed(found: Iterator[tuple[frozenset[bytes], str]], touched: set[bytes]) -> Blamed:
    by_fault: Blamed = {}
    for owners, what in found:
        if what.startswith("the nameserver ") or what.endswith("no NS record at its apex"):
            by_fault.setdefault(what, set()).update(owners & touched)
    return by_fault


# Deep enough for cuts in cuts, glue, wildcards, and names that exist only because of others below them.
LABELS = st.sampled_from((b"\x01a", b"\x01b", b"\x01A", b"\x01*"))
TARGETS = st.one_of(
    st.lists(LABELS, max_size=3).map(lambda parts: b"".join(parts) + APEX),
    st.sampled_from((NS1, names.from_text("ns.other.test"), b"\x06x" + APEX)),
)
OWNERS = TARGETS.map(bytes.lower).filter(lambda name: names.is_at_or_below(name, APEX))
RRSETS = st.one_of(
    st.tuples(st.sampled_from((A, AAAA, TXT)), st.just((b"\0" * 4,))),
    st.tuples(st.just(NS), st.lists(TARGETS, min_size=1, max_size=3, unique=True).map(tuple)),
    st.tuples(st.just(CNAME), TARGETS.map(lambda target: (target,))),
)
WRITTEN = st.lists(st.tuples(OWNERS, RRSETS), max_size=9)
CHANGES = st.lists(
    st.one_of(
        st.tuples(OWNERS, RRSETS),
        st.tuples(OWNERS, st.sampled_from((A, AAAA, TXT, NS, CNAME)).map(lambda rtype: (rtype, None))),
    ),
    min_size=1,
    max_size=4,
)


def changes_of(
    drawn: list[tuple[bytes, tuple[int, tuple[bytes, ...] | None]]],
) -> dict[tuple[bytes, int], RRset | None]:
    return {
        (name, rtype): RRset(name, rtype, 300, rdatas) if rdatas else None for name, (rtype, rdatas) in drawn
    }


@settings(max_examples=examples(600), deadline=None)
@given(WRITTEN, st.lists(CHANGES, max_size=4))
# Below a cut no wildcard gives an address; and octets that agree are not a name in the zone.
@example([(b"\x01*\x01a" + APEX, (A, (b"\0" * 4,)))], [[(b"\x01a" + APEX, (NS, (b"\x01b\x01a" + APEX,)))]])
@example([], [[(b"\x01a" + APEX, (NS, (b"\x06x" + APEX,)))]])
def test_the_faults_of_nameservers_are_those_that_a_walk_of_all_delegations_finds(
    written: list[tuple[bytes, tuple[int, tuple[bytes, ...]]]],
    steps: list[list[tuple[bytes, tuple[int, tuple[bytes, ...] | None]]]],
) -> None:
    nodes = {name: dict(node) for name, node in file().rrsets.items()}
    for name, (rtype, rdatas) in written:
        nodes.setdefault(name, {})[rtype] = RRset(name, rtype, 300, rdatas)
    zone = Zone(APEX, 1, nodes)
    for step in steps:
        changes = changes_of(step)
        zone = amended(zone, changes)
        touched = {name for name, _ in changes}
        is_structural = any(rtype != TXT for _, rtype in changes)
        expected = blamed(whole_walk(zone), touched) if is_structural else {}
        assert blamed(faults_among(zone, changes), touched) == expected


class Watched(dict[bytes, Node]):
    """The records of a zone, which count how often a name of them is looked at."""

    looks = 0

    def get(self, name: bytes, default: Node | None = None, /) -> Node | None:  # type: ignore[override]
        self.looks += 1
        return super().get(name, default)


def delegating(count: int) -> Mapping[bytes, Node]:
    """A zone of so many delegations, each with glue, with a nameserver of the zone, and one outside."""
    each = "c{0} NS ns.c{0}\nc{0} NS ns1\nc{0} NS ns.other.test.\nns.c{0} A 192.0.2.1"
    return file(*(each.format(number) for number in range(count))).rrsets


@pytest.mark.parametrize(
    ("name", "rtype", "rdatas", "fault"),
    [
        ("new", A, (b"\0" * 4,), None),
        ("*", A, (b"\0" * 4,), None),
        ("new", NS, (NS1,), None),
        ("c7", NS, None, None),
        ("ns.c7", A, None, "the nameserver ns.c7.demo.test would have no A or AAAA record"),
        ("ns1", A, None, "the nameserver ns1.demo.test would have no A or AAAA record"),
    ],
)
def test_a_change_looks_at_no_more_names_in_a_zone_with_many_delegations(
    name: str, rtype: int, rdatas: tuple[bytes, ...] | None, fault: str | None
) -> None:
    looks = []
    for count in (10, 400):
        records = Watched(delegating(count))
        zone = Zone(APEX, 1, records)
        changes = changes_of([(names.from_text(f"{name}.demo.test"), (rtype, rdatas))])
        records.looks = 0
        found = list(faults_among(amended(zone, changes), changes))
        assert [what for _, what in found] == ([fault] if fault else [])
        looks.append(records.looks)
    assert looks[0] == looks[1] < 30

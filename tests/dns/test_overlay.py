"""Live records over a static zone: who wins, what is told, what is answered."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.journal import difference
from appliance.dns.lookup import look_up
from appliance.dns.numbers import AAAA, CAA, MX, NXDOMAIN, TXT, A
from appliance.dns.overlay import MAX_LIVE_RECORDS, LiveRecords, Reason, conflicts_at_load, lay, laying
from appliance.dns.steps import finish
from appliance.dns.touched import zone_at
from appliance.dns.zone import Node, RRset, Shared, Zone, soa_minimum, soa_serial
from appliance.dns.zonefile import ZoneFileError
from tests.dns.asking import ask, zone
from tests.dns.test_journal import applied, records_of
from tests.effort import examples

SHAPE = ("children", "nameservers", "cuts", "dnames", "unaddressed")
ONE = b"\x0a\x05\x00\x05"
SERVER = b"\x1br=superprotocol;ip=10.5.0.5"


def at(name: str) -> bytes:
    return names.from_text("example.test" if name == "@" else f"{name}.example.test")


def live(*sets: tuple[str, int]) -> dict[tuple[bytes, int], RRset]:
    """One live record at each name and type, TTL 15."""
    data = {A: ONE, AAAA: bytes(15) + b"\x01", TXT: SERVER, CAA: b"\x00\x05issue;"}
    return {(at(name), rtype): RRset(at(name), rtype, 15, (data[rtype],)) for name, rtype in sets}


STATIC = """\
mail A 192.0.2.25
mail TXT "v=spf1"
six AAAA 2001:db8::6
alias CNAME mail
old DNAME new
sub NS ns.sub
ns.sub A 192.0.2.53
sub NS out.invalid.
noted TXT "by hand"
wrong TXT "r=superprotocol;ip=192.0.2.66"
*.static A 192.0.2.77
issued CAA 0 iodef "mailto:a@example.test"
"""

# Where something live is put, and why it is not published (None: it is).
CASES: list[tuple[str, int, Reason | None]] = [
    ("www", A, None),
    ("www", AAAA, None),
    ("www", TXT, None),
    ("@", TXT, None),
    ("@", A, None),
    ("mail", TXT, None),
    ("mail", A, Reason.ADDRESS),
    ("mail", AAAA, Reason.ADDRESS),
    ("six", A, Reason.ADDRESS),
    ("below.mail", A, None),
    ("alias", A, Reason.CNAME),
    ("alias", TXT, Reason.CNAME),
    ("below.alias", A, Reason.CNAME),
    ("old", TXT, Reason.DNAME),
    ("x.y.old", A, Reason.DNAME),
    ("sub", TXT, Reason.DELEGATION),
    ("x.sub", A, Reason.DELEGATION),
    ("ns1", A, Reason.NAMESERVER),
    ("ns1", TXT, Reason.NAMESERVER),
    ("x.ns1", A, Reason.NAMESERVER),
    ("NOTED".lower(), TXT, None),
    ("*.static", A, Reason.ADDRESS),
    ("*.static", TXT, None),
    ("x.static", A, None),
    ("www", CAA, None),
    ("@", CAA, None),
    ("mail", CAA, None),
    ("issued", CAA, Reason.CAA),
    ("issued", A, None),
    ("alias", CAA, Reason.CNAME),
]


@pytest.mark.parametrize(("name", "rtype", "reason"), CASES)
def test_who_wins(name: str, rtype: int, reason: Reason | None) -> None:
    static = zone(STATIC)
    put = live((name, rtype))
    laid, conflicts = lay(static, put, 99)
    assert [(conflict.name, conflict.rtype, conflict.reason) for conflict in conflicts] == (
        [] if reason is None else [(at(name), rtype, reason)]
    )
    assert conflicts == conflicts_at_load(static, put)
    published = (
        put[at(name), rtype].rdatas[0] in (laid.node(at(name)).get(rtype) or RRset(b"", 0, 0, ())).rdatas
    )
    assert published is (reason is None)
    for owner, node in static.rrsets.items():
        for kind, rrset in node.items():
            if owner != static.apex and (owner, kind) != (at(name), rtype):
                assert laid.node(owner)[kind] is rrset, "what the operator wrote stays"


def test_out_of_zone_is_told() -> None:
    other = names.from_text("www.other.test")
    _, conflicts = lay(zone(""), {(other, A): RRset(other, A, 15, (ONE,))}, 99)
    assert [str(conflict) for conflict in conflicts] == ["www.other.test A: the name is outside the zone"]


def test_texts_are_merged_at_one_ttl() -> None:
    laid, conflicts = lay(
        zone('noted 900 TXT "by hand"\nnoted TXT "more"\nquick 5 TXT "q"\n'),
        live(("noted", TXT), ("quick", TXT)),
        99,
    )
    assert not conflicts
    assert laid.node(at("noted"))[TXT] == RRset(at("noted"), TXT, 15, (b"\x07by hand", b"\x04more", SERVER))
    assert laid.node(at("quick"))[TXT].ttl == 5


def test_a_static_discovery_text_beside_live_ones_is_an_error() -> None:
    static = zone(STATIC)
    laid, conflicts = lay(static, live(("wrong", TXT), ("mail", A)), 99)
    assert [(conflict.reason, conflict.is_error) for conflict in conflicts] == [
        (Reason.ADDRESS, False),
        (Reason.DISCOVERY, True),
    ]
    assert SERVER in laid.node(at("wrong"))[TXT].rdatas, "a client that meets both finds the true one"
    assert not conflicts_at_load(static, live(("www", TXT))), "alone it is the operator's own affair"


def test_serial_and_negative_ttl() -> None:
    static = zone("", head="$TTL 300\n@ SOA ns1 h 7 7200 3600 1209600 3600\n@ NS ns1\nns1 A 192.0.2.1\n")
    laid, _ = lay(static, live(("www", A)), 99)
    assert (laid.serial, soa_serial(laid.soa), soa_minimum(laid.soa), laid.negative_soa.ttl) == (
        99,
        99,
        15,
        15,
    )
    assert laid.soa.ttl == 300
    quiet, _ = lay(static, {}, 100)
    assert (quiet.serial, soa_minimum(quiet.soa)) == (100, 3600)
    assert lay(static, live(("ns1", A)), 101)[0].negative_soa.ttl == 300, "nothing live was published"
    assert " 15 SOA " in ask(laid, "nothing.example.test").authority[0]


def test_a_lower_minimum_stays() -> None:
    static = zone("", head="$TTL 300\n@ SOA ns1 h 7 7200 3600 1209600 5\n@ NS ns1\nns1 A 192.0.2.1\n")
    assert soa_minimum(lay(static, live(("www", A)), 99)[0].soa) == 5


def test_an_apex_that_is_its_own_nameserver() -> None:
    static = zone("", head="$TTL 300\n@ SOA @ h 7 7200 3600 1209600 60\n@ NS @\n@ A 192.0.2.1\n")
    _, conflicts = lay(static, live(("@", A), ("@", AAAA), ("@", TXT), ("www", A)), 99)
    assert {(conflict.name, conflict.rtype) for conflict in conflicts} == {
        (static.apex, A),
        (static.apex, AAAA),
    }


def test_too_many_are_cut_and_told() -> None:
    rdatas = tuple(bytes((10, 0, 0, number)) for number in range(100))
    laid, conflicts = lay(zone(""), {(at("www"), A): RRset(at("www"), A, 15, rdatas)}, 99)
    assert laid.node(at("www"))[A].rdatas == rdatas[:MAX_LIVE_RECORDS]
    assert [conflict.reason for conflict in conflicts] == [Reason.TOO_MANY]


def test_an_empty_live_set_is_no_record() -> None:
    laid, _ = lay(zone(""), {(at("www"), A): RRset(at("www"), A, 15, ())}, 99)
    assert not laid.exists(at("www"))


def test_only_addresses_and_texts_are_live() -> None:
    with pytest.raises(ValueError, match="never live"):
        lay(zone(""), {(at("www"), MX): RRset(at("www"), MX, 15, (b"\0\x0a\0",))}, 99)


# Static lines, live wildcards, and at which names the wildcard's live records must (or must not) be answered.
WILDCARDS: list[tuple[str, list[str], list[str], list[str]]] = [
    ("", ["*.apps"], ["foo.apps", "x.foo.apps", "*.apps"], ["apps", "foo"]),
    (
        "_acme-challenge.foo.apps TXT token",
        ["*.apps"],
        ["foo.apps", "bar.apps", "x.y.apps"],
        ["_acme-challenge.foo.apps", "x.foo.apps", "apps"],
    ),
    (
        "a.b.c.apps TXT t",
        ["*.apps"],
        ["c.apps", "b.c.apps", "x.apps"],
        ["x.c.apps", "a.b.c.apps", "x.b.c.apps"],
    ),
    ("foo.apps TXT t\na.b.foo.apps TXT t", ["*.apps"], ["bar.apps"], ["foo.apps", "b.foo.apps"]),
    (
        "a.b.foo.apps TXT t",
        ["*.apps", "*.foo.apps"],
        ["foo.apps", "b.foo.apps", "x.foo.apps"],
        ["x.b.foo.apps"],
    ),
    ("a.b.*.apps TXT t", ["*.apps"], ["x.apps", "y.x.apps"], ["b.*.apps"]),
    ("sub.apps NS ns.invalid.\na.b.sub.apps TXT t", ["*.apps"], ["x.apps"], []),
]


@pytest.mark.parametrize(("static", "wildcards", "reached", "unreached"), WILDCARDS)
def test_a_name_below_a_live_wildcard_does_not_hide_it(
    static: str, wildcards: list[str], reached: list[str], unreached: list[str]
) -> None:
    laid, conflicts = lay(
        zone(static + "\n"), live(*((name, kind) for name in wildcards for kind in (A, TXT))), 99
    )
    assert not conflicts
    for name in reached:
        assert ask(laid, f"{name}.example.test").answer == [f"{name}.example.test 15 A 10.5.0.5"], name
        assert any("r=superprotocol" in line for line in ask(laid, f"{name}.example.test", "TXT").answer), (
            name
        )
    for name in unreached:
        assert ask(laid, f"{name}.example.test").answer == [], name


def test_only_the_wildcards_live_records_go_to_an_empty_non_terminal() -> None:
    static = zone('*.apps TXT "operator"\n*.apps MX 10 mail\n_acme-challenge.foo.apps TXT token\n')
    laid, _ = lay(static, live(("*.apps", A), ("*.apps", TXT)), 99)
    assert set(laid.node(at("foo.apps"))) == {A, TXT}
    assert laid.node(at("foo.apps"))[TXT].rdatas == (SERVER,)
    assert laid.node(at("*.apps"))[TXT].rdatas == (b"\x08operator", SERVER)


def test_a_live_name_below_a_live_wildcard_does_not_hide_it_either() -> None:
    laid, _ = lay(zone(""), live(("*.apps", A), ("a.b.apps", A)), 99)
    assert ask(laid, "b.apps.example.test").answer == ["b.apps.example.test 15 A 10.5.0.5"]
    assert ask(laid, "x.b.apps.example.test").rcode == "NXDOMAIN"


def test_a_wildcard_that_lost_is_not_spread() -> None:
    static = zone("*.apps A 192.0.2.1\na.b.apps TXT t\n")
    laid, _ = lay(static, live(("*.apps", A)), 99)
    assert ask(laid, "b.apps.example.test").answer == []


def test_a_name_that_has_a_caa_for_the_wildcard_below_it_alone_hides_no_wildcard_above() -> None:
    """Whatever of the three comes first, and though it exists without a name below it."""
    data = live(("*", A), ("*", CAA), ("*.apps", A), ("apps", CAA))
    own = data[at("apps"), CAA]._replace(rdatas=(b"\x00\x09issuewild;",))
    data[at("apps"), CAA] = own
    for order in itertools.permutations(data):
        before = finish(laying(zone(""), {}, 100))
        put: dict[tuple[bytes, int], RRset] = {}
        for key in order:
            put = {**put, key: data[key]}
            before = finish(laying(zone(""), put, before.zone.serial + 1, before, (key[0],)))
        node = before.zone.node(at("apps"))
        assert (node[A].rdatas, node[CAA]) == ((ONE,), own)
        assert before.zone.node(at("*.apps")) == {A: data[at("*.apps"), A]}
        del put[at("*.apps"), A]
        before = finish(laying(zone(""), put, 200, before, (at("*.apps"),)))
        assert before.zone.node(at("apps"))[A].rdatas == (ONE,)
        del put[at("apps"), CAA]
        before = finish(laying(zone(""), put, 201, before, (at("apps"),)))
        assert not before.zone.node(at("apps"))


LABEL = st.sampled_from(("a", "b", "*"))
NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
LIVE = st.lists(st.tuples(NAMES, st.sampled_from((A, AAAA, TXT, CAA))), max_size=6)


@settings(max_examples=examples(80), deadline=None)
@given(st.lists(NAMES, max_size=4), LIVE, NAMES)
def test_any_overlay_is_a_sound_zone(written: list[str], sets: list[tuple[str, int]], asked: str) -> None:
    static = zone("".join(f"{name} TXT t\n" for name in written))
    put = live(*sets)
    laid, conflicts = lay(static, put, 99)
    assert not conflicts
    again = Zone(laid.apex, 99, laid.rrsets)
    assert all(getattr(laid.shape, part) == getattr(again.shape, part) for part in laid.shape.__slots__)
    for (name, rtype), rrset in put.items():
        assert set(rrset.rdatas) <= set(laid.node(name)[rtype].rdatas)
    for owner, node in static.rrsets.items():
        assert set(node) <= set(laid.node(owner))
    # Whoever was answered by a live wildcard before some name was written below it still is, but for
    # names whose closest ancestor now exists: those the wildcard does not reach (RFC 4592), and no
    # resolver expects it to.
    alone, _ = lay(zone(""), put, 99)
    name = at(asked)
    before = look_up({alone.apex: alone}, name, A)
    after = look_up({laid.apex: laid}, name, A)
    if before.answer and name in laid.rrsets and name not in static.rrsets:
        assert after.answer, "an empty non-terminal hid a wildcard"
    if after.rcode == NXDOMAIN:
        assert not laid.exists(name)


STATIC_LINES = st.tuples(
    NAMES, st.sampled_from(("TXT t", "A 192.0.2.9", "CNAME x", "NS out.invalid.", "AAAA ::1"))
)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(NAMES, max_size=4),
    st.lists(st.tuples(LIVE, st.lists(STATIC_LINES, max_size=2), st.booleans()), max_size=5),
)
def test_a_change_leads_to_what_a_new_overlay_would_be(
    written: list[str], steps: list[tuple[list[tuple[str, int]], list[tuple[str, str]], bool]]
) -> None:
    """Live records and the static zone under them change: only that is done again, and it is all."""
    static = zone("".join(f"{name} TXT t\n" for name in written))
    before = finish(laying(static, {}, 100))
    for number, (sets, lines, gone) in enumerate(steps):
        put = live(*sets)
        changed = {
            name
            for name, rtype in {**before.live, **put}
            if before.live.get((name, rtype)) != put.get((name, rtype))
        }
        nodes: dict[bytes, Node] = {}
        for name, data in lines:
            try:
                nodes[at(name)] = {} if gone else zone(f"{name} {data}\n").node(at(name))
            except ZoneFileError:
                continue
        static = static.changed(nodes)[0]
        after = finish(laying(static, put, 101 + number, before, changed))
        new = finish(laying(static, put, 101 + number))
        assert after.zone == new.zone
        assert after.filled == new.filled
        assert dict(after.accepted) == dict(new.accepted)
        assert dict(after.conflicts) == dict(new.conflicts)
        assert all(
            dict(getattr(after.zone.shape, part)) == dict(getattr(new.zone.shape, part)) for part in SHAPE
        )
        if after.names is not None:
            differ = {
                name
                for name in {*before.zone.rrsets, *after.zone.rrsets}
                if before.zone.node(name) != after.zone.node(name)
            }
            assert differ - {static.apex} <= after.names
        before = after


IDS = (b"one", b"two", b"three")
SETS = st.fixed_dictionaries({one: st.sampled_from((0, 1, 2, 3, MAX_LIVE_RECORDS + 1)) for one in IDS})
ENTRIES = st.dictionaries(
    st.tuples(NAMES, st.sampled_from((A, AAAA, TXT, CAA))), st.sampled_from((*IDS, None)), max_size=8
)


def shared(entries: dict[tuple[str, int], bytes | None], sizes: dict[bytes, int]) -> LiveRecords:
    """Live records that are a set of so many records, or (None) one of their own."""
    own = live(*entries)
    return LiveRecords(
        {(at(name), rtype): one or own[at(name), rtype] for (name, rtype), one in entries.items()},
        {one: Shared(15, tuple(bytes((3, 9, 9, n)) for n in range(size))) for one, size in sizes.items()},
    )


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(NAMES, max_size=4),
    st.lists(st.tuples(ENTRIES, SETS, st.booleans(), st.lists(STATIC_LINES, max_size=1)), max_size=5),
)
def test_records_that_are_shared_are_those_that_each_name_would_have(
    written: list[str],
    steps: list[tuple[dict[tuple[str, int], bytes | None], dict[bytes, int], bool, list[tuple[str, str]]]],
) -> None:
    """And what is told of the change leads from the version before to this one."""
    static = zone("".join(f"{name} TXT t\n" for name in written))
    entries: dict[tuple[str, int], bytes | None] = {}
    put = shared(entries, dict.fromkeys(IDS, 0))
    before = finish(laying(static, put, 100))
    for number, (others, sizes, stays, lines) in enumerate(steps):
        if not stays:  # else the sets alone are others
            entries = others
        after_put = shared(entries, sizes)
        changed = {
            name
            for name, rtype in {**put.entries, **after_put.entries}
            if put.entries.get((name, rtype)) != after_put.entries.get((name, rtype))
        }
        put = after_put
        for name, data in lines:
            with contextlib.suppress(ZoneFileError):
                static = static.changed({at(name): zone(f"{name} {data}\n").node(at(name))})[0]
        after = finish(laying(static, put, 101 + number, before, changed))
        alone = finish(laying(static, dict(put), 101 + number))
        assert after.zone == alone.zone
        assert after.filled == alone.filled
        assert dict(after.conflicts) == dict(alone.conflicts)
        assert all(
            dict(getattr(after.zone.shape, part)) == dict(getattr(alone.zone.shape, part)) for part in SHAPE
        )
        change = difference(before.zone, after.zone, after.changed_names())
        assert applied(before.zone, change) == records_of(after.zone)
        if after.touched is not None and after.zone.node(static.apex) != before.zone.node(static.apex):
            same = {**before.zone.rrsets, static.apex: {}} == {**after.zone.rrsets, static.apex: {}}
            assert same or after.touched
        before = after


def test_when_a_set_is_another_no_name_is_looked_at() -> None:
    names_of_it = [f"n{number}" for number in range(100)]
    entries: dict[tuple[str, int], bytes | None] = {(name, A): b"one" for name in names_of_it}
    before = finish(laying(zone(""), shared(entries, {b"one": 3}), 100))
    steps = laying(before.static, shared(entries, {b"one": 2}), 101, before)
    with pytest.raises(StopIteration):
        next(steps)
    after = finish(laying(before.static, shared(entries, {b"one": 2}), 101, before))
    assert len(before.zone.node(at("n7"))[A].rdatas) == 3, "a version does not change"
    assert len(after.zone.node(at("n7"))[A].rdatas) == 2
    assert after.names == frozenset()
    assert set(after.changed_names() or ()) == set(map(at, names_of_it))
    assert set(after.touched or ()) == {zone_at(before.static.apex)}

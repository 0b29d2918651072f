"""Which records follow from whom is published and which names are known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.names import from_text, is_at_or_below
from appliance.dns.overlay import LiveRecords
from appliance.dns.zone import RRset
from appliance.fleet.membership import Group, Published
from appliance.fleet.publish import AAAA, TXT, A, Publication, may_be_published
from appliance.tunnel.discovery import ServerAddress, read_txt
from tests.effort import examples

ONE = ServerAddress("10.5.0.5")
TWO = ServerAddress("10.5.0.6", 8443)
SIX = ServerAddress("2001:db8::5")
EXAMPLE = from_text("example.org")
SUB = from_text("sub.example.org")


def live_records(
    published: Published,
    known: Iterable[str],
    apexes: Collection[bytes],
    discovery: str | None = None,
    groups: Mapping[str, Group] = {},
) -> dict[tuple[bytes, int], RRset]:
    """All live rrsets, by name and type."""
    publication = Publication(published, apexes, discovery)
    of = [(name, groups.get(name, ())) for name in known]
    live = LiveRecords(
        {key: one for key, one in publication.changes(of) if one is not None},
        publication.sets({group for _, group in of}),
    )
    return dict(live)


def texts(rrset: RRset) -> list[str]:
    return [rdata[1:].decode() for rdata in rrset.rdatas]


def at(records: dict[tuple[bytes, int], RRset], name: str, rtype: int) -> tuple[bytes, ...]:
    rrset = records.get((from_text(name), rtype))
    return () if rrset is None else rrset.rdatas


def test_a_known_name_has_the_txt_of_every_server_and_the_addresses_of_its_own() -> None:
    published = Published((ONE, TWO, SIX), (), (((ONE, True), (TWO, True), (SIX, True)),))
    known = ["www.example.org", "api.example.org"]
    records = live_records(published, known, [EXAMPLE], groups={"www.example.org": (TWO,)})
    assert texts(records[from_text("www.example.org"), TXT]) == [
        "r=superprotocol;ip=10.5.0.5",
        "r=superprotocol;ip=10.5.0.6;port=8443",
        "r=superprotocol;ip=2001:db8::5",
    ]
    assert at(records, "www.example.org", A) == (bytes((10, 5, 0, 6)),)
    assert at(records, "www.example.org", AAAA) == ()
    assert at(records, "api.example.org", A) == (bytes((10, 5, 0, 5)), bytes((10, 5, 0, 6)))
    assert len(at(records, "api.example.org", AAAA)[0]) == 16
    assert {rrset.ttl for rrset in records.values()} == {15}


def test_the_apex_lists_the_servers_and_has_an_address_only_if_it_is_served() -> None:
    published = Published((ONE,), ())
    records = live_records(published, [], [EXAMPLE, from_text("demo.test")])
    assert set(records) == {(EXAMPLE, TXT), (from_text("demo.test"), TXT)}
    assert at(live_records(published, ["example.org"], [EXAMPLE]), "example.org", A) == (ONE_PACKED,)


ONE_PACKED = bytes((10, 5, 0, 5))


def test_another_discovery_name_takes_the_apexs_place() -> None:
    published = Published((ONE,), ())
    assert set(live_records(published, [], [EXAMPLE], "tunnels.example.org")) == {
        (from_text("tunnels.example.org"), TXT)
    }
    assert live_records(published, [], [EXAMPLE], "tunnels.example.com") == {}


def test_names_outside_the_zones_and_zones_without_servers_get_nothing() -> None:
    published = Published((ONE,), (), (((ONE, True),),))
    assert live_records(
        published, ["www.example.com", "org", "badexample.org"], [SUB], "sub.example.org"
    ) == {(SUB, TXT): RRset(SUB, TXT, 15, (b"\x1br=superprotocol;ip=10.5.0.5",))}
    assert live_records(Published((), ()), ["www.example.org"], [EXAMPLE]) == {}


def test_a_wildcard_is_a_name_like_any_other() -> None:
    records = live_records(Published((ONE,), ()), ["*.apps.example.org"], [EXAMPLE])
    assert at(records, "*.apps.example.org", A) == (ONE_PACKED,)


def test_two_servers_behind_one_address_are_one_a_record_and_two_txt() -> None:
    published = Published((ONE, ServerAddress("10.5.0.5", 8443)), ())
    records = live_records(published, ["www.example.org"], [EXAMPLE])
    assert at(records, "www.example.org", A) == (ONE_PACKED,)
    assert len(at(records, "www.example.org", TXT)) == 2


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.1.1", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("2001:db8::1", False),
    ],
)
def test_only_what_the_internet_reaches_is_published_unasked(host: str, public: bool) -> None:
    assert may_be_published(ServerAddress(host), False) is public
    assert may_be_published(ServerAddress(host), True)


ADDRESSES = st.lists(st.sampled_from([ONE, TWO, SIX]), unique=True, max_size=3).map(tuple)
KNOWN = st.lists(
    st.sampled_from(
        ["example.org", "www.example.org", "*.example.org", "a.sub.example.org", "www.example.com"]
    ),
    unique=True,
)


@given(ADDRESSES, KNOWN, st.lists(st.sampled_from([EXAMPLE, SUB]), unique=True))
@settings(max_examples=examples(100), deadline=None)
def test_everything_is_in_a_zone_and_nothing_is_empty(
    addresses: tuple[ServerAddress, ...], known: list[str], apexes: list[bytes]
) -> None:
    records = live_records(Published(addresses, ()), known, apexes)
    for (name, rtype), rrset in records.items():
        assert (rrset.name, rrset.rtype) == (name, rtype)
        assert rrset.rdatas
        assert len(set(rrset.rdatas)) == len(rrset.rdatas)
        assert any(is_at_or_below(name, apex) for apex in apexes)
        if rtype == TXT:
            assert tuple(map(read_txt, texts(rrset))) == addresses
    inside = {
        name for name in map(from_text, known) if any(is_at_or_below(name, apex) for apex in apexes)
    } | set(apexes)
    assert {name for name, _ in records} == (inside if addresses else set())

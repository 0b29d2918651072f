from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.journal import Change, Journal, difference
from appliance.dns.numbers import NS, SOA, TXT, A
from appliance.dns.zone import Nodes, Placed, RRset, Shared, Zone, zone_of
from tests.effort import examples

APEX = names.from_text("demo.test")
NAMES = [names.from_text(f"{label}.demo.test") for label in ("a", "b", "x.b")]


def soa(serial: int) -> RRset:
    rdata = APEX + APEX + serial.to_bytes(4, "big") + bytes(16)
    return RRset(APEX, SOA, 300, (rdata,))


def version(serial: int, *rrsets: RRset) -> Zone:
    return zone_of(APEX, (soa(serial), RRset(APEX, NS, 300, (NAMES[0],)), *rrsets))


def addresses(name: bytes, *last: int, ttl: int = 300) -> RRset:
    return RRset(name, A, ttl, tuple(bytes((192, 0, 2, octet)) for octet in last))


def applied(zone: Zone, change: Change) -> set[tuple[bytes, int, int, bytes]]:
    """The records of `zone` without its SOA after `change`, which must fit it exactly."""
    records = records_of(zone)
    for rrset in change.removed:
        for rdata in rrset.rdatas:
            records.remove((rrset.name, rrset.rtype, rrset.ttl, rdata))
    for rrset in change.added:
        for rdata in rrset.rdatas:
            assert (rrset.name, rrset.rtype, rrset.ttl, rdata) not in records
            records.add((rrset.name, rrset.rtype, rrset.ttl, rdata))
    return records


def records_of(zone: Zone) -> set[tuple[bytes, int, int, bytes]]:
    return {
        (rrset.name, rrset.rtype, rrset.ttl, rdata)
        for node in zone.rrsets.values()
        for rrset in node.values()
        for rdata in rrset.rdatas
        if rrset.rtype != SOA
    }


def test_only_what_differs() -> None:
    old = version(1, addresses(NAMES[0], 1, 2), addresses(NAMES[1], 1), addresses(NAMES[2], 9))
    new = version(2, addresses(NAMES[0], 2, 3), addresses(NAMES[1], 1, ttl=60), addresses(NAMES[2], 9))
    change = difference(old, new)
    assert (change.old_serial, change.new_serial) == (1, 2)
    assert set(change.removed) == {addresses(NAMES[0], 1), addresses(NAMES[1], 1)}
    assert set(change.added) == {addresses(NAMES[0], 3), addresses(NAMES[1], 1, ttl=60)}
    assert tuple(difference(old, new, [NAMES[1]]).removed) == (addresses(NAMES[1], 1),)
    assert change.octets > 4 * 4


def test_what_has_changed_at_many_names_alike_is_kept_once() -> None:
    at = [names.from_text(f"n{number}.demo.test") for number in range(100)]

    def shared(serial: int, *last: int, places: list[bytes] = at) -> Zone:
        rdatas = tuple(bytes((192, 0, 2, octet)) for octet in last)
        base = version(serial)
        nodes = {name: Placed(((A, b"one"),)) for name in places}
        return Zone(APEX, serial, Nodes({**base.rrsets, **nodes}, {b"one": Shared(15, rdatas)}))

    old, new = shared(1, 1, 2), shared(2, 2, 3)
    change = difference(old, new, at)
    assert applied(old, change) == records_of(new)
    assert (len(change.removed), len(change.added)) == (100, 100)
    assert addresses(at[7], 1, ttl=15) in change.removed
    assert addresses(at[7], 2, ttl=15) not in change.removed
    assert (change.removed.own, len(change.removed.repeated)) == ((), 1)
    records = [rrset for side in (change.removed, change.added) for rrset in side]
    written_out = sum(len(one.name) + 10 + 4 for one in (*records, *(change.old_soa, change.new_soa)))
    assert change.octets - written_out == 2 * (len(change.old_soa.rdatas[0]) - 4)
    fewer = shared(3, 2, 3, places=at[:50])
    gone = difference(new, fewer, at)
    assert applied(new, gone) == records_of(fewer)
    assert applied(fewer, difference(fewer, new, at)) == records_of(new)
    assert (len(gone.removed), len(gone.added)) == (50, 0)


_ZONES = st.lists(
    st.builds(
        lambda name, rtype, ttl, last: RRset(name, rtype, ttl, tuple(bytes((one,) * 4) for one in last)),
        st.sampled_from(NAMES),
        st.sampled_from((A, TXT)),
        st.sampled_from((60, 300)),
        st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    ),
    max_size=6,
)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(_ZONES, min_size=2, max_size=5))
def test_the_changes_lead_from_any_version_to_the_newest(contents: list[list[RRset]]) -> None:
    versions = [version(serial, *rrsets) for serial, rrsets in enumerate(contents, 1)]
    journal = Journal()
    for old, new in pairwise(versions):
        journal.add(difference(old, new))
    for zone in versions:
        changes = journal.since(zone.serial)
        assert changes is not None
        assert len(changes) == len(versions) - zone.serial
        for change in changes:
            assert applied(versions[change.old_serial - 1], change) == records_of(
                versions[change.new_serial - 1]
            )
    assert journal.since(99) is None


def test_bounds() -> None:
    zones = [version(serial, addresses(NAMES[0], serial)) for serial in range(1, 12)]
    changes = [difference(old, new) for old, new in pairwise(zones)]
    journal = Journal(max_changes=3)
    for change in changes:
        journal.add(change)
    assert len(journal) == 3
    assert journal.since(7) is None
    assert journal.since(8) == tuple(changes[-3:])
    assert journal.octets == 3 * changes[0].octets
    journal = Journal(max_octets=2 * changes[0].octets + 1)
    for change in changes:
        journal.add(change)
    assert len(journal) == 2
    too_large = Journal(max_octets=1)
    too_large.add(changes[0])
    assert too_large.since(1) is None
    assert too_large.since(2) == ()


def test_a_gap_begins_anew() -> None:
    zones = [version(serial, addresses(NAMES[0], serial)) for serial in range(1, 6)]
    journal = Journal()
    assert journal.since(1) is None
    journal.add(difference(zones[0], zones[1]))
    journal.add(difference(zones[2], zones[3]))
    assert journal.since(1) is None
    assert journal.since(3) == (difference(zones[2], zones[3]),)
    journal.add(difference(zones[3], zones[2]))  # back to a serial that was there: never a circle
    journal.add(difference(zones[2], zones[4]))
    assert journal.since(3) == (difference(zones[2], zones[4]),)

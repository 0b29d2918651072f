"""Known names: expiry, wildcards, forgetting."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet.known import KnownNames
from tests.effort import examples

NAMES = st.sampled_from(["a.test", "*.a.test", "b.a.test", "*.b.a.test", "c.test"])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("know"), NAMES, st.integers(0, 20)),
        st.tuples(st.just("forget"), NAMES, st.just(0)),
        st.tuples(st.just("expire"), st.just(""), st.integers(0, 20)),
    ),
    max_size=30,
)


def test_a_wildcard_knows_every_name_below_it_and_not_its_parent() -> None:
    known = KnownNames()
    known.know("*.apps.example.org", 10.0)
    assert known.knows("x.apps.example.org")
    assert known.knows("y.x.apps.example.org")  # RFC 4592: at any depth
    assert known.knows("*.apps.example.org")
    assert not known.knows("apps.example.org")
    assert not known.knows("example.org")


def test_the_later_expiry_counts_and_an_earlier_one_changes_nothing() -> None:
    known = KnownNames()
    assert known.know("a.test", 10.0)
    assert not known.know("a.test", 5.0)
    assert known.know("a.test", 20.0)
    assert known.expire(10.0) == []
    assert known.expires("a.test") == 20.0
    assert known.expire(20.0) == ["a.test"]
    assert known.expires("a.test") is None


def test_a_name_that_was_forgotten_can_be_known_again_for_less() -> None:
    known = KnownNames()
    known.know("a.test", 20.0)
    assert known.forget("a.test")
    assert not known.forget("a.test")
    assert known.know("a.test", 10.0)
    assert known.expire(10.0) == ["a.test"]
    assert known.expire(30.0) == []


@pytest.mark.parametrize("expires", [10.0, float("inf")])
def test_who_knows_and_forgets_by_turns_costs_no_memory(expires: float) -> None:
    known = KnownNames()
    known.know("b.test", 5.0)
    for _ in range(5000):
        known.know("a.test", expires)
        known.forget("a.test")
    assert len(known._soonest) <= 2 + 1000 + 1
    assert known.expire(5.0) == ["b.test"]
    assert known.expire(20.0) == []
    known.know("a.test", expires)
    assert known.expire(10.0) == (["a.test"] if expires == 10.0 else [])


@given(CHANGES)
@settings(max_examples=examples(100), deadline=None)
def test_it_is_a_table_of_names(changes: list[tuple[str, str, int]]) -> None:
    known = KnownNames()
    table: dict[str, float] = {}
    for change, name, number in changes:
        if change == "know":
            assert known.know(name, number) == (number > table.get(name, -1))
            table[name] = max(number, table.get(name, -1))
        elif change == "forget":
            assert known.forget(name) == (table.pop(name, None) is not None)
        else:
            gone = {name for name, expires in table.items() if expires <= number}
            assert sorted(known.expire(number)) == sorted(gone)
            table = {name: expires for name, expires in table.items() if name not in gone}
        assert dict.fromkeys(known) == dict.fromkeys(table)
        assert len(known) == len(table)
        assert all(name in known for name in table)


def test_known_as_the_closest() -> None:
    known = KnownNames()
    for name in ("*.example.org", "*.apps.example.org", "www.apps.example.org"):
        known.know(name, 1.0)
    assert known.known_as("www.apps.example.org") == "www.apps.example.org"
    assert known.known_as("x.apps.example.org") == "*.apps.example.org"
    assert known.known_as("x.y.example.org") == "*.example.org"
    assert known.known_as("example.org") is None

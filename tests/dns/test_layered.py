"""Layers of changes are the mapping that they make."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.layered import Layered, differing, with_changes
from tests.effort import examples

KEYS = st.integers(0, 9)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.dictionaries(KEYS, st.integers(1, 5)),
    st.lists(st.dictionaries(KEYS, st.none() | st.integers(1, 5), max_size=4)),
)
def test_any_changes(first: dict[int, int], steps: list[dict[int, int | None]]) -> None:
    made: Mapping[int, int] = first
    expected = dict(first)
    for step in steps:
        before, were = made, dict(made)
        made = with_changes(made, step)
        expected.update({key: value for key, value in step.items() if value is not None})
        for key, value in step.items():
            if value is None:
                expected.pop(key, None)
        assert dict(made) == expected == made
        assert (sorted(made.items()), sorted(made.values())) == (
            sorted(expected.items()),
            sorted(expected.values()),
        )
        assert (len(made), bool(made)) == (len(expected), bool(expected))
        assert all((key in made, made.get(key)) == (key in expected, expected.get(key)) for key in range(10))
        assert made.get(99, "none") == "none"
        assert dict(before) == were


def test_there_are_never_more_than_two_layers() -> None:
    large = dict.fromkeys(range(100), "old")
    once = with_changes(large, {1: "new"})
    twice = with_changes(once, {2: "new"})
    assert isinstance(twice, Layered)
    assert twice.under is large
    assert differing(once, twice) == {2}
    assert differing(large, twice) == {1, 2}
    assert differing({}, twice) is None

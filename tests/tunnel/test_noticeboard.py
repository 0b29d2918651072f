from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.challenge import owner_of
from appliance.tunnel.noticeboard import MAX_OF_OWNER, Noticeboard, TooManyChallenges
from tests.effort import examples

WWW, WILD, APEX = "www.example.org", "*.example.org", "example.org"


def test_what_is_said_stands_until_it_is_withdrawn() -> None:
    board: Noticeboard[str] = Noticeboard(9)
    board.say("a", APEX, "1", 10.0)
    board.say("a", WILD, "2", 10.0)
    assert board.values(owner_of(APEX)) == ("1", "2")
    assert board.withdraw("a", APEX, "1")
    assert not board.withdraw("a", APEX, "1")
    assert board.values(owner_of(APEX)) == ("2",)
    assert board.standing() == [(WILD, "2", 10.0)]


def test_the_last_one_who_says_it_withdraws_it() -> None:
    board: Noticeboard[str] = Noticeboard(9)
    board.say("a", WWW, "1", 10.0)
    board.say("b", WWW, "1", 20.0)
    assert not board.withdraw("c", WWW, "1")
    assert not board.withdraw("a", WWW, "1")
    assert board.standing() == [(WWW, "1", 20.0)]
    assert board.withdraw_all("b") == [(WWW, "1")]
    assert board.standing() == []
    assert board.withdraw_all("b") == []


def test_its_time_ends_it_unless_it_is_said_again() -> None:
    board: Noticeboard[str] = Noticeboard(9)
    assert board.next_deadline() is None
    board.say("a", WWW, "1", 10.0)
    board.say("b", WWW, "1", 12.0)
    board.say("a", APEX, "2", 11.0)
    board.say("a", APEX, "2", 30.0)
    assert board.next_deadline() == 10.0
    assert board.expire(10.0) == []
    assert board.next_deadline() == 12.0
    assert board.expire(12.0) == [(WWW, "1")]
    assert board.standing() == [(APEX, "2", 30.0)]


def test_one_value_may_be_for_a_name_and_its_wildcard() -> None:
    board: Noticeboard[str] = Noticeboard(9)
    board.say("a", APEX, "1", 10.0)
    board.say("a", WILD, "1", 10.0)
    assert board.withdraw("a", APEX, "1")
    assert board.values(owner_of(APEX)) == ("1",)


def test_there_are_bounds() -> None:
    board: Noticeboard[str] = Noticeboard(MAX_OF_OWNER + 1)
    for number in range(MAX_OF_OWNER):
        board.say("a", APEX, str(number), 10.0)
    for name in (APEX, WILD):
        with pytest.raises(TooManyChallenges, match=owner_of(APEX)):
            board.say("b", name, "more", 10.0)
    board.say("b", APEX, "0", 10.0)  # which is there
    board.say("a", WWW, "1", 10.0)
    with pytest.raises(TooManyChallenges, match="more than 9"):
        board.say("a", "other.example.org", "1", 10.0)
    board.say("a", WWW, "1", 20.0)
    board.withdraw("a", APEX, "3")
    board.say("b", WILD, "more", 10.0)


SOURCES, NAMES, VALUES = st.sampled_from("abc"), st.sampled_from([WWW, WILD, APEX]), st.sampled_from("1234")
STEPS = st.lists(
    st.tuples(st.just("say"), SOURCES, NAMES, VALUES, st.integers(1, 20))
    | st.tuples(st.just("withdraw"), SOURCES, NAMES, VALUES)
    | st.tuples(st.just("expire"), st.integers(1, 20))
    | st.tuples(st.just("silence"), SOURCES),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=examples(200), deadline=None)
def test_as_a_plain_table_would_have_it(steps: list[tuple[object, ...]]) -> None:
    board: Noticeboard[str] = Noticeboard(5)
    table: dict[tuple[str, str, str], float] = {}
    for step in steps:
        match step:
            case "say", str(source), str(name), str(value), int(until):
                try:
                    board.say(source, name, value, until)
                    table[source, name, value] = until
                except TooManyChallenges:
                    assert (source, name, value) not in table
            case "withdraw", str(source), str(name), str(value):
                before = {key[1:] for key in table}
                table.pop((source, name, value), None)
                gone = before - {key[1:] for key in table}
                assert board.withdraw(source, name, value) == bool(gone)
            case "expire", int(now):
                before = {key[1:] for key in table}
                table = {key: until for key, until in table.items() if until > now}
                assert set(board.expire(now)) == before - {key[1:] for key in table}
            case "silence", str(source):
                before = {key[1:] for key in table}
                table = {key: until for key, until in table.items() if key[0] != source}
                assert set(board.withdraw_all(source)) == before - {key[1:] for key in table}
        assert {(name, value) for name, value, _ in board.standing()} == {key[1:] for key in table}
        for owner in map(owner_of, (WWW, APEX)):
            assert set(board.values(owner)) == {v for _, n, v in table if owner_of(n) == owner}
        assert board.next_deadline() == min(table.values(), default=None)

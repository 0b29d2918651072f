from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet import accounts as module
from appliance.fleet.accounts import Account, Accounts, TooManyAccounts
from appliance.tunnel.account import MAX_OF_CLIENT
from tests.effort import examples

WWW, WILD = "www.example.org", "*.apps.example.org"


def account(client: str = "c1", instance: str = "i1", **more: object) -> Account:
    one = Account(client, instance, 1, (WWW, WILD), 1000.0, "https://ca.test/1", ("ca.test",), 10)
    return replace(one, **more)  # type: ignore[arg-type]


def test_of_one_instance_the_account_that_was_said_last_holds() -> None:
    accounts = Accounts()
    first, second = account(), account(url="https://ca.test/2", at=11)
    assert accounts.know(first) == []
    assert accounts.know(first) is None
    assert accounts.know(second) == [first]
    assert accounts.know(first) is None, "said again by somebody who kept it"
    assert accounts.of(WWW) == accounts.of(WILD) == [second]
    assert accounts.of("foo.apps.example.org") == []
    renewed = replace(second, serial=2, expires=2000.0)
    assert accounts.know(renewed) == [second]
    assert accounts.know(second) is None, "under the certificate before"
    assert list(accounts) == [renewed]


def test_a_clock_that_was_set_back_does_not_lose_an_account_with_the_certificate_before() -> None:
    accounts = Accounts()
    first = account(at=100)
    accounts.know(first)
    renewed = account(serial=2, expires=2000.0, at=50)
    assert accounts.know(renewed) == [first]
    assert accounts.expire(1000.0) == []
    assert list(accounts) == [replace(renewed, at=100)] == [accounts.held(first.key)]
    assert accounts.know(first) is None, "said again by somebody who kept it"
    assert accounts.know(renewed) is None
    assert accounts.know(account(url="https://ca.test/2", serial=2, expires=2000.0, at=99)) is None
    assert accounts.know(account(issuers=("other.test",), serial=2, expires=3000.0, at=99)) is None
    assert accounts.know(account(serial=1, at=101)) == [replace(renewed, at=100)], "what is newer holds"


def test_two_instances_have_one_each_and_of_too_many_the_newest_are_kept() -> None:
    accounts = Accounts()
    all_of_it = [account(instance=f"i{number:02}", at=number) for number in range(MAX_OF_CLIENT + 1)]
    for one in all_of_it[1:]:
        assert accounts.know(one) == []
    assert accounts.know(all_of_it[0]) is None
    assert accounts.of(WWW) == all_of_it[1:]
    newest = account(instance="new", at=100)
    assert accounts.know(newest) == [all_of_it[1]]
    assert len(accounts) == MAX_OF_CLIENT
    assert accounts.know(account("c2", at=1)) == [], "another client has his own"


def test_there_is_a_bound_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 2)
    accounts = Accounts()
    accounts.know(account("c1"))
    accounts.know(account("c2"))
    with pytest.raises(TooManyAccounts):
        accounts.know(account("c3"))
    assert accounts.know(account("c2", at=99)) == [account("c2")]


def test_it_ends_with_the_certificate_or_the_last_known_name() -> None:
    accounts = Accounts()
    one, two = account("c1", serial=1), account("c2", serial=2, expires=500.0)
    for each in (one, two):
        accounts.know(each)
    assert accounts.expire(499.0) == []
    assert accounts.expire(500.0) == [two]
    accounts.know(two)
    assert accounts.revoke({2, 3}) == [two]
    assert accounts.forget(WWW, {WILD}.__contains__) == []
    assert accounts.forget("other.example.org", set().__contains__) == []
    assert accounts.forget(WILD, set().__contains__) == [one]
    assert not len(accounts)


SAID = st.builds(
    account,
    st.sampled_from(("c1", "c2")),
    st.sampled_from(("i1", "i2")),
    serial=st.integers(1, 3),
    names=st.sampled_from(((WWW,), (WWW, WILD), (WILD,))),
    at=st.integers(1, 3),
    expires=st.sampled_from((5.0, 6.0)),
)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.one_of(SAID, st.integers(1, 3), st.sampled_from((5.0, WWW))), max_size=12))
def test_the_indices_agree(steps: list[Account | int | float | str]) -> None:
    accounts = Accounts()
    for step in steps:
        match step:
            case Account():
                accounts.know(step)
            case int():
                accounts.revoke({step})
            case float():
                accounts.expire(step)
            case str():
                accounts.forget(step, {WILD}.__contains__)
        held = list(accounts)
        assert len({one.key for one in held}) == len(held) == len(accounts)
        for name in (WWW, WILD):
            of_name = sorted((one for one in held if name in one.names), key=lambda one: one.key)
            assert accounts.of(name) == of_name

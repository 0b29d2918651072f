from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ingress import accounts as module
from appliance.ingress.accounts import DURATION_SECONDS, OTHERS, Account, Accounts


def test_a_visitor() -> None:
    account = Account()
    account.joined += 1
    assert account.open == 1
    account.went(10, 20, 0.5, "ended")
    assert account.open == 0
    assert (account.octets_in, account.octets_out, account.seconds) == (10, 20, 0.5)
    assert account.durations == [0, 0, 1, 0, 0, 0, 0, 0]
    account.refused("no_client")
    assert account.ends == {"ended": 1, "no_client": 1}
    assert account.open == 0


@given(st.lists(st.floats(0, 10_000), max_size=20))
def test_the_histogram_is_of_upper_bounds(seconds: list[float]) -> None:
    account = Account()
    for each in seconds:
        account.went(0, 0, each, "ended")
    for at, bound in enumerate(DURATION_SECONDS):
        assert sum(account.durations[: at + 1]) == sum(1 for each in seconds if each <= bound)
    assert sum(account.durations) == len(seconds)


def test_one_account_a_name_and_client() -> None:
    accounts = Accounts()
    account = accounts.of("b.example", "home")
    account.refused("left")
    assert accounts.of("b.example", "home") is account
    accounts.of("b.example", "")
    accounts.of("a.example", "home")
    assert [(name, client) for name, client, _ in accounts] == [
        ("a.example", "home"), ("b.example", ""), ("b.example", "home")
    ]  # fmt: skip


def test_what_is_too_much_shares_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACCOUNTS_AT_MOST", 2)
    accounts = Accounts()
    first = accounts.of("a.example", "")
    accounts.of("b.example", "")
    for number in range(10):
        accounts.of(f"{number}.example", "home").refused("left")
    assert next((name, client) for name, client, _ in accounts) == (OTHERS, "")
    assert accounts.of("c.example", "").ends == {"left": 10}
    assert accounts.of("a.example", "") is first
    assert len(accounts) == 3

"""The ledger: what is written is what is read, and anything else is one error."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.tunnel.issuanceledger import (
    LONGEST_PAUSE_SECONDS,
    Ledger,
    LedgerRefused,
    Order,
    read_ledger,
)

dates = st.datetimes(timezones=st.just(UTC))
ledgers = st.builds(
    Ledger,
    st.none() | st.builds(Order, st.text(), st.text()),
    st.lists(dates, max_size=5).map(tuple),
    st.none() | dates,
    st.floats(0, LONGEST_PAUSE_SECONDS),
    st.integers(0, 100),
)


@given(ledgers)
def test_what_is_written_is_read(ledger: Ledger) -> None:
    assert read_ledger(ledger.octets()) == ledger


@given(st.binary(max_size=200))
def test_anything_else_is_one_error(octets: bytes) -> None:
    with pytest.raises(LedgerRefused):
        read_ledger(octets)


@pytest.mark.parametrize(
    "octets",
    [
        Ledger().octets().replace(b"null", b"[]", 1),
        Ledger().octets().replace(b"0.0", b"{}"),
        Ledger(failed=datetime(2026, 11, 28, tzinfo=UTC)).octets().replace(b"+00:00", b""),
        Ledger(order=Order("key")).octets().replace(b'"key"', b"7", 2),
        Ledger().octets().replace(b"0.0", b"1e999").replace(b'"failures": 0', b'"failures": 1e999'),
        b"[" * 100_000,
        Ledger().octets().replace(b"0.0", b"NaN"),
        Ledger().octets().replace(b"0.0", b"-1.0"),
    ],
)
def test_what_is_nearly_one(octets: bytes) -> None:
    with pytest.raises(LedgerRefused):
        read_ledger(octets)


@pytest.mark.parametrize("seconds", [b"1e7", b"1e300", b"1e999", b"Infinity", b"1" + b"0" * 400 + b".0"])
def test_a_pause_that_somebody_made_endless(seconds: bytes) -> None:
    """A version before this one, say: the order in it is too good to lose."""
    ledger = read_ledger(Ledger(order=Order("key", "url")).octets().replace(b"0.0", seconds))
    assert ledger == Ledger(order=Order("key", "url"), pause_seconds=LONGEST_PAUSE_SECONDS)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Ledger(order=Order("secret", "url")))

"""What is kept of ACME: read back as written, private, and each CA's for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from appliance.service.client.acmestate import Account, AcmeState
from appliance.tunnel.issuanceledger import Ledger, Order
from tests.certificates import issue

URL = "https://ca.test/dir"
PEMS = issue(trustme.CA(), "*.apps.example.com")


def test_what_is_put_is_there(tmp_path: Path) -> None:
    state = AcmeState(tmp_path / "state", URL)
    assert (state.account(), state.ledger("a.test"), state.certificate("a.test")) == (None, None, None)
    state.put_account(Account("key", "url"))
    state.put_ledger("a.test", Ledger(order=Order("key")))
    state.put_certificate("*.apps.example.com", PEMS.pair)
    again = AcmeState(tmp_path / "state", URL)
    assert again.account() == Account("key", "url")
    assert again.ledger("a.test") == Ledger(order=Order("key"))
    assert again.certificate("*.apps.example.com") == PEMS.pair
    assert again.certificate("apps.example.com") is None


def test_nobody_else_reads_any_of_it(tmp_path: Path) -> None:
    state = AcmeState(tmp_path / "state", URL)
    state.put_account(Account("key"))
    state.put_ledger("a.test", Ledger())
    state.put_certificate("a.test", PEMS.pair)
    for path in (tmp_path / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert "*" not in path.name


def test_each_ca_has_its_own(tmp_path: Path) -> None:
    AcmeState(tmp_path, URL).put_account(Account("key"))
    assert AcmeState(tmp_path, "https://ca.test/other").account() is None


def test_an_account_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    state = AcmeState(tmp_path, URL)
    state.put_account(Account("key"))
    (state.directory / "account.json").write_text("{")
    with pytest.raises(OSError, match="cannot be used"):
        state.account()


def test_a_certificate_or_ledger_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    state = AcmeState(tmp_path, URL)
    state.put_ledger("a.test", Ledger())
    (state.directory / "a.test" / "orders.json").write_text("{")
    (state.directory / "a.test" / "certificate.pem").write_bytes(PEMS.key)
    assert (state.ledger("a.test"), state.certificate("a.test")) == (None, None)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Account("secret"))

from __future__ import annotations

import dns.rdata
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dns.caa import BadCaa, Caa, caa_permits, climbed, issue_value, read_caa, write_caa

CA = ("letsencrypt.org", "LE.example.")
ACCOUNT = "https://acme.example/acct/1"


def record(text: str) -> Caa:
    """A record as a zone file writes it."""
    return read_caa(dns.rdata.from_text("IN", "CAA", text).to_wire() or b"")


@pytest.mark.parametrize(
    ("texts", "wildcard", "permits"),
    [
        ((), False, True),
        (('0 issue "letsencrypt.org"',), False, True),
        (('0 issue "letsencrypt.org"',), True, True),
        (('0 ISSUE "LetsEncrypt.Org"',), False, True),
        (('0 issue "  letsencrypt.org  "',), False, True),
        (('0 issue "le.example"',), False, True),
        (('0 issue "other.example"',), False, False),
        (('0 issue "other.example"', '0 issue "letsencrypt.org"'), False, True),
        (('0 issue ";"',), False, False),
        (('0 issue ""',), False, False),
        (('0 issue "%%"',), False, False),
        (('0 issue "letsencrypt.org extra"',), False, False),
        (('0 issuewild "letsencrypt.org"',), True, True),
        (('0 issuewild ";"',), True, False),
        (('0 issuewild ";"',), False, True),
        (('0 issue ";"', '0 issuewild "letsencrypt.org"'), True, True),
        (('0 issue ";"', '0 issuewild "letsencrypt.org"'), False, False),
        (('0 issue "letsencrypt.org"', '0 issuewild ";"'), True, False),
        (('0 iodef "mailto:a@b.example"',), False, True),
        (('128 iodef "mailto:a@b.example"',), False, True),
        (('128 issue "letsencrypt.org"',), False, True),
        (('128 tbs "unknown"',), False, False),
        (('0 tbs "unknown"',), False, True),
        (('0 issue "letsencrypt.org"', '128 tbs "unknown"'), False, False),
        (('0 issue "letsencrypt.org;"',), False, True),
        (('0 issue "letsencrypt.org; "',), False, True),
        (('0 issue "letsencrypt.org; policy=ev"',), False, True),
        (('0 issue "letsencrypt.org; policy"',), False, False),
        (('0 issue "letsencrypt.org; a=b;"',), False, False),
        (('0 issue "letsencrypt.org; a=b c"',), False, False),
        ((f'0 issue "letsencrypt.org; accounturi={ACCOUNT}"',), False, True),
        ((f'0 issue "letsencrypt.org;accounturi = {ACCOUNT}"',), False, True),
        ((f'0 issue "letsencrypt.org; AccountURI={ACCOUNT}"',), False, True),
        ((f'0 issue "letsencrypt.org; accounturi={ACCOUNT}2"',), False, False),
        ((f'0 issue "letsencrypt.org; accounturi={ACCOUNT}; accounturi={ACCOUNT}"',), False, False),
        (('0 issue "letsencrypt.org; validationmethods=dns-01"',), False, True),
        (('0 issue "letsencrypt.org; validationmethods=http-01,dns-01"',), False, True),
        (('0 issue "letsencrypt.org; validationmethods=http-01"',), False, False),
        (('0 issue "letsencrypt.org; validationmethods="',), False, False),
        ((f'0 issue "letsencrypt.org; validationmethods=dns-01; accounturi={ACCOUNT}"',), False, True),
    ],
)
def test_who_may_issue(texts: tuple[str, ...], wildcard: bool, permits: bool) -> None:
    verdict = caa_permits(
        map(record, texts), CA, wildcard=wildcard, account_uri=ACCOUNT, method="dns-01"
    )
    assert bool(verdict) is permits
    assert (verdict.why == "") is permits


def test_it_says_why() -> None:
    records = (record('0 issue "other.example"'), record('0 issue "letsencrypt.org; accounturi=x:1"'))
    verdict = caa_permits(records, CA[:1], wildcard=False, account_uri=None, method="dns-01")
    assert verdict.why == (
        "CAA: issue 'other.example' is not for letsencrypt.org;"
        " issue 'letsencrypt.org; accounturi=x:1' is not for the account (there is none yet)"
    )


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("www.a.example", ["www.a.example", "a.example", "example"]),
        ("*.a.example.", ["a.example", "example"]),
        ("example", ["example"]),
        (".", []),
    ],
)
def test_a_ca_climbs_the_tree(name: str, names: list[str]) -> None:
    assert list(climbed(name)) == names


@pytest.mark.parametrize(
    "rdata", [b"", b"\x00", b"\x00\x05issu", b"\x00\x00", b"\x00\x02a-", b"\x00\x10" + b"a" * 16]
)
def test_what_is_no_record(rdata: bytes) -> None:
    with pytest.raises(BadCaa):
        read_caa(rdata)


@given(st.binary(max_size=60))
def test_any_octets_are_a_record_or_none_and_never_break_the_verdict(rdata: bytes) -> None:
    try:
        read = read_caa(rdata)
    except BadCaa:
        return
    assert read_caa(write_caa(read)) == read
    caa_permits((read,), CA, wildcard=True, account_uri=ACCOUNT, method="dns-01")


@pytest.mark.parametrize(
    ("values", "for_others"),
    [
        (["letsencrypt.org; accounturi=https://other"], True),
        (["letsencrypt.org; accounturi=https://other; validationmethods=dns-01"], True),
        (["letsencrypt.org; accounturi=https://other; validationmethods=http-01"], False),
        (["other.test; accounturi=https://other"], False),
        (["other.test", "letsencrypt.org; accounturi=https://other"], True),
        (["letsencrypt.org; validationmethods=http-01"], False),
        ([";"], False),
    ],
)
def test_a_no_that_another_account_would_not_hear(values: list[str], for_others: bool) -> None:
    records = [Caa(0, "issue", value) for value in values]
    verdict = caa_permits(records, CA, wildcard=False, account_uri=ACCOUNT, method="dns-01")
    assert (verdict.permits, verdict.for_others) == (False, for_others)


METHODS = st.lists(st.sampled_from(["dns-01", "http-01", "tls-alpn-01"]), unique=True)
URIS = st.none() | st.text("abcXYZ019/:.?=-", min_size=1, max_size=30)


@given(METHODS, URIS)
def test_what_is_written_permits_what_it_says(methods: list[str], account: str | None) -> None:
    written = Caa(0, "issue", issue_value("letsencrypt.org", methods, account))

    def permits(account_uri: str | None, method: str) -> bool:
        return bool(caa_permits((written,), CA, wildcard=False, account_uri=account_uri, method=method))

    for method in ("dns-01", "http-01", "tls-alpn-01"):
        is_allowed = not methods or method in methods
        assert permits(account, method) is is_allowed
        assert permits("other", method) is (is_allowed and account in (None, "other"))


@pytest.mark.parametrize(
    ("issuer", "methods", "account"),
    [
        ("", (), None),
        ("two words", (), None),
        ("a.example; x=y", (), "a;b"),
        ("a.example", (), "with space"),
        ("a.example", (), "a;b=c"),
        ("a.example", ("dns 01",), None),
    ],
)
def test_what_cannot_be_written(issuer: str, methods: tuple[str, ...], account: str | None) -> None:
    with pytest.raises(BadCaa):
        issue_value(issuer, methods, account)

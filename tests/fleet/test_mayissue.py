from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.dns.caa import Caa, caa_permits, climbed, read_caa
from appliance.dns.names import from_text
from appliance.fleet.accounts import Account
from appliance.fleet.mayissue import CLIENTS, Issuers, MayIssue
from appliance.tunnel.names import covers

ZONE = "example.org"
WWW, APPS, WILD, FOO = "www.example.org", "apps.example.org", "*.apps.example.org", "foo.apps.example.org"
ONE, TWO, ELSEWHERE = "https://ca.test/1", "https://ca.test/2", "https://other.test/9"


class Ground:
    """Names, whether they are known, and who has which account (with the issuers that its CA says)."""

    def __init__(self, *rules: Issuers, known: tuple[str, ...] = (WWW,)) -> None:
        self.known = set(known)
        self.accounts: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self.may = MayIssue(
            rules, {from_text(ZONE), from_text("sub.example.org")}, self.known.__contains__, self._accounts
        )

    def _accounts(self, name: str) -> list[Account]:
        return [
            Account(f"c{number}", "i", 1, (name,), 0.0, url, issuers, 0)
            for number, (url, issuers) in enumerate(self.accounts.get(name, []))
        ]

    def at(self, owner: str) -> list[str]:
        records = map(read_caa, self.may.records(owner))
        return [f"{one.tag} {one.value}" for one in records if one.flags == 0]

    def found(self, name: str) -> Iterator[Caa]:
        """What a CA finds for a name or wildcard: at names that do not exist, what the DNS wildcard has."""
        for owner in climbed(name):
            there = self.may.records(owner)
            is_there = owner in self.known or any(one.endswith(f".{owner}") for one in self.known)
            over = next((one for one in self.known if one[0] == "*" and covers(one, owner)), None)
            if not there and not is_there and over is not None:
                there = self.may.records(over)
            if there:
                yield from map(read_caa, there)
                return

    def permits(self, name: str, url: str | None, ca: str = "ca.test", method: str = "dns-01") -> bool:
        return bool(
            caa_permits(
                tuple(self.found(name)), (ca,), wildcard=name[0] == "*", account_uri=url, method=method
            )
        )


def test_without_a_rule_there_is_nothing() -> None:
    ground = Ground(known=(WWW, WILD))
    assert ground.may.owners(WWW) == ground.may.owners(WILD) == ()
    assert ground.at(WWW) == ground.at(APPS) == []


def test_without_an_account_it_is_said_at_once() -> None:
    ground = Ground(Issuers((ZONE,), ("ca.test", "other.test"), ("dns-01",), iodef="mailto:a@example.org"))
    assert ground.at(WWW) == [
        "issue ca.test; validationmethods=dns-01",
        "issue other.test; validationmethods=dns-01",
        "iodef mailto:a@example.org",
    ]
    ground = Ground(Issuers((WWW,), ("ca.test",), account=ONE))
    assert ground.at(WWW) == [f"issue ca.test; accounturi={ONE}"]
    assert ground.permits(WWW, ONE)
    assert not ground.permits(WWW, TWO)


def test_bound_to_accounts_it_is_said_when_the_first_is_known() -> None:
    rule = Issuers((ZONE,), ("ca.test", "other.test"), account=CLIENTS, wildcards=False, iodef="mailto:a@b.c")
    ground = Ground(rule)
    assert ground.at(WWW) == []
    ground.accounts[WWW] = [(ONE, ("ca.test",)), (TWO, ("ca.test", "more.test")), (ELSEWHERE, ())]
    assert ground.at(WWW) == [
        f"issue ca.test; accounturi={ONE}",
        f"issue ca.test; accounturi={TWO}",
        f"issue ca.test; accounturi={ELSEWHERE}",
        f"issue other.test; accounturi={ELSEWHERE}",
        "issuewild ;",
        "iodef mailto:a@b.c",
    ]
    ground.accounts[WWW] = [(ELSEWHERE, ("strange.test",))]
    assert ground.at(WWW) == [], "of a CA that may not issue"


def test_a_wildcard() -> None:
    """At the name that it is of; and for a name below it, what the DNS wildcard says."""
    ground = Ground(
        Issuers((ZONE,), ("ca.test",), ("dns-01",), CLIENTS, wildcards=False), known=(WILD, WWW, FOO)
    )
    ground.accounts |= {WILD: [(ONE, ())], WWW: [(TWO, ())], FOO: [(TWO, ())]}
    value = f"ca.test; accounturi={ONE}; validationmethods=dns-01"
    assert ground.may.owners(WILD) == (WILD, APPS)
    assert ground.at(APPS) == [f"issuewild {value}"]
    assert ground.at(WILD) == [f"issue {value}", "issuewild ;"]
    for name, url in ((WILD, ONE), ("bar.apps.example.org", ONE), (WWW, TWO), (FOO, TWO)):
        assert ground.permits(name, url), name
        assert not ground.permits(name, url, method="http-01")
        assert not ground.permits(name, "https://ca.test/stranger")
    for name in ("*.bar.apps.example.org", f"*.{WWW}", f"*.{FOO}"):
        assert not ground.permits(name, ONE)
    assert ground.permits(APPS, None), "nothing is said of a name that nobody serves"


def test_a_wildcard_and_the_name_that_it_is_of() -> None:
    ground = Ground(Issuers((ZONE,), ("ca.test",), account=CLIENTS, wildcards=False), known=(WILD, APPS))
    ground.accounts[APPS] = [(TWO, ())]
    assert ground.at(APPS) == [f"issue ca.test; accounturi={TWO}"]
    ground.accounts[WILD] = [(ONE, ())]
    assert ground.at(APPS) == [f"issue ca.test; accounturi={TWO}", f"issuewild ca.test; accounturi={ONE}"]
    assert ground.permits(WILD, ONE)
    assert not ground.permits(WILD, TWO)
    assert ground.permits(APPS, TWO)
    assert not ground.permits(APPS, ONE)


@pytest.mark.parametrize(
    ("name", "issuer"),
    [
        (WWW, "zone"),
        ("example.org", "zone"),
        (APPS, "zone"),
        (WILD, "wild"),
        ("bar.apps.example.org", "wild"),
        ("*.b.apps.example.org", "wild"),
        (FOO, "foo"),
        ("a.sub.example.org", None),
        ("www.elsewhere.test", None),
    ],
)
def test_the_closest_rule_counts(name: str, issuer: str | None) -> None:
    rules = [Issuers((ZONE,), ("zone",)), Issuers((WILD,), ("wild",)), Issuers((FOO, "www.b.c"), ("foo",))]
    ground = Ground(*rules, known=(name,))
    assert ground.at(name) == ([] if issuer is None else [f"issue {issuer}"])


def test_a_wildcard_at_the_apex() -> None:
    ground = Ground(Issuers(("*.example.org",), ("ca.test",)), known=("*.example.org",))
    assert ground.at("example.org") == ["issuewild ca.test"]
    assert ground.permits("*.example.org", None)
    assert not ground.permits("*.example.org", None, ca="other.test")

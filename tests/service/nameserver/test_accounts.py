"""Accounts as CAA records: when they are there, what a restart does to them, and when they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from appliance.fleet.accounts import Account
from appliance.fleet.mayissue import CLIENTS, Issuers
from appliance.service.nameserver.accounts import TEND_SECONDS, Accounts
from appliance.tunnel.crl import RevocationList
from tests.service.nameserver.bench import WALL, YEAR, A, Bench

WWW, WILD, APPS = "www.demo.test", "*.apps.demo.test", "apps.demo.test"
RULES = (Issuers(("demo.test",), ("ca.test",), ("dns-01",), CLIENTS),)
ONE, TWO = "https://ca.test/1", "https://ca.test/2"


def said(
    url: str = ONE, at: int = 1, *, client: str = "home", serial: int = 1, **more: object
) -> Account:
    fields = {"names": (WWW, WILD), "expires": YEAR, "issuers": ("ca.test",), "instance": "0" * 32} | more
    return Account(client=client, serial=serial, url=url, at=at, **fields)  # type: ignore[arg-type]


def revoked(*serials: int) -> RevocationList:
    return RevocationList(1, frozenset(serials))


class Ground(Bench):
    def __init__(self, directory: Path) -> None:
        self.accounts: Accounts
        super().__init__(directory, issuers=RULES, accounts=self._of, starts=False)
        changed = self.registry.accounts_changed
        self.accounts = Accounts(self.clock, self.store, changed, wall=lambda: self.wall)
        self.accounts.load(revoked())
        self.registry.startService()
        self.accounts.startService()

    def _of(self, name: str) -> list[Account]:
        return self.accounts.of(name)

    def run(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        self.zonefiles.finish()

    def caa(self, name: str) -> list[str]:
        query = dns.message.make_query(name, "CAA")
        octets = self.zonefiles.responder.respond(
            query.to_wire(), udp=True, source="192.0.2.9", now=self.clock.seconds(), wall=self.wall
        )
        assert isinstance(octets, bytes)
        answer = dns.message.from_wire(octets)
        return sorted(rdata.to_text() for rrset in answer.answer for rdata in rrset)

    def stop(self) -> None:
        self.accounts.stopService()
        super().stop()


def bound(tag: str, url: str) -> str:
    return f'0 {tag} "ca.test; accounturi={url}; validationmethods=dns-01"'


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    ground.registry.know(WWW, YEAR)
    ground.registry.know(WILD, YEAR)
    ground.registry.joined([A], "s1", "b1", {WWW: YEAR})
    ground.run()
    yield ground
    ground.stop()


def test_the_first_account_makes_them_and_the_next_one_adds_its_own(ground: Ground) -> None:
    assert ground.caa(WWW) == []
    ground.accounts.said(said())
    ground.run()
    assert ground.caa(WWW) == ground.caa("foo.apps.demo.test") == [bound("issue", ONE)]
    assert ground.caa(APPS) == [bound("issuewild", ONE)]
    ground.accounts.said(said(TWO, client="second", names=(WWW,)))
    ground.run()
    assert ground.caa(WWW) == [bound("issue", ONE), bound("issue", TWO)]
    assert ground.caa(APPS) == [bound("issuewild", ONE)]
    lays = len(ground.lays)
    ground.accounts.said(said())
    ground.run()
    assert len(ground.lays) == lays, "said again"


def test_an_account_of_a_name_that_is_not_known_waits_for_it(ground: Ground) -> None:
    ground.accounts.said(said(names=("new.demo.test", "www.elsewhere.test")))
    ground.run()
    assert ground.caa("new.demo.test") == []
    ground.registry.know("new.demo.test", YEAR)
    ground.run()
    assert ground.caa("new.demo.test") == [bound("issue", ONE)]


def test_the_death_of_a_server_touches_no_caa(ground: Ground) -> None:
    ground.accounts.said(said())
    ground.run()
    ground.registry.dead(A, "b1")
    ground.run()
    assert ground.caa(WWW) == [bound("issue", ONE)]


def test_a_restart_begins_with_what_was_there(ground: Ground, tmp_path: Path) -> None:
    ground.accounts.said(said())
    ground.accounts.said(said(TWO, client="second", serial=2))
    ground.accounts.said(said(f"{ONE}3", client="third", serial=3, expires=WALL - 1))
    ground.run()
    ground.stop()
    again = Ground(tmp_path)
    assert again.caa(WWW) == [bound("issue", ONE), bound("issue", TWO)]
    assert again.accounts.status()[0] == {
        "client": "home",
        "instance": "0" * 32,
        "account": ONE,
        "issuers": ["ca.test"],
        "expires": YEAR,
    }
    again.accounts.load(revoked(2))
    assert [one["client"] for one in again.accounts.status()] == ["home"]
    ground.accounts, ground.registry, ground.store, ground.clock = (
        again.accounts,
        again.registry,
        again.store,
        again.clock,
    )


def test_what_was_said_under_a_clock_that_was_set_back_is_on_disk_as_new_as_before(
    ground: Ground, tmp_path: Path
) -> None:
    ground.accounts.said(said(at=100, expires=WALL + 10))
    ground.accounts.said(said(at=50, serial=2, expires=YEAR))
    ground.run()
    ground.stop()
    again = Ground(tmp_path)
    again.accounts.said(said(TWO, at=99, serial=2))
    again.run()
    assert again.caa(WWW) == [bound("issue", ONE)]
    assert [one["expires"] for one in again.accounts.status()] == [YEAR]
    ground.accounts, ground.registry, ground.store, ground.clock = (
        again.accounts,
        again.registry,
        again.store,
        again.clock,
    )


def test_they_end_with_the_certificate_of_the_client(ground: Ground) -> None:
    ground.accounts.said(said(expires=WALL + 30))
    ground.accounts.said(said(TWO, client="second", serial=2))
    ground.run()
    ground.wall = WALL + 31
    ground.run(TEND_SECONDS)
    ground.run()
    assert ground.caa(WWW) == [bound("issue", TWO)]
    ground.accounts.revoke(revoked(2))
    ground.run()
    assert ground.caa(WWW) == ground.caa(APPS) == []
    assert ground.store.accounts() == []


def test_a_forgotten_name_has_none_and_the_last_one_ends_the_account(ground: Ground) -> None:
    ground.accounts.said(said())
    for name, left in ((WWW, 1), (WILD, 0)):
        ground.registry.forget(name)
        ground.accounts.forgotten(name, ground.registry.names().__contains__)
        ground.run()
        assert ground.caa(name.replace("*", "foo")) == []
        assert len(ground.accounts.status()) == len(ground.store.accounts()) == left

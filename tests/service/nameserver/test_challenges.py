"""Challenges as live records: when they are there, beside what, and when they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rdatatype
import pytest

from appliance.dns.names import from_text
from appliance.service.nameserver.challenges import Challenges
from appliance.tunnel.noticeboard import MAX_OF_OWNER
from tests.service.nameserver.bench import YEAR, A, Bench

WWW, WILD = "www.demo.test", "*.apps.demo.test"
ONE, TWO = "1" * 43, "2" * 43


class Ground(Bench):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.challenges = Challenges(self.clock, self.zonefiles)

    def run(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.zonefiles.finish()

    def ask(self, name: str, rtype: str = "TXT") -> list[str]:
        query = dns.message.make_query(name, rtype)
        octets = self.zonefiles.responder.respond(
            query.to_wire(), udp=True, source="192.0.2.9", now=self.clock.seconds(), wall=self.wall
        )
        assert isinstance(octets, bytes)
        answer = dns.message.from_wire(octets)
        return sorted(rdata.to_text().strip('"') for rrset in answer.answer for rdata in rrset)

    def stop(self) -> None:
        self.challenges.stop()
        super().stop()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    ground.run()
    yield ground
    ground.stop()


def test_a_challenge_is_there_in_the_next_turn_and_further_ones_a_second_later(ground: Ground) -> None:
    ground.challenges.said("a", WWW, ONE, 600)
    ground.run()
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE]
    ground.challenges.said("a", f"*.{WWW}", TWO, 600)
    ground.challenges.said("a", "api.demo.test", TWO, 600)
    ground.run(0.5)
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE]
    lays = len(ground.zonefiles.laid)
    ground.run(0.5)
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE, TWO]
    assert ground.ask("_acme-challenge.api.demo.test") == [TWO]
    assert len(ground.zonefiles.laid) == lays + 1
    ground.challenges.withdrawn("a", WWW, ONE)
    ground.run(1)
    assert ground.ask(f"_acme-challenge.{WWW}") == [TWO]


def test_it_is_gone_with_the_last_server_that_says_it_or_with_its_time(ground: Ground) -> None:
    ground.challenges.said("a", WWW, ONE, 600)
    ground.challenges.said("b", WWW, ONE, 600)
    ground.challenges.said("a", WWW, TWO, 5)
    ground.run(1)
    ground.challenges.withdrawn("a", WWW, ONE)
    ground.run(1)
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE, TWO]
    ground.run(4)
    ground.run(0)
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE]
    ground.run(595)
    ground.run(0)
    assert ground.ask(f"_acme-challenge.{WWW}") == []
    assert from_text(f"_acme-challenge.{WWW}") not in ground.zonefiles.zones[from_text("demo.test")].rrsets


def test_what_the_zone_file_says_there_stays_beside_it(ground: Ground) -> None:
    path = next(iter((ground.store._path.parent / "zones").glob("*.zone")))
    path.write_text(path.read_text() + '_acme-challenge.www TXT "of the operator"\n')
    ground.zonefiles.load()
    ground.challenges.said("a", WWW, ONE, 600)
    ground.run()
    assert ground.ask(f"_acme-challenge.{WWW}") == [ONE, "of the operator"]
    ground.challenges.withdrawn("a", WWW, ONE)
    ground.run(1)
    assert ground.ask(f"_acme-challenge.{WWW}") == ["of the operator"]


def test_a_name_below_a_live_wildcard_goes_on_being_served(ground: Ground) -> None:
    ground.registry.joined([A], "a", "1", {WILD: YEAR})
    ground.run(1)
    assert ground.ask("foo.apps.demo.test", "A") == ["192.0.2.1"]
    ground.challenges.said("a", "foo.apps.demo.test", ONE, 600)
    ground.challenges.said("a", WILD, TWO, 600)
    ground.run(1)
    assert ground.ask("_acme-challenge.foo.apps.demo.test") == [ONE]
    assert ground.ask("_acme-challenge.apps.demo.test") == [TWO]
    assert ground.ask("foo.apps.demo.test", "A") == ["192.0.2.1"]
    assert ground.ask("bar.apps.demo.test", "A") == ["192.0.2.1"]
    ground.registry.serving([A], "1", "other.demo.test", YEAR)  # the fleet's changes leave it alone
    ground.run(1)
    assert ground.ask("_acme-challenge.foo.apps.demo.test") == [ONE]


def test_names_in_no_zone_of_ours_and_more_than_a_name_may_have(ground: Ground) -> None:
    ground.challenges.said("a", "www.elsewhere.test", ONE, 600)
    for number in range(MAX_OF_OWNER + 1):
        ground.challenges.said("a", WWW, f"{number:043}", 600)
    ground.run()
    assert len(ground.ask(f"_acme-challenge.{WWW}")) == MAX_OF_OWNER


def test_many_at_once_cost_their_number_and_not_its_square(ground: Ground) -> None:
    """Each look at all that stands is one a second: 10,000 that end one after the other are 600 looks."""
    looks: list[float] = []
    board = ground.challenges._board
    expire = board.expire

    def counted(now: float) -> list[tuple[str, str]]:
        looks.append(now)
        return expire(now)

    board.expire = counted  # type: ignore[method-assign]
    for number in range(500):
        ground.challenges.said("a", f"n{number}.demo.test", ONE, 10 + number % 50)
    for _ in range(600):
        ground.clock.advance(0.1)
    assert board.standing() == []
    assert len(looks) == 50

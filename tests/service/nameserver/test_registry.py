"""What the watches say becomes records at the right moment, and outlives a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from appliance.dns.names import from_text
from appliance.dns.zone import Sets
from appliance.service.nameserver.zonefiles import LiveChange
from appliance.service.store import SeenServer, StoreFailed
from appliance.tunnel.discovery import ServerAddress
from tests.service.nameserver.bench import WALL, YEAR, ZONE, A, B, Bench, C


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.stop()


def done(deferred: Deferred[Any]) -> Any:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results[0]


def test_a_change_is_laid_in_the_next_turn_and_further_ones_a_second_later(bench: Bench) -> None:
    assert bench.lays == [0.0]
    bench.clock.advance(10)
    bench.registry.joined([A], "a", "1", {"www.demo.test": YEAR})
    bench.registry.serving([A], "1", "api.demo.test", YEAR)
    assert bench.lays == [0.0]
    bench.clock.advance(0)
    assert bench.lays == [0.0, 10.0]
    assert bench.txt("www.demo.test") == [A]
    bench.clock.advance(0.25)
    bench.registry.joined([B], "b", "1", {})
    bench.registry.serving([B], "1", "www.demo.test", YEAR)
    bench.clock.advance(0.5)
    assert bench.lays == [0.0, 10.0]
    bench.clock.advance(0.25)
    assert bench.lays == [0.0, 10.0, 11.0]
    assert bench.a("www.demo.test") == ["192.0.2.1", "192.0.2.2"]
    assert bench.a("api.demo.test") == ["192.0.2.1"]
    bench.clock.advance(5)
    assert len(bench.lays) == 3


def test_the_first_server_after_the_start_does_not_wait(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {})
    bench.clock.advance(0)
    assert bench.txt() == [A]


@pytest.mark.parametrize("end", ["dead", "silent", "left", "removed"])
def test_what_takes_a_server_out_waits_for_nothing(bench: Bench, end: str) -> None:
    bench.clock.advance(10)
    bench.registry.joined([A], "a", "1", {})
    bench.registry.joined([B], "b", "1", {})
    bench.clock.advance(0)
    bench.registry.serving([B], "1", "www.demo.test", YEAR)  # is waiting for its second
    {
        "dead": lambda: bench.registry.dead(A, "1"),
        "silent": lambda: bench.registry.silent(A, "1"),
        "left": lambda: bench.registry.left([A], "a", "1"),
        "removed": lambda: bench.registry.removed(A),
    }[end]()
    bench.clock.advance(0)
    assert bench.lays == [0.0, 10.0, 10.0]
    assert bench.txt() == [B]
    bench.clock.advance(5)
    assert len(bench.lays) == 3


def test_a_name_becomes_known_by_its_first_verified_registration(bench: Bench) -> None:
    assert not bench.registry.knows("www.demo.test")
    bench.registry.joined([A], "a", "1", {"www.demo.test": YEAR})
    assert bench.registry.knows("www.demo.test")
    assert bench.store.known() == {"www.demo.test": YEAR}
    bench.registry.serving([A], "1", "*.apps.demo.test", YEAR)
    assert bench.registry.knows("x.apps.demo.test")
    bench.registry.serving([A], "1", "www.demo.test", YEAR)
    assert bench.told == [("known", "www.demo.test"), ("known", "*.apps.demo.test")]


def test_an_invitation_makes_known_and_forget_takes_back(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {})
    assert done(bench.registry.know("www.demo.test", YEAR)) is None
    assert done(bench.registry.know("www.demo.test", YEAR)) is None
    bench.clock.advance(1)
    assert bench.txt("www.demo.test") == [A]
    assert bench.a("www.demo.test") == ["192.0.2.1"]  # of all servers, as it has no session
    assert done(bench.registry.forget("www.demo.test")) is True
    assert done(bench.registry.forget("www.demo.test")) is False
    bench.clock.advance(1)
    assert bench.txt("www.demo.test") == []
    assert bench.store.known() == {}
    assert bench.told == [("known", "www.demo.test"), ("forgotten", "www.demo.test")]


def test_what_cannot_be_forgotten_on_disk_stays_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.joined([A], "a", "1", {"www.demo.test": YEAR})
    monkeypatch.setattr(bench.store, "forget", lambda name: fail(StoreFailed("full")))
    bench.registry.forget("www.demo.test").addErrback(lambda failure: failure.trap(StoreFailed))
    bench.clock.advance(1)
    assert bench.registry.knows("www.demo.test")
    assert bench.txt("www.demo.test") == [A]


def test_a_name_is_known_until_its_certificates_have_expired(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {"www.demo.test": WALL + 100})
    bench.registry.know("www.demo.test", WALL + 200)
    bench.wall = WALL + 150
    bench.clock.pump([10] * 7)
    assert bench.registry.knows("www.demo.test")
    bench.wall = WALL + 200
    bench.registry.not_serving([A], "1", "www.demo.test")
    bench.clock.pump([10] * 4)
    assert not bench.registry.knows("www.demo.test")
    assert bench.txt("www.demo.test") == []
    assert bench.store.known() == {}
    assert bench.told[-1] == ("forgotten", "www.demo.test")


def test_a_clock_that_is_wrong_for_a_while_takes_no_name_that_is_served(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {"www.demo.test": WALL + 100})
    bench.wall = WALL + 86_400
    bench.clock.pump([10] * 4)
    assert bench.txt("www.demo.test") == [A]
    assert "www.demo.test" in bench.store.known()
    bench.wall = WALL + 50
    bench.clock.pump([10] * 4)
    assert bench.txt("www.demo.test") == [A]
    bench.wall = WALL + 100 + 90_000  # whoever still says so does not tell the truth
    bench.clock.pump([10] * 4)
    assert bench.txt("www.demo.test") == []


def test_the_first_answer_after_a_restart_is_the_last_one_before_it(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    for address, server_id in ((A, "a"), (B, "b"), (C, "c")):
        before.registry.joined([address], server_id, "1", {"www.demo.test": YEAR})
    before.registry.dead(C, "1")
    before.clock.advance(1)
    before.stop()
    after = Bench(tmp_path)
    assert after.lays == [0.0]
    assert after.txt("www.demo.test") == after.txt() == [A, B]
    assert after.a("www.demo.test") == ["192.0.2.1", "192.0.2.2"]
    assert after.registry.boot_at(A) == "1"
    after.registry.dead(A, "1")
    after.registry.dead(B, "1")
    after.clock.advance(1)
    assert after.txt() == [B]
    after.stop()
    last = Bench(tmp_path)
    assert last.txt() == [B]
    last.stop()


def test_a_server_that_is_no_longer_listed_is_not_published_after_the_restart(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    before.registry.joined([A, B], "a", "1", {})
    before.clock.advance(1)
    assert before.store.servers() == [SeenServer("a", (A, B), "1")]
    before.stop()
    after = Bench(tmp_path, listed=(B, C))
    assert after.txt() == [B]
    after.stop()
    moved = Bench(tmp_path, listed=(C,))
    assert moved.txt() == [B]  # until there is another
    moved.registry.joined([C], "c", "1", {})
    moved.clock.advance(1)
    assert moved.txt() == [C]
    moved.stop()


def test_private_addresses_are_published_only_where_the_operator_allows_it(tmp_path: Path) -> None:
    public = ServerAddress("8.8.8.8")
    bench = Bench(tmp_path, private_addresses=False)
    bench.registry.joined([A, public], "a", "1", {})
    bench.clock.advance(1)
    assert bench.txt() == [public]
    assert not bench.registry.admits(A)
    bench.stop()


def test_another_discovery_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, discovery="tunnels.demo.test")
    bench.registry.joined([A], "a", "1", {})
    bench.clock.advance(1)
    assert bench.txt("tunnels.demo.test") == [A]
    assert bench.txt() == []
    bench.stop()


def test_new_zones_get_their_records_at_once(bench: Bench, tmp_path: Path) -> None:
    bench.registry.joined([A], "a", "1", {"www.other.test": YEAR})
    bench.clock.advance(1)
    assert bench.txt("www.other.test") == []
    (tmp_path / "zones" / "other.test.zone").write_text(ZONE.replace("demo", "other"))
    assert bench.zonefiles.reload() == []
    bench.registry.zones_changed()
    assert bench.txt("www.other.test") == [A]


def test_after_an_hour_a_silent_server_is_forgotten(bench: Bench) -> None:
    for address, server_id in ((A, "a"), (B, "b"), (C, "c")):
        bench.registry.joined([address], server_id, "1", {})
    bench.registry.silent(B, "1")
    bench.registry.silent(C, "1")
    bench.clock.advance(1)
    assert bench.txt() == [A, B, C]
    bench.clock.pump([30] * 122)
    assert bench.txt() == [A]


def test_each_change_is_one_line_and_a_held_server_is_warned_of(bench: Bench, lines: list[str]) -> None:
    bench.registry.joined([A], "a", "1", {})
    bench.registry.joined([B], "b", "1", {})
    bench.registry.dead(B, "1")
    bench.registry.dead(B, "1")
    bench.registry.silent(A, "1")
    bench.clock.advance(1)
    said = [line for line in lines if "192.0.2" in line]
    assert said == [
        "server a at 192.0.2.1:443 is up",
        "server b at 192.0.2.2:443 is up",
        "server b at 192.0.2.2:443: is dead, was up",
        "server a at 192.0.2.1:443: is silent, was up",
        "fleet: 192.0.2.1:443 stays in the DNS though not heard: too few servers would remain without",
    ]
    lines.clear()
    for number in range(2, 100):
        bench.registry.joined([B], "b", str(number), {})
        bench.registry.dead(B, str(number))
    assert sum("dead" in line for line in lines) == 0  # one in 30 s


def test_whenever_a_server_is_held_log_and_status_warn(bench: Bench, lines: list[str]) -> None:
    held = "192.0.2.{}:443 stays in the DNS though not heard: too few servers would remain without"
    for turn, (silent, address) in enumerate([("a", A), ("b", B), ("a", A)]):
        bench.registry.joined([A], "a", str(turn), {})
        bench.registry.joined([B], "b", str(turn), {})
        bench.registry.dead(B if silent == "a" else A, str(turn))
        bench.clock.advance(1)
        assert bench.registry.status()["warnings"] == []
        bench.registry.silent(address, str(turn))
        bench.clock.advance(1)
        warning = held.format(1 if silent == "a" else 2)
        assert bench.registry.status()["warnings"] == [warning]
        assert [line for line in lines if "stays" in line] == [f"fleet: {warning}"]  # within 30 s as well
        bench.registry.silent(address, str(turn))
        bench.clock.advance(1)
        assert len([line for line in lines if "stays" in line]) == 1
        lines.clear()
    bench.registry.joined([B], "b", "9", {})
    bench.registry.joined([A], "a", "9", {})
    bench.clock.advance(1)
    assert bench.registry.status()["warnings"] == []


def test_an_introduced_server_is_published_after_the_restart_without_being_listed(tmp_path: Path) -> None:
    before = Bench(tmp_path, listed=(), introduced=lambda server_id: True)
    before.registry.joined([A], "a", "1", {})
    before.registry.joined([B], "b", "1", {})
    before.registry.left([C], "b", "1")
    before.clock.advance(1)
    assert before.registry.places_of(lambda server_id: True) == {A}
    assert before.registry.places_of(lambda server_id: server_id == "b") == set()
    assert before.registry.members() == {"a", "b"}
    before.stop()
    after = Bench(tmp_path, listed=(), introduced=lambda server_id: server_id == "a")
    after.registry.joined([C], "c", "1", {})
    after.clock.advance(1)
    assert after.txt() == [A, C]
    after.stop()


def test_status_is_plain_values(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {"www.demo.test": YEAR})
    bench.clock.advance(2)
    status = bench.registry.status()
    assert status["servers"] == [
        {
            "address": "192.0.2.1:443",
            "id": "a",
            "boot": "1",
            "standing": "up",
            "seconds": 2.0,
            "names": 1,
            "published": True,
            "held": False,
        }
    ]
    assert status["names"] == [{"name": "www.demo.test", "expires": YEAR, "servers": ["192.0.2.1:443"]}]
    assert status["conflicts"] == []


def test_who_drains_is_told_once_it_is_out(bench: Bench) -> None:
    bench.registry.joined([A], "a", "1", {})
    bench.registry.joined([B], "b", "1", {})
    bench.clock.advance(1)
    told: list[bool] = []
    bench.registry.draining([A], "a", "1").addCallback(told.append)
    assert not told
    bench.clock.advance(0)
    assert bench.txt() == [B]
    assert told == [False]
    bench.registry.draining([B], "b", "1").addCallback(told.append)
    bench.clock.advance(0)
    assert bench.txt() == [A, B]
    assert told == [False, True]


def test_while_a_version_is_made_changes_wait_for_the_next_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10,000 names a version may take longer than the second after which the next one was due: they were
    queued one behind the other, and a death behind them all."""
    bench.clock.advance(10)
    change = bench.zonefiles.change
    versions: list[Deferred[None]] = []

    def slowly(changes: Iterable[LiveChange], sets: Callable[[], Sets]) -> Deferred[None]:
        change(changes, sets)
        versions.append(Deferred())
        return versions[-1]

    monkeypatch.setattr(bench.zonefiles, "change", slowly)
    bench.registry.joined([A], "a", "1", {"www.demo.test": YEAR})
    bench.registry.joined([B], "b", "1", {"www.demo.test": YEAR})
    bench.clock.advance(0)
    assert len(versions) == 1
    bench.registry.serving([A], "1", "api.demo.test", YEAR)
    bench.clock.advance(5)
    bench.registry.dead(A, "1")
    bench.clock.advance(0)
    assert len(versions) == 1
    versions[0].callback(None)
    assert len(versions) == 2
    assert bench.a("www.demo.test") == ["192.0.2.2"]
    assert bench.a("api.demo.test") == ["192.0.2.2"]  # where it has a session no more, all
    versions[1].callback(None)
    bench.clock.advance(5)
    assert len(versions) == 2


class Ticking(Clock):
    """A millisecond passes whenever somebody looks at it, so that long work is seen to be long."""

    def seconds(self) -> float:
        self.rightNow += 0.001
        return self.rightNow


def test_whoever_asks_first_after_a_restart_finds_every_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets are opened next, and what is not laid by then does not exist: a resolver remembers that."""
    wanted = [f"n{number}.demo.test" for number in range(500)]
    bench = Bench(tmp_path)
    bench.registry.joined([A], "a", "1", dict.fromkeys(wanted, YEAR))
    bench.clock.advance(2)
    bench.stop()
    monkeypatch.setattr("tests.service.nameserver.bench.Clock", Ticking)
    again = Bench(tmp_path)
    (zone,) = again.zonefiles.responder.zones.values()
    assert all(zone.node(from_text(name)) for name in wanted)
    again.stop()

"""Servers that no setting lists: announced, met, published, remembered over restarts; on a clock."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dns.rcode
import pytest
from twisted.internet.defer import Deferred, fail

from appliance.dns import names
from appliance.dns.tsig import Key
from appliance.dns.update import UpdateAsked
from appliance.dns.updatelease import lease_granted
from appliance.fleet.announcement import Announcement
from appliance.fleet.announcing import Announcing
from appliance.fleet.serverkeys import ServerKeys, key_of
from appliance.service.nameserver.introductions import Introductions
from appliance.service.nameserver.watcher import Watcher
from appliance.service.store import StoreFailed
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from tests.service.nameserver.bench import A, B, Bench, C
from tests.service.nameserver.test_watcher import Network, World

APEX = names.from_text("demo.test")
SECRET = bytes(range(32))
SERIAL = 0x5F
EPOCH = 1_800_000_000.0
SCHEDULES = 200
EVENTS = 60
IDS = {A: "a", B: "b", C: "c"}


class Site(World):
    """A world whose watcher lists nobody, with introductions."""

    introductions: Introductions

    def __init__(self, directory: Path, *, began: float = 0.0, private_addresses: bool = True) -> None:
        self.bench = Bench(
            directory,
            listed=(),
            introduced=lambda server_id: self.introductions.introduced(server_id),
            private_addresses=private_addresses,
            starts=False,
        )
        self.clock = self.bench.clock
        self.began = began
        self.revoked = RevocationList(0, frozenset())
        self.network = Network(self.bench)
        self.watcher = Watcher(
            self.clock, self.bench.registry, (), self.network, jitter=lambda low, most: most
        )
        self.introductions = Introductions(
            self.clock,
            self.bench.store,
            self.bench.registry,
            self.watcher,
            may_announce=lambda server_id, serial: serial not in self.revoked.serials,
            wall=self.wall,
        )
        self.bench.zonefiles.responder.introducers = ServerKeys(SECRET)
        self.introductions.load()
        self.bench.registry.startService()
        self.watcher.startService()
        self.introductions.startService()

    def wall(self) -> float:
        return EPOCH + self.began + self.clock.seconds()

    def stop(self) -> None:
        self.introductions.stopService()
        self.watcher.stopService()
        self.clock.advance(0.01)  # what the network still carries to who has given up
        for connection in list(self.network.connections):
            connection.close()
        self.bench.stop()

    def send(self, octets: bytes) -> bytes:
        """The answer to a message."""
        asked = self.bench.zonefiles.responder.respond(
            octets, udp=True, source="192.0.2.9", now=self.clock.seconds(), wall=self.wall()
        )
        if isinstance(asked, bytes):
            return asked
        assert isinstance(asked, UpdateAsked)
        answers: list[bytes] = []
        self.introductions.update(asked).addCallback(answers.append)
        (answer,) = answers
        return answer

    def announce(
        self,
        server_id: str,
        boot: str,
        n: int,
        *at: ServerAddress,
        key: Key | None = None,
        wall: float | None = None,
    ) -> str:
        """The rcode of the answer to an announcement."""
        announcing = Announcing(APEX, server_id, (key or key_of(SECRET, server_id, SERIAL),), lambda: 0.0)
        octets = announcing.announce(Announcement(boot, n, at), 7, self.wall() if wall is None else wall)
        answer = self.send(octets)
        self.granted = lease_granted(answer)
        return dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 0xF))

    def places(self) -> set[str]:
        return {one["address"] for one in self.watcher.status()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


def test_a_server_that_announces_itself_is_met_and_published(site: Site, lines: list[str]) -> None:
    boot = site.network.start(A)._boot
    assert site.places() == set()
    assert site.announce("a", boot, 1, A) == "NOERROR"
    assert site.granted == 60
    site.run(1.2)
    assert site.txt() == [A]
    (status,) = site.introductions.status()
    assert status == {
        "server": "a",
        "boot": boot,
        "n": 1,
        "addresses": ["192.0.2.1:443"],
        "seconds_left": pytest.approx(58.8, abs=0.1),
        "met": True,
    }
    site.run(40)
    assert site.announce("a", boot, 2, A) == "NOERROR"
    site.run(600)  # the end of the lease takes nobody out
    assert site.txt() == [A]
    assert site.introductions.status() == []
    site.network.kill(A)
    site.run(120)
    assert site.places() == {"192.0.2.1:443"}  # a member is looked for
    said = [line for line in lines if "announces itself" in line]
    assert said == ["server a announces itself at 192.0.2.1:443"]


def test_an_introduction_publishes_nothing_by_itself(site: Site) -> None:
    site.network.start(B)
    assert site.announce("a", "b1", 1, A, B) == "NOERROR"  # nobody is at A; somebody else is at B
    assert site.places() == {"192.0.2.1:443", "192.0.2.2:443"}
    site.run(30)
    assert site.txt() == [B]
    assert site.standing() == {"b": "up"}
    assert [one["met"] for one in site.introductions.status()] == [False]
    site.run(40)
    assert site.places() == {"192.0.2.2:443"}  # the lease is over, and the watch is not
    dials = len(site.network.dials)
    site.run(30)
    assert len(site.network.dials) == dials


def test_an_announcement_hurries_the_check(site: Site) -> None:
    site.announce("a", "b1", 1, A)
    site.run(20)
    boot = site.network.start(A)._boot
    site.announce("a", boot, 1, A)
    site.run(0.1)
    assert site.txt() == [A]


def test_who_was_watched_before_he_announced_himself_is_met(site: Site) -> None:
    boot = site.network.start(A)._boot
    site.watcher.introduce([A])  # as the settings would have it
    site.run(1.2)
    assert site.txt() == [A]
    assert site.announce("a", "earlier", 1, C) == "NOERROR"
    assert site.announce("a", boot, 1, A) == "NOERROR"
    assert [(one["boot"] == boot, one["met"]) for one in site.introductions.status()] == [
        (True, True),
        (False, False),
    ]
    assert site.bench.registry.boot_of("b") is None


def test_late_ones_never_win(site: Site) -> None:
    first = site.network.start(A)._boot
    site.announce("a", first, 5, A)
    site.run(1.2)
    assert site.announce("a", first, 4, C) == "YXRRSET"
    assert site.announce("a", first, 5, A) == "NOERROR"  # a datagram that came twice
    assert site.granted == 59
    site.network.kill(A)
    second = site.network.start(A)._boot
    site.run(3)
    assert site.announce("a", first, 6, C) == "YXRRSET"  # that start is over
    assert site.announce("a", second, 1, A) == "NOERROR"
    assert site.places() == {"192.0.2.1:443"}
    assert site.introductions.counters == {"taken": 2, "late": 2, "repeated": 1}


@pytest.mark.parametrize("case", ["another", "no server", "revoked", "time", "nameserver", "re-enrolled"])
def test_whose_key_is_good(site: Site, case: str) -> None:
    wall = None
    key = key_of(SECRET, "a", SERIAL)
    site.revoked = RevocationList(1, frozenset({7}))
    expected = "NOTAUTH"
    if case == "another":
        key, expected = key_of(SECRET, "b", SERIAL), "REFUSED"
    elif case == "no server":
        key = Key(names.from_text("a.peer.internal"), key.algorithm, key.secret)
    elif case == "revoked":
        key, expected = key_of(SECRET, "a", 7), "REFUSED"
    elif case == "time":
        wall = site.wall() - 301
    elif case == "nameserver":
        key = key_of(bytes(32), "a", SERIAL)
    else:
        key, expected = key_of(SECRET, "a", 8), "NOERROR"
    assert site.announce("a", "b1", 1, A, key=key, wall=wall) == expected
    assert (site.places() == set()) is (case != "re-enrolled")


def test_who_is_revoked_is_forgotten(site: Site) -> None:
    site.announce("a", site.network.start(A)._boot, 1, A)
    site.announce("b", site.network.start(B)._boot, 1, B, key=key_of(SECRET, "b", 9))
    site.run(1.2)
    site.revoked = RevocationList(1, frozenset({SERIAL}))
    site.introductions.revoke(site.revoked)
    assert site.announce("a", "b9", 1, A) == "REFUSED"
    assert {one["server"] for one in site.introductions.status()} == {"b"}
    assert set(site.bench.store.introduced()) == {"b"}


def test_ten_a_second_a_key(site: Site) -> None:
    said = [site.announce("a", "b1", n, A) for n in range(1, 15)]
    assert said == ["NOERROR"] * 10 + ["SERVFAIL"] * 4
    assert site.announce("b", "b1", 1, B) == "NOERROR"
    site.run(1)
    recorded = [site.announce("a", "b1", n, A) for n in (10, 9, 3) * 20]
    assert set(recorded) == {"NOERROR", "YXRRSET"}  # and they take nothing of the server's share
    assert site.announce("a", "b1", 15, A) == "NOERROR"


def test_private_addresses_are_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, private_addresses=False)
    assert site.announce("a", "b1", 1, A) == "REFUSED"
    assert site.announce("a", "b1", 1, ServerAddress("8.8.8.8")) == "NOERROR"
    assert site.places() == {"8.8.8.8:443"}
    site.stop()


def test_a_disk_that_does_not_take_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(server_id: str, state: str) -> Deferred[None]:
        return fail(StoreFailed("full"))

    monkeypatch.setattr(site.bench.store, "introduce", full)
    boot = site.network.start(A)._boot
    assert site.announce("a", boot, 1, A) == "SERVFAIL"
    site.run(1.2)
    assert site.txt() == [A]  # who lives is published all the same
    monkeypatch.undo()
    assert site.announce("a", boot, 2, A) == "NOERROR"


def restarted(site: Site, directory: Path, later: float = 0.0) -> Site:
    """The nameserver again, `later` seconds after its end; the network as it was."""
    network, began = site.network, site.began + site.clock.seconds() + later
    site.stop()
    again = Site(directory, began=began)
    again.network.up = {}
    again.network.boots = network.boots
    return again


def test_leases_survive_a_restart_of_the_nameserver(tmp_path: Path) -> None:
    site = Site(tmp_path)
    boot = site.network.start(A)._boot
    site.announce("a", boot, 5, A)
    site.announce("b", "x", 1, B)
    site.run(20)
    site = restarted(site, tmp_path)
    assert site.txt() == [A]  # the first answer is the last one
    assert site.places() == {"192.0.2.1:443", "192.0.2.2:443"}
    left = {one["server"]: one["seconds_left"] for one in site.introductions.status()}
    assert left == {"a": pytest.approx(40, abs=0.2), "b": pytest.approx(40, abs=0.2)}
    site.network.boots = 0
    assert site.network.start(A)._boot == boot
    site.network.start(B)
    assert site.announce("a", boot, 5, C) == "NOERROR"  # what was taken before is not taken again
    assert site.announce("a", boot, 4, C) == "YXRRSET"
    site.run(2)
    assert site.txt() == [A, B]
    assert site.places() == {"192.0.2.1:443", "192.0.2.2:443"}
    # A day later: who was published is, and is looked for; who was only announced is not.
    site.announce("c", "x", 1, C)
    site = restarted(site, tmp_path, 86400.0)
    assert site.txt() == [A, B]
    assert site.places() == {"192.0.2.1:443", "192.0.2.2:443"}
    assert site.introductions.status() == []
    site.stop()


def test_what_nobody_needs_is_forgotten(site: Site) -> None:
    site.announce("a", site.network.start(A)._boot, 1, A)
    site.announce("b", "x", 1, B)
    site.announce("c", "x", 9, C)
    site.run(100)
    assert site.places() == {"192.0.2.1:443"}
    assert site.announce("c", "x", 8, C) == "YXRRSET"  # the lease is over, its signature is not
    site.clock.pump([5.0] * 140)
    assert set(site.bench.store.introduced()) == {"a"}
    assert site.announce("b", "x", 1, B) == "NOERROR"  # no signature of then is good any more


def test_a_state_that_cannot_be_read_costs_one_server(tmp_path: Path, lines: list[str]) -> None:
    site = Site(tmp_path)
    site.bench.store.introduce("a", "nonsense")
    site.announce("b", "x", 1, B)
    site = restarted(site, tmp_path)
    assert site.places() == {"192.0.2.2:443"}
    assert any("what server a announced cannot be read" in line for line in lines)
    site.stop()


# Schedules against what really came when


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory that costs no disk, where there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as directory:
        yield Path(directory)


class Past:
    """One server at one address, and everything that it ever sent: late, twice, out of order or never, also
    from starts that are long over, while its clock is set about and its disk replaced.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.choose = random.Random(seed)
        self.directory = directory
        self.site = Site(directory)
        self.sent: list[tuple[int, int, bytes]] = []
        self.starts: dict[str, int] = {}
        self.n = 0
        self.skew = 0.0
        self.seen = (0, 0)
        self.regressions = 0
        self.answered: Counter[str] = Counter()

    @property
    def boot(self) -> str:
        return self.site.network.up[A]._boot

    def start(self) -> None:
        """Another start, which knows of no other: whatever was on the disk is gone."""
        if A in self.site.network.up:
            self.site.network.kill(A)
        self.site.network.start(A)
        self.starts[self.boot] = len(self.starts) + 1
        self.n = 0
        self.skew = self.choose.uniform(-250, 250)

    def announce(self) -> None:
        self.n += 1
        announcing = Announcing(APEX, "a", (key_of(SECRET, "a", SERIAL),), lambda: 0.0)
        said = Announcement(self.boot, self.n, (A,))
        octets = announcing.announce(said, self.choose.randrange(65536), self.site.wall() + self.skew)
        self.sent.append((self.starts[self.boot], self.n, octets))

    def arrive(self) -> None:
        _, _, octets = self.choose.choice(self.sent)
        answer = self.site.send(octets)
        self.answered[dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 0xF))] += 1

    def restart(self) -> None:
        up = self.site.network.up
        self.site = restarted(self.site, self.directory, self.choose.uniform(0, 120))
        self.site.network.up = up

    def step(self) -> None:
        steps = (self.announce, self.arrive, self.arrive, self.arrive, self.pass_time, self.pass_time)
        self.choose.choice((*steps, self.choose.choice((self.start, self.restart))))()
        self.look()

    def pass_time(self) -> None:
        self.site.run(self.choose.choice((0.05, 0.5, 3.0)))

    def look(self) -> None:
        """What the nameserver holds for the present start may not be older than what it held before."""
        held = self.site.introductions._introduced.get("a")
        if held is None or not held.met:
            return
        lease = held.lease_of(held.met)
        now = (self.starts[held.met], lease.said.n if lease is not None else 0)
        self.regressions += now < self.seen
        self.seen = max(now, self.seen)

    def settle(self) -> bool:
        """Whether the last word is the last start's, once it has been heard."""
        self.site.run(5)
        self.announce()
        self.site.clock.advance(1)
        self.skew = 0.0
        self.announce()
        self.site.send(self.sent[-1][2])
        self.site.run(5)
        self.look()
        right = self.seen == (len(self.starts), self.n) and self.site.txt() == [A]
        self.site.stop()
        return right


@pytest.mark.parametrize("schedules", [20, pytest.param(SCHEDULES, marks=pytest.mark.slow)])
def test_no_schedule_makes_a_nameserver_go_back(memory: Path, schedules: int) -> None:
    regressions, settled = 0, 0
    answered: Counter[str] = Counter()
    for seed in range(schedules):
        directory = memory / str(seed)
        directory.mkdir()
        past = Past(directory, seed)
        past.start()
        past.announce()
        for _ in range(EVENTS):
            past.step()
        settled += past.settle()
        regressions += past.regressions
        answered += past.answered
    print(f"measured announcements_in_{schedules}_schedules {dict(answered)}")
    print(f"measured announcements_regressions {regressions} of {schedules} schedules")
    assert regressions == 0
    assert settled == schedules
    assert min(answered[rcode] for rcode in ("NOERROR", "YXRRSET")) > 100

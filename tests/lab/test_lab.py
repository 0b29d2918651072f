"""The lab in its short form: each experiment once or twice, and what the lab itself must be able to see."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.end_to_end.namespaces import thread_in_network
from tests.end_to_end.programs import wait_for
from tests.lab import faults
from tests.lab.bars import Bar, missed
from tests.lab.chaos import fleet as made_fleet
from tests.lab.figures import Experiments, connections
from tests.lab.lab import NAMES
from tests.lab.membership import Chaos
from tests.lab.oracle import Visitors, Void, connect
from tests.lab.wires import Host

MANY = 500
SEED = 7
PATIENCE = 4.0
DELAY_MILLISECONDS = 60
CONNECTS = 5


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiments]:
    with made_fleet(tmp_path_factory.mktemp("lab"), MANY) as made:
        yield made


def reach(bars: list[Bar]) -> None:
    """Show the bars; none may be missed. The times are those of `make chaos`, which has the machine to
    itself: here other tests may run beside it."""
    wrong = missed(bars)
    wrong = [bar for bar in wrong if not bar.is_time or bar.value > PATIENCE * bar.goal]
    assert not wrong, "; ".join(map(str, wrong))


def test_the_wires_stay_inside(fleet: Experiments) -> None:
    """No host has a way out: the router has a cable to each host, and no other."""
    for host in fleet.lab.hosts.values():
        assert _links(host) == {"lo", "eth0"}, host.name
    assert _links(fleet.lab.wires.router) == {"lo", *fleet.lab.hosts}


def test_a_link_can_be_slow(fleet: Experiments) -> None:
    def milliseconds() -> float:
        """What a connect takes, a round trip: the best of some."""
        seconds = []
        with thread_in_network(fleet.lab.hosts["visitors"].pid):
            for _ in range(CONNECTS):
                began = time.monotonic()
                connect([fleet.lab.address("s3")], 443).close()
                seconds.append(time.monotonic() - began)
        return min(seconds) * 1000

    assert milliseconds() < DELAY_MILLISECONDS
    fleet.lab.wires.slow("s3", delay=DELAY_MILLISECONDS)
    try:
        wait_for(lambda: milliseconds() >= 2 * DELAY_MILLISECONDS, 5, "a slow link")
    finally:
        fleet.lab.wires.slow("s3")


def test_a_cut_is_one_way_or_both(fleet: Experiments) -> None:
    lab = fleet.lab
    visitors, resolver = lab.hosts["visitors"], lab.hosts["resolver"]

    def asks() -> bool:
        with thread_in_network(visitors.pid):
            done = subprocess.run(
                ["dig", "+tries=1", "+time=1", f"@{resolver.address}", NAMES[0]], stdout=subprocess.DEVNULL
            )
        return done.returncode == 0

    assert asks()
    for some, others in (([visitors], [resolver]), ([resolver], [visitors])):
        before = lab.wires.dropped("cut")
        lab.wires.cut_one_way(some, others)
        try:
            assert not asks()
            assert lab.wires.dropped("cut") > before
        finally:
            lab.wires.heal()
    assert asks()


def test_the_oracle_sees_what_is_lost(fleet: Experiments) -> None:
    """A request that nobody answers is counted, as failed or apart; and with no load a run is void."""
    lab = fleet.lab
    with Visitors(lab, NAMES[:1], threads=1) as few:
        wait_for(lambda: few.visits, 20, "a visitor")
    with pytest.raises(Void):
        few.tally(1000)
    silent = ["44.128.250.2"]
    with Visitors(lab, NAMES[:1], threads=1, pause=0.0, addresses=silent) as lost:
        wait_for(lambda: len(lost.visits) >= 1, 20, "a visitor who gave up")
    tally = lost.tally(1)
    assert tally.asked == len(tally.failed) >= 1
    assert tally.answered == 0
    with thread_in_network(lab.hosts["visitors"].pid):
        began = time.monotonic()
        connect([*silent, lab.address("s1")], 443).close()
        assert 0.2 < time.monotonic() - began < 2.0


def test_a_fault_that_does_not_fire_is_void(fleet: Experiments) -> None:
    with pytest.raises(Void), faults.cut(fleet.lab.wires, [fleet.lab.hosts["c1"]], [fleet.lab.hosts["c2"]]):
        pass


def test_servers_are_killed(fleet: Experiments) -> None:
    bars, tally = fleet.kill_servers(2)
    reach(bars + connections(tally))


def test_a_server_goes_silent(fleet: Experiments) -> None:
    bars, tally = fleet.silence_servers(1)
    reach(bars + connections(tally))


def test_clients_are_killed(fleet: Experiments) -> None:
    reach(fleet.kill_clients(400))


def test_a_partition(fleet: Experiments) -> None:
    reach(fleet.partition(1))


def test_all_are_restarted(fleet: Experiments) -> None:
    reach(fleet.restarts())


def test_loss(fleet: Experiments) -> None:
    reach(fleet.lose(8.0))


def test_chaos(fleet: Experiments) -> None:
    reach(Chaos(fleet, SEED).rounds(3))


def test_nothing_was_ever_empty(fleet: Experiments) -> None:
    assert fleet.inquirer.asked > 1000
    reach(fleet.never())


def _links(host: Host) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run("ip", "-json", "link"))}

"""The experiments. Each does its fault so many times, finds the fleet whole and leaves it so, and says its
bars.

A run in which the fault did not fire, or with too few visitors, raises Void.
"""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from tests.end_to_end.programs import Process, wait_for
from tests.end_to_end.site import Appliance
from tests.lab import faults
from tests.lab.bars import Bar, measured
from tests.lab.inquirer import Inquirer
from tests.lab.lab import LOOK_SECONDS, NAMES, NAMESERVERS, SERVED, SERVERS, SHARED, Lab, asked
from tests.lab.oracle import Tally, Visitors, Void
from tests.lab.programs import CurlAndChromium

RESTART_SECONDS = 2.0
"""RestartSec of deploy/tunnel-appliance.service."""
OUT_SECONDS = 20.0
BACK_SECONDS = 45.0
READY_SECONDS = 20.0
VISITS_A_SECOND = 5
"""A run with fewer is void."""
SLOW_SHARE = 0.1
SHOWN = 10
"""Of what was wrong."""


@dataclass
class Experiments:
    """A fleet, and who asks its nameservers from the first to the last of them."""

    lab: Lab
    inquirer: Inquirer

    # What they share

    def be_whole(self) -> None:
        """Every client is at every server, and every server in the records."""
        self.lab.be_whole(BACK_SECONDS)
        wait_for(self.everybody_is_listed, BACK_SECONDS, "every server in A and TXT")

    def everybody_is_listed(self) -> bool:
        return all(self.inquirer.is_in(self.lab.address(server)) for server in SERVERS)

    def process(self, name: str) -> Process:
        owner = self.lab.clients[name] if name in self.lab.clients else self.lab.appliances[name]
        assert owner.process is not None
        return owner.process

    def holds(self, nameserver: str) -> dict[str, str]:
        """What the nameserver holds of each server, in a word."""
        seen = asked(self.lab.nameservers[nameserver], "status")["servers"]
        return {one["id"]: one["standing"] for one in seen}

    def out(self, server: str, since: float) -> float:
        """Wait until no nameserver names the server; the seconds from `since` to the last answer that did."""
        address = self.lab.address(server)
        wait_for(partial(self.inquirer.is_out, address), OUT_SECONDS, f"{server} out of A and TXT")
        return max(0.0, self.inquirer.last_seen(address) - since)

    @contextmanager
    def visitors(self, names: tuple[str, ...] = NAMES, **how: float) -> Iterator[Visitors]:
        """Visitors meanwhile; and there were some before it begins."""
        coming = Visitors(self.lab, names, threads=int(how.get("threads", 4)), pause=how.get("pause", 0.05))
        with coming:
            wait_for(lambda: len(coming.visits) > 10, 20, "the first visitors")
            yield coming

    # 1 and 3: kill -9 of a server

    def kill_servers(self, rounds: int, *, programs: bool = False) -> tuple[list[Bar], Tally]:
        """Each in turn, and started again after as long as systemd waits. With `programs`, curl and Chromium
        come as well."""
        seconds, turns, own_turns = [], [0.0], [0.0]
        began = time.monotonic()
        with ExitStack() as coming:
            visitors = coming.enter_context(self.visitors())
            if programs:
                coming.enter_context(CurlAndChromium(self.lab))
            for _, server in zip(range(rounds), itertools.cycle(SERVERS), strict=False):
                self.be_whole()
                at = time.monotonic()
                with visitors.fault():
                    faults.killed(self.process(server))
                seconds.append(self.out(server, at))
                measured("out", f"{server} killed, out in {seconds[-1]:.3f} s")
                wait_for(lambda at=at: time.monotonic() > at + RESTART_SECONDS, 5, "RestartSec")  # type: ignore[misc]
                self.lab.servers[server].start(READY_SECONDS)
                self.be_whole()
                for name in set(self.lab.appliances) - {server}:
                    for _, wall, waited in self.lab.turns(name, at):
                        turns.append(wall)
                        own_turns.append(wall - waited)
        tally = visitors.tally(int((time.monotonic() - began) * VISITS_A_SECOND))
        _report("server_killed", seconds, tally)
        measured("longest_turn_with_the_wait_for_a_processor", f"{max(turns):.3f} s")
        bars = [
            Bar("server_killed_out_worst_s", max(seconds), 1.0),
            Bar("server_killed_longest_turn_ms", max(own_turns) * 1000, 100),
        ]
        return bars, tally

    # 2 and 3: its network goes silent

    def silence_servers(self, rounds: int, *, programs: bool = False) -> tuple[list[Bar], Tally]:
        """Each in turn, until no nameserver names it."""
        seconds = []
        began = time.monotonic()
        with ExitStack() as coming:
            visitors = coming.enter_context(self.visitors())
            if programs:
                coming.enter_context(CurlAndChromium(self.lab))
            for _, server in zip(range(rounds), itertools.cycle(SERVERS), strict=False):
                self.be_whole()
                at = time.monotonic()
                with faults.silent(self.lab.wires, self.lab.hosts[server]):
                    with visitors.fault():
                        pass
                    seconds.append(self.out(server, at))
                    measured("out", f"{server} silent, out in {seconds[-1]:.3f} s")
            self.be_whole()
        tally = visitors.tally(int((time.monotonic() - began) * VISITS_A_SECOND))
        _report("server_silent", seconds, tally)
        return [Bar("server_silent_out_worst_s", max(seconds), 8.0)], tally

    # 4: kill -9 of a client while two more serve the name

    def kill_clients(self, requests: int) -> list[Bar]:
        kills = 0
        with self.visitors(SHARED[:1], threads=6, pause=0.02) as visitors:
            for client in itertools.cycle(client for client, labels in SERVED.items() if "www" in labels):
                if len(visitors.visits) >= requests:
                    break
                self.lab.be_whole()
                came = len(visitors.visits)
                with visitors.fault():
                    faults.killed(self.process(client))
                kills += 1
                wait_for(partial(_more_than, visitors, came + 60), 30, "60 visits after the kill")
                self.lab.clients[client].start(*SERVERS)
        tally = visitors.tally(requests)
        self.lab.be_whole()
        measured("client_killed_times", kills)
        measured("client_killed_visitors", tally)
        _show(tally)
        return [Bar("client_killed_requests_failed", len(tally.failed) + tally.twice + tally.unseen, 0)]

    # 6: loss, and a slow machine

    def lose(self, seconds: float) -> list[Bar]:
        """10 % of all packets are lost, each way, on every link."""
        self.be_whole()
        since = time.monotonic()
        with self.visitors() as visitors, faults.losses(self.lab.wires):
            self._pass(seconds)
            removed = self._removals(since)
        tally = visitors.tally(int(seconds))
        measured("loss_seconds", f"{seconds:g}")
        measured("loss_visitors", tally)
        self.be_whole()
        return [Bar("false_removals_at_10_percent_loss", removed, 0)]

    def slow_server(self, seconds: float) -> list[Bar]:
        """A server at 10 % of a processor, with half the visitors that it can serve so."""
        server = random.choice(SERVERS)
        self.be_whole()
        only = [self.lab.address(server)]
        with faults.slowed(self.process(server), SLOW_SHARE):
            with Visitors(self.lab, NAMES, threads=8, pause=0.0, addresses=only) as most:
                self._pass(min(10.0, seconds))
            carried = sum(not visit.failure for visit in most.visits) / min(10.0, seconds)
            if carried < 1:
                raise Void(f"a server at {SLOW_SHARE:.0%} carried {carried:g} visitors a second")
            self.be_whole()
            since = time.monotonic()
            pause = 4 / (carried / 2)
            with Visitors(self.lab, NAMES, threads=4, pause=pause, addresses=only) as half:
                self._pass(seconds)
            removed = self._removals(since)
        measured("slow_server_carried", f"{carried:.1f} visitors/s")
        measured("slow_server_visitors", half.tally(int(seconds * carried / 8)))
        self.be_whole()
        return [Bar("false_removals_of_a_slow_server", removed, 0)]

    def slow_nameserver(self, seconds: float) -> list[Bar]:
        """A nameserver at 10 % of a processor, with half the questions that it can answer so."""
        nameserver = random.choice(NAMESERVERS)
        self.be_whole()
        host, address = self.lab.hosts["visitors"], {nameserver: self.lab.address(nameserver)}
        with faults.slowed(self.process(nameserver), SLOW_SHARE):
            with _askers(8, partial(Inquirer, host, address, NAMES[0], pause=0.0)) as most:
                self._pass(min(10.0, seconds))
            carried = sum(one.heard[nameserver].answered for one in most) / min(10.0, seconds)
            self.be_whole()
            since = time.monotonic()
            pause = 4 * 3 / (carried / 2)  # three questions between two pauses
            with _askers(4, partial(Inquirer, host, address, NAMES[0], pause=pause)) as half:
                self._pass(seconds)
            removed = self._removals(since)
        answered = sum(one.heard[nameserver].answered for one in half)
        if answered < seconds * carried / 8:
            raise Void(f"{answered} answers in {seconds:g} s, of {carried:g} a second that it can give")
        measured("slow_nameserver_carried", f"{carried:.0f} answers/s")
        measured("slow_nameserver_answered", answered)
        self.be_whole()
        return [Bar("false_removals_by_a_slow_nameserver", removed, 0)]

    def _removals(self, since: float) -> int:
        found = self.inquirer.without({self.lab.address(server) for server in SERVERS}, since)
        for when, what in found:
            measured("removed", f"{when - since:.1f} s after the begin: {what}")
        return len(found)

    def _pass(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() >= end, seconds + 5, "the end of the time", every=0.1)

    # 9: the nameservers are cut from each other, and each from half of the servers

    def partition(self, rounds: int) -> list[Bar]:
        hosts = self.lab.hosts
        texts, names, unanswered = [], [], 0
        for _ in range(rounds):
            self.be_whole()
            since = time.monotonic()
            halves = _halves()
            with ExitStack() as cut:
                wires = self.lab.wires
                cut.enter_context(faults.cut(wires, [hosts["ns1"]], [hosts["ns2"]]))
                for nameserver, half in zip(NAMESERVERS, halves, strict=True):
                    others = [hosts[server] for server in half]
                    cut.enter_context(faults.cut(wires, [hosts[nameserver]], others))
                    self._is_cut(nameserver, half)
            healed = time.monotonic()
            wait_for(partial(self._same, "TXT"), BACK_SECONDS, "the same TXT at both")
            texts.append(time.monotonic() - healed)
            wait_for(self.everybody_is_listed, BACK_SECONDS, "all addresses in A")
            names.append(time.monotonic() - healed)
            unanswered += self.inquirer.unanswered(since)
        measured("partition_times", rounds)
        return [
            Bar("partition_unanswered", unanswered, 0),
            Bar("partition_txt_the_same_worst_s", max(texts), 10.0),
            Bar("partition_a_back_worst_s", max(names), 30.0),
        ]

    def _same(self, question: str) -> bool:
        everybody = {self.lab.address(server) for server in SERVERS}
        return all(heard.last[question] == everybody for heard in self.inquirer.heard.values())

    def _is_cut(self, nameserver: str, half: tuple[str, ...]) -> None:
        """Until the nameserver knows that it does not hear them."""

        def knows() -> bool:
            holds = self.holds(nameserver)
            return all(holds.get(server) == "silent" for server in half)

        wait_for(knows, OUT_SECONDS, f"{nameserver} misses {half}", every=LOOK_SECONDS)

    # 14: everything at once

    def restart_all(self, which: tuple[str, ...]) -> float:
        """SIGTERM to all of these, which drains servers, and a start of each; the seconds from there until
        all names are served again.
        """
        self.be_whole()
        appliances = [self.lab.appliances[name] for name in which]
        for appliance in appliances:
            assert appliance.process is not None
            appliance.process.tell(signal.SIGTERM)
        for appliance in appliances:
            _ended(appliance)
        at = time.monotonic()
        for appliance in appliances:
            appliance.start(waits=False)
        for appliance in appliances:
            assert appliance.process is not None
            appliance.process.says("ready", READY_SECONDS)
        wait_for(self.lab.is_whole, BACK_SECONDS, "all names served", every=LOOK_SECONDS)
        wait_for(self.everybody_is_listed, BACK_SECONDS, "every server in A and TXT")
        seconds = time.monotonic() - at
        self._every_name_answers()
        return seconds

    def restarts(self) -> list[Bar]:
        return [
            Bar("servers_restarted_all_served_s", self.restart_all(SERVERS), 20.0),
            Bar("nameservers_restarted_all_served_s", self.restart_all(NAMESERVERS), 20.0),
        ]

    def _every_name_answers(self) -> None:
        for server in SERVERS:
            with Visitors(self.lab, NAMES, threads=2, pause=0.0, addresses=[self.lab.address(server)]) as few:
                wait_for(partial(_more_than, few, 8), 20, f"visitors of {server}")
            tally = few.tally(8)
            assert not tally.failed, tally.failed

    # 7: all runs together

    def never(self) -> list[Bar]:
        measured("questions_asked", self.inquirer.asked)
        return [
            Bar("empty_answers", self.inquirer.empty, 0),
            Bar("serials_that_went_back", self.inquirer.backwards, 0),
        ]


def connections(*tallies: Tally) -> list[Bar]:
    """Figure 3: the visitors of several experiments."""
    failed = sum(len(tally.failed) for tally in tallies)
    asked = sum(tally.asked for tally in tallies)
    apart, under_way = (sum(getattr(tally, key) for tally in tallies) for key in ("apart", "under_way"))
    measured("visitors", f"{asked} asked, {under_way} under way at a fault and {apart} of these lost")
    wrong = sum(tally.twice + tally.unseen for tally in tallies)
    return [Bar("new_connections_failed", failed, 0), Bar("requests_not_executed_once", wrong, 0)]


def _report(name: str, seconds: list[float], tally: Tally) -> None:
    shown = sorted(seconds)
    measured(f"{name}_times", len(shown))
    measured(f"{name}_out_median", f"{shown[len(shown) // 2]:.3f} s")
    measured(f"{name}_visitors", tally)
    _show(tally)


def _show(tally: Tally) -> None:
    for visit in tally.failed[:SHOWN]:
        measured("failed", visit)


def _more_than(visitors: Visitors, count: int) -> bool:
    return len(visitors.visits) > count


def _halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    servers = random.sample(SERVERS, len(SERVERS))
    half = random.choice((len(SERVERS) // 2, -(-len(SERVERS) // 2)))
    return tuple(servers[:half]), tuple(servers[half:])


@contextmanager
def _askers(count: int, make: Callable[[], Inquirer]) -> Iterator[list[Inquirer]]:
    with ExitStack() as running:
        yield [running.enter_context(make()) for _ in range(count)]


def _ended(appliance: Appliance) -> None:
    process = appliance.process
    assert process is not None
    wait_for(lambda: process.status is not None, 60, f"the end of {appliance.directory.name}")
    process.kill()

"""`make chaos MINUTES=…`: every experiment as often as its figure says, or as the time allows, then chaos.

The last lines are `bar NAME VALUE GOAL ok|MISS`; the exit status is 1 if any was missed, or a run was void.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.programs import wait_for
from tests.lab.bars import Bar, measured, missed
from tests.lab.figures import Experiments, connections
from tests.lab.inquirer import Inquirer
from tests.lab.lab import NAMES, NAMESERVERS, Lab
from tests.lab.membership import Chaos
from tests.lab.oracle import Tally, Void

MANY_NAMES = 10_000
WHOLE_MINUTES = 75.0
"""What all takes if every experiment is done as often as its figure says."""
SERVER_KILLS, SILENCES, PARTITIONS, ROUNDS = 50, 10, 10, 60
PROGRAM_KILLS, PROGRAM_SILENCES = 6, 2
CLIENT_KILL_REQUESTS = 10_000
LOSS_SECONDS = 600.0
SLOW_SECONDS = 120.0
"""However short the whole is: a server that is slow is taken for dead after a while, or not at all."""


@contextmanager
def fleet(directory: Path, many: int = 0) -> Iterator[Experiments]:
    """A fleet that is asked about all the time."""
    directory.chmod(0o755)
    with ExitStack() as running:
        lab = Lab(directory, running, many=many)
        lab.start()
        where = {nameserver: lab.address(nameserver) for nameserver in NAMESERVERS}
        asking = Inquirer(lab.hosts["visitors"], where, NAMES[0], lab.many_names)
        inquirer = running.enter_context(asking)
        wait_for(lambda: all(inquirer.heard.values()) and len(inquirer.says()) >= 4, 20, "answers")
        yield Experiments(lab, inquirer)


class Long:
    """The long form, in `share` of its whole length."""

    def __init__(self, share: float, seed: int) -> None:
        self.share = share
        self.seed = seed
        self.bars: list[Bar] = []
        self.void = 0
        self.visitors: list[Tally] = []

    def of(self, whole: float) -> int:
        return max(1, round(whole * min(1.0, self.share)))

    def run(self, directory: Path, only: set[str]) -> None:
        """The experiments with many names, then the others on a fleet of its own."""
        parts: list[tuple[str, int, Callable[[Experiments], list[Bar]]]] = [
            ("kills", MANY_NAMES, lambda fleet: self._kept(fleet.kill_servers(self.of(SERVER_KILLS)))),
            ("silences", 0, lambda fleet: self._kept(fleet.silence_servers(self.of(SILENCES)))),
            ("programs", 0, self._programs),
            ("clients", 0, lambda fleet: fleet.kill_clients(self.of(CLIENT_KILL_REQUESTS))),
            ("partitions", 0, lambda fleet: fleet.partition(self.of(PARTITIONS))),
            ("restarts", 0, lambda fleet: fleet.restarts()),
            ("slow", 0, lambda fleet: fleet.slow_server(SLOW_SECONDS)),
            ("slow", 0, lambda fleet: fleet.slow_nameserver(SLOW_SECONDS)),
            ("loss", 0, lambda fleet: fleet.lose(self.of(LOSS_SECONDS))),
            ("chaos", 0, lambda fleet: Chaos(fleet, self.seed).rounds(self.of(ROUNDS))),
        ]
        parts = [part for part in parts if not only or part[0] in only]
        for many in sorted({many for _, many, _ in parts}, reverse=True):
            below = directory / f"names-{many}"
            below.mkdir()
            with fleet(below, many) as experiments:
                for name, names, part in parts:
                    if names == many:
                        self._do(name, experiments, part)
                self.bars += [Bar(f"{bar.name}_{many}", bar.value, bar.goal) for bar in experiments.never()]
        if self.visitors:
            self.bars += connections(*self.visitors)

    def _programs(self, fleet: Experiments) -> list[Bar]:
        """Some of the same with curl and Chromium beside it."""
        kills = self._kept(fleet.kill_servers(self.of(PROGRAM_KILLS), programs=True))
        return kills + self._kept(fleet.silence_servers(self.of(PROGRAM_SILENCES), programs=True))

    def _kept(self, found: tuple[list[Bar], Tally]) -> list[Bar]:
        self.visitors.append(found[1])
        return found[0]

    def _do(self, name: str, experiments: Experiments, part: Callable[[Experiments], list[Bar]]) -> None:
        began = time.monotonic()
        try:
            self.bars += missed_none(part(experiments))
        except (Void, pytest.fail.Exception, AssertionError, OSError) as problem:
            traceback.print_exc()
            self.void += 1
            print(f"void {name}: {problem}", flush=True)
        measured(f"{name}_took", f"{time.monotonic() - began:.0f} s")


def missed_none(bars: list[Bar]) -> list[Bar]:
    """All of them; each is shown at once, and again at the end."""
    missed(bars)
    return bars


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=WHOLE_MINUTES)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments.add_argument("--only", action="append", default=[])
    arguments.add_argument("--keep", type=Path, help="keep all logs in this directory")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and everything that was started ends
    measured("seed", given.seed)
    long = Long(given.minutes / WHOLE_MINUTES, given.seed)
    with tempfile.TemporaryDirectory(prefix="lab-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        try:
            long.run(directory, set(given.only))
        except pytest.skip.Exception as because:
            print(f"skipped: {because}")
            return 0
    wrong = missed(long.bars)
    return 1 if wrong or long.void else 0


if __name__ == "__main__":
    sys.exit(main())

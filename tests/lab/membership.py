"""Random chaos: servers are killed, started, stopped, cut off and leave, nameservers restart; after each
round every nameserver must hold of each server, and publish, what the model of the rule says.

Hides what each nameserver can know: whom it reaches, and in which order it saw them go.
"""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable
from functools import partial

from tests.end_to_end.programs import wait_for
from tests.fleet.rule import Rule
from tests.lab import faults
from tests.lab.bars import Bar, measured
from tests.lab.figures import READY_SECONDS, Experiments
from tests.lab.lab import NAMES, NAMESERVERS, SERVERS

RULE_SECONDS = 30.0
SETTLE_SECONDS = 1.5
"""Between two faults of a round: a crash is seen within one, so their order is no secret."""
MOST_FAULTS = 3


class Chaos:
    """One run; `seed` gives the same faults again."""

    def __init__(self, fleet: Experiments, seed: int) -> None:
        self.fleet = fleet
        self.lab = fleet.lab
        self._random = random.Random(seed)
        self._rules = {nameserver: Rule() for nameserver in NAMESERVERS}
        self._alive = set(SERVERS)
        self._stopped: set[str] = set()
        self._cut: set[tuple[str, str]] = set()
        for rule, server in itertools.product(self._rules.values(), SERVERS):
            rule.started(server, time.monotonic())

    def rounds(self, count: int, until: float = float("inf")) -> list[Bar]:
        """So many rounds, or until that time."""
        self.fleet.be_whole()
        done = exact = 0
        worst = 0.0
        while done < count and time.monotonic() < until:
            what = self._round()
            done += 1
            began = time.monotonic()
            try:
                wait_for(self._is_as_the_rule_says, RULE_SECONDS, "what the rule says", every=0.1)
                exact += 1
            except BaseException:
                if time.monotonic() - began < RULE_SECONDS:
                    raise
                measured("not_as_the_rule_says", f"{'; '.join(what)}: {self._differences()}")
            worst = max(worst, time.monotonic() - began)
        self._mend()
        measured("chaos_rounds", done)
        measured("chaos_round_worst", f"{worst:.1f} s")
        return [Bar("chaos_rounds_not_as_the_rule_says", done - exact, 0)]

    def _round(self) -> list[str]:
        if self._random.random() < 0.2:
            self._mend()
            return ["all is mended"]
        said = []
        for number in range(self._random.randint(1, MOST_FAULTS)):
            possible = self._possible()
            if not number:
                # Only now is it sure that it has seen what happened before.
                possible += [partial(self._restart, nameserver) for nameserver in NAMESERVERS]
            said.append(self._random.choice(possible)())
            end = time.monotonic() + SETTLE_SECONDS
            wait_for(partial(_is_past, end), SETTLE_SECONDS + 5, "the next fault")
            self._meet()
        return said

    def _meet(self) -> None:
        """Whoever is there again is met before the next fault, or it would be as if he had never been."""
        end = time.monotonic() + RULE_SECONDS
        wait_for(lambda: self._all_are_met() or time.monotonic() >= end, RULE_SECONDS + 5, "a meeting")

    def _all_are_met(self) -> bool:
        return all(
            self.fleet.holds(nameserver).get(server) == "up"
            for nameserver, rule in self._rules.items()
            for server, word in rule.word.items()
            if word == "up"
        )

    def _possible(self) -> list[Callable[[], str]]:
        """What can be done now."""
        found: list[Callable[[], str]] = []
        for server in SERVERS:
            if server not in self._alive:
                found.append(partial(self._start, server))
                continue
            if server in self._stopped:
                found.append(partial(self._go_on, server))
                continue
            found += [partial(self._kill, server), partial(self._stop, server)]
            if not any((nameserver, server) in self._cut for nameserver in NAMESERVERS):
                found.append(partial(self._leave, server))
        for pair in itertools.product(NAMESERVERS, SERVERS):
            found.append(partial(self._join if pair in self._cut else self._cut_off, *pair))
        return found

    # What is done

    def _kill(self, server: str) -> str:
        faults.killed(self.fleet.process(server))
        self._alive.discard(server)
        self._look()
        return f"{server} is killed"

    def _start(self, server: str) -> str:
        self.lab.servers[server].start(READY_SECONDS)
        self._alive.add(server)
        self._look()
        return f"{server} is started"

    def _stop(self, server: str) -> str:
        faults.stopped(self.fleet.process(server))
        self._stopped.add(server)
        self._look()
        return f"{server} is stopped"

    def _go_on(self, server: str) -> str:
        faults.goes_on(self.fleet.process(server))
        self._stopped.discard(server)
        self._look()
        return f"{server} goes on"

    def _leave(self, server: str) -> str:
        """At once: SIGTERM would drain it first, for longer than a round lasts."""
        process = self.fleet.process(server)
        process.tell(signal.SIGINT)
        wait_for(lambda: process.status is not None, READY_SECONDS, f"the end of {server}")
        process.kill()
        self._alive.discard(server)
        for rule in self._rules.values():
            rule.left(server, time.monotonic())
        return f"{server} leaves"

    def _cut_off(self, nameserver: str, server: str) -> str:
        self.lab.wires.cut([self.lab.hosts[nameserver]], [self.lab.hosts[server]])
        self._cut.add((nameserver, server))
        self._look()
        return f"{nameserver} and {server} are cut"

    def _join(self, nameserver: str, server: str) -> str:
        self.lab.wires.join([self.lab.hosts[nameserver]], [self.lab.hosts[server]])
        self._cut.discard((nameserver, server))
        self._look()
        return f"{nameserver} and {server} are joined"

    def _restart(self, nameserver: str) -> str:
        faults.killed(self.fleet.process(nameserver))
        self.lab.nameservers[nameserver].start(READY_SECONDS)
        self._rules[nameserver].restarted(time.monotonic())
        self._look()
        return f"{nameserver} is killed and started"

    def _mend(self) -> None:
        for pair in sorted(self._cut):
            self._join(*pair)
        for server in sorted(self._stopped):
            self._go_on(server)
        for server in sorted(set(SERVERS) - self._alive):
            self._start(server)

    # What follows

    def _look(self) -> None:
        """What each nameserver will find out."""
        now = time.monotonic()
        for nameserver, rule in self._rules.items():
            for server in SERVERS:
                if (nameserver, server) in self._cut or server in self._stopped:
                    rule.unheard(server, now)
                elif server not in self._alive:
                    rule.refused(server, now)
                elif rule.word.get(server) != "up":
                    rule.started(server, now)

    def _is_as_the_rule_says(self) -> bool:
        return not self._differences()

    def _differences(self) -> list[str]:
        """Where the records are not what they should be: nobody has to know whose name is where but the
        servers themselves."""
        found = []
        serving = {server: self._serving(server) for server in SERVERS}
        for nameserver, rule in self._rules.items():
            heard = self.fleet.inquirer.heard[nameserver].last
            words = self.fleet.holds(nameserver)
            if words != rule.word:
                found.append(f"{nameserver} holds {words} and not {rule.word}")
            chosen = rule.published()
            texts = {self.lab.address(server) for server in chosen}
            if heard["TXT"] != texts and not self._is_any_last_one(rule, heard["TXT"]):
                found.append(f"{nameserver} TXT {sorted(heard['TXT'])} and not {sorted(texts)}, {rule.word}")
            if all(rule.word.get(server) == "up" for server in chosen):
                with_it = {self.lab.address(server) for server in chosen if serving[server]}
                if heard["A"] != (with_it or texts):
                    found.append(f"{nameserver} A {sorted(heard['A'])} and not {sorted(with_it or texts)}")
            elif not heard["A"] <= heard["TXT"]:
                found.append(f"{nameserver} A {sorted(heard['A'])} is not in TXT {sorted(heard['TXT'])}")
        return found

    def _serving(self, server: str) -> bool:
        if server in self._stopped or server not in self._alive:
            return False
        return NAMES[0] in self.lab.names_at(server)

    def _is_any_last_one(self, rule: Rule, found: frozenset[str]) -> bool:
        """Where all are gone one stays; which, is a matter of who was seen to go last."""
        gone = {self.lab.address(server) for server, word in rule.word.items() if word in ("dead", "left")}
        return not {"up", "silent"} & set(rule.word.values()) and len(found) == 1 and found <= gone


def _is_past(end: float) -> bool:
    return time.monotonic() >= end

"""All names of a client: when each is woken, how many at a time, what the log says, and the CA's windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from appliance.service.client import issuing as module
from appliance.service.client.certifying import Issuing
from appliance.service.client.challenges import ChallengeNotPublished
from appliance.service.client.issuer import IssuerLimits, IssuerRefused
from appliance.service.client.issuing import AT_ONCE, LOOK_SECONDS, WINDOW_SECONDS, Issuances
from appliance.tunnel.issuance import FIRST_SECONDS
from tests.service.client.issuance import NOON, WWW, AtOnce, Calendar, ScriptedCa, shared
from tests.service.client.test_visits import log_of

INSTANCE = "ab" * 16
DAY = 86400.0
STAYS = "the certificate before it is good until 2027-02-26"
ALERT = "until then visitors by TLS get an alert"


class Client:
    """One that runs with the state of a directory."""

    def __init__(self, directory: Path, clock: Calendar, *names: str, ca: ScriptedCa | None = None) -> None:
        self.clock = clock
        self.shared: Issuing
        self.shared, self.ca, self.published = shared(directory, clock)
        if ca is not None:
            object.__setattr__(self.shared, "ca", ca)
            self.ca = ca
        self.issuances = Issuances(self.shared, names or (WWW,), INSTANCE, "A CA")
        self.issuances.start()

    def run(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(int(seconds / step)):
            self.clock.advance(step)


@contextmanager
def client(directory: Path, *names: str, clock: Calendar | None = None, ca: ScriptedCa | None = None) -> (
    Iterator[Client]
):
    made = Client(directory, clock or Calendar(), *names, ca=ca)
    yield made
    made.issuances.stop()
    assert not made.clock.getDelayedCalls()
    assert isinstance(made.shared.aside, AtOnce)
    assert made.shared.aside.stopped


def test_the_first_certificate_and_what_the_log_says(tmp_path: Path) -> None:
    with log_of(module.__name__) as lines, client(tmp_path) as made:
        made.run(10)
        assert made.shared.keypairs.current[WWW]
    assert lines == [
        f"{WWW}: a certificate from A CA is awaited; until then visitors by TLS get an alert",
        f"{WWW}: a certificate from A CA is in use, good until 2027-02-26",
    ]


def test_a_restart_shows_what_is_there_and_asks_for_nothing(tmp_path: Path) -> None:
    clock = Calendar()
    with client(tmp_path, clock=clock) as made:
        made.run(10)
        first = made.shared.keypairs.current[WWW]
    with client(tmp_path, clock=clock) as made:
        assert made.shared.keypairs.current[WWW] == first
        made.run(10)
        assert made.ca.asked == ["window"]


def test_it_is_renewed_before_a_third_is_left_and_not_before(tmp_path: Path) -> None:
    with client(tmp_path) as made:
        made.run(10)
        first = made.shared.keypairs.current[WWW]
        made.run(56.9 * DAY, LOOK_SECONDS)
        assert made.shared.keypairs.current[WWW] == first
        made.run(3.2 * DAY, LOOK_SECONDS)
        made.run(10)
        assert made.shared.keypairs.current[WWW] != first
        assert made.ca.asked.count("place") == 2


def test_several_clients_renew_at_moments_of_their_own(tmp_path: Path) -> None:
    moments = set()
    for number in range(4):
        clock = Calendar()
        made = Client(tmp_path / str(number), clock)
        made.issuances.stop()
        made.issuances = Issuances(made.shared, [WWW], f"{number:032x}", "A CA")
        made.issuances.start()
        made.run(10)
        while made.ca.asked.count("place") < 2:
            made.run(LOOK_SECONDS, LOOK_SECONDS)
        moments.add(round(clock.seconds() / LOOK_SECONDS))
        made.issuances.stop()
    assert len(moments) == 4
    assert max(moments) - min(moments) <= 72


def test_a_failure_is_said_once_and_the_old_certificate_stays(tmp_path: Path) -> None:
    with client(tmp_path) as made:
        made.run(10)
        first = made.shared.keypairs.current[WWW]
        made.ca.fails["place"] = [IssuerRefused("the CA says: no") for _ in range(3)]
        with log_of(module.__name__) as lines:
            made.run(61 * DAY, 600)
        assert made.shared.keypairs.current[WWW] != first
    assert lines == [
        f"{WWW}: no certificate from A CA yet: the CA says: no; trying again in 60 s, {STAYS}",
        f"{WWW}: a certificate from A CA is in use, good until {made_on(made):%Y-%m-%d}",
    ]


def made_on(made: Client) -> object:
    return made.shared.keypairs.current[WWW].expires


def test_a_ca_that_would_be_left_alone_for_ever(tmp_path: Path) -> None:
    """As many names as there is room for at a time, and one more, whose turn comes."""
    names = [f"n{number}.example.com" for number in range(AT_ONCE + 1)]
    with client(tmp_path, *names) as made:
        made.ca.fails["place"] = [IssuerLimits("enough", float("inf")) for _ in names[1:]]
        with log_of(module.__name__) as lines:
            made.run(10)
        assert len(made.shared.keypairs.current) == 1
    assert [line.partition(": ")[2] for line in lines if "enough" in line] == [
        f"no certificate from A CA yet: enough; trying again in 7 d, {ALERT}"
    ] * AT_ONCE
    with client(tmp_path, *names, clock=made.clock) as again:
        again.run(7 * DAY, LOOK_SECONDS)
        again.run(10)
        assert sorted(again.shared.keypairs.current) == sorted(names)


def test_a_nameserver_that_is_down_is_waited_for(tmp_path: Path) -> None:
    with log_of(module.__name__) as lines, client(tmp_path) as made:
        made.published.answers = [Deferred() for _ in range(3)]
        waiting = list(made.published.answers)
        made.run(FIRST_SECONDS + 1)
        for answer in waiting:
            made.published.live.clear()
            answer.errback(ChallengeNotPublished("ns2 does not answer"))
            made.run(30)
        made.run(10)
        assert made.shared.keypairs.current[WWW]
        assert made.ca.asked.count("place") == 1
    assert [line for line in lines if "ns2" in line] == [
        f"{WWW}: no certificate from A CA yet: ns2 does not answer; trying again in 5 s, {ALERT}"
    ]


def test_hurried_it_tries_at_once(tmp_path: Path) -> None:
    with client(tmp_path) as made:
        made.issuances.hurry()
        made.ca.fails["place"] = [IssuerRefused("no")]
        made.run(FIRST_SECONDS + 1)
        assert made.ca.asked == ["place"]
        with log_of(module.__name__) as lines:
            made.issuances.hurry()
        assert lines == [f"{WWW}: trying to get a certificate at once"]
        made.run(10)
        assert made.shared.keypairs.current[WWW]
        made.issuances.hurry()
        made.run(10)
        assert made.ca.asked.count("place") == 2


def test_a_state_directory_of_somebody_else_is_only_read(tmp_path: Path) -> None:
    clock = Calendar()
    with client(tmp_path, clock=clock) as made:
        made.run(10)
        made.issuances.stop()
        made.shared.keypairs._current.clear()
        made.issuances = Issuances(made.shared, [WWW, "other.example.com"], INSTANCE, "A CA")
        asked = len(made.ca.asked)
        with log_of(module.__name__) as lines:
            made.issuances.start("another runs here")
        assert made.shared.keypairs.current[WWW]
        made.run(61 * DAY, LOOK_SECONDS)
        made.issuances.hurry()
        assert len(made.ca.asked) == asked
    assert lines == ["certificates are neither got nor renewed: another runs here"]


def test_only_a_few_names_are_at_the_ca_at_a_time(tmp_path: Path) -> None:
    names = [f"n{number}.example.com" for number in range(20)]
    with client(tmp_path, *names) as made:
        waiting: list[Deferred[None]] = [Deferred() for _ in names]
        made.published.answers = list(waiting)
        made.run(FIRST_SECONDS + 1)
        assert len(made.published.live) == AT_ONCE
        for answer in waiting:
            answer.callback(None)
            made.run(5)
            assert len(made.published.live) <= AT_ONCE
        assert sorted(made.shared.keypairs.current) == sorted(names)


def test_stopped_in_the_middle_the_next_one_goes_on(tmp_path: Path) -> None:
    clock = Calendar()
    with client(tmp_path, clock=clock) as made:
        made.run(FIRST_SECONDS + 1)
        assert made.ca.asked[:2] == ["place", "answer"]
        ca = made.ca
        made.issuances.stop()
    with client(tmp_path, clock=clock, ca=ca) as made:
        made.run(10)
        assert ca.asked.count("place") == 1
        assert made.shared.keypairs.current[WWW]


def test_the_window_of_the_ca_is_asked_for_and_kept_to(tmp_path: Path) -> None:
    with client(tmp_path) as made:
        made.ca.told = ((NOON + timedelta(days=10), NOON + timedelta(days=11)), 0.0)
        made.run(9 * DAY, LOOK_SECONDS)
        assert made.ca.asked.count("place") == 1
        asked = made.ca.asked.count("window")
        assert 9 * DAY / WINDOW_SECONDS - 2 <= asked <= 9 * DAY / WINDOW_SECONDS + 1
        made.ca.told = None
        made.run(3 * DAY, LOOK_SECONDS)
        made.run(10)
        assert made.ca.asked.count("place") == 2


def test_a_ca_that_wants_to_be_asked_often_is_asked_once_a_minute_at_most(tmp_path: Path) -> None:
    with client(tmp_path) as made:
        made.ca.told = ((NOON + timedelta(days=60), NOON + timedelta(days=61)), 1.0)
        made.run(3600)
        assert made.ca.asked.count("window") <= 60


def test_a_ca_that_gives_no_window_is_none_of_the_logs_business(tmp_path: Path) -> None:
    with log_of(module.__name__) as lines, client(tmp_path) as made:
        made.ca.fails["window"] = [IssuerRefused("404")]
        made.run(10)
        assert made.ca.asked.count("window") == 1
    assert len(lines) == 2


def test_a_fault_is_logged_and_does_not_spin(tmp_path: Path, logged_errors: list[LogEvent]) -> None:
    with client(tmp_path) as made:
        made.ca.fails["place"] = [ZeroDivisionError("a fault")]
        made.run(60)
        assert made.ca.asked == ["place"]
        made.run(LOOK_SECONDS + 10)
        assert made.shared.keypairs.current[WWW]
    assert [str(event["log_failure"].value) for event in logged_errors] == ["a fault"]
    logged_errors.clear()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (60, "60 s"), (120, "2 min"), (3600, "60 min"), (6 * 3600, "6 h"), (7 * DAY, "7 d")],
)
def test_a_span_in_words(seconds: float, words: str) -> None:
    assert module._span(seconds) == words

"""When a credential is renewed, and again after a failure; the machine's clock and the calendar apart."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from appliance.service.renewed import RenewedFiles
from appliance.service.renewer import (
    ANSWER_SECONDS,
    FIRST_PAUSE_SECONDS,
    LOOK_SECONDS,
    MOST_PAUSE_SECONDS,
    Renewer,
)
from appliance.tunnel.certificates import SERVICE_NAME, Credential, issue_again, issue_client
from appliance.tunnel.renewal import RenewalRefused, Request, due_at, judge, overdue_from
from tests.tunnel.authority import CA, OTHER_CA, WALL

GIVEN = issue_client(
    CA, client_id="c1", names=["www.example.org"], service_name=SERVICE_NAME, wall=WALL, days=90
)
DUE = due_at(GIVEN.certificate, 0.5)


class Holder:
    """A renewer, its state directory, and whoever answers."""

    def __init__(self, state: Path, wall: datetime = WALL, *, asks: bool = True) -> None:
        self.clock = Clock()
        self.wall_at_start = wall
        self.requests: list[Request] = []
        self.taken: list[Credential] = []
        self.answer: Any = self.sign
        self.renewer = Renewer(
            self.clock,
            RenewedFiles(state),
            GIVEN,
            CA.certificate,
            called="c1",
            ask=self._ask,
            took=self.taken.append,
            wall=self.wall,
            jitter=lambda low, high: high,
            share=0.5,
            asks=asks,
        )
        self.renewer.start()

    def wall(self) -> datetime:
        return self.wall_at_start + timedelta(seconds=self.clock.seconds())

    def _ask(self, request: Request) -> Deferred[str] | None:
        self.requests.append(request)
        answer: Deferred[str] | None = self.answer(request)
        return answer

    def sign(self, request: Request, ca: Credential = CA) -> Deferred[str]:
        wanted = judge(request)
        certificate = issue_again(ca, wanted.peer.certificate, wanted.key, wall=self.wall(), days=90)
        return succeed(certificate.public_bytes(Encoding.PEM).decode())

    def pass_hours(self, hours: int) -> None:
        self.clock.pump([LOOK_SECONDS] * hours)


def test_it_is_renewed_when_it_is_due_and_again_after_that(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    hours = int((DUE - WALL).total_seconds() // LOOK_SECONDS)
    holder.pass_hours(hours)
    assert not holder.requests
    holder.pass_hours(1)
    holder.clock.advance(0)
    assert len(holder.requests) == len(holder.taken) == 1
    assert holder.renewer.credential is holder.taken[0]
    assert judge(holder.requests[0]).peer.serial == GIVEN.certificate.serial_number
    holder.pass_hours(24 * 200)
    assert len(holder.taken) == 4
    for request, before in zip(holder.requests[1:], holder.taken, strict=False):
        assert judge(request).peer.serial == before.certificate.serial_number
    holder.renewer.stop()
    assert not holder.clock.getDelayedCalls()


def test_a_restart_uses_what_was_renewed(tmp_path: Path) -> None:
    holder = Holder(tmp_path, DUE)
    holder.clock.advance(0)
    (renewed,) = holder.taken
    again = Holder(tmp_path, DUE)
    assert [one.certificate for one in again.taken] == [renewed.certificate]
    assert not again.requests


def test_after_a_failure_there_are_pauses_that_grow(tmp_path: Path) -> None:
    holder = Holder(tmp_path, DUE)
    holder.renewer.stop()
    holder = Holder(tmp_path / "a", DUE)
    (tmp_path / "a").mkdir(exist_ok=True)
    holder.answer = lambda request: fail(RenewalRefused("no"))
    times: list[float] = []
    seen = 0
    for _ in range(3 * 24 * 60):
        holder.clock.advance(60)
        if len(holder.requests) > seen:
            seen = len(holder.requests)
            times.append(holder.clock.seconds())
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[:4] == [120, 240, 480, 960]
    assert max(pauses) == MOST_PAUSE_SECONDS
    assert holder.renewer.refusal == "no"
    assert len({request.digest for request in holder.requests[-3:]}) == 3  # signed anew, for the same key
    assert len({judge(request).digest for request in holder.requests}) == 1


def test_nobody_to_ask_and_then_somebody(tmp_path: Path) -> None:
    nobody: Any = lambda request: None  # noqa: E731
    holder = Holder(tmp_path, WALL)
    holder.answer = nobody
    holder.wall_at_start = DUE
    holder.renewer.hurry()
    assert len(holder.requests) == 1
    holder.answer = holder.sign
    holder.renewer.hurry()  # a link is up: that nobody was there before was no attempt
    holder.clock.advance(0)
    assert len(holder.taken) == 1


def test_a_link_that_comes_and_goes_does_not_hurry(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.answer = lambda request: fail(RenewalRefused("no"))
    holder.wall_at_start = DUE
    for _ in range(5):
        holder.renewer.hurry()
    assert len(holder.requests) == 1
    holder.clock.advance(FIRST_PAUSE_SECONDS)
    assert len(holder.requests) == 2


@pytest.mark.parametrize("wrong", ["silent", "another CA", "nonsense"])
def test_what_is_no_answer_leaves_the_credential(tmp_path: Path, wrong: str) -> None:
    holder = Holder(tmp_path)
    silent: Deferred[str] = Deferred()
    holder.answer = {
        "silent": lambda request: silent,
        "another CA": lambda request: holder.sign(request, OTHER_CA),
        "nonsense": lambda request: succeed("nonsense"),
    }[wrong]
    holder.wall_at_start = DUE
    holder.renewer.hurry()
    holder.clock.advance(ANSWER_SECONDS)
    assert not holder.taken
    assert holder.renewer.credential is GIVEN
    assert holder.renewer.refusal
    holder.answer = holder.sign
    holder.clock.advance(2 * FIRST_PAUSE_SECONDS)
    holder.clock.advance(0)
    assert len(holder.taken) == 1
    assert not holder.renewer.refusal


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "state")  # which is not there
    holder.wall_at_start = DUE
    holder.renewer.hurry()
    assert not holder.requests
    assert "the new key cannot be kept" in holder.renewer.refusal
    (tmp_path / "state").mkdir()
    holder.clock.advance(FIRST_PAUSE_SECONDS)
    holder.clock.advance(0)
    assert len(holder.taken) == 1


def test_a_second_process_takes_what_the_first_gets(tmp_path: Path) -> None:
    second = Holder(tmp_path, DUE, asks=False)
    first = Holder(tmp_path, DUE)
    first.clock.advance(0)
    second.clock.advance(FIRST_PAUSE_SECONDS)
    assert not second.requests
    assert [one.certificate for one in second.taken] == [one.certificate for one in first.taken]


def test_stopped_while_it_asks(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.answer = lambda request: Deferred()
    holder.wall_at_start = DUE
    holder.renewer.hurry()
    holder.renewer.stop()
    assert not holder.clock.getDelayedCalls()
    holder.renewer.hurry()
    assert len(holder.requests) == 1


def test_a_calendar_that_is_set_ahead_and_back(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    holder.answer = lambda request: fail(RenewalRefused("it can be renewed later"))
    holder.wall_at_start = WALL + timedelta(days=3650)
    holder.pass_hours(1)
    assert holder.requests
    assert holder.renewer.is_overdue
    holder.wall_at_start = WALL
    asked = len(holder.requests)
    holder.pass_hours(24)
    assert len(holder.requests) == asked
    assert holder.renewer.credential is GIVEN


def test_when_somebody_has_to_look_after_it(tmp_path: Path) -> None:
    holder = Holder(tmp_path, overdue_from(GIVEN.certificate) - timedelta(seconds=1))
    assert not Holder(tmp_path / "x", WALL).renewer.is_overdue
    holder.renewer.stop()
    later = Holder(tmp_path / "y", overdue_from(GIVEN.certificate))
    assert later.renewer.is_overdue

"""What is said of the end of a certificate, and how often."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from appliance.service.client.expiring import DAY_SECONDS, Expiring
from appliance.tunnel.renewal import overdue_from
from tests.service.client.test_joining import Log
from tests.tunnel.authority import CLIENT

ENDS = CLIENT.certificate.not_valid_after_utc


class Renewer:
    """One that is not successful."""

    credential = CLIENT
    refusal = ""

    def __init__(self) -> None:
        self.clock = Clock()
        self.begins = ENDS

    def wall(self) -> datetime:
        return self.begins + timedelta(seconds=self.clock.seconds())

    @property
    def is_overdue(self) -> bool:
        return self.wall() >= overdue_from(CLIENT.certificate)


@pytest.fixture
def log() -> Any:
    made = Log()
    globalLogPublisher.addObserver(made)
    yield made
    globalLogPublisher.removeObserver(made)


def test_it_is_said_every_day_from_when_it_is_overdue(log: Log) -> None:
    renewer = Renewer()
    renewer.begins = ENDS - timedelta(days=62)
    expiring = Expiring(renewer.clock, renewer, "home", renewer.wall)  # type: ignore[arg-type]
    expiring.start()
    days = []
    while renewer.clock.seconds() < 61 * DAY_SECONDS:
        renewer.clock.advance(DAY_SECONDS)
        days.append(len(log.lines))
    assert days == list(range(days[0], days[0] + 61))
    until_overdue = (overdue_from(CLIENT.certificate) - renewer.begins) / timedelta(days=1)
    assert days[-1] == 61 - int(until_overdue)
    assert log.lines[0].endswith("days, and was not renewed: no server is joined")
    renewer.refusal = "nobody answered in time"
    renewer.clock.advance(DAY_SECONDS / 2)
    renewer.clock.advance(DAY_SECONDS / 2)
    assert log.lines[-1] == (
        f"the certificate expires on {ENDS:%Y-%m-%d}, in 0 days, and was not renewed: nobody answered in time"
    )
    renewer.clock.advance(DAY_SECONDS)
    assert log.lines[-1] == (
        f"the certificate expired on {ENDS:%Y-%m-%d}; ask for a new invitation"
        " (tunnel-appliance invite --renew home)"
    )
    expiring.stop()
    expiring.stop()
    assert not renewer.clock.getDelayedCalls()

"""The wall clock is set a day ahead and a day back under all programs: nothing that lives notices.

(What the calendar is for follows it: certificates, and TSIG, whose fudge of 300 s is RFC 8945's.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.programs import wait_for
from tests.end_to_end.resolving import NoRetry
from tests.end_to_end.site import Appliance, Client
from tests.end_to_end.test_several import NAME, Fleet, Watching, measured

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
STEPS = ("+1d", "-1d", "+0")
STEP_SECONDS = 6.0
"""Behind each: longer than the interval of any ping, and than the silence that ends a watch."""


class Clocks:
    """The wall clock of every program of a fleet, in a file that libfaketime reads each time."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "clock"
        self.set("+0")
        self.env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def set(self, offset: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(offset)
        os.replace(new, self.file)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fleet, Clocks]]:
    if not LIBRARY.exists():
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail("libfaketime is not installed, and CI as root may not skip it", pytrace=False)
        pytest.skip("libfaketime is not installed")
    clocks = Clocks(tmp_path)
    monkeypatch.setattr(Appliance, "env", clocks.env)
    monkeypatch.setattr(Client, "env", clocks.env)
    made = Fleet(tmp_path)
    try:
        made.start()
        yield made, clocks
    finally:
        made.kill()


@pytest.mark.slow
def test_a_step_of_the_wall_clock_changes_nothing(fleet: tuple[Fleet, Clocks]) -> None:
    site, clocks = fleet
    processes = [site.s1.process, site.s2.process, *(one.process for one in site.clients.values())]
    lengths = [len(process.output) for process in processes if process is not None]
    with (
        Watching(site.s1) as watching,
        NoRetry(site.context, NAME, site.s1, site.ports.tls) as visitors,
    ):
        for step in STEPS:
            clocks.set(step)
            enough = time.monotonic() + STEP_SECONDS
            site.s1.command("reload")  # which is a line in the log
            wait_for(partial(passed, enough), STEP_SECONDS + 5, "the time behind a step")
            assert site.whole()
    print(f"measured clock_steps_lost {len(visitors.lost)} of {len(visitors.visits)} requests")
    measured("clock_steps", len(STEPS), "steps")
    assert not visitors.lost, visitors.lost[:5]
    assert len(visitors.visits) > 100
    for process, length in zip(processes, lengths, strict=True):
        assert process is not None
        said = process.output[length:]
        for word in ("left server", "ended", "silent", "dead", "Traceback"):
            assert word not in said, said
    assert set() not in watching.sets
    assert watching.serials == sorted(watching.serials)
    assert all(len(found) == 2 for found in watching.sets)
    assert site.s1.process is not None
    for day in (-1, 0, 1):  # the steps were seen
        assert f"{datetime.now(UTC) + timedelta(days=day):%Y-%m-%d}" in site.s1.process.output


def passed(when: float) -> bool:
    return time.monotonic() > when

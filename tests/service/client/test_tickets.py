"""The secret of session tickets: kept, for its owner only, and a day old at most."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.service.client.libssl import TICKET_KEYS_OCTETS
from appliance.service.client.tickets import FILE, Tickets

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NAME = "www.example.com"


def renewed(state: Path, now: datetime = NOW) -> Tickets:
    tickets = Tickets(state)
    assert tickets.renew(now)
    return tickets


def test_it_outlives_the_process(tmp_path: Path) -> None:
    first = renewed(tmp_path / "state")
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600
    assert first.trouble == ""
    assert renewed(tmp_path / "state", NOW + timedelta(hours=23)).keys(NAME) == first.keys(NAME)
    assert len(first.keys(NAME)) == TICKET_KEYS_OCTETS


def test_each_name_has_its_own(tmp_path: Path) -> None:
    tickets = renewed(tmp_path)
    assert tickets.keys(NAME) != tickets.keys("*.example.com")
    assert len({tickets.keys(NAME)[at : at + 16] for at in range(0, 80, 16)}) == 5


@pytest.mark.parametrize("later", [timedelta(days=1), timedelta(days=400), timedelta(seconds=-1)])
def test_an_old_one_or_one_of_the_future_is_replaced(tmp_path: Path, later: timedelta) -> None:
    running = renewed(tmp_path)
    before = running.keys(NAME)
    assert not running.renew(NOW)
    assert renewed(tmp_path, NOW + later).keys(NAME) != before
    again = Tickets(tmp_path)
    again.renew(NOW + later)
    assert again.keys(NAME) != before
    assert running.renew(NOW + later)
    assert running.keys(NAME) != before


@pytest.mark.parametrize(
    "octets", [b"", b"{", b"[]", b'{"secret": 5}', b'{"secret": "00", "made": "2026-11-28T12:00:00+00:00"}',
               b'{"secret": "%s", "made": "2026-11-28T12:00:00"}' % (b"00" * 32), b"\xff" * 10]
)  # fmt: skip
def test_a_file_that_is_none_is_replaced(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / FILE).write_bytes(octets)
    keys = renewed(tmp_path).keys(NAME)
    assert renewed(tmp_path).keys(NAME) == keys


def test_others_may_not_read_it(tmp_path: Path) -> None:
    keys = renewed(tmp_path).keys(NAME)
    os.chmod(tmp_path / FILE, 0o644)
    assert renewed(tmp_path).keys(NAME) == keys
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"a file")
    tickets = renewed(tmp_path / "state")
    assert "cannot be kept" in tickets.trouble
    assert len(tickets.keys(NAME)) == TICKET_KEYS_OCTETS

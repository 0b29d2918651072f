"""Certificates from files to use, and the tickets beside them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from twisted.internet.task import Clock

from appliance.service.client import certificates as module
from appliance.service.client import keypairs
from appliance.service.client.certificates import TICKETS_SECONDS, Certificates
from appliance.service.client.tickets import FILE
from tests.certificates import issue
from tests.service.client.test_visits import log_of

WWW = "www.example.com"
PEMS = issue(trustme.CA(), WWW)


class Calendar(Clock):
    """A clock on whose first second it is noon."""

    def wall(self) -> datetime:
        return datetime(2026, 11, 28, 12, tzinfo=UTC) + timedelta(seconds=self.seconds())


def make(clock: Calendar, directory: Path, *, names: bool = True) -> Certificates:
    files = (directory / "c.pem", directory / "k.pem")
    PEMS.write(*files)
    return Certificates(clock, directory / "state", {WWW: files} if names else {}, clock.wall)


def test_a_file_is_in_use_and_the_secret_is_kept(tmp_path: Path) -> None:
    clock = Calendar()
    made = make(clock, tmp_path)
    made.start()
    assert made.keypairs.current[WWW] == PEMS.pair
    assert (tmp_path / "state" / FILE).exists()
    made.stop()
    assert not clock.getDelayedCalls()


def test_a_client_that_ends_no_tls_keeps_nothing(tmp_path: Path) -> None:
    clock = Calendar()
    made = make(clock, tmp_path, names=False)
    made.start()
    assert not clock.getDelayedCalls()
    assert not (tmp_path / "state").exists()
    with log_of(module.__name__) as lines:
        made.read_again()
    assert lines == ["nothing to reload: a tunnel client reads its settings and invitation when it starts"]
    made.stop()


def test_the_secret_is_a_day_old_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []

    def keep(_: object, octets: bytes) -> bool:
        given.append(octets)
        return True

    monkeypatch.setattr(keypairs, "set_ticket_keys", keep)
    clock = Calendar()
    made = make(clock, tmp_path)
    made.start()
    assert len(given) == 1
    clock.pump([TICKETS_SECONDS] * 287)
    assert len(set(given)) == 1
    clock.pump([TICKETS_SECONDS] * 2)
    assert len(set(given)) == 2
    made.stop()


def test_read_again_reads_at_once(tmp_path: Path) -> None:
    clock = Calendar()
    made = make(clock, tmp_path)
    made.start()
    newer = issue(trustme.CA(), WWW)
    newer.write(tmp_path / "c.pem", tmp_path / "k.pem")
    with log_of(module.__name__) as lines:
        made.read_again()
    assert lines == ["certificates and keys were read again; settings and invitation are not"]
    assert made.keypairs.current[WWW] == newer.pair
    made.stop()


def test_what_does_not_last_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keypairs, "set_ticket_keys", lambda *_: False)
    (tmp_path / "state").write_bytes(b"a file")
    made = make(Calendar(), tmp_path)
    with log_of(module.__name__) as lines:
        made.start()
    made.stop()
    assert ["cannot be kept" in lines[0], "takes no keys" in lines[1], len(lines)] == [True, True, 2]

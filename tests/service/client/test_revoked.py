"""The client's list: the newest one, over a restart, whatever lies in the directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from appliance.service.client.revoked import FILE, Revoked
from appliance.tunnel.crl import CrlRefused, RevocationList
from tests.tunnel.authority import CA, OTHER_CA, WALL
from tests.tunnel.lists import revoking

FIRST, SECOND = revoking(CA, [11], 1, WALL), revoking(CA, [11, 12], 2, WALL)


@implementer(ILogObserver)
class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.lines.append(formatEvent(event))


def opened(state: Path, told: list[RevocationList]) -> Revoked:
    made = Revoked(state, CA.certificate, told.append)
    made.open()
    return made


def test_the_newest_counts_and_is_kept(tmp_path: Path) -> None:
    told: list[RevocationList] = []
    kept = opened(tmp_path, told)
    assert kept.revoked.number == 0
    assert kept.take(SECOND.pem)
    assert not kept.take(FIRST.pem)
    assert not kept.take(SECOND.pem)
    assert told == [SECOND]
    assert opened(tmp_path, told).revoked == SECOND
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_list_of_another_ca_is_refused(tmp_path: Path) -> None:
    kept = opened(tmp_path, [])
    with pytest.raises(CrlRefused):
        kept.take(revoking(OTHER_CA, [1], 9, WALL).pem)
    assert kept.revoked.number == 0
    assert not (tmp_path / FILE).exists()


def test_a_file_that_is_none_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("nonsense")
    log = Lines()
    globalLogPublisher.addObserver(log)
    kept = opened(tmp_path, [])
    globalLogPublisher.removeObserver(log)
    assert kept.revoked.number == 0
    assert [line for line in log.lines if FILE in line]
    assert kept.take(FIRST.pem)


def test_a_list_that_cannot_be_kept_holds_all_the_same(tmp_path: Path) -> None:
    told: list[RevocationList] = []
    kept = opened(tmp_path / "absent", told)
    assert kept.take(FIRST.pem)
    assert told == [FIRST]

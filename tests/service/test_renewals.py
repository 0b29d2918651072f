"""What an appliance does with a request (signs, passes on, refuses), and for its own credentials."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from appliance.service.authority import Authority, Identity
from appliance.service.carrying import Carrying
from appliance.service.renewals import Renewals
from appliance.tunnel.certificates import Credential, Role, read_credential
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Enrolment
from appliance.tunnel.renewal import Request, ask, new_key
from tests.service.test_authority import WALL, Machine, now
from tests.service.test_signing import DAYS, NAMES, refused

LATE = WALL + timedelta(days=67)
"""Due, whatever the share of the serial number, which is random."""
AT = [ServerAddress("203.0.113.9")]


class Others:
    """The watches of an appliance, at whose other end somebody signs, or nobody is."""

    def __init__(self, clock: Clock, sign: Callable[[Request], Deferred[str]] | None = None) -> None:
        self._sign = sign
        self.carrying = Carrying(clock, lambda: [] if self._sign is None else [("peer", self._say)])

    def on_renewals(self, renew: Any, came: Any) -> None:
        self.renew, self.came = renew, came

    def comes(self, sign: Callable[[Request], Deferred[str]]) -> None:
        self._sign = sign
        self.came()

    def _say(self, request: Request) -> None:
        assert self._sign is not None
        self._sign(request).addCallback(
            lambda pem: self.carrying.answered("peer", pem, "", request.digest)
        )


class Place:
    """An appliance that has the CA, and one that was enrolled there."""

    def __init__(self, base: Path) -> None:
        self.clock = Clock()
        self.machine, self.other = Machine(base / "ca"), Machine(base / "other")
        self.ca = self.machine.authority(days=DAYS)
        self.invited = read_credential(now(self.ca.invite(NAMES, "a")).credential_pem)
        self.enrolment: Enrolment = now(self.ca.enroll("s2", AT))
        self.machine.wall = self.other.wall = LATE
        self.told: list[tuple[Role, Credential]] = []

    def enrolled(self) -> Authority:
        return self.other.authority(Identity("s2", None, tuple(AT), self.enrolment), days=DAYS)

    def renewals(self, authority: Authority, watches: Others | None, watcher: Others | None) -> Renewals:
        return Renewals(
            self.clock,
            authority,
            watches=watches,  # type: ignore[arg-type]
            watcher=watcher,  # type: ignore[arg-type]
            took=lambda role, credential: self.told.append((role, credential)),
            wall=lambda: self.other.wall,
            jitter=lambda low, high: high,
        )

    def close(self) -> None:
        self.machine.store.close()
        self.other.store.close()


@pytest.fixture
def place(tmp_path: Path) -> Any:
    made = Place(tmp_path)
    yield made
    made.close()


def test_where_the_key_is_it_is_signed_and_nobody_is_asked(place: Place) -> None:
    watches = Others(place.clock)
    renewals = place.renewals(place.ca, watches, None)
    assert "BEGIN CERTIFICATE" in now(renewals.renew(ask(place.invited, new_key())))
    renewals.startService()
    assert renewals.status() == []  # what lies beside the CA's key is not renewed
    renewals.stopService()
    assert not place.clock.getDelayedCalls()


def test_elsewhere_it_is_passed_on_to_a_nameserver_that_has_it(place: Place) -> None:
    watches = Others(place.clock, place.ca.renew)
    renewals = place.renewals(place.enrolled(), watches, None)
    assert "BEGIN CERTIFICATE" in now(renewals.renew(ask(place.invited, new_key())))


@pytest.mark.parametrize("has_server", [True, False])
def test_there_is_nobody_who_has_it(place: Place, has_server: bool) -> None:
    watches = Others(place.clock) if has_server else None
    renewals = place.renewals(place.enrolled(), watches, None)
    assert "no nameserver" in refused(renewals.renew(ask(place.invited, new_key())))


@pytest.mark.parametrize("by", ["watches", "watcher"])
def test_an_enrolled_one_renews_its_own_as_soon_as_there_is_somebody(place: Place, by: str) -> None:
    others = {"watches": Others(place.clock), "watcher": Others(place.clock)}
    authority = place.enrolled()
    renewals = place.renewals(authority, others["watches"], others["watcher"])
    renewals.startService()
    assert place.told == []
    others[by].comes(place.ca.renew)
    place.clock.advance(0)
    ((role, credential),) = place.told
    assert role is Role.SERVER
    assert credential.certificate.not_valid_after_utc == LATE + timedelta(days=DAYS)
    assert authority.server is credential
    assert [one["not_renewed"] for one in renewals.status()] == [""]
    renewals.stopService()
    assert not place.clock.getDelayedCalls()

    # After a restart it is the renewed one that counts, also when the enrolment's has ended.
    place.other.wall = WALL + timedelta(days=DAYS + 1)
    again = place.enrolled()
    assert again.server is not None
    assert again.server.certificate == credential.certificate

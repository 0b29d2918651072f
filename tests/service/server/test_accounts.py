"""Accounts at a server: as long as their sessions, and said to every nameserver."""

from __future__ import annotations

from dataclasses import replace

import pytest
from twisted.internet.task import Clock

from appliance.fleet import messages
from appliance.fleet.events import AccountSaid as SaidAtNameserver
from appliance.fleet.events import ObserverEvent
from appliance.service.server.accounts import AccountRefused
from appliance.service.server.watches import Watches
from appliance.tunnel.account import sign
from appliance.tunnel.certificates import read_peer
from appliance.tunnel.session import AccountSaid
from tests.service.server.test_challenges import clock, watches  # noqa: F401
from tests.service.server.test_watches import Watching
from tests.tunnel.authority import CLIENT

PEER = read_peer(CLIENT.certificate)
INSTANCE, OTHER = "0" * 32, "1" * 32


def said(url: str, at: int = 1, instance: str = INSTANCE) -> AccountSaid:
    return AccountSaid(url, ("ca.test",), at, sign(CLIENT.key, instance, at, url, ("ca.test",)))


def urls(events: list[ObserverEvent]) -> list[str]:
    return [event.account.url for event in events if isinstance(event, SaidAtNameserver)]


def test_the_watches_of_now_and_of_later_are_told(watches: Watches, clock: Clock) -> None:  # noqa: F811
    first = Watching(watches, clock)
    first.turn()
    watches.accounts.say("session 1", PEER, INSTANCE, said("https://ca.test/1"))
    watches.accounts.say("session 1", PEER, INSTANCE, said("https://ca.test/2", 2))
    watches.accounts.say("session 2", PEER, OTHER, said("https://ca.test/3", 1, OTHER))
    assert urls(first.turn()) == ["https://ca.test/1", "https://ca.test/2", "https://ca.test/3"]
    later = Watching(watches, clock)
    assert urls(later.turn()) == ["https://ca.test/2", "https://ca.test/3"]
    watches.accounts.over("session 1")
    watches.accounts.over("session 1")
    last = Watching(watches, clock)
    assert urls(last.turn()) == ["https://ca.test/3"]
    assert urls(first.turn()) == []


def test_a_certificate_that_cannot_be_shown(
    watches: Watches,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "appliance.service.server.accounts.shown",
        lambda certificate: replace(messages.shown(certificate), pem="x" * 70_000),
    )
    with pytest.raises(AccountRefused):
        watches.accounts.say("session", PEER, INSTANCE, said("https://ca.test/1"))

"""Accounts at a server: as long as their sessions, and said to every nameserver."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from appliance.fleet import messages
from appliance.fleet.events import AccountSaid as SaidAtNameserver
from appliance.fleet.events import ObserverEvent
from appliance.service.server.accounts import PAUSE_SECONDS, AccountRefused
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
    clock.advance(PAUSE_SECONDS)
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


def test_of_many_in_a_second_the_last_is_passed_on(watches: Watches, clock: Clock) -> None:  # noqa: F811
    watch = Watching(watches, clock)
    watch.turn()
    for number in range(1, 100):
        watches.accounts.say("session", PEER, INSTANCE, said(f"https://ca.test/{number}", number))
    watches.accounts.say("session", PEER, INSTANCE, said("https://ca.test/old", 50))
    watches.accounts.say("other", PEER, OTHER, said("https://ca.test/other", 1, OTHER))
    assert urls(watch.turn()) == ["https://ca.test/1", "https://ca.test/other"]
    clock.advance(PAUSE_SECONDS - 0.01)
    assert urls(watch.turn()) == []
    clock.advance(0.01)
    assert urls(watch.turn()) == ["https://ca.test/99"]
    clock.advance(PAUSE_SECONDS / 2)
    watches.accounts.say("session", PEER, INSTANCE, said("https://ca.test/100", 100))
    assert urls(watch.turn()) == []
    assert "https://ca.test/100" in urls(Watching(watches, clock).turn()), "a new watch hears the newest"
    clock.advance(PAUSE_SECONDS / 2)
    assert urls(watch.turn()) == ["https://ca.test/100"]
    clock.advance(PAUSE_SECONDS)
    watches.accounts.say("session", PEER, INSTANCE, said("https://ca.test/101", 101))
    assert urls(watch.turn()) == ["https://ca.test/101"]


def test_what_waits_is_said_when_the_session_is_over_and_not_when_the_server_is(
    watches: Watches,  # noqa: F811
    clock: Clock,  # noqa: F811
) -> None:
    watch = Watching(watches, clock)
    watch.turn()
    for session, instance in (("session 1", INSTANCE), ("session 2", OTHER)):
        for number in (1, 2):
            watches.accounts.say(
                session, PEER, instance, said(f"https://ca.test/{session[-1]}-{number}", number, instance)
            )
    watch.turn()
    watches.accounts.over("session 1")
    assert urls(watch.turn()) == ["https://ca.test/1-2"]
    watches.accounts.stop()
    watches.accounts.over("session 2")
    clock.advance(PAUSE_SECONDS)
    assert urls(watch.turn()) == []


def test_a_certificate_that_cannot_be_shown(
    watches: Watches,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "fingerprint_of", lambda certificate: "x" * 70_000)
    with pytest.raises(AccountRefused):
        watches.accounts.say("session", PEER, INSTANCE, said("https://ca.test/1"))

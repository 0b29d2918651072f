"""The events of a watch are values."""

from __future__ import annotations

import dataclasses

import pytest

from appliance.fleet.events import Ended, NamesKnown, ServingStarted, WatchEnd


def test_events_are_frozen_and_comparable() -> None:
    event = ServingStarted("www.example.org", 1.0)
    assert event == ServingStarted("www.example.org", 1.0)
    assert {event, NamesKnown(("a.test",), complete=True), Ended(WatchEnd.LEFT, "the server left")}
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.name = "other"  # type: ignore[misc]

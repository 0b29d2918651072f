"""Each complaint is said once."""

from __future__ import annotations

from appliance.service.client.complaints import MAX_REMEMBERED, Complaints


def test_a_complaint_is_new_once_and_again_when_it_changes() -> None:
    complaints = Complaints()
    assert complaints.new("a", "refused")
    assert not complaints.new("a", "refused")
    assert complaints.new("b", "refused")
    assert complaints.new("a", "silent")
    assert complaints.new("a", "refused")


def test_it_is_over_once_and_new_after_that() -> None:
    complaints = Complaints()
    assert not complaints.over("a")
    complaints.new("a", "refused")
    assert complaints.over("a")
    assert not complaints.over("a")
    assert complaints.new("a", "refused")


def test_the_memory_is_bounded() -> None:
    complaints = Complaints()
    for number in range(MAX_REMEMBERED + 1):
        complaints.new(number, "refused")
    assert not complaints.new(1, "refused")
    assert complaints.new(0, "refused")

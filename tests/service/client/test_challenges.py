from __future__ import annotations

from appliance.service.client.challenges import ChallengeNotPublished


def test_the_error_has_a_sentence() -> None:
    assert ChallengeNotPublished.__doc__

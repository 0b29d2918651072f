"""Signs of life: when a ping is due, what an answer is, and when there was silence."""

from __future__ import annotations

from itertools import count

import pytest

from appliance.fleet.messages import Ping
from appliance.fleet.pulse import PONG_SECONDS, SILENCE_SECONDS, Pulse
from appliance.tunnel.lines import MessageError


def pulse() -> Pulse:
    numbers = count()
    return Pulse(lambda: f"n{next(numbers)}", 100.0)


def test_a_ping_every_three_seconds_each_with_its_own_nonce() -> None:
    one = pulse()
    assert one.next_deadline() == 103.0
    assert one.ping(102.9) is None
    assert one.ping(103.0) == Ping("n0")
    assert one.ping(103.0) is None
    one.heard(104.0)
    assert one.next_deadline() == 106.0
    assert one.ping(107.0) == Ping("n1")
    assert one.ping(109.9) is None


def test_silence_is_five_seconds_without_a_word() -> None:
    one = pulse()
    one.heard(102.0)
    assert one.silence(106.9) is None
    assert one.silence(102.0 + SILENCE_SECONDS) == "nothing was heard for 5 s"


def test_an_end_that_talks_but_does_not_answer_is_silent_as_well() -> None:
    one = pulse()
    one.ping(103.0)
    one.ping(106.0)
    for second in range(104, 114):
        one.heard(float(second))
        if second < 103 + PONG_SECONDS:
            assert one.silence(float(second)) is None
    assert one.silence(113.0) == "a ping was not answered within 10 s"
    one.answered("n0")
    assert one.silence(113.0) is None


def test_an_answer_to_nothing_is_malformed() -> None:
    one = pulse()
    one.ping(103.0)
    one.answered("n0")
    for nonce in ("n0", "other"):
        with pytest.raises(MessageError):
            one.answered(nonce)

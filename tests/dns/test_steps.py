"""Steps to the end."""

from __future__ import annotations

from collections.abc import Generator

from appliance.dns.steps import finish


def test_finish_gives_what_the_steps_come_to() -> None:
    done = []

    def steps() -> Generator[None, None, str]:
        for number in range(3):
            done.append(number)
            yield
        return "all"

    assert (finish(steps()), done) == ("all", [0, 1, 2])

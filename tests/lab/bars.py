"""Figures to reach, and how they are printed: `bar NAME VALUE GOAL ok|MISS`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that may be `goal` at most."""

    name: str
    value: float
    goal: float

    @property
    def is_reached(self) -> bool:
        return self.value <= self.goal

    @property
    def is_time(self) -> bool:
        """Whether it is in seconds or milliseconds, and so depends on who else uses the machine."""
        return self.name.endswith(("_s", "_ms"))

    def __str__(self) -> str:
        return f"bar {self.name} {self.value:.3g} {self.goal:g} {'ok' if self.is_reached else 'MISS'}"


def measured(name: str, what: object) -> None:
    """One line beside the bars: what has no goal, and how often something was done."""
    print(f"measured {name} {what}", flush=True)


def missed(bars: Iterable[Bar]) -> list[Bar]:
    """Print them all; those that were missed."""
    bars = list(bars)
    for bar in bars:
        print(bar, flush=True)
    return [bar for bar in bars if not bar.is_reached]

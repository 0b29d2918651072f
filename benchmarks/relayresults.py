"""What was measured: printed as it comes, kept as JSON, and set beside the goals at the end.

A *row* is one line of the table of goals (and one subcommand), a *figure* one number of it that every tunnel
has, such as `bulk_down`. Of a figure all values are kept, in the order of the rounds; what counts is the
median.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

OURS = "ours"


@dataclass
class Figure:
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, tunnel: str) -> float | None:
        values = self.values.get(tunnel)
        return statistics.median(values) if values else None


@dataclass
class Row:
    """One row of one run."""

    name: str
    date: str = ""
    load: float = 0.0
    figures: dict[str, Figure] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """What was looked at all the time: seconds, and what it was then."""
    bars: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        self.load = os.getloadavg()[0]
        print(f"row {self.name} {self.date} load {self.load:.2f}", flush=True)

    def note(self, figure: str, unit: str, tunnel: str, value: float) -> None:
        kept = self.figures.setdefault(figure, Figure(unit))
        kept.values.setdefault(tunnel, []).append(value)
        print(f"  {figure} {tunnel} {value:.4g} {unit}", flush=True)

    def medians(self) -> None:
        for name, figure in self.figures.items():
            for tunnel in figure.values:
                print(f"measured {name}_{tunnel} {figure.median(tunnel):.4g} {figure.unit}", flush=True)


class Bar(Protocol):
    """Something that is to be reached; ``line`` says whether it was."""

    def line(self, figures: Mapping[str, Figure]) -> str: ...


@dataclass(frozen=True)
class Goal:
    """``figure`` of ours may be so many times ``to``'s; without ``to`` it is bounded itself."""

    figure: str
    at_most: float
    to: str | None = None

    @property
    def name(self) -> str:
        return self.figure if self.to is None else f"{self.figure}_to_{self.to}"

    def value(self, figures: Mapping[str, Figure]) -> float | None:
        """None where one of the two was not measured."""
        figure = figures.get(self.figure)
        if figure is None:
            return None
        mine = figure.median(OURS)
        if self.to is None or mine is None:
            return mine
        theirs = figure.median(self.to)
        return mine / theirs if theirs else None

    def line(self, figures: Mapping[str, Figure]) -> str:
        value = self.value(figures)
        if value is None:
            figure = figures.get(self.figure)
            # A peer that is not there is nobody's fault; ours that failed is.
            verdict = "MISS" if figure is None or figure.median(OURS) is None else "skipped"
            return f"bar {self.name} - {self.at_most:g} {verdict}"
        return f"bar {self.name} {value:.3g} {self.at_most:g} {'ok' if value <= self.at_most else 'MISS'}"


@dataclass(frozen=True)
class Either:
    """One of these goals is enough; the value is how much of the easiest one is used, 1 at most."""

    name: str
    goals: Sequence[Goal]

    def line(self, figures: Mapping[str, Figure]) -> str:
        used = [
            value / goal.at_most for goal in self.goals if (value := goal.value(figures)) is not None
        ]
        if not used:
            return f"bar {self.name} - 1 MISS"
        return f"bar {self.name} {min(used):.3g} 1 {'ok' if min(used) <= 1 else 'MISS'}"


@dataclass(frozen=True)
class AtLeast:
    """Ours may not be less."""

    figure: str
    at_least: float

    def line(self, figures: Mapping[str, Figure]) -> str:
        value = figures[self.figure].median(OURS) if self.figure in figures else None
        if value is None:
            return f"bar {self.figure} - {self.at_least:g} MISS"
        return f"bar {self.figure} {value:.3g} {self.at_least:g} {'ok' if value >= self.at_least else 'MISS'}"


def machine() -> dict[str, Any]:
    model = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {"processor": model, "cores": os.cpu_count(), "kernel": platform.release()}


def save(path: Path, rows: Iterable[Row], versions: Mapping[str, str]) -> dict[str, Row]:
    """Put these rows in place of those of earlier runs; all that are there now."""
    all_rows = {row.name: row for row in load(path)}
    all_rows.update({row.name: row for row in rows})
    text = {
        "machine": machine(),
        "versions": dict(versions),
        "rows": [
            {
                "name": row.name,
                "date": row.date,
                "load": row.load,
                "figures": {
                    name: {"unit": figure.unit, "values": figure.values}
                    for name, figure in row.figures.items()
                },
                "series": row.series,
                "bars": row.bars,
            }
            for row in all_rows.values()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text, indent=1) + "\n")
    return all_rows


def load(path: Path) -> list[Row]:
    if not path.exists():
        return []
    found = []
    for row in json.loads(path.read_text())["rows"]:
        figures = {name: Figure(kept["unit"], kept["values"]) for name, kept in row["figures"].items()}
        series = {name: [(when, what) for when, what in kept] for name, kept in row["series"].items()}
        found.append(Row(row["name"], row["date"], row["load"], figures, series, row["bars"]))
    return found

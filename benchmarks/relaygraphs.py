"""Graphs of what `benchmarks.relay` measured, as SVG: `python -m benchmarks.relaygraphs FOLDER`.

FOLDER holds `relay.json`, and the graphs are put beside it. Each is a card with a ground of its own, so that
it reads the same on a light page and on a dark one. A bar is a median, the thin line on it goes from the
least to the largest value of the rounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.relaypeers import SHOWN
from benchmarks.relayresults import OURS, Figure, Row, load

WIDTH = 760
LABELS = 215
"""Where bars begin."""
BAR, GAP, PANEL_HEAD = 18, 7, 34
GROUND, BORDER, INK, FAINT, GRID = "#fcfcfa", "#d0d7de", "#24292f", "#57606a", "#e4e8ec"
OUR_COLOUR, THEIR_COLOUR, SECOND = "#1a7f5a", "#8c9bab", "#b35900"


@dataclass(frozen=True)
class Panel:
    figure: str
    title: str
    scale: float = 1.0
    """What a value is divided by, to be in the title's unit."""


@dataclass(frozen=True)
class Graph:
    row: str
    title: str
    panels: Sequence[Panel]


GRAPHS = (
    Graph(
        "bulk",
        "2 GiB over TLS: CPU seconds of both ends per GB",
        (Panel("bulk_down", "down, s/GB"), Panel("bulk_up", "up, s/GB")),
    ),
    Graph(
        "keepalive",
        "Small requests on kept TLS connections: CPU of both ends per request",
        (Panel("keepalive_32", "32 connections, µs"), Panel("keepalive_512", "512 connections, µs")),
    ),
    Graph(
        "new",
        "A new connection with a full TLS handshake: CPU of both ends",
        (Panel("new", "µs each"),),
    ),
    Graph(
        "http",
        "Plain HTTP: CPU of both ends",
        (Panel("http_keepalive", "a small request, µs"), Panel("http_bulk", "2 GiB down, s/GB")),
    ),
    Graph(
        "latency",
        "How long a small request takes, at half of what the slower of ours and rathole can do",
        (Panel("latency_p50", "p50, ms", 1e3), Panel("latency_p99", "p99, ms", 1e3)),
    ),
    Graph(
        "idle",
        "5,000 idle visitors: what each costs both ends",
        (Panel("idle_visitor", "memory, KiB"), Panel("idle_visitor_descriptors", "descriptors")),
    ),
    Graph(
        "idleclients",
        "Clients without visitors: what each costs the server",
        (Panel("idle_client", "memory, KiB"), Panel("idle_client_cpu", "CPU, µs a second")),
    ),
    Graph(
        "besides",
        "Small requests beside 8 bulky streams of the same tunnel",
        (Panel("besides_alone_p99", "p99 alone, ms", 1e3), Panel("besides_p99", "p99 beside them, ms", 1e3)),
    ),
    Graph(
        "stalled",
        "63 visitors beside one of the same client who does not read",
        (
            Panel("stalled_alone_p99", "p99 without him, ms", 1e3),
            Panel("stalled_p99", "p99 with him, ms", 1e3),
        ),
    ),
)


class Card:
    """An SVG that grows downwards."""

    def __init__(self, title: str) -> None:
        self.height = 44.0
        self._parts = [_text(20, 28, title, size=15, bold=True)]

    def add(self, part: str) -> None:
        self._parts.append(part)

    def svg(self, note: str) -> str:
        height = self.height + 34
        self.add(_text(20, height - 14, note, size=11, colour=FAINT))
        ground = (
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8" '
            f'fill="{GROUND}" stroke="{BORDER}"/>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" font-family="system-ui, sans-serif">\n{ground}\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def bars(card: Card, panel: Panel, figure: Figure) -> None:
    """One bar for each tunnel, the shortest first."""
    shown = {name: [value / panel.scale for value in values] for name, values in figure.values.items()}
    medians = {name: (figure.median(name) or 0) / panel.scale for name in shown}
    card.add(_text(20, card.height + 20, panel.title, size=13, colour=FAINT))
    card.height += PANEL_HEAD
    widest = max([*(max(values) for values in shown.values()), 1e-9])
    room = WIDTH - LABELS - 90
    for name in sorted(shown, key=medians.__getitem__):
        y = card.height
        length = medians[name] / widest * room
        colour = OUR_COLOUR if name == OURS else THEIR_COLOUR
        card.add(_text(LABELS - 10, y + 13, SHOWN[name], size=13, anchor="end", bold=name == OURS))
        card.add(f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
        least, most = (LABELS + end / widest * room for end in (min(shown[name]), max(shown[name])))
        if most - least > 1:
            middle = y + BAR / 2
            card.add(_line(least, middle, most, middle, INK))
        card.add(_text(max(LABELS + length, most) + 8, y + 13, f"{medians[name]:.3g}", size=13))
        card.height += BAR + GAP
    card.height += 8


def over_time(card: Card, title: str, points: Sequence[tuple[float, float]], colour: str) -> None:
    """A line from the first point to the last, with an axis that begins at nothing."""
    card.add(_text(20, card.height + 20, title, size=13, colour=FAINT))
    card.height += PANEL_HEAD
    left, right, tall = 70, WIDTH - 30, 120
    bottom = card.height + tall
    last = max(points[-1][0], 1e-9)
    most = max(what for _, what in points) * 1.1 or 1
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * tall
        card.add(_line(left, y, right, y, GRID))
        card.add(_text(left - 8, y + 4, f"{most * share:.0f}", size=11, anchor="end", colour=FAINT))
        moment = f"{last * share / 60:.0f} min"
        x = left + share * (right - left)
        card.add(_text(x, bottom + 16, moment, size=11, anchor="middle", colour=FAINT))
    across, up = (right - left) / last, tall / most
    path = " ".join(f"{left + when * across:.1f},{bottom - what * up:.1f}" for when, what in points)
    card.add(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    card.height = bottom + 30


def draw(folder: Path) -> list[Path]:
    """All graphs that there are figures for."""
    kept = json.loads((folder / "relay.json").read_text())
    rows = {row.name: row for row in load(folder / "relay.json")}
    made = []
    for graph in GRAPHS:
        if graph.row not in rows:
            continue
        row = rows[graph.row]
        panels = [panel for panel in graph.panels if panel.figure in row.figures]
        if not panels:
            continue
        card = Card(graph.title)
        for panel in panels:
            bars(card, panel, row.figures[panel.figure])
        rounds = max(len(values) for panel in panels for values in row.figures[panel.figure].values.values())
        note = f"{_when(row, kept)}; less is better; " + ("once" if rounds == 1 else f"medians of {rounds}")
        made.append(_written(folder / f"{graph.row}.svg", card.svg(note)))
    if "soak" in rows and rows["soak"].series.get("memory"):
        made.append(_written(folder / "soak.svg", _soak(rows["soak"], kept)))
    return made


def _soak(row: Row, kept: dict[str, Any]) -> str:
    count = row.figures["soak_connections"].median(OURS) or 0
    errors = row.figures["soak_errors"].median(OURS) or 0
    card = Card(f"{count:,.0f} connections of all kinds, {errors:,.0f} errors")
    over_time(card, "memory of both ends, MiB", row.series["memory"], OUR_COLOUR)
    over_time(card, "descriptors of both ends", row.series["descriptors"], SECOND)
    return card.svg(_when(row, kept))


def _when(row: Row, kept: dict[str, Any]) -> str:
    versions, machine = kept["versions"], kept["machine"]
    shown = {"haproxy": "HAProxy", "frp": "frp", "rathole": "rathole", "python": "CPython"}
    programs = ", ".join(f"{name} {versions[key]}" for key, name in shown.items() if key in versions)
    return f"{row.date[:10]}; {machine['cores']} cores, {machine['processor']}; {programs}"


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _text(
    x: float, y: float, text: str, *, size: int, colour: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1])):
        print(path)

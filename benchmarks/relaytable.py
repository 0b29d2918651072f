"""The last figures of every row as a page, `table.md`: `python -m benchmarks.relaytable FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.relaypeers import SHOWN
from benchmarks.relayresults import load


def write_table(folder: Path) -> None:
    """Medians of every figure, and how every goal was met."""
    kept = json.loads((folder / "relay.json").read_text())
    rows = load(folder / "relay.json")
    machine = kept["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    lines = [
        "# The tunnel beside HAProxy twice, frp and rathole",
        "",
        "<!-- Made by `make bench-relay`; not to be edited here. -->",
        "",
        f"{machine['cores']} cores, {machine['processor']}, Linux {machine['kernel']}; {versions}.",
        "Medians. CPU is that of both ends of the tunnel.",
        "",
    ]
    for row in rows:
        shown = [name for name in SHOWN if any(name in figure.values for figure in row.figures.values())]
        lines += [
            f"## {row.name}",
            "",
            f"{row.date}, load {row.load:.1f} before it.",
            "",
            "| | unit | " + " | ".join(SHOWN[name] for name in shown) + " |",
            "|---|---|" + "---|" * len(shown),
        ]
        for title, figure in row.figures.items():
            medians = [figure.median(name) for name in shown]
            written = ["" if median is None else _number(median) for median in medians]
            lines.append(f"| {title} | {figure.unit} | " + " | ".join(written) + " |")
        if row.bars:
            lines += ["", "| bar | value | goal | |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(line.split()[1:])} |" for line in row.bars]
        lines.append("")
    (folder / "table.md").write_text("\n".join(lines), encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))

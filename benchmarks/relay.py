"""`make bench-relay`: the tunnel beside HAProxy twice in a row, frp and rathole: the same origin, load and
machine.

Every row of the table of goals is a subcommand and can run alone; without one all run but the soak. The last
lines are `bar NAME VALUE GOAL ok|MISS`, where a value with `_to_` in its name is ours divided by that
peer's. A peer that is not installed is left out with one line, and its bars say `skipped`.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import relaybeside, relaycost, relaygraphs, relayidle, relaysoak
from benchmarks.relaybench import Bench
from benchmarks.relayorigin import WebServer
from benchmarks.relaypeers import ROOT, SHOWN, versions
from benchmarks.relayresults import OURS, AtLeast, Bar, Either, Goal, Row, save
from benchmarks.relaytable import write_table

ROWS: dict[str, tuple[Callable[[Bench, Row], None], Sequence[Bar]]] = {
    "bulk": (
        relaycost.bulk,
        (
            Goal("bulk_down", 0.4, "rathole"),
            Goal("bulk_down", 0.25, "frp"),
            Goal("bulk_down", 1.1, "haproxy_splice"),
            Goal("bulk_up", 0.4, "rathole"),
            Goal("bulk_up", 0.25, "frp"),
            Goal("bulk_up", 1.1, "haproxy_splice"),
        ),
    ),
    "keepalive": (
        relaycost.keepalive,
        (
            Goal("keepalive_32", 1.0, "rathole"),
            Goal("keepalive_32", 0.6, "frp_plain"),
            Goal("keepalive_32", 1.15, "haproxy"),
            Goal("keepalive_512", 1.0, "rathole"),
            Goal("keepalive_512", 0.6, "frp_plain"),
            Goal("keepalive_512", 1.15, "haproxy"),
        ),
    ),
    "new": (
        relaycost.new,
        (Goal("new", 1.1, "rathole"), Goal("new", 0.5, "frp"), Goal("new_lost", 0)),
    ),
    "http": (relaycost.http, (Goal("http_keepalive", 1.0, "frp"), Goal("http_bulk", 1.0, "frp"))),
    "latency": (
        relaycost.latency,
        (Goal("latency_p50", 1.0, "rathole"), Goal("latency_p99", 1.0, "rathole")),
    ),
    "idle": (relayidle.idlevisitors, (Goal("idle_visitor", 4), Goal("idle_visitor_descriptors", 4.1))),
    "idleclients": (
        relayidle.idleclients,
        (
            Goal("idle_client", 1.0, "frp"),
            Goal("idle_client", 1.0, "rathole_tls"),
            Goal("idle_client_cpu", 1.0, "frp"),
            Goal("idle_client_cpu", 1.0, "rathole_tls"),
        ),
    ),
    "besides": (
        relaybeside.besides,
        (Either("besides_p99", (Goal("besides_times", 2.0), Goal("besides_p99", 1.0, "rathole"))),),
    ),
    "stalled": (
        relaybeside.stalled,
        (Goal("stalled_times", 1.25), AtLeast("stalled_served", 0.99)),
    ),
    "soak": (
        relaysoak.soak,
        (Goal("soak_errors", 0), Goal("soak_memory_growth", 1.05), Goal("soak_descriptors_left", 0)),
    ),
}
LEFT_OUT = ("soak",)
"""What takes too long to run unasked."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tunnels", default="", help=f"only these, of {','.join(SHOWN)}")
    options.add_argument("--minutes", type=float, default=30, help="of the soak")
    options.add_argument("--connections", type=int, default=1_000_000, help="of the soak")
    options.add_argument(
        "--into", type=Path, default=ROOT / ".bench" / "speed", help="the folder of relay.json and the graphs"
    )
    chosen = options.parse_args()
    names = chosen.rows or [name for name in ROWS if name not in LEFT_OUT]
    for name in names:
        if name not in ROWS:
            options.error(f"there is no row {name}; rows are {', '.join(ROWS)}")
    only = [name for name in chosen.tunnels.split(",") if name]
    for name in only:
        if name not in SHOWN:
            options.error(f"there is no tunnel {name}; tunnels are {', '.join(SHOWN)}")
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for whoever is started here
    done = []
    for name in names:
        row = Row(name)
        # A web server of its own: no row inherits another's connections.
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            directory.chmod(0o755)
            web = WebServer(directory / "web")
            try:
                row.begin()
                bench = Bench(directory, chosen.rounds, web, only, chosen.minutes, chosen.connections)
                ROWS[name][0](bench, row)
            except (Exception, pytest.fail.Exception) as error:
                # The other rows are worth having all the same; the bars of this one are missed.
                print(f"FAILED row {name}: {error!r}"[-2000:], flush=True)
            finally:
                web.kill()
        row.medians()
        if not only or OURS in only:
            row.bars = [goal.line(row.figures) for goal in ROWS[name][1]]
        done.append(row)
        save(chosen.into / "relay.json", done, versions())
        relaygraphs.draw(chosen.into)
        write_table(chosen.into)
    for row in done:
        for line in row.bars:
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""What the kernel counted for processes, their threads and children: CPU time, memory, descriptors.

CPU is user and system time. Over loopback the kernel does a receiver's work on the sender's time, so a figure
is fair only for both ends of a tunnel together, and beside others that were loaded in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all that it started, as far as they still are there."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread, or a child, that ended meanwhile
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def families(pids: Iterable[int]) -> list[int]:
    return [one for pid in pids for one in family(pid)]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far."""
    ticks = 0
    for pid in families(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_SECONDS


def private_kibibytes(pids: Iterable[int]) -> int:
    """What they have in memory for themselves alone."""
    total = 0
    for pid in families(pids):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1])
    return total


def proportional_mebibytes(pids: Iterable[int]) -> float:
    """What they have in memory, with their share of what others use as well (Pss)."""
    total = 0
    for pid in families(pids):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def descriptors(pids: Iterable[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in families(pids))

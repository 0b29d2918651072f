"""What is done to the fleet, and the proof that it happened: a fault that did not fire makes a run void."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.end_to_end.programs import Process, wait_for
from tests.lab.bars import measured
from tests.lab.oracle import Void
from tests.lab.wires import Host, Wires

CPU = Path("/sys/fs/cgroup/cpu")
"""Where the CPU controller of cgroups v1 is; elsewhere a process is slowed by stopping it again and again."""
PERIOD_SECONDS = 0.1
STOP_SECONDS = 5.0


def killed(process: Process) -> None:
    """kill -9."""
    if process.status is not None:
        raise Void(f"{process.name} had ended before it was killed")
    process.kill()
    if process.status != -signal.SIGKILL:
        raise Void(f"{process.name} ended with {process.status}, not by kill -9")


def stopped(process: Process) -> None:
    """SIGSTOP; the kernel goes on answering for it."""
    process.tell(signal.SIGSTOP)
    wait_for(lambda: _state(process) == "T", STOP_SECONDS, f"the stop of {process.name}")


def goes_on(process: Process) -> None:
    """SIGCONT."""
    process.tell(signal.SIGCONT)
    wait_for(lambda: _state(process) != "T", STOP_SECONDS, f"{process.name} after SIGCONT")


@contextlib.contextmanager
def silent(wires: Wires, host: Host) -> Iterator[None]:
    """Its network says nothing meanwhile."""
    before = wires.dropped("cut")
    wires.silence(host)
    try:
        yield
        if wires.dropped("cut") == before:
            raise Void(f"nothing was said to or by {host.name}, so nothing was dropped")
    finally:
        wires.heal()


@contextlib.contextmanager
def cut(wires: Wires, some: Iterable[Host], others: Iterable[Host]) -> Iterator[None]:
    """These do not hear those meanwhile, nor those these. What else is cut stays so."""
    some, others = list(some), list(others)
    before = wires.dropped("cut")
    wires.cut(some, others)
    try:
        yield
        if wires.dropped("cut") == before:
            raise Void("nothing was said between them, so nothing was dropped")
    finally:
        wires.join(some, others)


@contextlib.contextmanager
def losses(wires: Wires) -> Iterator[None]:
    """Every link loses some of all packets meanwhile."""
    before = wires.dropped("lost")
    wires.lose()
    try:
        yield
        if wires.dropped("lost") == before:
            raise Void("no packet was lost")
    finally:
        wires.heal()


@contextlib.contextmanager
def slowed(process: Process, share: float) -> Iterator[None]:
    """The process has so much of one processor meanwhile."""
    slow = _quota if (CPU / "cpu.cfs_quota_us").exists() or (CPU / "cgroup.procs").exists() else _in_turns
    with slow(process, share):
        yield


@contextlib.contextmanager
def _quota(process: Process, share: float) -> Iterator[None]:
    group = CPU / f"lab-{process.pid}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(int(PERIOD_SECONDS * 1e6)))
        (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_SECONDS * 1e6 * share)))
        before = _own_group(process)
        (group / "cgroup.procs").write_text(str(process.pid))
        yield
        counted = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        if not int(counted["nr_periods"]):
            raise Void(f"{process.name} was not held to {share:.0%} of a processor")
        measured("held_back", f"in {counted['nr_throttled']} of {counted['nr_periods']} periods")
    finally:
        if process.status is None:
            (before / "cgroup.procs").write_text(str(process.pid))
        wait_for(lambda: _removed(group), STOP_SECONDS, f"the end of {group}")


@contextlib.contextmanager
def _in_turns(process: Process, share: float) -> Iterator[None]:
    over = threading.Event()

    def turn() -> None:
        while not over.wait(PERIOD_SECONDS * share):
            process.tell(signal.SIGSTOP)
            time.sleep(PERIOD_SECONDS * (1 - share))
            process.tell(signal.SIGCONT)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        process.tell(signal.SIGCONT)


def _own_group(process: Process) -> Path:
    for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return CPU / path.lstrip("/")
    return CPU


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _state(process: Process) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

"""Real programs for end-to-end tests: finding them, ports for them, waiting for them, and ending them.

`need("dig")` is the path of a program, or the test is skipped with one line; with `CI` set, as root,
where the packages could have been installed, a missing program is a failure. `Process` is a program
that is always ended, with everything that it started, and is then asserted to be gone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import pytest

# Debian's servers (unbound, nginx, nsd) live where the PATH of a user who is not root does not look.
_SERVER_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
# Below the range that the kernel takes for outgoing connections: no client of another test sits on one.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_POLL_SECONDS = 0.02
_END_SECONDS = 5.0
_LAST_OCTETS_SHOWN = 4_000

_given: set[int] = set()
T = TypeVar("T")

HEADLESS = (
    "--headless=new",
    "--no-sandbox",  # for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Chromium without a window, that asks nobody but whom it is told to."""


def need(program: str) -> str:
    """The path of `program`; where it is missing the test is skipped (fails with `CI` set, as root)."""
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":" + _SERVER_DIRECTORIES)
    if found is not None:
        return found
    if os.environ.get("CI") and os.geteuid() == 0:
        pytest.fail(f"the program {program} is not installed, and CI as root may not skip it", pytrace=False)
    pytest.skip(f"the program {program} is not installed")


def free_port(kind: Literal["udp", "tcp", "both"] = "both") -> int:
    """A port that is free on every address now, and that this process was not given before."""
    while True:
        port = random.randint(_FIRST_PORT, _LAST_PORT)
        if port not in _given and _is_free(port, kind):
            _given.add(port)
            return port


def _is_free(port: int, kind: str) -> bool:
    for sort in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        if kind == ("tcp" if sort == socket.SOCK_DGRAM else "udp"):
            continue
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                with socket.socket(family, sort) as probe:
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind((host, port))
            except OSError as problem:
                if family == socket.AF_INET6 and not socket.has_ipv6:
                    continue
                if problem.errno in _NO_IPV6:
                    continue
                return False
    return True


_NO_IPV6 = (97, 99)  # EAFNOSUPPORT, EADDRNOTAVAIL: a machine without IPv6 has the port free there


def wait_for(condition: Callable[[], T], seconds: float, what: str, *, every: float = _POLL_SECONDS) -> T:
    """What `condition()` returns once it is true; after `seconds` the test fails, naming `what`. It is asked
    `every` so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            pytest.fail(f"within {seconds:g} s there was not: {what}")
        time.sleep(every)


class Process:
    """A running program in a session of its own; `with` ends it and all that it started.

    `output` is stdout and stderr together, from a file, at any time. `stop()` asks (SIGTERM) and gives
    the exit status; `kill()` is `kill -9` of the whole group. Leaving `with` kills what is left.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.name = Path(self.arguments[0]).name
        self.log = log
        self._gone = False
        with log.open("wb") as out:
            self._child = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                # A shell starts what it runs in the background deaf to SIGINT, and so whatever that starts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.pid = self._child.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        return self._child.poll()

    def tell(self, number: signal.Signals) -> None:
        """Send one signal to the program itself."""
        self._child.send_signal(number)

    def says(self, text: str, seconds: float = 10.0) -> None:
        """Wait until the output has `text`; fails at once, with the output, when the program ends before."""

        def said() -> bool:
            if text in self.output:
                return True
            if self.status is not None:
                pytest.fail(f"{self.name} ended with {self.status} before {text!r}:\n{self._last_words()}")
            return False

        try:
            wait_for(said, seconds, f"{text!r} from {self.name}")
        except pytest.fail.Exception as failed:
            pytest.fail(f"{failed}\n{self._last_words()}")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Send `number` and wait for the end; the exit status."""
        self.tell(number)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} outlived {number.name} by {seconds:g} s:\n{self._last_words()}")

    def kill(self) -> None:
        """`kill -9` of the program and of whatever it started; none of it is left."""
        if self._gone:
            return
        # The group keeps its number while a member lives, so this is nobody else's group.
        if self._group_lives():
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait(_END_SECONDS)
        wait_for(lambda: not self._group_lives(), _END_SECONDS, f"the end of {self.name} (pid {self.pid})")
        self._gone = True

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _last_words(self) -> str:
        return self.output[-_LAST_OCTETS_SHOWN:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

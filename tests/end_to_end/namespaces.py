"""Namespaces that live as long as a pipe from this process is open: the only place where tests make some.

Hides how they are held. They have no name that another run could meet, and whatever runs in a namespace of
processes goes with it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.end_to_end.programs import need

END_SECONDS = 10.0
_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns comes with Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)


class Namespaces:
    """What `unshare` makes of `kinds`, held by bash: the script sets them up, says `echo` of its process id
    as the first line, and then waits for the end of its input.

    Skips where they may not be made (it takes root); fails there with `CI` set, as root.
    """

    def __init__(self, kinds: Sequence[str], script: str, arguments: Sequence[str] = ()) -> None:
        self._holder = subprocess.Popen(
            [need("unshare"), *kinds, "bash", "-c", script, "hold", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if not said:
            _, why = self._holder.communicate()
            because = f"no namespaces here: {' '.join(why.strip().splitlines()[-1:])}"
            if os.environ.get("CI") and os.geteuid() == 0:
                pytest.fail(because, pytrace=False)
            pytest.skip(because)
        self.pid = int(said)

    def inside(self, *kinds: str) -> tuple[str, ...]:
        """The words that start a command in these of them (`--net`, …)."""
        return (need("nsenter"), f"--target={self.pid}", *kinds)

    def end(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        self._holder.stdin.close()  # bash ends; as process 1 of a namespace it takes all the others with it
        try:
            self._holder.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._holder.kill()  # with --kill-child
            self._holder.wait()
        self._holder.stdout.close()
        self._holder.stderr.close()


@contextmanager
def thread_in_network(pid: int) -> Iterator[None]:
    """This thread is in the network of that process meanwhile; sockets made there stay there."""
    own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        _enter(f"/proc/{pid}/ns/net")
        try:
            yield
        finally:
            _set_network(own)
    finally:
        os.close(own)


def enter_network(pid: int) -> None:
    """This thread is in the network of that process from now on."""
    _enter(f"/proc/{pid}/ns/net")


def cable(one: int, one_end: str, other: int, other_end: str) -> None:
    """A cable between the networks of two processes, with the names of its ends."""
    ends = ["name", one_end, "netns", str(one), "type", "veth"]
    peer = ["peer", "name", other_end, "netns", str(other)]
    subprocess.run([need("ip"), "link", "add", *ends, *peer], check=True)


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set_network(descriptor)
    finally:
        os.close(descriptor)


def _set_network(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""Runs twistd with the arguments behind the first, and writes each long turn of its reactor into the first, a
file: `turns.py FILE ARGUMENT…`.

A turn is what happens between two looks at the readiness of descriptors. Each line is when it ended
(monotonic seconds), how long it took, and how much of that the kernel kept the thread waiting for a processor
(/proc/thread-self/schedstat): the difference is what the program itself did.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

LONG_SECONDS = 0.02


class WatchedPoll:
    """An epoll whose caller is timed between two calls of `poll`."""

    def __init__(self, poll: Any, path: str) -> None:
        self._poll = poll
        self._out = open(path, "a", buffering=1)  # noqa: SIM115 (as long as the process)
        self._waits = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._began, self._waited = time.monotonic(), self._waiting()

    def poll(self, *arguments: Any) -> Any:
        now = time.monotonic()
        if now - self._began > LONG_SECONDS:
            waited = self._waiting() - self._waited
            print(f"{now:.3f} {now - self._began:.4f} {waited:.4f}", file=self._out)
        try:
            return self._poll.poll(*arguments)
        finally:
            self._began, self._waited = time.monotonic(), self._waiting()

    def _waiting(self) -> float:
        """The seconds for which this thread was ready to run and did not."""
        return int(os.pread(self._waits, 64, 0).split()[1]) / 1e9

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)


def main() -> None:
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    watched: Any = reactor
    watched._poller = WatchedPoll(watched._poller, sys.argv[1])
    sys.argv = ["twistd", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()

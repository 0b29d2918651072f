"""A thread for calls that block: one at a time, in the order they are asked for. Hides that it is a thread.

It is no thread of the reactor's pool, for the end of the process waits for those, and a CA that does not
answer would keep it for the length of a time-out.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Aside:
    """Runs calls from the first one to ``stop()``."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def call(self, what: Callable[[], T]) -> Deferred[T]:
        """Fires with what it returns, or fails with what it raises. Cancelled, its result is nobody's."""
        result: Deferred[T] = Deferred()

        def run() -> None:
            outcome: Any
            try:
                outcome = what()
            except Exception:
                outcome = Failure()
            if not self._stopped:
                self._reactor.callFromThread(result.callback, outcome)

        self._asked.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="aside", daemon=True)
            self._thread.start()
        return result

    def stop(self) -> None:
        """No more results; the call that runs is left to itself."""
        self._stopped = True
        self._asked.put(None)

    def _work(self) -> None:
        while (run := self._asked.get()) is not None:
            if not self._stopped:
                run()

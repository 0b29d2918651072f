"""Threads that do something for as long as a `with` lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class Threads:
    """`with` it the threads run; each ends when it sees that `over` is set. They are joined."""

    def __init__(self, threads: Iterable[threading.Thread]) -> None:
        self.over = threading.Event()
        self._threads = tuple(threads)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

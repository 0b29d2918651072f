"""The access log: lines are taken at once, and written by a thread, so that a slow disk stops nobody.

What waits is bounded; what is too much, or cannot be written, is dropped, counted and said. A file that was
renamed or removed (logrotate) is opened anew by itself, before the next lines: no signal is needed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from twisted.application.service import Service

from appliance.service.fewlines import FewLines

#: Lines that wait to be written: a disk that stands still for a second at 16,384 visitors a second. 4 MiB.
_LINES_AT_MOST = 16_384
#: Between two writes: so many lines go out in one, and a rotated file is noticed so soon.
_PAUSE_SECONDS = 0.1
#: For what waits when the service stops.
_FAREWELL_SECONDS = 1.0
_MODE = 0o640  # whose visitors came from where is not everybody's to read


class CannotLog(Exception):
    """The access log cannot be opened; the text names the file and says why."""


class AccessLog(Service):
    """Writes to ``path``."""

    def __init__(self, reactor: Any, path: Path, complaints: FewLines) -> None:
        self._reactor = reactor
        self._path = path
        self._complaints = complaints
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Event()
        self._awake = False
        self._stopping = False
        self._file = -1
        self._thread: threading.Thread | None = None
        self.written = 0
        """Lines that are in the file."""
        self.dropped = 0
        """Lines that are not."""

    def startService(self) -> None:
        """Open the file, as the user that stays. Raises CannotLog."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._file = self._open()
        except OSError as error:
            raise CannotLog(f"{self._path}: cannot be opened: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def stopService(self) -> None:
        """Write what waits, and close; a disk that stands still gets a second."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._thread is None:
            return
        self._stopping = True
        self._wake.set()
        self._thread.join(_FAREWELL_SECONDS)
        self._thread = None

    def write(self, line: bytes) -> None:
        """Have a line written, some time soon. Never waits."""
        if len(self._waiting) >= _LINES_AT_MOST:
            self.dropped += 1
            self._complaints.warn("access log", "lines are dropped: the disk is too slow")
            return
        self._waiting.append(line)
        if not self._awake:
            self._awake = True
            self._wake.set()

    # The thread. Lines are finished octets, so that it holds the interpreter for as short as can be.

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            if not self._stopping:
                time.sleep(_PAUSE_SECONDS)
            self._wake.clear()
            self._awake = False  # before the look: a line that comes behind it wakes again
            self._write_all()
        os.close(self._file)

    def _write_all(self) -> None:
        lines: list[bytes] = []
        with contextlib.suppress(IndexError):
            while len(lines) < _LINES_AT_MOST:
                lines.append(self._waiting.popleft())
        if not lines:
            return
        try:
            self._follow()
            _write_whole(self._file, b"".join(lines))
        except OSError as error:
            self._tell(0, len(lines), f"lines are dropped: {self._path}: {error.strerror}")
        else:
            self._tell(len(lines), 0, "")

    def _tell(self, written: int, dropped: int, words: str) -> None:
        def told() -> None:
            self.written += written
            self.dropped += dropped
            if words:
                self._complaints.warn("access log", words)

        self._reactor.callFromThread(told)

    def _follow(self) -> None:
        """Open the file anew if what has its name is another one, or nothing."""
        ours = os.fstat(self._file)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            new = self._open()
            os.close(self._file)
            self._file = new

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)


def _write_whole(file: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(file, view) :]

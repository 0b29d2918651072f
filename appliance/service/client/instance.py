"""The instance id: who this client is to a server, across restarts; hides the file that keeps it.

A server replaces the session of the same instance at once, and lets different instances of one certificate
share a name's visitors. So the id belongs to a state directory: whoever starts again there is the same one,
and a second process that runs there at the same time is not.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path

FILE = "instance"
_ID = re.compile(r"[0-9a-f]{32}")


class Instance:
    """``id`` is 32 hex digits. ``trouble`` is empty, or says why it is one for this run only.

    ``close()`` lets go of the state directory.
    """

    def __init__(self, state: Path) -> None:
        """Read the id from the state directory, or make both."""
        self.id = secrets.token_hex(16)
        self.trouble = ""
        self._fd = -1
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(state / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            # The lock lives as long as the open file: a crash lets go of it.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._keep()
        except BlockingIOError:
            self.trouble = f"another tunnel client runs with the state directory {state}"
            self.close()
        except OSError as error:
            self.trouble = f"{state / FILE} cannot be kept: {error.strerror}"
            self.close()

    def close(self) -> None:
        """Let another process have the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _keep(self) -> None:
        kept = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
        if _ID.fullmatch(kept):
            self.id = kept
            return
        os.fchmod(self._fd, 0o600)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, self.id.encode("ascii") + b"\n", 0)
        os.fsync(self._fd)

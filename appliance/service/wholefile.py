"""A file that is replaced whole: whoever reads it, be it after a crash, finds the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path


def replace_whole(path: Path, octets: bytes) -> None:
    """Write `octets` to `path`, on disk before they have its name, for the owner to read. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

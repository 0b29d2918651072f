"""Large zone files: read by a child process, for a minute of Python would be a minute without answers.

Hides the child, how its result comes back (in memory that both have, which is the zone in service from then
on), and that it is kept on the disk: a start with the file of the last time reads nothing again. What is kept
is no more than data that is checked; who changes it makes a slower start.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.packed import Packed, unpack
from appliance.dns.zone import Zone
from appliance.service.nameserver.largefile import READ_ONLY, is_kept, keep, place_of

LARGE_OCTETS = 64 << 10
"""Some two thousand records: up to 10 ms, were it read here."""
_CHILD = "appliance.service.nameserver.largefile"
_SHOWN_OCTETS = 2000  # of a child's last words


class LargeFileRefused(Exception):
    """The file cannot be used; `errors` has a line for each mistake, with file and line."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class LargeFiles:
    """The large zone files of one nameserver; `kept` is the directory for what was read, None: nothing is."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept
        self._read: dict[Path, tuple[_Signature, Zone | LargeFileRefused]] = {}

    def zone(self, path: Path) -> Zone:
        """The zone of `path`: the very same as long as the file is. Waits for a child if it is another.

        Raises LargeFileRefused, and OSError when there is no such file.
        """
        signature = _signature(path)
        if path not in self._read and (before := _checked.pop(path, None)) is not None:
            self._read[path] = before
            self._keep(path, before[1])
        if path not in self._read or self._read[path][0] != signature:
            try:
                self._put(path, signature, read_large(path, self._kept))
            except LargeFileRefused as refused:
                self._put(path, signature, refused)
        zone = self._read[path][1]
        if isinstance(zone, LargeFileRefused):
            raise zone
        return zone

    def prepare(self, reactor: Any, paths: Iterable[Path]) -> Deferred[None]:
        """Have children read those of `paths` that are large and another than they were, so that `zone` needs
        not wait; fires when they have."""
        reading = []
        for path in paths:
            try:
                signature = _signature(path)
                if (path in self._read and self._read[path][0] == signature) or not is_large(path):
                    continue
            except OSError:
                continue  # whoever asks for it is told
            put = partial(self._put, path, signature)
            reading.append(
                read_large_soon(reactor, path, self._kept).addCallbacks(put, partial(_refused, put))
            )
        return gatherResults(reading, consumeErrors=True).addCallback(lambda _: None)

    def keep_only(self, paths: Collection[Path]) -> None:
        """Forget all other files."""
        self._read = {path: read for path, read in self._read.items() if path in paths}

    def _keep(self, path: Path, zone: Zone | LargeFileRefused) -> None:
        if self._kept is not None and isinstance(zone, Zone) and isinstance(zone.rrsets, Packed):
            place, apex, octets = place_of(self._kept, path), names.to_text(zone.apex), zone.rrsets.octets
            if not is_kept(place, apex, octets):
                keep(place, apex, octets)

    def _put(self, path: Path, signature: _Signature, result: Zone | LargeFileRefused) -> None:
        before = self._read.get(path)
        if before is not None and isinstance(before[1], Zone) and isinstance(result, Zone):
            result = before[1] if _is_same(before[1], result) else result
        self._read[path] = signature, result


def checked(path: Path, kept: Path | None) -> Zone:
    """The zone of a large file for the check before the fork, which writes nothing: in this process the first
    `LargeFiles.zone` has it from there, and keeps it. Raises LargeFileRefused and OSError."""
    signature = _signature(path)
    zone = read_large(path, kept, may_keep=False)
    _checked[path] = signature, zone
    return zone


def _refused(put: Callable[[Zone | LargeFileRefused], None], failure: Failure) -> None:
    failure.trap(LargeFileRefused)
    put(failure.value)  # type: ignore[arg-type]


_Signature = tuple[int, int, int, int]
_checked: dict[Path, tuple[_Signature, Zone | LargeFileRefused]] = {}


def _signature(path: Path) -> _Signature:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_same(one: Zone, other: Zone) -> bool:
    return (
        isinstance(one.rrsets, Packed)
        and isinstance(other.rrsets, Packed)
        and (one.serial, one.rrsets.content) == (other.serial, other.rrsets.content)
    )


def is_large(path: Path) -> bool:
    """Whether a file is too large to be read here. Raises OSError."""
    return path.stat().st_size > LARGE_OCTETS


def read_large(path: Path, kept: Path | None, *, may_keep: bool = True) -> Zone:
    """The zone of `path`, from the directory `kept` if it is there, where it is put; waits for the child.

    Raises LargeFileRefused.
    """
    memory = _memory(path)
    try:
        arguments = [*_arguments(path, kept, memory), *([] if may_keep else [READ_ONLY])]
        done = subprocess.run(arguments, capture_output=True, pass_fds=(memory,), env=_environment())
        return _result(path, memory, done.returncode, done.stdout, done.stderr)
    finally:
        os.close(memory)


def read_large_soon(reactor: Any, path: Path, kept: Path | None) -> Deferred[Zone]:
    """`read_large` without waiting."""
    memory = _memory(path)
    child = _Child(lambda status, out, err: _result(path, memory, status, out, err))
    arguments = _arguments(path, kept, memory)
    descriptors = {1: "r", 2: "r", memory: memory}
    reactor.spawnProcess(child, arguments[0], arguments, env=_environment(), childFDs=descriptors)

    def close(result: Any) -> Any:
        os.close(memory)
        return result

    return child.done.addBoth(close)


def _memory(path: Path) -> int:
    return os.memfd_create(f"zone {path.name}"[:200])


def _arguments(path: Path, kept: Path | None, memory: int) -> list[str]:
    return [sys.executable, "-m", _CHILD, str(path), str(memory), *([str(kept)] if kept else [])]


def _environment() -> dict[str, str]:
    """The child finds this very package, wherever the parent has it from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _result(path: Path, memory: int, status: int, out: bytes, err: bytes) -> Zone:
    if status != 0 or not out:
        last = err[-_SHOWN_OCTETS:].decode(errors="replace").strip().rpartition("\n")[2]
        raise LargeFileRefused([f"{path}: could not be read by a process of its own: {last or status}"])
    said = json.loads(out)
    if "errors" in said:
        raise LargeFileRefused(said["errors"])
    octets = memoryview(mmap.mmap(memory, 0, prot=mmap.PROT_READ))
    return unpack(octets, names.from_text(said["apex"]))


class _Child(ProcessProtocol):
    """What the reactor sees of the child."""

    def __init__(self, result: Callable[[int, bytes, bytes], Zone]) -> None:
        self._result = result
        self._out: dict[int, bytes] = {1: b"", 2: b""}
        self.done: Deferred[Zone] = Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._out[childFD] += data

    def processEnded(self, reason: Failure) -> None:
        status = 0 if reason.check(ProcessDone) else getattr(reason.value, "exitCode", None) or -1
        try:
            zone = self._result(status, self._out[1], self._out[2])
        except Exception:
            self.done.errback(Failure())
        else:
            self.done.callback(zone)

"""Certificates that somebody else makes: the files are watched, and what changes is put to use.

Hides when a file is read. A pair is read when one of its two files is another than before (or was written
to), and a look later has not changed again; so a file that is half written, or a certificate whose key comes
a moment later, is mostly not even noticed. What cannot be used leaves what was there in use, and the log says
once which file is at fault, and how.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from appliance.service.client.complaints import Complaints
from appliance.service.client.keypairs import Keypairs
from appliance.tunnel.keypair import KeypairRefused, Part, read_keypair

#: Between two looks. A certificate is in use within two of them; a look costs two stat(2) a pair.
LOOK_SECONDS = 2.0
#: A chain has 2 to 6 KiB; whatever is larger is none.
MAX_FILE_OCTETS = 1 << 20

_Files = tuple[Path, Path]


@dataclass(slots=True)
class _Pair:
    """What is known of two files: how they were at the last look, and when they were last read."""

    names: list[str] = field(default_factory=list)
    looked: object = None
    read: object = None


class KeypairFiles:
    """Watches from ``start()`` to ``stop()``. ``files``: the files of certificate and key of each name."""

    log = Logger()

    def __init__(self, reactor: Any, keypairs: Keypairs, files: Mapping[str, _Files]) -> None:
        self._reactor = reactor
        self._keypairs = keypairs
        self._complaints = Complaints()
        self._pairs: dict[_Files, _Pair] = {}
        for name, pair in files.items():
            self._pairs.setdefault(pair, _Pair()).names.append(name)
        self._timer: Any = None

    def start(self) -> None:
        """Read what there is."""
        self.read_now()
        if self._pairs:
            self._timer = self._reactor.callLater(LOOK_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def read_now(self) -> None:
        """Read everything, changed or not: somebody says that it is right now."""
        for files, pair in self._pairs.items():
            pair.looked = _as_it_is(files)
            self._read(files, pair)

    def _look(self) -> None:
        self._timer = self._reactor.callLater(LOOK_SECONDS, self._look)
        for files, pair in self._pairs.items():
            now = _as_it_is(files)
            if now == pair.looked and now != pair.read:
                self._read(files, pair)
            pair.looked = now

    def _read(self, files: _Files, pair: _Pair) -> None:
        pair.read = pair.looked
        at_fault = dict(zip(("certificate", "key"), files, strict=True))
        try:
            keypair = read_keypair(_octets("certificate", files), _octets("key", files))
        except KeypairRefused as refused:
            self._complain(pair.names, at_fault[refused.part], refused.text)
            return
        for name in pair.names:
            current = self._keypairs.current.get(name)
            try:
                if keypair != current:
                    self._keypairs.put(name, keypair)
            except KeypairRefused as refused:
                self._complain([name], at_fault[refused.part], refused.text)
                continue
            if self._complaints.over(name) or keypair != current:
                self.log.info(
                    "{name}: the certificate in {file} is in use, good until {expires:%Y-%m-%d}",
                    name=name,
                    file=files[0],
                    expires=keypair.expires,
                )

    def _complain(self, names: list[str], file: Path, words: str) -> None:
        for name in names:
            if not self._complaints.new(name, f"{file} {words}"):
                continue
            has_one = name in self._keypairs.current
            self.log.warn(
                "{name}: {file} {words}; {meanwhile}",
                name=name,
                file=file,
                words=words,
                meanwhile="the certificate before it stays in use"
                if has_one
                else "until it is right, visitors by TLS get an alert",
            )


def _as_it_is(files: _Files) -> object:
    """What changes when one of the files, or what a symbolic link leads to, does."""
    seen: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            seen.append(error.errno)
        else:
            seen.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode))
    return tuple(seen)


def _octets(part: Part, files: _Files) -> bytes:
    path = files[0] if part == "certificate" else files[1]
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            octets = file.read(MAX_FILE_OCTETS)
    except FileNotFoundError:
        raise KeypairRefused(part, "is awaited: it is not there yet") from None
    except OSError as error:
        raise KeypairRefused(part, f"cannot be read: {error.strerror}") from None
    if part == "key" and mode & stat.S_IROTH:
        raise KeypairRefused(part, f"can be read by everybody: chmod o-r {path}")
    return octets

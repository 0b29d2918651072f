"""`python -m … FILE DESCRIPTOR [KEPT [read-only]]`: the child that reads a large zone file (see largefiles).

Writes the packed zone to the descriptor, keeps it in the directory KEPT, and says on standard output, in one
line of JSON, the zone's apex, or what is wrong with the file.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from appliance.dns.names import from_text, to_text
from appliance.dns.packed import PackedError, check, pack, source_of

MAX_KEPT_OCTETS = 1 << 32
READ_ONLY = "read-only"
_HEAD_OCTETS = 400  # the name of the zone and what identifies its content


def main(arguments: list[str]) -> int:
    """The exit status: 0 whenever something was said."""
    gc.disable()  # nothing here is ever garbage
    path, memory = Path(arguments[0]), int(arguments[1])
    kept = Path(arguments[2]) if len(arguments) > 2 else None
    try:
        print(json.dumps(_read(path, memory, kept, may_keep=READ_ONLY not in arguments[3:])))
    except MemoryError:
        print(json.dumps({"errors": [f"{path}: is too large for the memory there is"]}))
    return 0


def place_of(kept: Path, path: Path) -> Path:
    """Where in the directory `kept` the zone of the file `path` is kept."""
    return kept / hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()


def is_kept(place: Path, apex: str, packed: Any) -> bool:
    """Whether what is kept there is, by its head, the packed zone `apex`."""
    try:
        with place.open("rb") as file:
            return (
                file.read(_HEAD_OCTETS) == (_first_line(apex) + bytes(packed[:_HEAD_OCTETS]))[:_HEAD_OCTETS]
            )
    except OSError:
        return False


def keep(place: Path, apex: str, packed: Any) -> None:
    """Keep the packed zone `apex`: beside it first, then in its place, so that what is kept is whole. A disk
    that does not take it is no error: the next start reads the file again."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_first_line(apex))
                file.write(packed)
            os.replace(name, place)
        except BaseException:
            os.unlink(name)
            raise


def _first_line(apex: str) -> bytes:
    return apex.encode("ascii") + b"\n"


def _read(path: Path, memory: int, kept: Path | None, *, may_keep: bool) -> dict[str, str | list[str]]:
    try:
        octets = path.read_bytes()
    except OSError as problem:
        return {"errors": [f"{path}: cannot be read: {problem.strerror}"]}
    source = source_of(octets)
    place = None if kept is None else place_of(kept, path)
    if place is not None and (apex := _from_kept(place, source, memory)) is not None:
        return {"apex": apex}
    from appliance.dns.zonefile import ZoneFileError, read_zone  # dnspython: not for what is kept

    try:
        zone = read_zone(octets.decode("utf-8"), filename=str(path))
        packed = pack(zone, source)
    except UnicodeDecodeError as problem:
        line = octets.count(b"\n", 0, problem.start) + 1
        return {"errors": [f"{path}:{line}: is not text in UTF-8"]}
    except ZoneFileError as problem:
        return {"errors": str(problem).splitlines()}
    except PackedError as problem:
        return {"errors": [f"{path}: {problem}"]}
    _write(memory, memoryview(packed))
    apex = to_text(zone.apex)
    if place is not None and may_keep:
        keep(place, apex, packed)
    return {"apex": apex}


def _from_kept(place: Path, source: bytes, memory: int) -> str | None:
    """Copy what was kept, if it is of this very file; its apex."""
    try:
        if place.stat().st_size > MAX_KEPT_OCTETS:
            return None
        octets = memoryview(place.read_bytes())
        end = bytes(octets[:_HEAD_OCTETS]).index(b"\n")
        apex, packed = bytes(octets[:end]).decode("ascii"), octets[end + 1 :]
        check(packed, source)
        from_text(apex)
    except (OSError, ValueError):
        return None
    _write(memory, packed)
    return apex


def _write(memory: int, octets: memoryview) -> None:
    while octets:
        octets = octets[os.write(memory, octets) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One line of the access log: who came, what he wanted, who got him, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple


class AccessLine(NamedTuple):
    """A visitor who has gone. ``wall`` is when (Unix time), ``seconds`` since he was accepted.

    ``name`` is the host that he asked for, ``client`` who got him ("" for nobody). ``unique_id`` is what the
    origin finds in its PROXY protocol header. ``how`` is ``ended``, or the word of a failure.
    """

    wall: float
    name: str
    source: tuple[str, int]
    client: str
    octets_in: int
    octets_out: int
    seconds: float
    how: str
    unique_id: bytes


def plain(line: AccessLine) -> bytes:
    """Fields in the order above with blanks between them; none holds one, and a missing one is "-"."""
    return (
        f"{_time(line.wall)} {line.name or '-'} {_shown(line.source)} {line.client or '-'} {line.octets_in}"
        f" {line.octets_out} {line.seconds:.3f} {line.how} {line.unique_id.hex() or '-'}\n"
    ).encode()


def as_json(line: AccessLine) -> bytes:
    """One JSON object; by hand, for json.dumps takes as long as all the rest of a visitor's accounting."""
    return (
        f'{{"time":"{_time(line.wall)}","name":{quoted(line.name)},"visitor":{quoted(_shown(line.source))}'
        f',"client":{quoted(line.client)},"octets_in":{line.octets_in},"octets_out":{line.octets_out}'
        f',"seconds":{line.seconds:.3f},"end":{quoted(line.how)},"id":"{line.unique_id.hex()}"}}\n'
    ).encode()


FORMATS: dict[str, Callable[[AccessLine], bytes]] = {"plain": plain, "json": as_json}
"""The formats by what the settings call them."""


def _time(wall: float) -> str:
    milliseconds = round(wall * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=4)
def _second(wall: int) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _shown(source: tuple[str, int]) -> str:
    return f"[{source[0]}]:{source[1]}" if ":" in source[0] else f"{source[0]}:{source[1]}"

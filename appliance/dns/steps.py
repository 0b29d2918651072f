"""Work in steps: a generator that yields between them, so that who drives it can do something else, and
returns what the work comes to."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar, cast

T = TypeVar("T")


def finish(steps: Generator[None, None, T]) -> T:
    """What the steps come to, all at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)

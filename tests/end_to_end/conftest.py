"""The fixture `start`: `start("unbound", "-d", …)` is a program that the end of the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.programs import Process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as running:

        def begin(
            *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
        ) -> Process:
            number = len(list(tmp_path.glob("program-*.log")))
            log = tmp_path / f"program-{number}-{Path(arguments[0]).name}.log"
            return running.enter_context(Process(arguments, log, cwd=cwd, env=env))

        yield begin

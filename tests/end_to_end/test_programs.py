from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.end_to_end.programs import Process, free_port, need, wait_for


def test_a_program_is_found_and_a_missing_one_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert need("sh").endswith("/sh")
    with pytest.raises(pytest.skip.Exception, match="the program no-such-program is not installed"):
        need("no-such-program")


def test_ci_as_root_may_not_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed, and CI as root"):
        need("no-such-program")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception):
        need("no-such-program")


def test_ports_are_free_and_given_once() -> None:
    ports = [free_port(kind) for kind in ("udp", "tcp", "both") for _ in range(20)]
    assert len(set(ports)) == 60
    with socket.create_server(("127.0.0.1", ports[-1])):
        pass


def test_waiting_says_for_what() -> None:
    assert wait_for(lambda: 5, 1, "a number") == 5
    with pytest.raises(pytest.fail.Exception, match=r"within 0.05 s there was not: a number"):
        wait_for(lambda: 0, 0.05, "a number")


def test_a_process_and_all_that_it_started_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; echo $$ > {pids}; sleep 1000 & echo $! >> {pids}; echo said; wait"
    with Process(["sh", "-c", script], tmp_path / "log") as process:
        process.says("said")
        assert process.status is None
        process.tell(signal.SIGTERM)
    assert process.status == -signal.SIGKILL
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_process_that_ends_early_shows_its_last_words(tmp_path: Path) -> None:
    with (
        Process(["sh", "-c", "echo oops; exit 3"], tmp_path / "log") as process,
        pytest.raises(pytest.fail.Exception, match=r"(?s)sh ended with 3 before 'ready':\noops"),
    ):
        process.says("ready")

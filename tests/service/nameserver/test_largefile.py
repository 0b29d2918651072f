"""What the child says and writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.dns import names
from appliance.dns.packed import unpack
from appliance.service.nameserver.largefile import READ_ONLY, main

TEXT = "$ORIGIN a.test.\n$TTL 300\n@ SOA ns1 h 7 3600 600 86400 300\n@ NS ns1\nns1 A 192.0.2.53\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.zone"
    path.write_text(TEXT)
    return path


def run(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> tuple[dict[str, object], bytes]:
    memory = os.memfd_create("zone")
    assert main([str(path), str(memory), *more]) == 0
    os.lseek(memory, 0, os.SEEK_SET)
    with os.fdopen(memory, "rb") as file:
        return json.loads(capsys.readouterr().out), file.read()


def test_the_zone_and_its_apex(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, octets = run(capsys, path, str(tmp_path / "kept"))
    assert said == {"apex": "a.test"}
    assert unpack(memoryview(octets), names.from_text("a.test")).serial == 7
    assert run(capsys, path, str(tmp_path / "kept")) == (said, octets)


def test_read_only(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, path, str(tmp_path / "kept"), READ_ONLY)
    assert not (tmp_path / "kept").exists()


def test_what_is_wrong(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, tmp_path / "none")[0] == {
        "errors": [f"{tmp_path}/none: cannot be read: No such file or directory"]
    }
    path.write_text(TEXT + "oops\n")
    assert run(capsys, path)[0] == {"errors": [f"{path}:6: this record ends before its type and data"]}

"""The instance id stays with its state directory."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.service.client.instance import FILE, Instance


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    first = Instance(state)
    first.close()
    again = Instance(state)
    again.close()
    assert re.fullmatch("[0-9a-f]{32}", first.id)
    assert again.id == first.id
    assert not first.trouble
    assert not again.trouble
    assert (state / FILE).stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_second_process_in_the_directory_is_another_instance(tmp_path: Path) -> None:
    first = Instance(tmp_path)
    second = Instance(tmp_path)
    assert second.id != first.id
    assert "another tunnel client" in second.trouble
    first.close()
    third = Instance(tmp_path)
    assert third.id == first.id
    third.close()
    second.close()


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff" * 4096)
    made = Instance(tmp_path)
    made.close()
    assert (tmp_path / FILE).read_text() == made.id + "\n"


def test_where_nothing_can_be_kept_it_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    made = Instance(tmp_path / "state")
    assert re.fullmatch("[0-9a-f]{32}", made.id)
    assert "cannot be kept" in made.trouble
    made.close()


def test_a_link_planted_there_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE).symlink_to(target)
    made = Instance(tmp_path / "state")
    made.close()
    assert made.trouble
    assert target.read_text() == "precious"

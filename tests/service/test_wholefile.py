from __future__ import annotations

from pathlib import Path

import pytest

from appliance.service.wholefile import replace_whole


def test_it_is_replaced_and_the_owner_s_only(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "kept.new").write_text("half of what a crash left")
    replace_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        replace_whole(tmp_path / "absent" / "kept", b"new")

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs
import pytest

from appliance.settingsfile import BadValue, SettingsFile, SettingsRefused, converter, key_lines


@attrs.frozen
class Inner:
    port: int = 1
    flag: bool = False
    hosts: tuple[str, ...] = ()
    mood: Literal["good", "bad"] = "good"


@attrs.frozen
class Outer:
    text: str = "t"
    inner: Inner = attrs.field(factory=Inner)


def written(tmp_path: Path, text: str) -> SettingsFile:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return SettingsFile(path)


def refused(file: SettingsFile) -> list[str]:
    with pytest.raises(SettingsRefused) as refusal:
        file.structure(converter(), Outer)
    return [error.rpartition("/")[2] for error in refusal.value.errors]


def test_values() -> None:
    assert SettingsFile(None).structure(converter(), Outer) == Outer()


def test_a_whole_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'text = "x"\n[inner]\nport = 5\nflag = true\nmood = "bad"\nhosts = ["a", "b"]\n')
    assert file.structure(converter(), Outer) == Outer("x", Inner(5, True, ("a", "b"), "bad"))


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("txet = 1\n", ["a.toml:1: txet: is not a setting; did you mean text?"]),
        ("\nzzz = 1\n", ["a.toml:2: zzz: is not a setting; here are text, inner"]),
        ("[inner]\nprot = 1\n", ["a.toml:2: inner.prot: is not a setting; did you mean inner.port?"]),
        ("[inner]\nport = true\n", ["a.toml:2: inner.port: must be a whole number, not true"]),
        ("[inner]\nflag = 1\n", ["a.toml:2: inner.flag: must be true or false, not 1"]),
        ("text = 5\n", ["a.toml:1: text: must be a string, not 5"]),
        ('[inner]\nmood = "x"\n', ['a.toml:2: inner.mood: must be "good" or "bad", not "x"']),
        ('[inner]\nhosts = "a"\n', ['a.toml:2: inner.hosts: must be a list: write ["a"]']),
        ('[inner]\nhosts = ["a", 5]\n', ["a.toml:2: inner.hosts: must be a string, not 5"]),
        ('[inner]\nhosts = ["a", "a"]\n', ["a.toml:2: inner.hosts: names the same thing twice"]),
        ('inner.port = "1"\n', ['a.toml:1: inner.port: must be a whole number, not "1"']),
        ('inner = { port = "1" }\n', ['a.toml:1: inner.port: must be a whole number, not "1"']),
    ],
)
def test_an_error_names_its_place(tmp_path: Path, text: str, errors: list[str]) -> None:
    assert refused(written(tmp_path, text)) == errors


def test_all_errors_at_once(tmp_path: Path) -> None:
    errors = refused(written(tmp_path, 'text = 5\n[inner]\nport = "x"\nflga = true\n'))
    assert sorted(errors) == [
        "a.toml:1: text: must be a string, not 5",
        "a.toml:3: inner.port: must be a whole number, not \"x\"",
        "a.toml:4: inner.flga: is not a setting; did you mean inner.flag?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = \n", 1), ("a = 1\nb = [1,\n", 2), ("[x\n", 1), ("a = 1\n\na = 2\n", 3)],
)
def test_what_is_no_toml(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(SettingsRefused) as refusal:
        written(tmp_path, text)
    (error,) = refusal.value.errors
    assert f"a.toml:{line}: " in error


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match=r"cannot be read: No such file"):
        SettingsFile(tmp_path / "absent.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsRefused, match="is not UTF-8 text"):
        SettingsFile(tmp_path / "b.toml")


def test_options_win_and_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, "[inner]\nport = 5\n")
    file.lay({"inner.port": 6, "text": None, "inner.hosts": ()}, {"inner.port": "--port"})
    assert file.structure(converter(), Outer) == Outer(inner=Inner(6))
    assert file.error(("inner", "port"), "is odd") == "--port: is odd"
    assert not file.given("text")
    assert file.path("inner", "port") == Path.cwd()
    assert file.path("text") == tmp_path


def test_an_option_in_what_is_no_table(tmp_path: Path) -> None:
    file = written(tmp_path, "inner = 5\n")
    with pytest.raises(SettingsRefused, match=r"a.toml:1: inner: must be a table: write \[inner\]"):
        file.lay({"inner.port": 6}, {"inner.port": "--port"})


def test_a_part_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="must be a table"):
        written(tmp_path, "inner = 5\n").structure(converter(), Inner, ("inner",))


def test_lines_of_keys() -> None:
    text = '# c\n[a] # x\nb = [\n  "c=d",\n]\n"e.f" = 1\n[a."g.h"]\ni.j = 2\n[[k]]\nl = 1\n'
    assert key_lines(text) == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "e.f"): 6,
        ("a", "g.h"): 7,
        ("a", "g.h", "i", "j"): 8,
        ("k",): 9,
        ("k", "l"): 10,
    }


def test_a_dotted_name_is_quoted(tmp_path: Path) -> None:
    file = written(tmp_path, '[names."a.b"]\nx = 1\n')
    assert file.error(("names", "a.b", "x"), "w").endswith('a.toml:2: names."a.b".x: w')


def test_bad_value_is_a_value_error() -> None:
    assert issubclass(BadValue, ValueError)

"""The rules of the house: who may import whom, a test for every file, plain words, the wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "appliance"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CORES = ("dns", "fleet", "ingress", "tunnel")

WORLD = {"twisted", "socket", "time", "random", "ssl", "threading", "sqlite3", "OpenSSL", "select", "asyncio"}
"""What no core imports: whatever talks to the kernel, the clock or chance."""
CORE_LIBRARIES = {
    "dns": {"dnslib", "dns"},
    "fleet": {"cryptography"},
    "ingress": {"h11"},
    "tunnel": {"cryptography"},
}
"""What is not of the standard library and a core may import."""
CORE_NEIGHBOURS = {"dns": set(), "fleet": {"dns", "tunnel"}, "ingress": set(), "tunnel": set()}
SIDES = {"client": {"server", "nameserver"}, "server": {"client"}, "nameserver": {"client"}}
"""Which folders of service may not import which: a client is not an appliance."""
BAD_WORDS = re.compile(
    r"(^|_)(handlers?|processors?|engines?|managers?|components?|helpers?|utils?|common|misc|data|info)($|_)"
)
TESTED_ELSEWHERE = {"__init__.py"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def in_core(core: str) -> list[Path]:
    return sorted((PACKAGE / core).rglob("*.py"))


def test_there_is_a_house() -> None:
    for core in CORES:
        assert in_core(core)


@pytest.mark.parametrize("core", CORES)
def test_cores_import_values_only(core: str) -> None:
    for path in in_core(core):
        for module in imports(path):
            top, *rest = module.split(".")
            assert top not in WORLD, f"{path} imports {module}"
            if top == "appliance":
                assert rest, f"{path} imports the package"
                assert rest[0] in CORE_NEIGHBOURS[core] | {core}, f"{path} imports {module}"
            elif top not in sys.stdlib_module_names:
                assert top in CORE_LIBRARIES[core], f"{path} imports {module}"


def test_the_sides_of_a_tunnel_do_not_know_each_other() -> None:
    for side, others in SIDES.items():
        for path in sorted((PACKAGE / "service" / side).rglob("*.py")):
            for module in imports(path):
                for other in others:
                    assert not module.startswith(f"appliance.service.{other}"), f"{path} imports {module}"


def test_nobody_imports_the_global_reactor() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
                assert "reactor" not in {alias.name for alias in node.names}, path


def test_every_source_file_has_a_test_file() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name not in TESTED_ELSEWHERE
        and not (ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.name}")).exists()
    ]
    assert not missing, missing


def test_every_source_file_says_what_it_is_for() -> None:
    silent = [
        str(path)
        for path in SOURCES
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, silent


def test_no_file_is_named_by_a_word_that_says_nothing() -> None:
    folders = ("appliance", "tests", "benchmarks", "deploy", "twisted")
    named = [
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if BAD_WORDS.search(path.stem)
    ]
    assert not named, named


def test_annotations_are_not_evaluated() -> None:
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if "def " in source or "class " in source:
            assert "from __future__ import annotations" in source, path


def test_the_wheel_carries_the_package_and_the_plugins(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in SOURCES:
        assert str(path.relative_to(ROOT)) in names
    assert "twisted/plugins/tunnel_appliance.py" in names
    assert "twisted/__init__.py" not in names
    assert "twisted/plugins/__init__.py" not in names
    assert not [name for name in names if name.endswith("dropin.cache")]
    assert [name for name in names if name.endswith("share/tunnel-appliance/zones/demo.test.zone")]
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("tunnel_appliance-")} == {"appliance", "twisted"}

"""What the documentation says is so: links lead somewhere, examples are valid, the README's blocks run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import main as commands
from appliance.settings import read_appliance
from tests.end_to_end.programs import Process, free_port, need, wait_for

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "NEWS.md", *(ROOT / "docs").rglob("*.md")])
README_LINES = 200
README_FIRST_LINES = 25
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            yield target


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    for target in links(path):
        file, _, _ = target.partition("#")
        assert not file or (path.parent / file).exists(), f"{path}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_blocks_are_closed_and_valid(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("```") % 2 == 0
    for block in blocks(path, "toml"):
        tomllib.loads(block)
    for block in blocks(path, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_readme_is_short_and_begins_with_the_commands() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < README_LINES
    first = "\n".join(lines[:README_FIRST_LINES])
    for command in ("make run", "twistd tunnel-appliance", "twistd tunnel-client"):
        assert command in first


def test_the_settings_reference_is_fresh() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "settings_reference.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8"), (
        "stale: make docs"
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_commands_exist(path: Path) -> None:
    for block in blocks(path, "sh"):
        for command in re.findall(r"^tunnel-appliance (?:--\S+ \S+ )*([a-z]+)", block, re.MULTILINE):
            assert command in commands.commands, f"{path}: {command}"


def test_the_readme_names_every_command() -> None:
    for command in commands.commands:
        assert f"tunnel-appliance {command}" in README.read_text(encoding="utf-8")


def test_the_readme_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_the_readme_and_the_tutorial_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init` as it is written there gives settings that are accepted, and prints what the tutorial shows."""
    monkeypatch.chdir(tmp_path)
    shown = [block for block in blocks(ROOT / "docs" / "tutorial.md", "text") if " NS " in block]
    arguments = ["init", "example.org", "203.0.113.5"]
    assert " ".join(["tunnel-appliance", *arguments]) in README.read_text(encoding="utf-8")
    program = str(Path(sys.executable).with_name("tunnel-appliance"))
    printed = subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
    assert shown == [printed]
    read_appliance(
        None, {"nameserver.private_addresses": True}, local_addresses=lambda: ["203.0.113.5"]
    )  # 203.0.113.0/24 is documentation's, and so not global


def test_make_run(tmp_path: Path) -> None:
    """`make run` as the README has it, the three commands that it prints, and Ctrl-C."""
    for program in ("make", "dig", "curl"):
        need(program)
    ports = {name: free_port() for name in ("DNS_PORT", "TLS_PORT", "HTTP_PORT")}
    (command,) = [block for block in blocks(README, "sh") if block.startswith("make run")]
    # -o: the tests' own installation is ready, whatever its age
    words = [*command.split(), "-o", ".venv/ready", *(f"{name}={port}" for name, port in ports.items())]
    with Process(words, tmp_path / "log", cwd=ROOT) as running:
        running.says("Ctrl-C ends it", 30)
        shown = running.output.partition("ready\n")[2].strip().splitlines()
        dig, https, http = [line.strip() for line in shown[:3]]
        answers = pasted(dig)
        assert f'TXT\t"r=superprotocol;ip=127.0.0.1;port={ports["TLS_PORT"]}"' in answers
        assert re.search(r"^www\.demo\.test\.\s+15\s+IN\s+A\s+127\.0\.0\.1$", answers, re.MULTILINE)
        for line in (https, http):
            assert "It works" in pasted(line)
        if shutil.which("pebble") and "plain.demo.test" in running.output:
            assert "It works" in pasted(shown[3])
        else:
            assert "needs pebble, and port 53" in shown[3]
        directory = Path(re.findall(r"--cacert (\S+)/", https)[0])
        assert directory.exists()
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        wait_for(lambda: running.status is not None, 20, "the end of make run")
        assert not directory.exists()


def pasted(line: str) -> str:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout


README_ON_TWO_MACHINES = """
set -eu
until_there() {{
  for _ in $(seq 300); do if "$@" >seen 2>&1; then return; fi; sleep 0.1; done
  cat *.log seen
  exit 1
}}
unshare --net sleep 300 &
home=$!
is_apart() {{ [ "$(readlink /proc/$home/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }}
until_there is_apart
at_home() {{ nsenter --net --target=$home "$@"; }}
ip link set lo up
ip link add street type veth peer name door netns $home
ip address add {address}/24 dev street
ip link set street up
at_home ip link set lo up
at_home ip address add 198.41.0.77/24 dev door
at_home ip link set door up

{{ {appliance}
}} >appliance.log 2>&1 &
until_there tunnel-appliance status
{invite}
mkdir home
cp invitation.toml home
at_home python page.py 443 >page.log 2>&1 &
cd home
{{ at_home {client}
}} >../client.log 2>&1 &
cd ..
until_there curl --fail --cacert ca.pem --resolve www.example.org:443:{address} https://www.example.org/
cat seen
until_there bash -c 'dig @{address} +short www.example.org A | grep .'
cat seen
echo all of it worked
"""


def test_the_readme_s_own_appliance(tmp_path: Path) -> None:
    """The README's blocks from "A real appliance" to the page, word for word but for the address."""
    for program in ("unshare", "nsenter", "ip", "curl", "dig"):
        need(program)
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    address = "198.41.0.4"  # the README's own is for documentation, and so not globally routable
    part = README.read_text(encoding="utf-8").partition("## A real appliance")[2]
    setup, invite, client = re.findall(r"^```sh\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)[:3]
    lines = [line for line in setup.splitlines() if "pip install" not in line and "PATH" not in line]
    init, start_it = lines
    assert init.startswith("tunnel-appliance init")
    subprocess.run(
        ["bash", "-c", init.replace("203.0.113.5", address)], cwd=tmp_path, env=_environment(), check=True
    )
    (tmp_path / "page.py").write_text(PAGE_PROGRAM.format(deploy=ROOT / "deploy"))
    script = README_ON_TWO_MACHINES.format(
        address=address, appliance=start_it, invite=invite, client=client.strip()
    )
    with Process(
        ["unshare", "--net", "bash", "-c", script], tmp_path / "log", cwd=tmp_path, env=_environment()
    ) as running:
        running.says("all of it worked", 40)
    *_, answer, _ = running.output.splitlines()
    assert answer == address
    assert "It works" in running.output


PAGE_PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, "{deploy}")
import demo
demo.NAME = "www.example.org"
with demo.web_server(demo.web_tls(Path("ca.pem"), Path("web.pem")), int(sys.argv[1])):
    time.sleep(60)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}


def test_units_are_units() -> None:
    need("systemd-analyze")
    for unit in sorted((ROOT / "deploy").glob("*.service")):
        checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        errors = [line for line in checked.stderr.splitlines() if "is not executable" not in line]
        assert not [line for line in errors if unit.name in line], checked.stderr
        text = unit.read_text(encoding="utf-8")
        assert "twistd -n --pidfile=" in text
        assert "\nMemoryDenyWriteExecute=" not in text

"""Reloads and live changes while dnsperf asks: no answer is lost, and each is of one version."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.dns.serial import is_newer
from appliance.service.nameserver.registry import LAY_SECONDS
from tests.dns.asking import Reply, opt, query, reply
from tests.end_to_end.programs import Process, need, wait_for
from tests.end_to_end.site import ZONE, Appliance, Ports

ASKED_A_SECOND = 4_000
COMING = 6
"""Names that come with each reload; as many go."""
RECORDS = 12
"""Of the name that changes with each reload."""
ANSWER_SECONDS = 5.0
FULL = "database or disk is full"
RELOADS = 20
"""On a full disk."""


class Changing(Appliance):
    """An appliance whose zone file says how often it was written, and whose names come and go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Ports())
        settings = directory / "appliance.toml"
        settings.write_text(settings.read_text().replace("[server]", "rate_limit = 0\n[server]"))
        self.zonefile = directory / "zones" / f"{ZONE}.zone"
        self._text = self.zonefile.read_text()
        self.write(0)

    def write(self, version: int) -> None:
        more = "".join(f'version TXT "{version} {number}"\n' for number in range(RECORDS))
        gone = f"only-{version % 2} A 192.0.2.1\n"
        (self.directory / "new").write_text(
            f"{self._text}*.wild A 192.0.2.9\nalias CNAME version\n{more}{gone}"
        )
        (self.directory / "new").replace(self.zonefile)

    def reload(self, version: int) -> None:
        self.write(version)
        assert self.process is not None
        self.process.tell(signal.SIGHUP)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command at the control socket."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ANSWER_SECONDS)
            asking.connect(str(self.directory / "state" / "control"))
            asking.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(asking.makefile("rb").readline())
            return answer

    def done(self, command: str, **arguments: Any) -> None:
        answer = self.ask(command, **arguments)
        assert "error" not in answer, answer

    def change(self, step: int) -> None:
        """Some names come, and those of the step before go."""
        self.done("invite", names=_coming(step), client=f"client-{step}")
        for name in _coming(step - 1) if step > 1 else ():
            self.done("forget", name=name)

    def ask_dns(self, name: str, rtype: str) -> Reply:
        """Over UDP, read by dnspython."""
        return reply(self.octets(query(name, rtype, edns=opt())))

    def octets(self, message: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(ANSWER_SECONDS)
            peer.connect((self.address, self.ports.dns))
            peer.send(message)
            return peer.recv(65535)

    def version(self) -> int:
        """Of the zone file that is in service; all its records are of that one."""
        answer = self.ask_dns(f"alias.{ZONE}", "TXT").answer
        assert answer[0] == f"alias.{ZONE} 300 CNAME version.{ZONE}."
        versions = {line.split()[3].strip('"') for line in answer[1:]}
        assert len(answer) == 1 + RECORDS
        assert len(versions) == 1, answer
        return int(versions.pop())

    def serial(self) -> int:
        """That of a negative answer."""
        answer = self.ask_dns(f"nosuch.{ZONE}", "A")
        assert answer.rcode == "NXDOMAIN"
        (line,) = answer.authority
        return int(line.split()[5])

    def is_live(self, name: str) -> bool:
        """Whether it is there; if so then with all its records."""
        answer = self.ask_dns(name, "A")
        if answer.rcode == "NXDOMAIN":
            assert not answer.answer
            assert [line.split()[2] for line in answer.authority] == ["SOA"]
            return False
        assert answer.answer == [f"{name} 15 A {self.address}"], answer
        return True


def _coming(step: int) -> list[str]:
    return [f"live-{step}-{number}.{ZONE}" for number in range(COMING)]


class Watching(threading.Thread):
    """Looks at answers the whole time: each is of one version, and none is of an older one than those before.

    `wrong` is what was not so, `looks` is at how many answers it looked.
    """

    def __init__(self, appliance: Changing) -> None:
        super().__init__(daemon=True)
        self._appliance = appliance
        self.step = 0
        self.looks = 0
        self.wrong: Exception | AssertionError | None = None
        self.found: Counter[bool] = Counter()
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._look()
        except (Exception, AssertionError) as error:
            self.wrong = error

    def _look(self) -> None:
        version = serial = 0
        while not self.ended.is_set():
            now = self._appliance.version()
            assert now >= version, (now, version)
            version = now
            number = self._appliance.serial()
            assert number == serial or is_newer(number, serial), (number, serial)
            serial = number
            for name in _coming(self.step)[:2]:
                self.found[self._appliance.is_live(name)] += 1
            self.looks += 4


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Changing]:
    appliance = Changing(tmp_path / "one")
    try:
        appliance.start()
        wait_for(lambda: appliance.dig(ZONE, "TXT"), 10, "live records")
        yield appliance
    finally:
        appliance.kill()


@pytest.mark.parametrize("steps", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_reloads_and_live_changes_lose_no_answer(
    appliance: Changing, tmp_path: Path, start: Callable[..., Process], steps: int
) -> None:
    """So many reloads, ten times as many live changes, and dnsperf for as many tenths of a second."""
    questions = tmp_path / "questions"
    asked = [f"live-{step}-{number}.{ZONE} {rtype}" for step in range(steps) for number, rtype in _EACH]
    asked += [f"{name}.{ZONE} {rtype}" for name, rtype in _ALWAYS] * (len(asked) // len(_ALWAYS))
    questions.write_text("\n".join(asked) + "\n")
    seconds = steps // 10
    watching = Watching(appliance)
    watching.start()
    perf = start(
        *(need("dnsperf"), "-s", appliance.address, "-p", str(appliance.ports.dns), "-d", questions),
        *("-l", str(seconds), "-c", "4", "-q", "1000", "-Q", str(ASKED_A_SECOND), "-e"),
    )
    began = time.monotonic()
    for step in range(1, steps + 1):
        watching.step = step
        appliance.reload(step)
        appliance.change(step)
        wait_for(lambda: appliance.version() == step, 10, "the reload")  # noqa: B023
        assert perf.status is None or step >= steps * 9 // 10, f"{step} changes in {seconds} s"
        time.sleep(max(0.0, began + step * 0.095 - time.monotonic()))
    wait_for(lambda: perf.status is not None, seconds + 10, "the end of dnsperf")
    watching.ended.set()
    watching.join()
    print(perf.output[-1500:], f"{watching.looks} looks, {watching.found}")
    assert watching.wrong is None, watching.wrong
    assert watching.looks > 20 * seconds
    sent, lost = (int(re.findall(rf"Queries {what}: +(\d+)", perf.output)[0]) for what in ("sent", "lost"))
    assert lost == 0
    assert sent >= 0.95 * seconds * ASKED_A_SECOND
    codes = re.findall(r"Response codes: +(.*)", perf.output)[0]
    assert set(re.findall("[A-Z]+", codes)) == {"NOERROR", "NXDOMAIN"}, codes
    # What was laid last is all there.
    wait_for(lambda: all(map(appliance.is_live, _coming(steps))), 10, "the last names")
    assert not any(map(appliance.is_live, _coming(steps - 1)))
    assert appliance.process is not None
    assert "Traceback" not in appliance.process.output


_EACH = ((0, "A"), (1, "TXT"), (2, "AAAA"), (3, "A"))
_ALWAYS = (
    ("version", "TXT"),
    ("alias", "TXT"),
    ("x.y.wild", "A"),
    ("nosuch", "A"),
    ("only-0", "A"),
    ("only-1", "A"),
    ("ns1", "A"),
)


# A full disk


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A disk of so many octets at `directory`."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    directory.mkdir(mode=0o700)
    options = f"size={size},mode=700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_disk_that_is_too_small_to_start_on_is_named(tmp_path: Path) -> None:
    appliance = Changing(tmp_path / "one")
    with small_disk(appliance.directory / "state", "64k"):
        try:
            with pytest.raises(pytest.fail.Exception, match="cannot be used: database or disk is full"):
                appliance.start()
            assert appliance.process is not None
            assert "Traceback" not in appliance.process.output
        finally:
            appliance.kill()


def test_a_full_disk_refuses_live_changes_and_answers_go_on(tmp_path: Path) -> None:
    appliance = Changing(tmp_path / "one")
    state = appliance.directory / "state"
    known, refused, after = f"known.{ZONE}", f"refused.{ZONE}", f"after.{ZONE}"
    with small_disk(state, "256k"):
        try:
            appliance.start()
            appliance.done("invite", names=[known], client="known")
            wait_for(lambda: appliance.is_live(known), 10, "a live name")
            filling = state / "filling"
            with filling.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(512))
            serial = appliance.serial()
            for command, arguments in (
                ("invite", {"names": [refused], "client": "refused"}),
                ("forget", {"name": known}),
            ):
                answer = appliance.ask(command, **arguments)
                assert answer == {"error": f"{state}/appliance.sqlite was not written: {FULL}"}
            for step in range(1, RELOADS + 1):  # for which serials are in store
                appliance.reload(step)
                wait_for(lambda: appliance.version() == step, 10, "the reload")  # noqa: B023
            assert is_newer(appliance.serial(), serial)
            time.sleep(LAY_SECONDS)  # when what was refused would be there
            assert appliance.is_live(known)
            assert not appliance.is_live(refused)
            filling.unlink()
            appliance.done("invite", names=[after], client="after")
            appliance.done("reload")
            wait_for(lambda: appliance.is_live(after), 10, "a live name")
            serial = appliance.serial()
            assert appliance.process is not None
            assert "Traceback" not in appliance.process.output
            appliance.process.kill()
            appliance.start()
            assert is_newer(appliance.serial(), serial)
            assert [appliance.is_live(name) for name in (known, refused, after)] == [True, False, True]
        finally:
            appliance.kill()

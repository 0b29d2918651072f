"""What visitors really use: curl and Chromium, with the lab's resolver in their /etc/resolv.conf.

They are reported, not judged: which address is tried next and when is their own affair.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.end_to_end.programs import HEADLESS, need
from tests.end_to_end.threads import Threads
from tests.lab.bars import measured
from tests.lab.lab import SHARED, Lab

CURL_SECONDS, BROWSER_SECONDS = 15, 40
PAUSE_SECONDS = 0.2
_MOUNTED = (
    'mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'
)
_OPTIONS = (*HEADLESS, "--timeout=12000", "--dump-dom")


class CurlAndChromium(Threads):
    """`with` it they ask for pages, one after the other."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._directory = lab.directory / "programs"
        self._directory.mkdir(exist_ok=True)
        resolver, nss = self._directory / "resolv.conf", self._directory / "nsswitch.conf"
        resolver.write_text(f"nameserver {lab.address('resolver')}\n")
        nss.write_text("hosts: files dns\n")
        inside = lab.hosts["visitors"].inside
        self._words = [
            *inside,
            need("unshare"),
            "--mount",
            "bash",
            "-c",
            _MOUNTED,
            "-",
            str(resolver),
            str(nss),
        ]
        self._url = f"https://{SHARED[0]}/"
        self.counted = {"curl": [0, 0], "chromium": [0, 0]}
        asking = {"curl": self._curl, "chromium": self._chromium}
        super().__init__(threading.Thread(target=self._ask, args=item) for item in asking.items())

    def __enter__(self) -> Self:
        self._trust()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for program, (asked, failed) in self.counted.items():
            measured(program, f"{asked} pages, {failed} failed")

    def _ask(self, program: str, page: object) -> None:
        assert callable(page)
        while not self.over.wait(PAUSE_SECONDS):
            said = page()
            self.counted[program][0] += 1
            if "id='who'" not in said.replace('"', "'"):
                self.counted[program][1] += 1
                measured(f"{program}_failed", said.strip()[-200:])

    def _curl(self) -> str:
        options = ["-sS", "--max-time", str(CURL_SECONDS), "--cacert", str(self._lab.directory / "ca.pem")]
        return self._run([need("curl"), *options, self._url], CURL_SECONDS + 5)

    def _chromium(self) -> str:
        profile = f"--user-data-dir={self._directory / 'profile'}"
        return self._run([need("chromium"), *_OPTIONS, profile, self._url], BROWSER_SECONDS)

    def _trust(self) -> None:
        database = self._directory / ".pki" / "nssdb"
        if database.exists():
            return
        database.mkdir(parents=True)
        for told in (
            ["-N", "--empty-password"],
            ["-A", "-n", "lab", "-t", "C,,", "-i", self._lab.directory / "ca.pem"],
        ):
            subprocess.run([need("certutil"), "-d", f"sql:{database}", *told], check=True, timeout=20)

    def _run(self, command: list[str | Path], seconds: int) -> str:
        try:
            done = subprocess.run(
                [*self._words, *command],
                env={**os.environ, "HOME": str(self._directory)},
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return f"nothing in {seconds} s"
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

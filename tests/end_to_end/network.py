"""A network of a test's own: port 53 and addresses that look like the internet's, and no way out.

Hides the namespace. It lives as long as a pipe from this process is open, and has no name that another run
could meet. What runs in it is started with `inside` before its command; files are those of everybody.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.end_to_end.programs import need

HOLD = """
set -e
ip link set lo up
for address in "$@"; do ip address add "$address/32" dev lo; done
ip route add default dev lo
echo $$
while read -r _; do :; done
"""
END_SECONDS = 10.0


@contextmanager
def network(addresses: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The words that start a command in a network of `addresses`, all on this machine.

    Skips where that may not be made (it takes root), but not with `CI` set.
    """
    need("ip")
    with subprocess.Popen(
        [need("unshare"), "--net", "bash", "-c", HOLD, "hold", *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        pid = holder.stdout.readline().strip()
        if not pid:
            because = f"no network of its own: {holder.stderr.read().strip()}"
            if os.environ.get("CI") and os.geteuid() == 0:
                pytest.fail(because, pytrace=False)
            pytest.skip(because)
        try:
            yield (need("nsenter"), "--target", pid, "--net")
        finally:
            holder.stdin.close()
            holder.wait(END_SECONDS)

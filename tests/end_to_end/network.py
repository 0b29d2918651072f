"""A network of a test's own: port 53 and addresses that look like the internet's, and no way out.

What runs in it is started with `inside` before its command; files are those of everybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.end_to_end.namespaces import Namespaces
from tests.end_to_end.programs import need

HOLD = """
set -e
ip link set lo up
for address in "$@"; do ip address add "$address/32" dev lo; done
ip route add default dev lo
echo $$
while read -r _; do :; done
"""


@contextmanager
def network(addresses: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The words that start a command in a network of `addresses`, all on this machine.

    Skips where that may not be made (it takes root), but not with `CI` set.
    """
    need("ip")
    held = Namespaces(("--net",), HOLD, addresses)
    try:
        yield held.inside("--net")
    finally:
        held.end()

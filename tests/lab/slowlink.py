"""A link between two networks with delay, jitter and loss: `slowlink.py PID NAME PID NAME STATE`.

Two TUN devices, one in the network of each process, and this process carries packets between them. STATE is
a file of JSON, `{"delay": ms, "jitter": ms, "loss": percent}`, looked at every 50 ms. Many kernels are built
without netem (CONFIG_NET_SCH_NETEM), which would do this better.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import random
import select
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.end_to_end.namespaces import thread_in_network

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
LOOK_SECONDS = 0.05
MAX_PACKETS = 2000
"""On their way at once; a router's queue is no longer."""
BATCH = 64


def device(pid: int, name: str) -> int:
    """A TUN device in the network of that process."""
    with thread_in_network(pid):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


class SlowLink:
    """Both directions, alike."""

    def __init__(self, one: int, other: int, state: Path) -> None:
        self._other_end = {one: other, other: one}
        self._state = state
        self._looked = float("-inf")
        self._seconds = self._jitter = self._loss = 0.0
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._number = itertools.count()

    def run(self) -> None:
        poll = select.poll()
        for descriptor in self._other_end:
            poll.register(descriptor, select.POLLIN)
        while True:
            now = time.monotonic()
            self._look(now)
            self._deliver(now)
            due = self._under_way[0][0] - now if self._under_way else LOOK_SECONDS
            for descriptor, _ in poll.poll(max(0.0, min(due, LOOK_SECONDS)) * 1000):
                self._take(descriptor)

    def _look(self, now: float) -> None:
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            said = json.loads(self._state.read_text())
            self._seconds, self._jitter = said.get("delay", 0) / 1000, said.get("jitter", 0) / 1000
            self._loss = said.get("loss", 0) / 100

    def _take(self, descriptor: int) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(descriptor, 65535)
            except BlockingIOError:
                return
            if random.random() < self._loss or len(self._under_way) >= MAX_PACKETS:
                continue
            due = time.monotonic() + max(0.0, self._seconds + random.uniform(-self._jitter, self._jitter))
            heapq.heappush(self._under_way, (due, next(self._number), self._other_end[descriptor], packet))

    def _deliver(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            _, _, descriptor, packet = heapq.heappop(self._under_way)
            try:
                os.write(descriptor, packet)
            except OSError:  # its device is not up yet, or the queue is full: lost, as on a wire
                pass


def main() -> None:
    pid, name, other_pid, other_name, state = sys.argv[1:]
    link = SlowLink(device(int(pid), name), device(int(other_pid), other_name), Path(state))
    print("linked", flush=True)
    link.run()


if __name__ == "__main__":
    main()

"""How many examples hypothesis tries: all of them in `make prove`, a third in `make test`."""

from __future__ import annotations

import os


def examples(count: int) -> int:
    """Of `count` examples, as many as this run has time for."""
    return count if "PROVE" in os.environ else count // 3

"""The visitors joined through one client instance, who may have to end together."""

from __future__ import annotations

from collections.abc import Callable

from appliance.service.relay import Joined


class Company:
    """The relay adds each of them, and discards him when he leaves."""

    def __init__(self) -> None:
        self._joined: set[Joined] = set()
        self.emptied: Callable[[Company], object] = _unheard
        """Called with this when the last has left."""

    def __len__(self) -> int:
        return len(self._joined)

    def add(self, joined: Joined) -> None:
        self._joined.add(joined)

    def discard(self, joined: Joined) -> None:
        self._joined.discard(joined)
        if not self._joined:
            self.emptied(self)

    def abort(self) -> None:
        """End all of them."""
        for joined in list(self._joined):
            joined.abort()


def _unheard(_: Company) -> None:
    pass

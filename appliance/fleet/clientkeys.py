"""The key with which a client's own ACME program answers challenges by UPDATE (see `derivedkeys`).

Hides which names such a key may change: the challenges of those that the client's certificate grants, and
nothing when it is revoked or has expired. They are looked up each time, so nothing is kept of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from appliance.dns import names
from appliance.dns.policy import Kind, Policy
from appliance.fleet.derivedkeys import DerivedKeys, KeyFamily

__all__ = ["ClientKeys", "ClientPolicies", "key_of"]

_CLIENTS = KeyFamily("client.internal", b"tunnel-appliance: key of a tunnel client at a nameserver")

key_of = _CLIENTS.key_of


class ClientKeys(DerivedKeys):
    """The keys of all clients at the nameserver with this secret."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(_CLIENTS, secret)


class ClientPolicies(Mapping[bytes, tuple[Policy, ...]]):
    """What each key may change: the `listed` ones what is said there, that of a client its challenges.

    `granted(client_id, serial)` are the names of its certificate of that serial number, none if that is not
    good any more. A walk finds the listed ones.
    """

    def __init__(
        self,
        listed: Mapping[bytes, tuple[Policy, ...]],
        granted: Callable[[str, int], tuple[str, ...]],
    ) -> None:
        self._listed = listed
        self._granted = granted

    def __getitem__(self, name: bytes) -> tuple[Policy, ...]:
        if name in self._listed:
            return self._listed[name]
        found = _CLIENTS.whose(name)
        granted = self._granted(*found) if found is not None else ()
        if not granted:  # a policy of no names would allow all
            raise KeyError(name)
        return (Policy(Kind.ACME, tuple(map(names.from_text, granted))),)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)

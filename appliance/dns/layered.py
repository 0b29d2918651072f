"""A large mapping with a few changes over it: a new version costs what was changed, whatever it is of.

Hidden here: how versions share what they have in common.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()


class Layered(Mapping[K, V]):
    """`under`, with what `over` says of a key in its place; None says that the key is gone. Immutable."""

    __slots__ = ("_count", "over", "under")

    def __init__(self, under: Mapping[K, V], over: dict[K, V | None], count: int) -> None:
        self.under = under
        self.over = over
        self._count = count

    def __getitem__(self, key: K) -> V:
        found = self.get(key, _ABSENT)
        if found is _ABSENT:
            raise KeyError(key)
        return found

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        found = self.over.get(key, _ABSENT)
        if found is _ABSENT:
            return self.under.get(key, default)
        return default if found is None else found

    def __contains__(self, key: object) -> bool:
        found = self.over.get(key, _ABSENT)  # type: ignore[arg-type]
        return key in self.under if found is _ABSENT else found is not None

    def __iter__(self) -> Iterator[K]:
        over = self.over
        yield from (key for key in self.under if key not in over)
        yield from (key for key, value in over.items() if value is not None)

    def __len__(self) -> int:
        return self._count

    # What comes with Mapping looks every key up, which takes four times as long.

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def values(self) -> ValuesView[V]:
        return _Values(self)


class _Items(ItemsView[K, V]):
    _mapping: Layered[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        over = self._mapping.over
        yield from ((key, value) for key, value in self._mapping.under.items() if key not in over)
        yield from ((key, value) for key, value in over.items() if value is not None)


class _Values(ValuesView[V]):
    _mapping: Layered[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.items())


def differing(one: Mapping[K, V], other: Mapping[K, V]) -> set[K] | None:
    """At which keys two mappings can differ that were made of one; None where that is not known."""
    bases = [mapping.under if isinstance(mapping, Layered) else mapping for mapping in (one, other)]
    if bases[0] is not bases[1]:
        return None
    old, new = (mapping.over if isinstance(mapping, Layered) else {} for mapping in (one, other))
    return {key for key in {**old, **new} if old.get(key, _ABSENT) is not new.get(key, _ABSENT)}


def with_changes(mapping: Mapping[K, V], changes: Mapping[K, V | None]) -> Mapping[K, V]:
    """`mapping` with `changes`: a new value for a key, or None where it is gone.

    There are never more than two layers: this costs as much as all that was ever changed of the lower one.
    """
    if not changes:
        return mapping
    count = len(mapping)
    for key, value in changes.items():
        count += (value is not None) - (key in mapping)
    if isinstance(mapping, Layered):
        under: Mapping[K, V] = mapping.under
        over: dict[K, V | None] = {**mapping.over, **changes}
    else:
        under, over = mapping, dict(changes)
    return Layered(under, over, count)

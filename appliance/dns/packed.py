"""A large zone as octets: what is in service is what is on the disk, without a Python object per record.

Hidden here: the format. Behind a head there are the entries, one for each name that is in the zone's records
or shape, then a table of where they are by a hash of the name, then lists of the entries that have something.
It is read in place, so a start costs no more than getting the octets into memory; and being one object it
costs the garbage collector nothing. Only records that are asked for become objects.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from struct import Struct
from typing import Any, Final, TypeVar, cast
from zlib import crc32

from appliance.dns.numbers import SOA
from appliance.dns.zone import Node, RRset, Shape, Zone, soa_minimum, soa_serial, soa_with

# Changed with the format, and with whatever decides what a zone file means.
FORMAT: Final = f"tunnel zone 2 {sys.byteorder}".encode().ljust(32, b"\0")
SOURCE_OCTETS: Final = 32
_DIGEST_OCTETS: Final = 32

# Format, the source's hash, that of the content but for its serial, that of all that follows this head; names
# with records; entries; where the table and the five lists begin, and where the last one ends.
_HEAD: Final = Struct("=32s32s32s32sIIQQQQQQQ")
_FIELDS: Final = Struct("=IIBI")  # children, nameservers, flags, octets of the node
_RRSET: Final = Struct("=HIH")  # type, TTL, count
_U16: Final = Struct("=H")
_U32: Final = Struct("=I")
_CUT, _DNAME, _UNADDRESSED = 1, 2, 4

# What an offset of 32 bits can reach: some 30 million names.
MAX_OCTETS: Final = 1 << 32


V = TypeVar("V", int, bool)


class PackedError(ValueError):
    """These octets are not a packed zone of this version, or not whole."""


def source_of(octets: bytes) -> bytes:
    """The hash by which a packed zone knows the zone file that it was made of."""
    return hashlib.blake2b(octets, digest_size=SOURCE_OCTETS, person=b"zone file").digest()


def pack(zone: Zone, source: bytes) -> bytearray:
    """`zone`, of a file with the hash `source`, as octets. Raises PackedError when it is too large."""
    shape, rrsets = zone.shape, zone.rrsets
    octets = bytearray(_HEAD.size)
    places: dict[bytes, int] = {}
    content = hashlib.blake2b(digest_size=_DIGEST_OCTETS)
    for name in dict.fromkeys(chain(rrsets, shape.children, shape.nameservers)):
        places[name] = len(octets)
        node = zone.node(name)
        encoded = _encoded(node)
        flags = (_CUT if name in shape.cuts else 0) | (_DNAME if name in shape.dnames else 0)
        flags |= _UNADDRESSED if name in shape.unaddressed else 0
        children, nameservers = shape.children.get(name, 0), shape.nameservers.get(name, 0)
        octets.append(len(name))
        octets += name
        octets += _FIELDS.pack(children, nameservers, flags, len(encoded))
        octets += encoded
        if name == zone.apex:
            unnumbered = soa_with(zone.soa, serial=0, minimum=soa_minimum(zone.soa))
            encoded = _encoded({**node, SOA: unnumbered})
        content.update(name + encoded)
    octets += bytes(-len(octets) % 4)
    starts = [len(octets)]
    octets += _table(places)
    for having in (shape.children, shape.nameservers, shape.cuts, shape.dnames, shape.unaddressed):
        starts.append(len(octets))
        octets += b"".join(_U32.pack(places[name]) for name in having)
    starts.append(len(octets))
    if len(octets) >= MAX_OCTETS:
        raise PackedError("the zone is too large")
    whole = _whole(memoryview(octets)[_HEAD.size :])
    counts = len(rrsets), len(places)
    octets[: _HEAD.size] = _HEAD.pack(FORMAT, source, content.digest(), whole, *counts, *starts)
    return octets


def unpack(octets: memoryview, apex: bytes) -> Zone:
    """The zone `apex` in `octets`, which `pack` made and nobody changes."""
    packed = Packed(octets)
    soa = packed[apex][SOA]
    return Zone(apex, soa_serial(soa), packed, packed.shape)


def check(octets: memoryview, source: bytes) -> None:
    """Raises PackedError unless `octets` are whole and of the file with the hash `source`."""
    if len(octets) < _HEAD.size:
        raise PackedError("cut off")
    made_by, made_of, _, whole, *_rest = _HEAD.unpack_from(octets)
    if made_by != FORMAT or made_of != source:
        raise PackedError("of another version, or another file")
    if whole != _whole(octets[_HEAD.size :]):
        raise PackedError("damaged")


class Packed(Mapping[bytes, Node]):
    """The records of a zone by name, as `Zone.rrsets`; and its shape."""

    def __init__(self, octets: memoryview) -> None:
        self.octets = self._octets = octets
        self.content: bytes
        self._count: int
        _, _, self.content, _, self._count, _, table, *lists = _HEAD.unpack_from(octets)
        self._table = octets[table : lists[0]].cast("I")
        self._mask = len(self._table) - 1
        self._names = table  # where the entries end
        flags = (partial(_flag, which) for which in (_CUT, _DNAME, _UNADDRESSED))
        kinds = (_children, _nameservers, *flags)
        having: list[_Having[Any]] = [
            _Having(self, octets[lists[at] : lists[at + 1]].cast("I"), kind) for at, kind in enumerate(kinds)
        ]
        self.shape = Shape(*having)

    def __getitem__(self, name: bytes) -> Node:
        found: Node | None = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: bytes, default: Any = None, /) -> Any:
        at = self.fields_of(name)
        if not at:
            return default
        size = _FIELDS.unpack_from(self._octets, at)[3]
        if not size:
            return default
        start = at + _FIELDS.size
        return _decoded(name, bytes(self._octets[start : start + size]))

    def __contains__(self, name: object) -> bool:
        at = self.fields_of(name) if isinstance(name, bytes) else 0
        return at > 0 and _FIELDS.unpack_from(self._octets, at)[3] > 0

    def __iter__(self) -> Iterator[bytes]:
        at, octets = _HEAD.size, self._octets
        end = self._names - 3  # what is beyond is padding
        while at < end:
            fields = at + 1 + octets[at]
            size = _FIELDS.unpack_from(octets, fields)[3]
            if size:
                yield bytes(octets[at + 1 : fields])
            at = fields + _FIELDS.size + size

    def __len__(self) -> int:
        return self._count

    def fields_of(self, name: bytes) -> int:
        """Where the fields of the entry `name` begin; 0 when there is none."""
        octets, table, mask = self._octets, self._table, self._mask
        wanted = bytes((len(name),)) + name
        size = len(wanted)
        at: int
        slot = crc32(name) & mask
        while at := table[slot]:
            if octets[at : at + size] == wanted:
                return at + size
            slot = (slot + 1) & mask
        return 0

    def name_at(self, at: int) -> bytes:
        """The name of the entry that begins there."""
        return bytes(self._octets[at + 1 : at + 1 + self._octets[at]])

    def fields(self, at: int) -> tuple[int, int, int, int]:
        """Children, nameservers, flags and the octets of the node, as they are there."""
        return _FIELDS.unpack_from(self._octets, at)


class _Having(Mapping[bytes, V]):
    """One field of the entries, as a mapping of those that have it."""

    def __init__(self, packed: Packed, places: memoryview, value: Any) -> None:
        self._packed = packed
        self._places = places
        self._value = value

    def __getitem__(self, name: bytes) -> V:
        at = self._packed.fields_of(name)
        value = cast(V, self._value(self._packed.fields(at)) if at else 0)
        if not value:
            raise KeyError(name)
        return value

    def get(self, name: bytes, default: Any = None, /) -> Any:
        at = self._packed.fields_of(name) if self._places else 0
        return (self._value(self._packed.fields(at)) if at else 0) or default

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and bool(self.get(name))

    def __iter__(self) -> Iterator[bytes]:
        return map(self._packed.name_at, self._places)

    def __len__(self) -> int:
        return len(self._places)


def _children(fields: tuple[int, int, int, int]) -> int:
    return fields[0]


def _nameservers(fields: tuple[int, int, int, int]) -> int:
    return fields[1]


def _flag(which: int, fields: tuple[int, int, int, int]) -> bool:
    return bool(fields[2] & which)


def _encoded(node: Node) -> bytes:
    parts = []
    for rrset in node.values():
        parts.append(_RRSET.pack(rrset.rtype, rrset.ttl, len(rrset.rdatas)))
        for rdata in rrset.rdatas:
            parts += _U16.pack(len(rdata)), rdata
    return b"".join(parts)


def _decoded(name: bytes, octets: bytes) -> dict[int, RRset]:
    node = {}
    at, end = 0, len(octets)
    while at < end:
        rtype, ttl, count = _RRSET.unpack_from(octets, at)
        at += _RRSET.size
        rdatas = []
        for _ in range(count):
            (size,) = _U16.unpack_from(octets, at)
            at += _U16.size + size
            rdatas.append(octets[at - size : at])
        node[rtype] = RRset(name, rtype, ttl, tuple(rdatas))
    return node


def _table(places: Mapping[bytes, int]) -> bytes:
    """Open addressing, at most half full: a slot holds where an entry begins, or 0."""
    size = 4
    while size < 2 * len(places):
        size *= 2
    table = memoryview(bytearray(size * 4)).cast("I")
    for name, place in places.items():
        slot = crc32(name) & size - 1
        while table[slot]:
            slot = (slot + 1) & size - 1
        table[slot] = place
    return table.tobytes()


def _whole(octets: memoryview) -> bytes:
    return hashlib.blake2b(octets, digest_size=_DIGEST_OCTETS).digest()

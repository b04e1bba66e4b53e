"""MessagePack as it was before 2013, which is what memberlist and Serf speak: one *raw* type for text and octets.

Today's decoders take a raw for text and refuse octets that are not UTF-8, so this is a small codec of its own. Rows do
not pass here: vxnet's own messages are msgspec's.

Nothing that a peer sends costs more than its length: counts are checked against the octets that are left before
anything is made, and nesting ends at :data:`MAX_DEPTH`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

MAX_DEPTH = 6

Packable: TypeAlias = Union[bool, int, bytes, str, "Sequence[Packable]", "Mapping[str, Packable]", None]
Unpacked: TypeAlias = Union[bool, int, float, bytes, "list[Unpacked]", "dict[bytes, Unpacked]", None]


class MalformedError(Exception):
    """The peer's fault; never leaves the core: it becomes a counted ``Dropped``."""


class IncompleteError(Exception):
    """More octets are needed: for streams, where it is no fault."""


def pack(value: Packable) -> bytes:
    out = bytearray()
    pack_into(out, value)
    return bytes(out)


def pack_into(out: bytearray, value: Packable) -> None:
    """:func:`pack` at the end of ``out``."""
    if isinstance(value, (bytes, str)):
        raw = value.encode() if isinstance(value, str) else value
        if len(raw) < 32:
            out.append(0xA0 | len(raw))
        else:
            _pack_head(out, len(raw), 0xA0, 32, 0xDA)
        out += raw
    elif value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(out, value)
    elif isinstance(value, Mapping):
        _pack_head(out, len(value), 0x80, 16, 0xDE)
        for key, item in value.items():
            pack_into(out, key)
            pack_into(out, item)
    else:
        _pack_head(out, len(value), 0x90, 16, 0xDC)
        for item in value:
            pack_into(out, item)


def _pack_head(out: bytearray, length: int, fix: int, fix_limit: int, wide: int) -> None:
    if length < fix_limit:
        out.append(fix | length)
    elif length < 1 << 16:
        out += struct.pack(">BH", wide, length)
    else:
        out += struct.pack(">BI", wide + 1, length)


def _pack_int(out: bytearray, value: int) -> None:
    if value < 0:
        if value >= -32:
            out += struct.pack(">b", value)
        else:
            out += struct.pack(">Bq", 0xD3, value)
    elif value < 0x80:
        out.append(value)
    elif value < 1 << 8:
        out += bytes((0xCC, value))
    elif value < 1 << 16:
        out += struct.pack(">BH", 0xCD, value)
    elif value < 1 << 32:
        out += struct.pack(">BI", 0xCE, value)
    else:
        out += struct.pack(">BQ", 0xCF, value)


_FIXED = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_LENGTHS = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
# Newer encoders' bin and str 8 are taken for the raws that they would have been.
_RAWS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}


def unpack(data: bytes, offset: int = 0) -> tuple[Unpacked, int]:
    """(value, offset behind it). Raises :class:`MalformedError`; :class:`IncompleteError` if ``data`` just ends."""
    return _unpack(data, offset, 0)


def unpack_all(data: bytes) -> Unpacked:
    """The one value in ``data``; octets behind it are ignored, as memberlist does. Raises :class:`MalformedError`."""
    try:
        return _unpack(data, 0, 0)[0]
    except IncompleteError as error:
        raise MalformedError("ends in the middle") from error


def _unpack(data: bytes, at: int, depth: int) -> tuple[Unpacked, int]:
    if at >= len(data):
        raise IncompleteError
    if depth > MAX_DEPTH:
        raise MalformedError("nested too deeply")
    head = data[at]
    at += 1
    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 0x100, at
    if 0xA0 <= head < 0xC0:
        return _raw(data, at, head & 0x1F)
    if head < 0x90:
        return _map(data, at, head & 0x0F, depth)
    if head < 0xA0:
        return _array(data, at, head & 0x0F, depth)
    if head in _RAWS:
        length, at = _length(data, at, _RAWS[head])
        return _raw(data, at, length)
    if head in _FIXED:
        layout = _FIXED[head]
        if at + layout.size > len(data):
            raise IncompleteError
        return layout.unpack_from(data, at)[0], at + layout.size
    if head in (0xDC, 0xDD):
        length, at = _length(data, at, 2 if head == 0xDC else 4)
        return _array(data, at, length, depth)
    if head in (0xDE, 0xDF):
        length, at = _length(data, at, 2 if head == 0xDE else 4)
        return _map(data, at, length, depth)
    if head in (0xC0, 0xC2, 0xC3):
        return (None if head == 0xC0 else head == 0xC3), at
    raise MalformedError(f"no such type: {head:#x}")


def _length(data: bytes, at: int, size: int) -> tuple[int, int]:
    if at + size > len(data):
        raise IncompleteError
    return _LENGTHS[size].unpack_from(data, at)[0], at + size


def _raw(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if at + length > len(data):
        raise IncompleteError
    return data[at : at + length], at + length


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Unpacked], int]:
    if count > len(data) - at:
        raise IncompleteError
    items: list[Unpacked] = []
    for _ in range(count):
        item, at = _unpack(data, at, depth + 1)
        items.append(item)
    return items, at


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[bytes, Unpacked], int]:
    if 2 * count > len(data) - at:
        raise IncompleteError
    items: dict[bytes, Unpacked] = {}
    for _ in range(count):
        key, at = _unpack(data, at, depth + 1)
        if not isinstance(key, bytes):
            raise MalformedError("a map's key is no text")
        # Most values are small numbers.
        if at < len(data) and data[at] < 0x80:
            items[key] = data[at]
            at += 1
        else:
            items[key], at = _unpack(data, at, depth + 1)
    return items, at

"""LZW as Go's compress/lzw makes it with LSB order and 8-bit literals: what memberlist compresses with.

vxnet only decodes: its own packets are small, and its rows do not compress well enough to pay for it.

Codes are 9 to 12 bits wide, least significant bit first; 256 clears the table, 257 ends. The width grows with the
*next* code to be given (no early change). Source: the Go standard library's documentation of compress/lzw, GIF89a.
"""

from __future__ import annotations

from vxnet.core.oldpack import MalformedError

_CLEAR, _END, _FIRST = 256, 257, 258
_MAX_WIDTH = 12
_LITERALS = [bytes((octet,)) for octet in range(256)]


def decompress(data: bytes, limit: int) -> bytes:
    """At most ``limit`` octets. Raises :class:`MalformedError` beyond, and on a code that cannot be."""
    out = bytearray()
    table: list[bytes] = []
    width, bits, held = 9, 0, 0
    previous = b""
    for octet in data:
        bits |= octet << held
        held += 8
        if held < width:
            continue
        code = bits & ((1 << width) - 1)
        bits >>= width
        held -= width
        if code < _CLEAR:
            entry = _LITERALS[code]
        elif code == _CLEAR:
            table, width, previous = [], 9, b""
            continue
        elif code == _END:
            return bytes(out)
        elif code - _FIRST < len(table):
            entry = table[code - _FIRST]
        elif code - _FIRST == len(table) and previous:
            entry = previous + previous[:1]
        else:
            raise MalformedError("compressed data refers to what never was")
        out += entry
        if len(out) > limit:
            raise MalformedError("compressed data grows beyond its limit")
        # A full table takes no more entries; the encoder clears it when it sees fit.
        if previous and len(table) + _FIRST < 1 << _MAX_WIDTH:
            table.append(previous + entry[:1])
        previous = entry
        if len(table) + _FIRST >= 1 << width and width < _MAX_WIDTH:
            width += 1
    raise MalformedError("compressed data has no end")

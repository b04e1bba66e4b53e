"""Thousands of netlink messages of one form, written and read by columns and not one by one.

::

    message   header … │ MAC A │ … │ VTEP A │     a column is the same octets of each message: one slice with the
    message   header … │ MAC B │ … │ VTEP B │     message's length as its step, copied by C. Python takes 50 ns a row
    message   header … │ MAC C │ … │ VTEP C │     for it, and 1,500 for a row that it packs or reads by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from vxnet.host.netlink import ATTRIBUTE, HEADER

SEQUENCE_AT = 8
"""Where a netlink header has its sequence number."""


def split(column: bytes, width: int) -> list[bytes]:
    """Its values."""
    return [column[at : at + width] for at in range(0, len(column), width)]


class Block:
    """Messages of one length, behind one another; a multiple of 4 octets each."""

    def __init__(self, template: bytes, count: int) -> None:
        assert len(template) % 4 == 0
        self.data = bytearray(template * count)
        self.stride = len(template)
        self.count = count

    def fill(self, offset: int, values: Sequence[bytes]) -> None:
        """Put one value into each message; all of the same length."""
        column, width = b"".join(values), len(values[0])
        assert len(column) == width * self.count
        for at in range(width):
            self.data[offset + at :: self.stride] = column[at::width]

    def number(self, first: int) -> None:
        """Give the messages sequence numbers from ``first`` on."""
        numbers = array("I", range(first, first + self.count)).tobytes()
        for at in range(4):
            self.data[SEQUENCE_AT + at :: self.stride] = numbers[at::4]

    def __getitem__(self, position: int) -> bytes:
        return bytes(self.data[position * self.stride : (position + 1) * self.stride])


class Same(NamedTuple):
    """A datagram whose messages have the same parts in the same places."""

    data: bytes
    stride: int
    messages: int
    attributes: dict[int, tuple[int, int]]
    """By type: offset and length of the value."""

    def column(self, offset: int, width: int) -> bytes:
        found = bytearray(width * self.messages)
        for at in range(width):
            found[at::width] = self.data[offset + at :: self.stride]
        return bytes(found)

    def values(self, offset: int, width: int) -> list[bytes]:
        return split(self.column(offset, width), width)

    def bodies(self) -> list[bytes]:
        """Without the netlink headers, one by one."""
        return [self.data[at + HEADER.size : at + self.stride] for at in range(0, len(self.data), self.stride)]

    def is_constant(self, offset: int, width: int) -> bool:
        data, stride, count = self.data, self.stride, self.messages
        return all(data[at::stride] == data[at : at + 1] * count for at in range(offset, offset + width))


def same(data: bytes, fixed: int) -> Same | None:
    """How the messages of a datagram are made, if all are made alike; ``fixed``: octets of the part between the
    netlink header and the attributes. None: they are not."""
    if len(data) < HEADER.size + fixed:
        return None
    stride, _kind, _flags, _sequence, _port = HEADER.unpack_from(data)
    if stride % 4 or stride < HEADER.size + fixed or len(data) % stride:
        return None
    count = len(data) // stride
    found: dict[int, tuple[int, int]] = {}
    offset = HEADER.size + fixed
    heads = [(0, 16)]
    while offset < stride:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return None
        found[kind] = offset + 4, length - 4
        heads.append((offset, 4))
        offset += (length + 3) & ~3
    whole = Same(data, stride, count, found)
    return whole if all(whole.is_constant(*head) for head in heads) else None

"""Messages by columns are as messages one by one."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from vxnet.host.columns import Block, same
from vxnet.host.netlink import HEADER, attribute, attributes

FIXED = struct.Struct("=BxxxiHBB")


def one(number: int, mac: bytes, vtep: bytes, state: int = 0x80) -> bytes:
    body = FIXED.pack(7, number, state, 2, 1) + attribute(2, mac) + attribute(1, vtep) + attribute(3, bytes(16))
    return HEADER.pack(HEADER.size + len(body), 28, 2, 9, 0) + body


@given(st.lists(st.tuples(st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4)), min_size=1))
def test_written_by_columns(values: list[tuple[bytes, bytes]]) -> None:
    block = Block(one(3, bytes(6), bytes(4)), len(values))
    block.fill(32, [mac for mac, _ in values])
    block.fill(44, [vtep for _, vtep in values])
    assert [block[at] for at in range(block.count)] == [one(3, mac, vtep) for mac, vtep in values]
    block.number(77)
    assert [HEADER.unpack_from(block[at])[3] for at in range(block.count)] == [*range(77, 77 + len(values))]


@given(st.lists(st.tuples(st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4)), min_size=1))
def test_read_by_columns(values: list[tuple[bytes, bytes]]) -> None:
    found = same(b"".join(one(3, mac, vtep) for mac, vtep in values), FIXED.size)
    assert found is not None and found.messages == len(values)
    assert found.values(*found.attributes[2]) == [mac for mac, _ in values]
    assert found.values(*found.attributes[1]) == [vtep for _, vtep in values]
    assert [attributes(body, FIXED.size)[2] for body in found.bodies()] == [mac for mac, _ in values]
    assert found.is_constant(HEADER.size, FIXED.size)


def test_what_is_not_alike_is_not_taken() -> None:
    mac, vtep = bytes(range(6)), bytes(range(4))
    row = one(3, mac, vtep)
    end = HEADER.pack(20, 3, 2, 9, 0) + bytes(4)
    assert same(row + end, FIXED.size) is None
    # Of the same length, but the attributes are others, or in another order.
    body = FIXED.pack(7, 3, 0x80, 2, 1) + attribute(1, vtep) + attribute(2, mac) + attribute(3, bytes(16))
    assert same(row + HEADER.pack(HEADER.size + len(body), 28, 2, 9, 0) + body, FIXED.size) is None
    other_device = same(row + one(4, mac, vtep), FIXED.size)
    assert other_device is not None and not other_device.is_constant(HEADER.size, FIXED.size)


@given(st.binary(max_size=300))
def test_anything_else_is_refused_and_no_error(data: bytes) -> None:
    found = same(data, FIXED.size)
    assert found is None or found.messages * found.stride == len(data)

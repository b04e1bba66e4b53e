"""Classic BPF: which of the packets that come to a socket it gets (Documentation/networking/filter.rst)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

SO_ATTACH_FILTER = 26
"""include/uapi/asm-generic/socket.h; the socket module has it not."""

Instruction = tuple[int, int, int, int]
"""Code, how many to skip if true and if false, operand (``struct sock_filter``)."""
PASS: Instruction = (0x06, 0, 0, 0xFFFFFFFF)
DROP: Instruction = (0x06, 0, 0, 0)


def attach(one: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on; what has come is in its buffer already. Raises :class:`OSError` on a program that is none."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))

"""Packets in a file as Wireshark reads it: pcapng (draft-ietf-opsawg-pcapng), with the names of hosts and containers.

A name resolution block says who has which address, and each packet carries a comment: which network, from whom to whom.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vxnet.model.address import IPAddress

_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_ETHERNET = 1
_COMMENT, _IF_NAME, _APPLICATION, _RESOLUTION = 1, 2, 4, 9
_IPV4_RECORD, _IPV6_RECORD = 1, 2
_END = b"\0\0\0\0"
NANOSECONDS = 9


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) & 3)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", kind, len(value)) + _padded(value)


def head(interface: str, application: str) -> bytes:
    """What a file begins with: one section, one interface."""
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(_APPLICATION, application.encode()) + _END
    options = _option(_IF_NAME, interface.encode()) + _option(_RESOLUTION, bytes((NANOSECONDS,))) + _END
    return _block(_SECTION, section) + _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0) + options)


def names(known: Mapping[IPAddress, str]) -> bytes:
    records = b""
    for address, name in known.items():
        value = address.packed + name.encode() + b"\0"
        kind = _IPV4_RECORD if address.version == 4 else _IPV6_RECORD
        records += struct.pack("<HH", kind, len(value)) + _padded(value)
    return _block(_NAMES, records + _END)


def packet(frame: bytes, at_ns: int, comment: str, length: int) -> bytes:
    """``at_ns``: since 1970; ``length``: of the whole frame, of which ``frame`` may be the front."""
    head_ = struct.pack("<IIIII", 0, at_ns >> 32, at_ns & 0xFFFFFFFF, len(frame), length)
    options = _option(_COMMENT, comment.encode()) + _END if comment else b""
    return _block(_PACKET, head_ + _padded(frame) + options)

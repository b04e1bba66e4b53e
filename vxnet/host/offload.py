"""Whether a network card is left to compute checksums (ethtool's old ioctls, linux/ethtool.h)."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM = 0x16
ETHTOOL_STXCSUM = 0x17
_VALUE = struct.Struct("=II")


def computes_checksums(interface: str) -> bool:
    """Raises OSError on an interface that cannot say so."""
    return bool(_call(interface, ETHTOOL_GTXCSUM, 0))


def stop_computing_checksums(interface: str) -> None:
    """As ``ethtool -K INTERFACE tx off``: the kernel does it from now on, until the interface is made anew. What
    relies on it (segmentation) goes off with it. Raises OSError."""
    _call(interface, ETHTOOL_STXCSUM, 0)


def _call(interface: str, command: int, value: int) -> int:
    data = ctypes.create_string_buffer(_VALUE.pack(command, value))
    request = struct.pack("16sP", interface.encode()[:15], ctypes.addressof(data)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCETHTOOL, request)
    return int(_VALUE.unpack(data.raw[: _VALUE.size])[1])

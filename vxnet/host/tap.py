"""TAPs: where a bridge's frames come out as bytes, and go in. Linux Documentation/networking/tuntap.rst."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from vxnet.host import netns
from vxnet.model.errors import HostError

DEVICE: Final = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_F_CSUM, _F_TSO4, _F_TSO6, _F_TSO_ECN, _F_USO4, _F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_SEGMENTATION = _F_CSUM | _F_TSO4 | _F_TSO6 | _F_TSO_ECN


class Tap(NamedTuple):
    descriptors: list[int]
    """One a queue, the caller's to close."""
    udp_joins: bool
    """The kernel takes joined UDP (6.2)."""


def open_tap(namespace: int, name: str, queues: int = 1) -> Tap:
    """Make a TAP in a namespace, with checksum and segmentation offloads. It is there as long as a descriptor of it is
    open. Raises HostError.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    request = struct.pack("16sH22x", name.encode(), flags)
    opened: list[int] = []

    def open_queues() -> bool:
        for _ in range(queues):
            opened.append(os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            fcntl.ioctl(opened[-1], _TUNSETIFF, request)
        try:  # UDP: Linux 6.2
            fcntl.ioctl(opened[0], _TUNSETOFFLOAD, _SEGMENTATION | _F_USO4 | _F_USO6)
            return True
        except OSError:
            fcntl.ioctl(opened[0], _TUNSETOFFLOAD, _SEGMENTATION)
            return False

    try:
        return Tap(opened, udp_joins=netns.inside(namespace, open_queues))
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        hint = "the kernel needs CONFIG_TUN: `modprobe tun`" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise HostError(f"cannot make the TAP {name}: {error.strerror}", hint=hint) from error

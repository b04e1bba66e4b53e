"""Ports of this host that are held, so that no other program is given them while they lead to containers.

nftables leads a published port's packets elsewhere before any socket sees them, and the kernel knows nothing of that
when a program binds the port: it would listen, and hear nobody. So each port is bound, and nothing is done with it:

- TCP sockets are bound and do not listen: what passes by the rules (vxnet's table was flushed) is answered by a reset,
  not taken into a queue that nobody reads. Without SO_REUSEADDR, which a second bind would need on both sides.
- UDP sockets get what passes by the rules: a filter drops it.
- IP_FREEBIND holds an address also before the host has it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from vxnet.model.address import IPAddress
from vxnet.model.errors import ConflictError, HostError
from vxnet.model.published import PortProtocol, PublishedPort

_FREEBIND: Final = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
"""include/uapi/linux/in.h IP_FREEBIND, in6.h IPV6_FREEBIND; the socket module has neither."""
_ATTACH_FILTER: Final = 26
"""SO_ATTACH_FILTER."""
_NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENODEV})
"""No IPv6, or no such link: there is nothing that could be taken."""
_ANY: Final = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))


class Door(NamedTuple):
    """What one socket holds."""

    protocol: PortProtocol
    number: int
    address: IPAddress
    interface: str = ""

    def __str__(self) -> str:
        place = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        where = "" if self.address.is_unspecified else f"{place}:"
        return f"{where}{self.number}/{self.protocol}{f' on {self.interface}' if self.interface else ''}"


def doors(port: PublishedPort) -> tuple[Door, ...]:
    """All that a published port takes of the host."""
    return tuple(Door(port.protocol, port.published, one, port.interface) for one in port.addresses or _ANY)


def hold(door: Door) -> socket.socket | None:
    """Until the socket is closed. None: nobody can have it here. Raises :class:`ConflictError` if somebody has, else
    :class:`HostError`.
    """
    try:
        return _bound(door, reuse=False)
    except OSError as error:
        if error.errno in _NO_FAMILY:
            return None
        if error.errno != errno.EADDRINUSE:
            raise HostError(f"cannot hold port {door}: {error.strerror}") from error
    if door.protocol == "tcp":
        # Only connections that have just ended, it may be: those allow a second bind.
        with contextlib.suppress(OSError):
            return _bound(door, reuse=True)
    raise ConflictError(f"port {door} is taken by another program")


def _bound(door: Door, *, reuse: bool) -> socket.socket:
    family = socket.AF_INET if door.address.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if door.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(*_FREEBIND[door.address.version], 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if door.interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, door.interface.encode())
        if kind == socket.SOCK_DGRAM:
            _take_nothing(sock)
        sock.bind((str(door.address), door.number))
    except BaseException:
        sock.close()
        raise
    return sock


def _take_nothing(sock: socket.socket) -> None:
    """A classic BPF program of one instruction: return 0 octets of each packet."""
    program = array("B", struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 1, program.buffer_info()[0]))


# Who it is


def holder(number: int, protocol: PortProtocol) -> str:
    """``sshd (process 812)``: who has a port of this host; empty if that cannot be told. Reads /proc, which takes
    milliseconds where there are many processes.
    """
    inodes = {inode for family in ("", "6") for inode in _sockets(f"/proc/thread-self/net/{protocol}{family}", number)}
    for pid in _pids() if inodes else ():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target.startswith("socket:[") and target[8:-1] in inodes:
                        name = Path(f"/proc/{pid}/comm").read_text().strip()
                        return f"{name} (process {pid})"
    return ""


def _sockets(table: str, number: int) -> Iterator[str]:
    """Inodes of those with this local port: fields 2 and 10 of proc_pid_net(5)."""
    with contextlib.suppress(OSError), open(table) as lines:
        next(lines, "")
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == number and fields[9] != "0":
                yield fields[9]


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]

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
import functools
import ipaddress
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from vxnet.host import bpf
from vxnet.model.address import IPAddress
from vxnet.model.cluster import TakenPort
from vxnet.model.errors import ConflictError, HostError
from vxnet.model.published import PortProtocol, PublishedPort

_FREEBIND: Final = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
"""include/uapi/linux/in.h IP_FREEBIND, in6.h IPV6_FREEBIND; the socket module has neither."""
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


def link_of(door: Door) -> int:
    """The number of the link that it is bound to; 0: there is none now, or it is bound to none."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(door.interface)
    return 0


def lacking(door: Door) -> str:
    """``address`` or ``link``: what this host has not, so that nobody comes to the door now; empty: nothing."""
    if door.interface:
        return "" if link_of(door) else "link"
    family = socket.AF_INET if door.address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.bind((str(door.address), 0))
    except OSError as error:
        return "address" if error.errno == errno.EADDRNOTAVAIL and not door.address.is_unspecified else ""
    return ""


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
            bpf.attach(sock, (bpf.DROP,))
        sock.bind((str(door.address), door.number))
        if reuse:  # for the bind alone: a server that says the same could bind the port, too, and listen
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        sock.close()
        raise
    return sock


# Who it is


class _Socket(NamedTuple):
    protocol: PortProtocol
    state: str
    address: IPAddress
    number: int
    inode: str


def holder(number: int, protocol: PortProtocol) -> str:
    """``sshd (process 812)``: who has a port of this host; empty if that cannot be told. Reads /proc, which takes
    milliseconds where there are many processes.
    """
    inodes = frozenset(one.inode for one in _sockets() if (one.number, one.protocol) == (number, protocol))
    return next((f"{name} (process {pid})" for name, pid in _processes(inodes).values()), "")


def listeners() -> tuple[TakenPort, ...]:
    """The ports of this host's programs, but this process's own, and those that come and go with clients."""
    found = [one for one in _sockets() if one.state == _LISTENS[one.protocol] and one.number < CLIENTS_FROM]
    holders = _processes(frozenset(one.inode for one in found))
    taken = set()
    for one in found:
        name, pid = holders.get(one.inode, ("another program", 0))
        if pid != os.getpid():
            # A socket on :: takes IPv4's connections as well, as a rule.
            address = None if one.address == _ANY[1] else one.address
            taken.add(TakenPort(number=one.number, protocol=one.protocol, address=address, holder=name))
    return tuple(sorted(taken, key=lambda one: (one.protocol, one.number, str(one.address), one.holder)))


CLIENTS_FROM: Final = 32768
"""The first port that the kernel gives to clients (ip_local_port_range)."""
_LISTENS: Final[dict[PortProtocol, str]] = {"tcp": "0A", "udp": "07"}
"""States in proc_pid_net(5): TCP_LISTEN; and TCP_CLOSE, which is a UDP socket without a peer."""


def _sockets() -> Iterator[_Socket]:
    """All of this network namespace that a process has: fields 2, 4 and 10 of proc_pid_net(5)."""
    for protocol, family in itertools.product(_LISTENS, ("", "6")):
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{protocol}{family}") as lines:
            next(lines, "")
            for line in lines:
                _, local, _, state, *_, inode = line.split()[:10]
                address, _, number = local.partition(":")
                if inode != "0":
                    yield _Socket(protocol, state, _address(address), int(number, 16), inode)


def _address(text: str) -> IPAddress:
    """32-bit words in the host's order."""
    words = struct.unpack(f"={len(text) // 8}I", bytes.fromhex(text))
    return ipaddress.ip_address(struct.pack(f">{len(words)}I", *words))


@functools.lru_cache(maxsize=1)
def _processes(inodes: frozenset[str]) -> Mapping[str, tuple[str, int]]:
    """(name, pid) of those who have these sockets, by inode. The same ones are looked up once."""
    found: dict[str, tuple[str, int]] = {}
    for pid in [name for name in os.listdir("/proc") if name.isdecimal()] if inodes else ():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inode = os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").removesuffix("]")
                    if inode in inodes:
                        found[inode] = Path(f"/proc/{pid}/comm").read_text().strip(), int(pid)
    return found

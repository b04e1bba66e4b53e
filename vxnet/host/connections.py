"""TCP connections to a server of this host, ended from outside: of those who would not be let in any more.

Format: sock_diag(7), include/uapi/linux/inet_diag.h of the kernel.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection

from vxnet.host.netlink import Netlink, message
from vxnet.model.address import IPAddress
from vxnet.model.errors import HostError

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21

_REQUEST = struct.Struct("=BBBBI")
"""family, protocol, extensions, padding, states; the socket's identity follows"""
_IDENTITY = struct.Struct("!HH16s16s12s")
"""own port, other port, own address, other address; link and cookie"""
_STATES = 1 << 1 | 1 << 3
"""established, and being opened"""
_HEAD = 4


def cut_others(ports: Collection[int], kept: Collection[IPAddress]) -> int:
    """End the connections to these ports of this host but those that come from itself or ``kept``; how many. Raises
    :class:`HostError` where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
    """
    try:
        with Netlink(protocol=NETLINK_SOCK_DIAG) as netlink:
            found = [
                _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES) + identity
                for family in (socket.AF_INET, socket.AF_INET6)
                for port in ports
                for identity in _connections(netlink, family, port, kept)
            ]
            failures = netlink.batch([message(SOCK_DESTROY, 0, one) for one in found])
    except OSError as error:
        raise HostError(f"connections cannot be ended: {error.strerror}") from error
    for number, words in failures.values():
        if number not in (0, errno.ENOENT):  # it has ended by itself
            raise HostError(f"the kernel does not end connections: {words or errno.errorcode.get(number, number)}")
    return len(found) - len(failures)


def _connections(netlink: Netlink, family: int, port: int, kept: Collection[IPAddress]) -> list[bytes]:
    """Their identities."""
    wanted = _IDENTITY.pack(port, 0, b"", b"", b"\xff" * 12)
    found = []
    for body in netlink.dump(SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES) + wanted):
        identity = body[_HEAD : _HEAD + _IDENTITY.size]
        own_port, _, own, other, _ = _IDENTITY.unpack(identity)
        address, local = _address(family, other), _address(family, own)
        if own_port == port and address not in kept and address != local and not address.is_loopback:
            found.append(identity)
    return found


def _address(family: int, packed: bytes) -> IPAddress:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(packed[:4])
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address

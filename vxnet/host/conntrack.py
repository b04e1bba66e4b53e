"""Flows that conntrack keeps on the way to a backend that is no more.

A connection's backend is chosen once, with its first packet. TCP notices when that is gone; a UDP client that goes on
sending from its port would send into the void for ever (kubernetes#139628: 13 hours). So its entry is deleted, and the
next packet chooses anew. Entries are compared with the wish each time, rather than deleted with the event that ends a
backend, which may be missed. Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h of the kernel.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Collection, Mapping

from vxnet.host.netlink import NLA_F_NESTED, Netlink, attribute, attributes, message
from vxnet.model.address import IPAddress
from vxnet.model.host import VIP_MARK

_SUBSYSTEM = 1 << 8
IPCTNL_MSG_CT_GET = _SUBSYSTEM | 1
IPCTNL_MSG_CT_DELETE = _SUBSYSTEM | 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK, CTA_MARK_MASK = 1, 2, 8, 21
_IP, _PROTO = 1, 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_NUMBER = 1

Backends = Mapping[IPAddress, Collection[IPAddress]]
"""By virtual IP: to whom its flows may go on."""


def forget_stale(netlink: Netlink, backends: Backends) -> list[str]:
    """Delete the UDP flows through a virtual IP to somebody who is none of its backends; in words. ``netlink``: of
    NETLINK_NETFILTER, in the client's namespace. Raises OSError. The kernel walks through the flows of all namespaces
    for it, some 5 ms.
    """
    forgotten = []
    mark = struct.pack("!I", VIP_MARK)
    asked = _head(socket.AF_UNSPEC) + attribute(CTA_MARK, mark) + attribute(CTA_MARK_MASK, mark)
    deletions = []
    for body in netlink.dump(IPCTNL_MSG_CT_GET, asked):
        parts = attributes(body, 4)
        original = parts[CTA_TUPLE_ORIG]
        if attributes(attributes(original)[_PROTO])[_NUMBER][0] != socket.IPPROTO_UDP:
            continue
        address = _address(original, _V4_DESTINATION, _V6_DESTINATION)
        backend = _address(parts[CTA_TUPLE_REPLY], _V4_SOURCE, _V6_SOURCE)
        if backend not in backends.get(address, ()):
            nested = attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, original)
            deletions.append(message(IPCTNL_MSG_CT_DELETE, 0, _head(body[0]) + nested))
            forgotten.append(f"udp flow to {address} by way of {backend}")
    netlink.batch(deletions)  # refused: it has ended by itself
    return forgotten


def _head(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)


def _address(flow: bytes, v4: int, v6: int) -> IPAddress:
    addresses = attributes(attributes(flow)[_IP])
    return ipaddress.ip_address(addresses[v4] if v4 in addresses else addresses[v6])

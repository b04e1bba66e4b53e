"""Addresses and routes of links, both families by one path.

What vxnet sets carries its protocol number, so that it knows its own: IFA_PROTO (from Linux 5.18 on) and rtm_protocol.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from vxnet.host.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attribute_u32,
    attributes,
    message,
)
from vxnet.model.address import IPAddress, IPInterface, IPNetwork

RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_FLAGS = 8
IFA_PROTO = 11
IFA_F_NODAD = 0x02
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_METRICS = 8
RTAX_MTU = 2
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTM_F_FIB_MATCH = 0x2000

PROTOCOL = 118
"""The ``v`` of vxnet; free in /etc/iproute2/rt_protos."""

_IFADDR = struct.Struct("=BBBBi")
"""family, prefix length, flags, scope, index"""
_RTMSG = struct.Struct("=BBBBBBBBI")
"""family, destination length, source length, tos, table, protocol, scope, type, flags"""


class Address(NamedTuple):
    ifindex: int
    """Of the link."""
    interface: IPInterface
    scope: int
    ours: bool


class Route(NamedTuple):
    """Of the main table."""

    destination: IPNetwork
    via: IPAddress | None
    ifindex: int
    """Of the link; 0: of several, or none."""
    priority: int
    ours: bool


def family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def dump(netlink: Netlink, index: int = 0) -> list[Address]:
    """Addresses of one link, or of all (0)."""
    found = []
    for body in netlink.dump(RTM_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, index)):
        _family, length, _flags, scope, link = _IFADDR.unpack_from(body)
        parts = attributes(body, _IFADDR.size)
        raw = parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS)
        if raw is not None:
            ours = parts.get(IFA_PROTO) == bytes((PROTOCOL,))
            found.append(Address(link, ipaddress.ip_interface((raw, length)), scope, ours))
    return found


def _address(kind: int, flags: int, index: int, interface: IPInterface) -> bytes:
    packed = interface.packed
    body = _IFADDR.pack(family(interface.ip), interface.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed) + attribute(IFA_PROTO, bytes((PROTOCOL,)))
    if interface.version == 6:
        # No other host can have it, and detection would delay the first bind by a second.
        body += attribute_u32(IFA_FLAGS, IFA_F_NODAD)
    return message(kind, flags, body)


def add(index: int, interface: IPInterface) -> bytes:
    return _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, interface)


def delete(index: int, interface: IPInterface) -> bytes:
    return _address(RTM_DELADDR, 0, index, interface)


def dump_routes(netlink: Netlink) -> list[Route]:
    """Unicast routes of the main table."""
    found = []
    for kind in (socket.AF_INET, socket.AF_INET6):
        for body in netlink.dump(RTM_GETROUTE, _RTMSG.pack(kind, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)):
            _family, length, _source, _tos, table, protocol, _scope, sort, _flags = _RTMSG.unpack_from(body)
            if table != RT_TABLE_MAIN or sort != RTN_UNICAST:
                continue
            parts = attributes(body, _RTMSG.size)
            destination = parts.get(RTA_DST, bytes(4 if kind == socket.AF_INET else 16))
            gateway = parts.get(RTA_GATEWAY)
            found.append(
                Route(
                    destination=ipaddress.ip_network((destination, length)),
                    via=None if gateway is None else ipaddress.ip_address(gateway),
                    ifindex=_u32(parts.get(RTA_OIF)),
                    priority=_u32(parts.get(RTA_PRIORITY)),
                    ours=protocol == PROTOCOL,
                )
            )
    return found


def _u32(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=I", raw)[0])


def _default(kind: int, flags: int, via: IPAddress, index: int) -> bytes:
    body = _RTMSG.pack(family(via), 0, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    return message(kind, flags, body + attribute(RTA_GATEWAY, via.packed) + attribute_u32(RTA_OIF, index))


def add_default(via: IPAddress, index: int) -> bytes:
    """A default route; refused (EEXIST) where somebody else's is in its place."""
    return _default(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, via, index)


def delete_default(via: IPAddress, index: int) -> bytes:
    return _default(RTM_DELROUTE, 0, via, index)


def _link(kind: int, flags: int, prefix: IPNetwork, index: int) -> bytes:
    version, length = family(prefix.network_address), prefix.prefixlen
    body = _RTMSG.pack(version, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_LINK, RTN_UNICAST, 0)
    return message(
        kind, flags, body + attribute(RTA_DST, prefix.network_address.packed) + attribute_u32(RTA_OIF, index)
    )


def add_link(prefix: IPNetwork, index: int) -> bytes:
    """A prefix whose addresses are on the link itself; refused (EEXIST) where somebody else's route has its place."""
    return _link(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, prefix, index)


def delete_link(prefix: IPNetwork, index: int) -> bytes:
    return _link(RTM_DELROUTE, 0, prefix, index)


class Path(NamedTuple):
    ifindex: int
    """Of the link that a packet leaves by."""
    mtu: int | None
    """That the route itself sets."""


def paths(netlink: Netlink, destinations: list[IPAddress]) -> list[Path | None]:
    """By which configured route each is reached; None: by none. What the kernel learnt of path MTUs stays out of it."""
    questions = [
        message(
            RTM_GETROUTE,
            0,
            _RTMSG.pack(family(one), one.max_prefixlen, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
            + attribute(RTA_DST, one.packed),
        )
        for one in destinations
    ]
    found: list[Path | None] = []
    for body in netlink.ask(questions):
        if body is None:
            found.append(None)
            continue
        parts = attributes(body, _RTMSG.size)
        metric = attributes(parts.get(RTA_METRICS, b"")).get(RTAX_MTU)
        found.append(Path(_u32(parts.get(RTA_OIF)), None if metric is None else _u32(metric)))
    return found

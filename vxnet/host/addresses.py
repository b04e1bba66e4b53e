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
RTA_PREFSRC = 7
RTA_METRICS = 8
RTAX_MTU = 2
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
PRIORITY_IPV6 = 1024
"""Of IPv6 routes that are given none (IP6_RT_PRIO_USER)."""
RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_UNREACHABLE = 7
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
    """Of one table."""

    destination: IPNetwork
    via: IPAddress | None
    ifindex: int
    """Of the link; 0: of several, or none."""
    priority: int
    ours: bool
    source: IPAddress | None = None
    """Of what leaves by it and has none yet."""
    unreachable: bool = False
    """It leads nowhere, and who asks for it is told so at once."""


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


def dump_routes(netlink: Netlink, table: int = RT_TABLE_MAIN) -> list[Route]:
    """Unicast routes of a table, and those that say *unreachable*."""
    found = []
    for kind in (socket.AF_INET, socket.AF_INET6):
        for body in netlink.dump(RTM_GETROUTE, _RTMSG.pack(kind, 0, 0, 0, table, 0, 0, 0, 0)):
            _family, length, _source, _tos, number, protocol, _scope, sort, _flags = _RTMSG.unpack_from(body)
            if number != table or sort not in (RTN_UNICAST, RTN_UNREACHABLE):
                continue
            parts = attributes(body, _RTMSG.size)
            destination = parts.get(RTA_DST, bytes(4 if kind == socket.AF_INET else 16))
            gateway, source = parts.get(RTA_GATEWAY), parts.get(RTA_PREFSRC)
            found.append(
                Route(
                    destination=ipaddress.ip_network((destination, length)),
                    via=None if gateway is None else ipaddress.ip_address(gateway),
                    # For IPv6 the kernel says that what is unreachable leaves by lo.
                    ifindex=0 if sort == RTN_UNREACHABLE else _u32(parts.get(RTA_OIF)),
                    priority=_u32(parts.get(RTA_PRIORITY)),
                    ours=protocol == PROTOCOL,
                    source=None if source is None else ipaddress.ip_address(source),
                    unreachable=sort == RTN_UNREACHABLE,
                )
            )
    return found


def _u32(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=I", raw)[0])


def _default(kind: int, flags: int, route: Route, table: int) -> bytes:
    assert route.via is not None
    body = _RTMSG.pack(family(route.via), 0, 0, 0, table, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body += attribute(RTA_GATEWAY, route.via.packed) + attribute_u32(RTA_OIF, route.ifindex)
    if route.source is not None:
        body += attribute(RTA_PREFSRC, route.source.packed)
    if route.priority:
        body += attribute_u32(RTA_PRIORITY, route.priority)
    return message(kind, flags, body)


def default(via: IPAddress, index: int, source: IPAddress | None = None, priority: int = 0) -> Route:
    """``priority`` 0: the kernel's own for the family."""
    return Route(ipaddress.ip_network((bytes(via.max_prefixlen // 8), 0)), via, index, priority, True, source)


def add_default(route: Route, table: int = RT_TABLE_MAIN) -> bytes:
    """A default route; refused (EEXIST) where somebody else's is in its place."""
    return _default(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route, table)


def delete_default(route: Route, table: int = RT_TABLE_MAIN) -> bytes:
    return _default(RTM_DELROUTE, 0, route, table)


def _prefix(kind: int, flags: int, prefix: IPNetwork, index: int) -> bytes:
    scope, sort = (RT_SCOPE_LINK, RTN_UNICAST) if index else (RT_SCOPE_UNIVERSE, RTN_UNREACHABLE)
    version, length = family(prefix.network_address), prefix.prefixlen
    body = _RTMSG.pack(version, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, sort, 0)
    body += attribute(RTA_DST, prefix.network_address.packed)
    return message(kind, flags, body + attribute_u32(RTA_OIF, index) if index else body)


def add_prefix(prefix: IPNetwork, index: int) -> bytes:
    """A prefix whose addresses are on the link itself, or *unreachable* (``index`` 0); refused (EEXIST) where somebody
    else's route has its place."""
    return _prefix(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, prefix, index)


def delete_prefix(prefix: IPNetwork, index: int) -> bytes:
    return _prefix(RTM_DELROUTE, 0, prefix, index)


def add_loopback(index: int) -> bytes:
    """Make ::1 an address of this link, too, as far as what comes by it is concerned. Input routing takes a loopback
    address for the very interface's alone, and drops what conntrack has just turned back to it."""
    body = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0)
    body += attribute(RTA_DST, ipaddress.IPv6Address(1).packed) + attribute_u32(RTA_OIF, index)
    return message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


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


RTM_NEWRULE = 32
RTM_DELRULE = 33
RTM_GETRULE = 34
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FR_ACT_TO_TBL = 1
_RULE = struct.Struct("=BBBBBxxBI")
"""family, destination length, source length, tos, table, action, flags"""


class Rule(NamedTuple):
    """What has this mark is routed by that table."""

    version: int
    mark: int
    mask: int
    table: int
    priority: int


def dump_rules(netlink: Netlink) -> list[Rule]:
    """vxnet's own."""
    found = []
    for version, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        for body in netlink.dump(RTM_GETRULE, _RULE.pack(kind, 0, 0, 0, 0, 0, 0)):
            parts = attributes(body, _RULE.size)
            if parts.get(FRA_PROTOCOL) == bytes((PROTOCOL,)):
                numbers = (_u32(parts.get(name)) for name in (FRA_FWMARK, FRA_FWMASK, FRA_TABLE, FRA_PRIORITY))
                found.append(Rule(version, *numbers))
    return found


def add_rule(rule: Rule) -> bytes:
    return _rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule)


def delete_rule(rule: Rule) -> bytes:
    return _rule(RTM_DELRULE, 0, rule)


def _rule(kind: int, flags: int, rule: Rule) -> bytes:
    body = _RULE.pack(socket.AF_INET if rule.version == 4 else socket.AF_INET6, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    numbers = {FRA_FWMARK: rule.mark, FRA_FWMASK: rule.mask, FRA_TABLE: rule.table, FRA_PRIORITY: rule.priority}
    body += b"".join(attribute_u32(name, number) for name, number in numbers.items())
    return message(kind, flags, body + attribute(FRA_PROTOCOL, bytes((PROTOCOL,))))

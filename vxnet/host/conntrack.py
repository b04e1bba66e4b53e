"""Flows that conntrack keeps on the way to a backend that is no more.

A connection's backend is chosen once, with its first packet. TCP notices when that is gone; a UDP client that goes on
sending from its port would send into the void for ever (kubernetes#139628: 13 hours), and so would a TCP client whose
first packet got no answer, as long as it tries. So its entry is deleted, and the next packet chooses anew. Entries are
compared with the wish each time, rather than deleted with the event that ends a backend, which may be missed.

The kernel chooses what it tells (:data:`UNANSWERED`, :data:`UDP`): a busy host has tens of thousands of connections
that nobody asks for, and to read one here costs 10 µs. What it tells is looked at all the same, as older kernels choose
nothing. Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h of the kernel.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from vxnet.host.netlink import NLA_F_NESTED, Netlink, attribute, attribute_u32, attributes, message
from vxnet.model.address import IPAddress
from vxnet.model.host import VIP_MARK

_SUBSYSTEM = 1 << 8
IPCTNL_MSG_CT_GET = _SUBSYSTEM | 1
IPCTNL_MSG_CT_DELETE = _SUBSYSTEM | 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_MARK = 1, 2, 3, 4, 8
CTA_MARK_MASK, CTA_FILTER, CTA_STATUS_MASK = 21, 25, 26
_FILTER_ORIGINAL, _BY_PROTOCOL = 1, 1 << 3
_SEEN_REPLY = struct.pack("!I", 1 << 1)
_IP, _PROTO = 1, 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_NUMBER, _DESTINATION_PORT = 1, 3
_TCP, _STATE = 1, 1
_SYN_SENT = 1
_MARK = struct.pack("!I", VIP_MARK)
_UNMARKED = struct.pack("!I", 0)


def _udp() -> bytes:
    protocol = attribute(_PROTO | NLA_F_NESTED, attribute(_NUMBER, bytes((socket.IPPROTO_UDP,))))
    chosen = attribute_u32(_FILTER_ORIGINAL, _BY_PROTOCOL)
    return attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, protocol) + attribute(CTA_FILTER | NLA_F_NESTED, chosen)


Question = tuple[int, bytes]
"""A family, and which of its flows the kernel shall tell. It walks through all of them for each, 5 ms."""
UNANSWERED: Question = (
    socket.AF_UNSPEC,
    attribute(CTA_STATUS, bytes(4)) + attribute(CTA_STATUS_MASK, _SEEN_REPLY),
)
"""Those whose first packet got no answer (the kernel chooses from Linux 5.15 on)."""
UDP: Mapping[int, Question] = {4: (socket.AF_INET, _udp()), 6: (socket.AF_INET6, _udp())}
"""By IP version (Linux 5.8)."""

Backends = Mapping[IPAddress, Collection[IPAddress]]
"""By virtual IP: to whom its flows may go on."""


class Flow(NamedTuple):
    protocol: int
    address: IPAddress
    """That the client sends to."""
    port: int
    backend: IPAddress
    """Where that goes."""

    def __str__(self) -> str:
        name = "udp" if self.protocol == socket.IPPROTO_UDP else "tcp"
        return f"{name} flow to {self.address} by way of {self.backend}"


def forget_stale(netlink: Netlink, backends: Backends, versions: Iterable[int]) -> list[str]:
    """UDP's of these IP versions through a virtual IP to somebody who is none of its backends: :func:`forget`. What
    came by the routing mesh may have the same bit in its mark, but nobody changed its destination here.
    """
    return forget(
        netlink,
        lambda flow: flow.backend != flow.address and flow.backend not in backends.get(flow.address, ()),
        [UDP[version] for version in versions],
    )


def forget(netlink: Netlink, is_stale: Callable[[Flow], bool], questions: Iterable[Question]) -> list[str]:
    """Delete those of vxnet's flows that are; in words. ``netlink``: of NETLINK_NETFILTER, in the namespace. Raises
    OSError. The kernel walks through the flows of all namespaces for it. TCP's are left alone once they were answered.
    """
    return _delete(netlink, [(flow, body) for flow, body in _flows(netlink, _MARK, questions) if is_stale(flow)])


class End(NamedTuple):
    """Where a port of this host leads to."""

    port: int
    backend: IPAddress


def forget_ended(netlink: Netlink, ends: Collection[End]) -> list[str]:
    """Delete the UDP flows that came by these ports and go to these backends."""
    found = [
        (flow, body)
        for flow, body in _flows(netlink, _UNMARKED, UDP.values())
        if flow.protocol == socket.IPPROTO_UDP and flow.backend != flow.address and End(flow.port, flow.backend) in ends
    ]
    return _delete(netlink, found)


def forget_untranslated(netlink: Netlink, ports: Collection[int], own: Collection[IPAddress]) -> list[str]:
    """Delete the UDP flows to these ports of the host that began before vxnet knew them, so that the next packet is led
    to a backend. A client that never stops sending would never be heard. ``own``: the host's addresses; what it asks
    or forwards to the same port of others is left alone.
    """
    found = [
        (flow, body)
        for flow, body in _flows(netlink, _UNMARKED, UDP.values())
        if flow.protocol == socket.IPPROTO_UDP
        and flow.port in ports
        and flow.backend == flow.address
        and (flow.address in own or flow.address.is_loopback)
    ]
    return _delete(netlink, found)


def _flows(netlink: Netlink, mark: bytes, questions: Iterable[Question]) -> Iterator[tuple[Flow, bytes]]:
    told = {attributes(body, 4)[CTA_TUPLE_ORIG]: body for one in questions for body in _ask(netlink, mark, one)}
    for original, body in told.items():
        parts = attributes(body, 4)
        protocol = attributes(attributes(original)[_PROTO])
        number = protocol[_NUMBER][0]
        if number == socket.IPPROTO_TCP:
            state = attributes(attributes(parts.get(CTA_PROTOINFO, b"")).get(_TCP, b"")).get(_STATE, b"\0")[0]
            if state != _SYN_SENT:
                continue
        elif number != socket.IPPROTO_UDP:
            continue
        address = _address(original, _V4_DESTINATION, _V6_DESTINATION)
        backend = _address(parts[CTA_TUPLE_REPLY], _V4_SOURCE, _V6_SOURCE)
        yield Flow(number, address, int.from_bytes(protocol[_DESTINATION_PORT], "big"), backend), body


def _ask(netlink: Netlink, mark: bytes, question: Question) -> list[bytes]:
    family, chosen = question
    asked = _head(family) + attribute(CTA_MARK, mark) + attribute(CTA_MARK_MASK, _MARK)
    try:
        return netlink.dump(IPCTNL_MSG_CT_GET, asked + chosen)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return netlink.dump(IPCTNL_MSG_CT_GET, asked)


def _delete(netlink: Netlink, flows: Collection[tuple[Flow, bytes]]) -> list[str]:
    deletions = [
        message(
            IPCTNL_MSG_CT_DELETE,
            0,
            _head(body[0]) + attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, attributes(body, 4)[CTA_TUPLE_ORIG]),
        )
        for _flow, body in flows
    ]
    netlink.batch(deletions)  # refused: it has ended by itself
    return [str(flow) for flow, _body in flows]


def _head(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)


def _address(flow: bytes, v4: int, v6: int) -> IPAddress:
    addresses = attributes(attributes(flow)[_IP])
    return ipaddress.ip_address(addresses[v4] if v4 in addresses else addresses[v6])

"""Which flows are forgotten, and how many of the others are read for it."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

import pytest

from tests.host.throwaway import Place
from vxnet.host import conntrack, elements
from vxnet.host.conntrack import CTA_FILTER, CTA_MARK, CTA_STATUS, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, UDP, UNANSWERED
from vxnet.host.netlink import NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, attributes, message
from vxnet.model.host import VIP_MARK

pytestmark = pytest.mark.host

NEW = conntrack.IPCTNL_MSG_CT_GET - 1
CTA_PROTOINFO, CTA_TIMEOUT = 4, 7
TCP_SYN_SENT, TCP_ESTABLISHED = 1, 3
IPS_SEEN_REPLY, IPS_CONFIRMED = 1 << 1, 1 << 3
MANY = 1000
EVERYTHING = (UNANSWERED, *UDP.values())


def nested(kind: int, *inside: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(inside))


def entry(
    protocol: int, port: int, *, answered: bool, version: int = 4, mark: int = VIP_MARK, backend: str = ""
) -> bytes:
    """A request for a flow from ``port`` of a client to port 80 or 53 of a host, which goes to ``backend``."""
    client, host, end = ("192.0.2.9", "192.0.2.1", "10.0.0.7") if version == 4 else ("fd00::9", "fd00::1", "fd00:a::7")
    first, second = (1, 2) if version == 4 else (3, 4)
    at = 80 if protocol == socket.IPPROTO_TCP else 53

    def tuple_(kind: int, source: str, source_port: int, to: str, to_port: int) -> bytes:
        ends = (attribute(one, ipaddress.ip_address(text).packed) for one, text in ((first, source), (second, to)))
        ports = (attribute(one, struct.pack("!H", number)) for one, number in ((2, source_port), (3, to_port)))
        return nested(kind, nested(1, *ends), nested(2, attribute(1, bytes((protocol,))), *ports))

    body = conntrack._head(socket.AF_INET if version == 4 else socket.AF_INET6)
    body += tuple_(CTA_TUPLE_ORIG, client, port, host, at) + tuple_(CTA_TUPLE_REPLY, backend or end, at, client, port)
    status = IPS_CONFIRMED | (IPS_SEEN_REPLY if answered else 0)
    numbers = ((CTA_STATUS, status), (CTA_MARK, mark), (CTA_TIMEOUT, 600))
    body += b"".join(attribute(kind, struct.pack("!I", number)) for kind, number in numbers)
    if protocol == socket.IPPROTO_TCP:
        state = bytes((TCP_ESTABLISHED if answered else TCP_SYN_SENT,))
        body += nested(CTA_PROTOINFO, nested(1, attribute(1, state)))
    return message(NEW, NLM_F_CREATE | NLM_F_EXCL, body)


class Reader(Netlink):
    """Counts what it is told. As older kernels: refuses what they refuse, or does not look at it."""

    def __init__(self, place: Place, *, without: Iterable[int] = (), refuse: bool = False) -> None:
        super().__init__(place.fd, elements.NETLINK_NETFILTER)
        self.told = 0
        self._without, self._refuse = frozenset(without), refuse

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        asked = attributes(body, 4)
        if self._without & asked.keys():
            if self._refuse:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            kept = (one for one in asked if one in (CTA_MARK, conntrack.CTA_MARK_MASK))
            body = body[:4] + b"".join(attribute(one, asked[one]) for one in kept)
        found = super().dump(kind, body)
        self.told += len(found)
        return found


def fill(place: Place) -> None:
    tcp, udp = socket.IPPROTO_TCP, socket.IPPROTO_UDP
    wanted = [entry(tcp, 10_000 + number, answered=True) for number in range(MANY)]
    wanted += [entry(tcp, 5_000, answered=False, version=version) for version in (4, 6)]
    wanted += [entry(udp, 6_000, answered=True, version=version) for version in (4, 6)]
    wanted += [entry(udp, 6_001, answered=False), entry(udp, 6_002, answered=True, mark=0)]
    wanted += [entry(udp, 6_003, answered=True, backend="10.0.0.8")]
    with Reader(place) as netlink:
        assert netlink.batch(wanted) == {}


STALE = [
    "tcp flow to 192.0.2.1 by way of 10.0.0.7",
    "tcp flow to fd00::1 by way of fd00:a::7",
    "udp flow to 192.0.2.1 by way of 10.0.0.7",
    "udp flow to 192.0.2.1 by way of 10.0.0.7",
    "udp flow to fd00::1 by way of fd00:a::7",
]


def forget(netlink: Reader) -> list[str]:
    """What went to anybody but 10.0.0.8."""
    kept = ipaddress.ip_address("10.0.0.8")
    return sorted(conntrack.forget(netlink, lambda flow: flow.backend != kept, EVERYTHING))


def test_connections_that_were_answered_are_not_even_read(place: Place) -> None:
    fill(place)
    with Reader(place) as netlink:
        assert forget(netlink) == STALE
        assert netlink.told == 4 + 3
        assert forget(netlink) == []
        everything = conntrack._head(socket.AF_UNSPEC)
        assert len(netlink.dump(conntrack.IPCTNL_MSG_CT_GET, everything)) == MANY + 2


@pytest.mark.parametrize("refuse", [True, False])
def test_a_kernel_that_cannot_choose(place: Place, refuse: bool) -> None:
    fill(place)
    with Reader(place, without=(CTA_STATUS, CTA_FILTER), refuse=refuse) as netlink:
        assert forget(netlink) == STALE
        assert netlink.told > 2 * MANY
        assert forget(netlink) == []


def test_only_udp_of_one_family(place: Place) -> None:
    fill(place)
    with Reader(place) as netlink:
        assert conntrack.forget(netlink, lambda flow: True, [UDP[6]]) == [STALE[-1]]
        assert netlink.told == 1

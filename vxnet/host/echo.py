"""ICMP echoes of exact sizes that may not be fragmented, to many destinations at once (RFC 792, RFC 4443)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vxnet.host.netlink import SO_RCVBUFFORCE
from vxnet.model.address import IPAddress

IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3
"""Set DF, and send whatever the kernel has learnt of the path before: what it believes is what is in question."""
ICMP_FILTER = 1
SOL_RAW = 255
ICMPV6_FILTER = 1
BUFFER_OCTETS = 4 << 20
HEADER = struct.Struct("!BBHHH")
"""type, code, checksum, identifier, sequence number"""


class _Kind(NamedTuple):
    family: int
    protocol: int
    request: int
    reply: int
    ip_header: int


_KINDS = {
    4: _Kind(socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 20),
    6: _Kind(socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 40),
}
SMALLEST = {version: kind.ip_header + HEADER.size for version, kind in _KINDS.items()}


def echo(
    source: IPAddress,
    probes: Sequence[tuple[IPAddress, int]],
    *,
    tries: int = 3,
    wait_s: float = 0.3,
    clock: Callable[[], float] = time.monotonic,
) -> set[tuple[IPAddress, int]]:
    """Which of ``probes``, (destination, octets of the whole IP packet), came back. All are of ``source``'s IP version;
    at most 65536. Each is sent up to ``tries`` times, ``wait_s`` apart. Blocks; raises OSError without root.
    """
    kind = _KINDS[source.version]
    identifier = int.from_bytes(os.urandom(2), "big")
    waiting = {number: probe for number, probe in enumerate(probes) if probe[1] >= SMALLEST[source.version]}
    answered: set[tuple[IPAddress, int]] = set()
    with _open(kind, source) as one:
        for _ in range(tries):
            _send(one, kind, identifier, waiting)
            until = clock() + wait_s
            while waiting and (left := until - clock()) > 0:
                if select.select([one], [], [], left)[0]:
                    for number in _received(one, kind, identifier, waiting):
                        answered.add(waiting.pop(number))
            if not waiting:
                break
    return answered


def _open(kind: _Kind, source: IPAddress) -> socket.socket:
    one = socket.socket(kind.family, socket.SOCK_RAW, kind.protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_OCTETS)
        if kind.family == socket.AF_INET:
            one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            one.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF ^ (1 << kind.reply)))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            blocked = [0xFFFFFFFF] * 8
            blocked[kind.reply // 32] ^= 1 << (kind.reply % 32)
            one.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, struct.pack("=8I", *blocked))
        one.bind((str(source), 0))
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _send(one: socket.socket, kind: _Kind, identifier: int, waiting: Mapping[int, tuple[IPAddress, int]]) -> None:
    for number, (destination, size) in waiting.items():
        packet = HEADER.pack(kind.request, 0, 0, identifier, number) + bytes(size - kind.ip_header - HEADER.size)
        if kind.family == socket.AF_INET:  # of IPv6 the kernel knows what its header holds
            packet = packet[:2] + _checksum(packet) + packet[4:]
        # Larger than the card takes, no route: it does not come back, and that is the answer.
        with contextlib.suppress(OSError):
            one.sendto(packet, (str(destination), 0))


def _received(
    one: socket.socket, kind: _Kind, identifier: int, waiting: Mapping[int, tuple[IPAddress, int]]
) -> list[int]:
    """Numbers of the probes whose answers are here."""
    found: list[int] = []
    while True:
        try:
            packet, sender = one.recvfrom(65536)
        except BlockingIOError:
            return found
        except OSError:  # an error of an earlier packet
            continue
        start = (packet[0] & 0x0F) * 4 if kind.family == socket.AF_INET else 0
        if len(packet) < start + HEADER.size:
            continue
        sort, _code, _sum, whose, number = HEADER.unpack_from(packet, start)
        probe = waiting.get(number)
        if (sort, whose) != (kind.reply, identifier) or probe is None or number in found:
            continue
        size = len(packet) - start + kind.ip_header
        if (ipaddress.ip_address(sender[0].partition("%")[0]), size) == probe:
            found.append(number)


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (
        data[-1] << 8 if len(data) & 1 else 0
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")

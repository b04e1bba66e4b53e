"""Echoes seen at several places of a host while they pass (packet(7)): the last that saw one is where it was lost."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from typing import NamedTuple

from vxnet.host import netns
from vxnet.model.address import IPAddress

_ETH_P_ALL = 3
_OUTGOING = 4
_ICMP = {(4, 8): "request", (4, 0): "reply", (6, 128): "request", (6, 129): "reply"}
_BUFFER_OCTETS = 4 << 20


class Echo(NamedTuple):
    kind: str
    """``request`` or ``reply``."""
    source: IPAddress
    destination: IPAddress
    outgoing: bool
    tunnel: tuple[IPAddress, IPAddress, int] | None = None
    """Source, destination and VNI of the VXLAN packet that it is in."""


class Taps:
    """By name: a link in a namespace (descriptor; None: the calling thread's). Used as a context; raises OSError."""

    def __init__(self, places: Mapping[str, tuple[int | None, str]]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        try:
            for name, (namespace, link) in places.items():
                self._sockets[name] = _open(link) if namespace is None else _open_in(namespace, link)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()

    def seen(self, port: int) -> dict[str, list[Echo]]:
        """What has passed each place since it was opened. ``port``: VXLAN's."""
        found: dict[str, list[Echo]] = {name: [] for name in self._sockets}
        for name, one in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, sender = one.recvfrom(2048)
                    echo = read(frame, port)
                    if echo is not None:
                        found[name].append(echo._replace(outgoing=sender[2] == _OUTGOING))
        return found


def _open(link: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
        one.bind((link, _ETH_P_ALL))
    except OSError:
        one.close()
        raise
    return one


def _open_in(namespace: int, link: str) -> socket.socket:
    return netns.inside(namespace, lambda: _open(link))


def read(frame: bytes, port: int) -> Echo | None:
    """An echo in an Ethernet frame, or in the one that a VXLAN packet (UDP ``port``) in it carries."""
    packet = frame[14:]
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 28:
        source, destination = ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])
        protocol, body = packet[9], packet[(packet[0] & 0x0F) * 4 :]
    elif version == 6 and len(packet) >= 48:
        source, destination = ipaddress.ip_address(packet[8:24]), ipaddress.ip_address(packet[24:40])
        protocol, body = packet[6], packet[40:]
    else:
        return None
    if protocol == socket.IPPROTO_UDP and len(body) > 16 and int.from_bytes(body[2:4]) == port:
        inner = read(body[16:], 0)
        return inner and inner._replace(tunnel=(source, destination, int.from_bytes(body[12:15])))
    icmp = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    if protocol != icmp or not body or (version, body[0]) not in _ICMP:
        return None
    return Echo(_ICMP[version, body[0]], source, destination, False)

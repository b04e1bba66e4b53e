"""Who answers to an address on the wire (ARP, RFC 826 and 5227): two who do are one too many."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import NamedTuple

from vxnet.host import addresses, links
from vxnet.host.netlink import Netlink
from vxnet.model.address import MAC, IPAddress
from vxnet.model.host import HostAddress

_ETH_P_ARP = 0x0806
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
WAIT_S = 0.4


def own_macs() -> frozenset[MAC]:
    with Netlink() as netlink:
        return frozenset(link.mac for link in links.dump(netlink).values())


class Way(NamedTuple):
    interface: str
    mtu: int
    """As the route promises it."""


def ways_to(destinations: Iterable[IPAddress]) -> dict[IPAddress, Way]:
    """How each is reached; those without a route are left out. Raises OSError."""
    wanted = list(destinations)
    with Netlink() as netlink:
        by_index = {link.ifindex: link for link in links.dump(netlink).values()}
        found = addresses.paths(netlink, wanted)
    return {
        one: Way(by_index[path.ifindex].name, path.mtu or by_index[path.ifindex].mtu)
        for one, path in zip(wanted, found, strict=True)
        if path is not None and path.ifindex in by_index
    }


def interface_of(address: IPAddress) -> str:
    """Which link has it; the first one's name if none has. Raises OSError."""
    with Netlink() as netlink:
        names = {link.ifindex: link.name for link in links.dump(netlink).values()}
        held = [names.get(one.ifindex, "") for one in addresses.dump(netlink) if one.interface.ip == address]
    return held[0] if held else next(name for name in names.values() if name != "lo")


def who_has(asked: Mapping[IPAddress, str], own: Iterable[HostAddress]) -> dict[IPAddress, frozenset[MAC]]:
    """Who else answers for each address on its interface; nobody where there is no answer, no ARP, no Ethernet.

    The host's own addresses are asked for from 0.0.0.0 (RFC 5227: a probe, which nobody keeps in his cache), others
    from one of the host's. Raises OSError without root.
    """
    held = {one.interface: one.address.ip for one in own if one.address.version == 4}
    held_anywhere = {one.address.ip for one in own}
    answers: dict[IPAddress, set[MAC]] = {address: set() for address in asked}
    sockets: dict[str, socket.socket] = {}
    try:
        for address, interface in asked.items():
            if not isinstance(address, IPv4Address) or not interface or interface == "lo":
                continue
            if interface not in sockets:
                one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
                sockets[interface] = one
                one.bind((interface, _ETH_P_ARP))
            mac = sockets[interface].getsockname()[4]
            if len(mac) != 6:
                continue
            source = bytes(4) if address in held_anywhere else held.get(interface, address).packed
            arp = _ARP.pack(1, 0x0800, 6, 4, _REQUEST, mac, source, bytes(6), address.packed)
            for _ in range(2):
                with contextlib.suppress(OSError):  # it went down just now
                    sockets[interface].send(b"\xff" * 6 + mac + struct.pack("!H", _ETH_P_ARP) + arp)
        until = time.monotonic() + WAIT_S
        while sockets and (left := until - time.monotonic()) > 0:
            for one in select.select(list(sockets.values()), [], [], left)[0]:
                packet, sender = one.recvfrom(2048)
                if len(packet) < 14 + _ARP.size or sender[2] == 4:  # PACKET_OUTGOING
                    continue
                _, _, _, _, verb, mac, address4, _, _ = _ARP.unpack_from(packet, 14)
                found = IPv4Address(address4)
                if verb == _REPLY and found in answers:
                    answers[found].add(mac.hex(":"))
    finally:
        for one in sockets.values():
            one.close()
    return {address: frozenset(macs) for address, macs in answers.items()}

"""Packets to the VXLAN port and back, to see what becomes of them on the way.

::

     throwaway namespace                    host namespace
     UDP socket ── vxprobe (VXLAN) ═══════> card ═══ the underlay ═══> card ── netfilter ── tunnel (drops: nobody's VNI)
                                                                        │            │
                                                            packet socket ("wire")   raw socket ("data")

The content goes by the very way of a container's: checksums are left to whoever is to compute them, so a card that
promises to and does not is found out. On a host without VXLAN devices the packet is put together here, and tells
nothing of cards. Both listeners hold a filter in the kernel, so that other traffic costs them nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vxnet.host import addresses, bpf, links, neighbours, netns, uvxlan
from vxnet.host.datapath import Home, flood_rows
from vxnet.host.links import Wish
from vxnet.host.netlink import Netlink
from vxnet.model.address import IPAddress

SO_BINDTODEVICE = 25
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_OUTGOING = 4
ETH_P = {4: 0x0800, 6: 0x86DD}
TP_STATUS_CSUMNOTREADY = 1 << 3
"""The sender's checksum is to be filled in by a card that this packet has not met: it came from this machine."""
_AUXDATA = struct.Struct("=IIIHHHH")
_IP_HEADER = {4: 20, 6: 40}
_UDP_HEADER = 8
_VXLAN_HEADER = 8
_ETHERNET = 14
_INNER = _VXLAN_HEADER + _ETHERNET + 20 + _UDP_HEADER
DEVICE = "vxprobe"
SOURCE = ipaddress.ip_interface("169.254.89.1/16")
"""Inside; nobody ever sees it."""
PORT = 4789


class Arrived(NamedTuple):
    """One packet of the probes'."""

    content: bytes
    passed: bool
    """Behind the firewall; else at the card."""
    damaged: bool
    """Its checksum inside is wrong."""


def room(underlay_mtu: int, version: int) -> int:
    """Octets of content with which a packet is as large as the underlay takes."""
    return underlay_mtu - _IP_HEADER[version] - _UDP_HEADER - _INNER


class Line:
    """Sends and hears packets with one VNI. Made and used in the host's namespace. It blocks, and raises OSError."""

    def __init__(self, local: IPAddress, port: int, vni: int, underlay_mtu: int, *, kernel: bool) -> None:
        self._local, self._port, self._vni = local, port, vni
        self._mtu = underlay_mtu - _IP_HEADER[local.version] - _UDP_HEADER - _VXLAN_HEADER - _ETHERNET
        self._stack = contextlib.ExitStack()
        self._known: set[IPAddress] = set()
        try:
            self.wire = self._stack.enter_context(_at_the_card(local, port, vni))
            self.data = self._stack.enter_context(_behind_the_firewall(local, port, vni))
            self._netlink: Netlink | None = None
            self._sender = self._device() if kernel else self._plain()
        except OSError:
            self._stack.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def send(self, vteps: Sequence[IPAddress], content: bytes) -> None:
        """To each of them; what cannot be sent is lost like any other packet."""
        if self._netlink is None:
            frame = _frame(self._vni, content)
            for vtep in vteps:
                with contextlib.suppress(OSError):
                    self._sender.sendto(frame, (str(vtep), self._port))
            return
        new = [vtep for vtep in vteps if vtep not in self._known]
        if new:
            wanted = flood_rows(Home(0, self._index), new)
            change = neighbours.difference(wanted, {})
            neighbours.apply(self._netlink, change, wanted, {}, {self._index: DEVICE})
            self._known.update(new)
        with contextlib.suppress(OSError):
            # The tunnel makes a copy for each of its rows.
            self._sender.sendto(content, ("255.255.255.255", PORT))

    def _device(self) -> socket.socket:
        host = self._stack.enter_context(Netlink())
        namespace = netns.create()
        self._stack.callback(os.close, namespace)
        local = "IFLA_VXLAN_LOCAL" if self._local.version == 4 else "IFLA_VXLAN_LOCAL6"
        data = {"IFLA_VXLAN_ID": self._vni, local: self._local, "IFLA_VXLAN_PORT": self._port, "IFLA_VXLAN_LEARNING": 0}
        host.request(links.add(Wish(DEVICE, "vxlan", self._mtu, data=data), namespace=namespace))
        self._netlink = self._stack.enter_context(Netlink(namespace))
        link = links.get(self._netlink, DEVICE)
        if link is None:
            raise OSError(f"{DEVICE} is gone")
        self._index = link.ifindex
        # Now, and not when the kernel comes to take the namespace down.
        self._stack.callback(self._netlink.batch, links.delete([link.ifindex]))
        self._netlink.request(addresses.add(link.ifindex, SOURCE))

        def open_sender() -> socket.socket:
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, DEVICE.encode())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return one

        return self._stack.enter_context(netns.inside(namespace, open_sender))

    def _plain(self) -> socket.socket:
        # The host's own rules let nobody but the forwarder's user send to the port (see host/gateway).
        family = socket.AF_INET if self._local.version == 4 else socket.AF_INET6
        # For this thread alone, unlike seteuid.
        library = ctypes.CDLL(None)
        library.setfsuid(uvxlan.UID)
        try:
            one = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        finally:
            library.setfsuid(0)
        one.bind((str(self._local), 0))
        return one

    def heard(self) -> list[Arrived]:
        """What has come since the last call; does not wait."""
        return [*self._read(self.wire, passed=False), *self._read(self.data, passed=True)]

    def _read(self, one: socket.socket, *, passed: bool) -> list[Arrived]:
        found: list[Arrived] = []
        while True:
            try:
                data, ancillary, _flags, sender = one.recvmsg(65536, 256)
            except BlockingIOError:
                return found
            except OSError:
                continue
            if not passed and sender[2] == PACKET_OUTGOING:
                continue
            ready = not any(
                level == SOL_PACKET and kind == PACKET_AUXDATA and _AUXDATA.unpack(value)[0] & TP_STATUS_CSUMNOTREADY
                for level, kind, value in ancillary
            )
            at = 0 if passed and self._local.version == 6 else _header(data, self._local.version)
            inner = data[at + _UDP_HEADER + _VXLAN_HEADER + _ETHERNET :]
            if len(inner) >= 20 + _UDP_HEADER and inner[0] == 0x45 and inner[9] == socket.IPPROTO_UDP:
                found.append(Arrived(inner[28:], passed, not passed and ready and not _is_sound(inner)))


def _header(packet: bytes, version: int) -> int:
    return (packet[0] & 0x0F) * 4 if version == 4 else _IP_HEADER[6]


def _is_sound(packet: bytes) -> bool:
    """Of an IPv4 packet with UDP in it (RFC 768); a checksum of 0 is none."""
    udp = packet[20 : int.from_bytes(packet[2:4])]
    if udp[6:8] == b"\0\0":
        return True
    pseudo = packet[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_UDP, len(udp))
    return _sum(pseudo + udp) == 0xFFFF


def _sum(data: bytes) -> int:
    """RFC 1071, not complemented."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _frame(vni: int, content: bytes) -> bytes:
    """VXLAN header (RFC 7348), Ethernet, IPv4, UDP around ``content``."""
    length = _UDP_HEADER + len(content)
    source, everybody = SOURCE.ip.packed, b"\xff" * 4
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 1, socket.IPPROTO_UDP, 0, source, everybody)
    ip = ip[:10] + struct.pack("!H", 0xFFFF ^ _sum(ip)) + ip[12:]
    udp = struct.pack("!HHHH", PORT, PORT, length, 0) + content
    check = 0xFFFF ^ _sum(source + everybody + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length) + udp)
    udp = udp[:6] + struct.pack("!H", check or 0xFFFF) + udp[8:]
    ethernet = b"\xff" * 6 + bytes.fromhex("020000000001") + struct.pack("!H", ETH_P[4])
    return struct.pack("!II", 0x08000000, vni << 8) + ethernet + ip + udp


def _at_the_card(local: IPAddress, port: int, vni: int) -> socket.socket:
    version = local.version
    # On all interfaces: Python binds to one by its name only.
    one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(ETH_P[version]))
    try:
        _filter(one, port, vni, ip=version)
        one.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        _empty(one)
    except OSError:
        one.close()
        raise
    return one


def _empty(one: socket.socket) -> None:
    """Of what came before the filter."""
    with contextlib.suppress(BlockingIOError):
        while True:
            one.recv(1)


def _behind_the_firewall(local: IPAddress, port: int, vni: int) -> socket.socket:
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    one = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP)
    try:
        _filter(one, port, vni, ip=4 if local.version == 4 else 0)
        one.bind((str(local), 0))
    except OSError:
        one.close()
        raise
    return one


def _filter(one: socket.socket, port: int, vni: int, *, ip: int) -> None:
    """Classic BPF: UDP to ``port`` with a VXLAN header of ``vni``. ``ip``: version of the header in front; 0: none."""
    check: list[bpf.Instruction] = {
        4: [(0x30, 0, 0, 9), (0x15, 1, 0, socket.IPPROTO_UDP), bpf.DROP, (0xB1, 0, 0, 0)],  # ldb [9]; ldxb 4*([0]&0xf)
        6: [
            (0x30, 0, 0, 6),
            (0x15, 1, 0, socket.IPPROTO_UDP),
            bpf.DROP,
            (0x01, 0, 0, _IP_HEADER[6]),
        ],  # ldb [6]; ldx #40
        0: [(0x01, 0, 0, 0)],
    }[ip]
    program = [
        *check,
        (0x48, 0, 0, 2),  # ldh [x + 2]: the destination port
        (0x15, 1, 0, port),
        bpf.DROP,
        (0x40, 0, 0, _UDP_HEADER + 4),  # ld [x + 12]: VNI and a reserved octet
        (0x74, 0, 0, 8),  # rsh #8
        (0x15, 1, 0, vni),
        bpf.DROP,
        bpf.PASS,
    ]
    bpf.attach(one, program)

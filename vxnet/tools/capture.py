"""`vxnet capture`: what hosts say to each other for containers, taken apart and with names.

::

    card ── packet socket (UDP to the VXLAN port) ── outer: which hosts ── VNI: which network ── inner: which containers

The inner frames are read by scapy, which is GPL-2.0-only and therefore no part of vxnet: it is imported when a capture
begins, and missed in words.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vxnet.cluster.client import Client
from vxnet.host import bpf
from vxnet.host.neighbourhood import interface_of
from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError, ConflictError, HostError

_ETH_P_ALL = 3
_BUFFER_OCTETS = 16 << 20
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SHOWN = {"P": "PSH", "S": "SYN", "F": "FIN", "R": "RST", "A": "ACK", "U": "URG", "E": "ECE", "C": "CWR"}


class Names(NamedTuple):
    hosts: Mapping[IPAddress, str]
    """By VTEP."""
    networks: Mapping[int, str]
    """By VNI."""
    addresses: Mapping[tuple[int, IPAddress], str]
    macs: Mapping[tuple[int, str], str]
    """Containers, by VNI and MAC."""

    def known(self) -> dict[IPAddress, str]:
        return {**{address: name for (_, address), name in self.addresses.items()}, **self.hosts}


class Heard(NamedTuple):
    at_ns: int
    frame: bytes
    length: int
    vni: int
    text: str
    """``h1 > h2  blue  web > db  TCP 40000 > 80 SYN``."""
    who: frozenset[str]
    """Containers in it."""


def learn_names(client: Client) -> Names:
    """As the daemon has them now."""
    networks, addresses, macs = {}, {}, {}
    for network in client.networks():
        if not network.vni:
            continue
        networks[network.vni] = network.name
        for one in client.network(network.id, verbose=True).endpoints:
            macs[network.vni, one.mac] = one.name
            addresses.update({(network.vni, address): one.name for address in one.addresses})
    hosts = {}
    for member in client.gossip().members:
        with contextlib.suppress(ValueError):
            hosts[ipaddress.ip_address(member.tags.get("vtep", ""))] = member.name
    return Names(hosts, networks, addresses, macs)


class Capture:
    """Raises :class:`HostError` without root or scapy, :class:`ConflictError` outside a cluster."""

    def __init__(self, client: Client, interface: str = "") -> None:
        if os.geteuid() != 0:
            raise HostError("a capture takes packets off a card", hint="use sudo")
        info = client.info()
        if info.data_path_addr is None:
            raise ConflictError("this host is in no cluster", hint="`vxnet init` makes one, `vxnet join` joins one")
        self.interface = interface or interface_of(info.data_path_addr)
        self._client = client
        self._port = info.data_port
        self._decode = _decoder()
        self.names = learn_names(client)
        self._socket = _open(self.interface, info.data_port)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *about: object) -> None:
        self._socket.close()

    def packets(self, until: float | None) -> Iterator[Heard]:
        """As they come; ``until``: a moment of time.monotonic(). A container that nobody has heard of makes it ask
        for the names again, once a second at most."""
        asked = time.monotonic()
        while until is None or time.monotonic() < until:
            wait = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._socket], [], [], wait)[0]:
                return
            with contextlib.suppress(BlockingIOError):
                data, ancillary, _, _ = self._socket.recvmsg(65536, 64)
                found = self._read(data, _stamp(ancillary))
                if found is not None and "?" in found.text and time.monotonic() - asked > 1:
                    asked = time.monotonic()
                    self.names = learn_names(self._client)
                    found = self._read(data, found.at_ns)
                if found is not None:
                    yield found

    def dropped(self) -> int:
        """Packets that came faster than they were taken."""
        return int(struct.unpack("=II", self._socket.getsockopt(263, 6, 8))[1])  # SOL_PACKET, PACKET_STATISTICS

    def _read(self, frame: bytes, at_ns: int) -> Heard | None:
        version = frame[14] >> 4
        at = 14 + ((frame[14] & 0x0F) * 4 if version == 4 else 40)
        source, destination = (frame[26:30], frame[30:34]) if version == 4 else (frame[22:38], frame[38:54])
        vni = int.from_bytes(frame[at + 12 : at + 15])
        inner = frame[at + 16 :]
        if len(inner) < 14:
            return None
        hosts = [_name(self.names.hosts, ipaddress.ip_address(one)) for one in (source, destination)]
        network = self.names.networks.get(vni, f"vni {vni}")
        names = [self._container(vni, inner[6:12].hex(":")), self._container(vni, inner[0:6].hex(":"))]
        what = self._decode(inner, vni, self.names)
        text = f"{hosts[0]} > {hosts[1]}  {network}  {names[0]} > {names[1]}  {what}"
        return Heard(at_ns, frame, len(frame), vni, text, frozenset(names))

    def _container(self, vni: int, mac: str) -> str:
        if int(mac[1], 16) & 1:
            return "all"
        return self.names.macs.get((vni, mac), f"{mac}?")


def _name(known: Mapping[IPAddress, str], address: IPAddress) -> str:
    return known.get(address, str(address))


def _decoder() -> Any:
    """A function of a frame's octets, its VNI and the names. Raises :class:`HostError` without scapy."""
    try:
        from scapy.layers.dns import DNS
        from scapy.layers.inet import ICMP, IP, TCP, UDP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import ARP, Ether
    except ImportError:
        raise HostError(
            "this needs scapy, which is not installed",
            hint="pip install 'vxnet[debug]'; into the package: docs/operations.md, Install",
        ) from None

    def decode(frame: bytes, vni: int, names: Names) -> str:
        packet = Ether(frame)
        if ARP in packet:
            arp = packet[ARP]
            return f"ARP who has {arp.pdst}" if arp.op == 1 else f"ARP {arp.psrc} is at {arp.hwsrc}"
        network = packet.getlayer(IP) or packet.getlayer(IPv6)
        if network is None:
            return str(packet.payload.summary())
        where = f"{network.src} > {network.dst}"
        if TCP in packet:
            tcp = packet[TCP]
            flags = " ".join(_SHOWN.get(flag, flag) for flag in str(tcp.flags))
            return f"{where}  TCP {tcp.sport} > {tcp.dport} {flags} {len(tcp.payload)} octets"
        if UDP in packet:
            udp = packet[UDP]
            more = f" {packet[DNS].summary()}" if DNS in packet else f" {len(udp.payload)} octets"
            return f"{where}  UDP {udp.sport} > {udp.dport}{more}"
        if ICMP in packet:
            icmp = packet[ICMP]
            return f"{where}  ICMP {icmp.sprintf('%ICMP.type%')} {getattr(icmp, 'seq', '')}".rstrip()
        return f"{where}  {network.payload.summary()}"

    return decode


def _open(interface: str, port: int) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_OCTETS)
        one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        _only_vxlan(one, port)
        one.bind((interface, _ETH_P_ALL))
    except OSError as error:
        one.close()
        raise CallerError(
            f"cannot listen on {interface}: {error.strerror}", hint="`ip link` lists interfaces"
        ) from None
    return one


def _stamp(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("=qq", value)
            return int(seconds) * 10**9 + int(nanoseconds)
    return time.time_ns()


def _only_vxlan(one: socket.socket, port: int) -> None:
    """Whole UDP datagrams to ``port``, by IPv4 or IPv6, in Ethernet without a VLAN tag."""
    program = [
        (0x28, 0, 0, 12),  # ldh: type
        (0x15, 0, 7, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 0, 11, socket.IPPROTO_UDP),
        (0x28, 0, 0, 20),
        (0x45, 9, 0, 0x1FFF),  # a later fragment has no port
        (0xB1, 0, 0, 14),
        (0x48, 0, 0, 16),  # ldh [x + 16]
        (0x15, 5, 6, port),
        (0x15, 0, 5, 0x86DD),
        (0x30, 0, 0, 20),
        (0x15, 0, 3, socket.IPPROTO_UDP),
        (0x28, 0, 0, 56),
        (0x15, 0, 1, port),
        bpf.PASS,
        bpf.DROP,
    ]
    bpf.attach(one, program)

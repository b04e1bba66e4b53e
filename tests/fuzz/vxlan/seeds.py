"""Where the fuzzer begins: packets of every kind, and messages of csrc/vxlan/command.h."""

from __future__ import annotations

import struct

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

_NEEDS_CHECKSUM, _TCP4, _TCP6, _UDP = 1, 1, 4, 5
"""Of virtio_net_hdr (linux/virtio_net.h): a flag, and kinds of what is to be cut."""
_FOLLOW, _CHECKSUMS, _PARTIAL, _TAP, _SHORTER, _LENGTHS, _UNCUT = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80
"""tests/fuzz/vxlan/join.c."""
_SEGMENT, _REMOVE, _PUT, _DROP, _STAGE, _COMMIT, _FLOOD, _PEERS, _SEGMENTS, _ROWS = range(1, 11)


def _frames() -> list[Packet]:
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    ipv4, ipv6 = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF"), IPv6(src="fd01::1", dst="fd01::2")
    tcp, udp = TCP(sport=1000, dport=2000, flags="A", seq=3), UDP(sport=1000, dport=2000)
    timestamps = TCP(sport=1, dport=2, flags="PA", options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))])
    payload = Raw(bytes(range(100)))
    return [
        ether / ipv4 / tcp / payload,
        ether / ipv4 / udp / payload,
        ether / ipv6 / tcp / payload,
        ether / ipv6 / udp / payload,
        ether / ipv4 / timestamps / payload,
        ether / IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x94\x04\0\0") / udp / payload,
        ether / Dot1Q(vlan=5) / ipv4 / tcp / payload,
        ether / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ipv6 / udp / payload,
        ether / ipv6 / IPv6ExtHdrDestOpt() / tcp / payload,
        ether / ipv6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / udp / payload,
        ether / ipv4 / ICMP() / payload,
        ether / ipv4 / ICMP(type=3, code=4) / ipv4 / udp,
        ether / ipv6 / ICMPv6EchoRequest(data=b"x" * 40),
        ether / fragment(IP(src="10.0.0.1", dst="10.0.0.2") / udp / Raw(bytes(200)), 120)[1],
        Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1", pdst="10.0.0.2"),
    ]


def _packet() -> list[bytes]:
    return [struct.pack(">H", 1400) + bytes(frame) for frame in _frames()]


def _cut() -> list[bytes]:
    made = []
    for frame in map(bytes, _frames()):
        for kind in (0, _TCP4, _TCP6, _UDP):
            header = struct.pack("=BBHHHH", 0 if kind else _NEEDS_CHECKSUM, kind, 0, 40 if kind else 0, 34, 16)
            made.append(header + frame)
    return made


def _looks_partial() -> bytes:
    """A frame of TCP whose checksum is right and also that of the pseudo header alone, with padding."""

    def words(data: bytes) -> int:
        return sum(struct.unpack(f">{len(data) // 2}H", data)) % 0xFFFF

    frame = bytearray(bytes(_frames()[0]))
    ip, tcp = frame[14:34], frame[34:]
    pseudo = words(bytes(ip[12:20]) + struct.pack(">HH", ip[9], len(tcp)))
    tcp[16:18] = tcp[20:22] = bytes(2)
    tcp[20:22] = struct.pack(">H", (0xFFFF - 2 * pseudo - words(bytes(tcp))) % 0xFFFF)
    tcp[16:18] = struct.pack(">H", pseudo)
    return bytes(frame[:34] + tcp) + b"\x01" * 9


def _join() -> list[bytes]:
    one = _looks_partial()
    made = [bytes((0, 0)) + struct.pack(">H", len(one)) + one]
    follow = bytes((_FOLLOW | _CHECKSUMS,)) * 5
    for frame in map(bytes, _frames()):
        record = struct.pack(">H", len(frame)) + frame
        for rules in range(8):
            made.append(bytes((rules, _CHECKSUMS)) + record + follow + bytes((_FOLLOW | _CHECKSUMS | _SHORTER,)))
            made.append(bytes((rules, _CHECKSUMS | _PARTIAL | _UNCUT)) + record + bytes((30,)) + follow)
            padded = struct.pack(">H", len(frame) + 9) + frame + b"\x01" * 9
            made.append(bytes((rules, _CHECKSUMS | _PARTIAL)) + padded)
            # IPv4's checksum no longer holds: what was joined must not have a good one.
            made.append(bytes((rules, _CHECKSUMS)) + record + bytes((_FOLLOW,)) * 3)
            made.append(bytes((rules, _CHECKSUMS | _PARTIAL | _LENGTHS)) + record + follow + bytes((_TAP,)) + record)
    return made


def _messages() -> list[bytes]:
    rows = b"".join(
        bytes((2, 0, 0, 0, 0, at, 0, 0)) + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, at)) for at in range(20)
    )
    addresses = b"".join(bytes(10) + b"\xff\xff" + bytes((192, 0, 2, at)) for at in (3, 1, 2, 1))
    parts = [
        (_SEGMENT, 7, struct.pack("=II", 1450, 1)),
        (_PUT, 7, rows),
        (_DROP, 7, rows[:96]),
        (_STAGE, 7, rows[96:]),
        (_COMMIT, 7, b""),
        (_FLOOD, 7, addresses),
        (_PEERS, 0, addresses),
        (_SEGMENTS, 0, bytes(4)),
        (_ROWS, 7, bytes(4)),
        (_REMOVE, 7, b""),
    ]
    return [struct.pack("=II", operation, vni) + body for operation, vni, body in parts]


def _command() -> list[bytes]:
    each = [struct.pack(">H", len(message)) + message for message in _messages()]
    return [*(each[0] + one for one in each), b"".join(each)]


def _control() -> list[bytes]:
    queues = 2
    each = [
        struct.pack(">HB", len(message), queues if number == 0 else 0) + message
        for number, message in enumerate(_messages())
    ]
    return [*(each[0] + one for one in each), b"".join(each)]


SEEDS = {"packet": _packet, "cut": _cut, "join": _join, "command": _command, "control": _control}

"""A network card that promises to compute checksums and does not, for what is inside VXLAN: many virtual ones are so.

``bad_card.py PORT BRIDGE`` stands between PORT (whose other end is a host's card) and BRIDGE, and passes frames on as
the octets that they are. The kernel tells a packet whose checksum is yet to be computed by a mark beside it, which is
lost here; so this program computes what is missing, but for VXLAN that comes from the host. If the host's kernel
computes checksums itself, nothing is missing. Says "ready", and runs until it is terminated.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import sys

ETH_P_ALL = 3
OUTGOING = 4
VXLAN = 4789
FIELD = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}
"""Where the checksum stands."""


def opened(name: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    one.bind((name, ETH_P_ALL))
    return one


def complete(frame: bytearray, ethernet: int, *, vxlan: bool) -> None:
    """Write the checksums of TCP and UDP over IPv4, and, if ``vxlan``, those of what is inside."""
    ip = ethernet + 14
    if frame[ethernet + 12 : ip] != b"\x08\0" or frame[ip + 9] not in FIELD:
        return
    body = ip + (frame[ip] & 0x0F) * 4
    end = ip + int.from_bytes(frame[ip + 2 : ip + 4])
    field = body + FIELD[frame[ip + 9]]
    if frame[ip + 9] == socket.IPPROTO_UDP:
        if vxlan and int.from_bytes(frame[body + 2 : body + 4]) == VXLAN:
            complete(frame, body + 16, vxlan=False)
        if frame[field : field + 2] == b"\0\0":  # it has none
            return
    frame[field : field + 2] = b"\0\0"
    pseudo = frame[ip + 12 : ip + 20] + struct.pack("!BBH", 0, frame[ip + 9], end - body)
    data = bytes(pseudo + frame[body:end] + b"\0" * ((end - body) % 2))
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[field : field + 2] = struct.pack("!H", (0xFFFF ^ total) or 0xFFFF)


def main(port: str, bridge: str) -> None:
    for line in (
        f"link set {port} nomaster",
        "link add badcard type veth peer name badcard2",
        f"link set badcard2 master {bridge} up",
        "link set badcard up",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    card, wire = opened(port), opened("badcard")
    print("ready", flush=True)
    while True:
        for one in select.select([card, wire], [], [])[0]:
            data, sender = one.recvfrom(65536)
            if sender[2] != OUTGOING:
                frame = bytearray(data)
                complete(frame, 0, vxlan=one is wire)
                with contextlib.suppress(OSError):  # too long for the wire
                    (wire if one is card else card).send(frame)


if __name__ == "__main__":
    main(*sys.argv[1:])

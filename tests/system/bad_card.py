"""A network card that promises to compute checksums and does not, for what is inside VXLAN: many virtual ones are so.

``bad_card.py PORT BRIDGE`` stands between PORT (whose other end is a host's card) and BRIDGE, and passes frames on as
the octets that they are. The kernel tells a packet whose checksum is yet to be computed by a mark beside it, which is
lost here; so this program computes what is missing, but for VXLAN that comes from the host. If the host's kernel
computes checksums itself, nothing is missing. Says "ready", and runs until it is terminated.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

ETH_P_ALL = 3
OUTGOING = 4
VXLAN = 4789


def opened(name: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    one.bind((name, ETH_P_ALL))
    return one


def completed(frame: bytes, *, vxlan: bool) -> bytes:
    packet = Ether(frame)
    if IP not in packet or (UDP in packet and packet[UDP].dport == VXLAN and not vxlan):
        return frame
    layer = packet
    while layer:
        if isinstance(layer, TCP) or (isinstance(layer, UDP) and layer.dport != VXLAN):
            del layer.chksum
        layer = layer.payload
    return bytes(packet)


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
            frame, sender = one.recvfrom(65536)
            if sender[2] != OUTGOING:
                (wire if one is card else card).send(completed(frame, vxlan=one is wire))


if __name__ == "__main__":
    main(*sys.argv[1:])

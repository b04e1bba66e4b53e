"""vxnet_gw: each container speaks for itself alone, and the host has no address there but its own.

::

    c1 172.19.0.2 ──┐
                    ├── vxnet_gw 172.19.0.1 (h1)
    c2 172.19.0.3 ──┘
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.host.rig import GATEWAY, Container, Machine, errors
from vxnet.model.host import HostState

pytestmark = pytest.mark.host

PORT = 5005


class Gateway:
    def __init__(self) -> None:
        self.host = Machine()
        self.c1, self.c2 = Container(2), Container(3)
        boxes = tuple(one.sandbox(vnis=()) for one in (self.c1, self.c2))
        self.state = HostState(sandboxes=boxes, gateway=GATEWAY)
        assert errors(self.host.reconcile(self.state)) == []

    def close(self) -> None:
        for place in (self.host, self.c1, self.c2):
            place.close()

    def mac_of_bridge(self) -> bytes:
        return octets(self.host.links()["vxnet_gw"]["address"])


@pytest.fixture
def way_out() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def send(place: Container, frame: bytes) -> None:
    def go() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
            one.bind(("eth9", 0))
            one.send(frame)

    place.do(go)


def datagram(source: str, destination: str = "172.19.0.1") -> bytes:
    """UDP without a checksum, in IPv4."""
    udp = struct.pack("!HHHH", 4000, PORT, 12, 0) + b"true"
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, *map(socket.inet_aton, (source, destination))
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + head[12:] + udp


def heard(way_out: Gateway, frames: list[tuple[Container, bytes]]) -> list[str]:
    """Senders of what comes to the host's socket."""

    def listen() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("172.19.0.1", PORT))
        one.settimeout(0.3)
        return one

    found = []
    with way_out.host.do(listen) as one:
        for place, frame in frames:
            send(place, frame)
        try:
            while True:
                found.append(one.recvfrom(100)[1][0])
        except TimeoutError:
            return found


def test_a_container_cannot_be_another(way_out: Gateway) -> None:
    c1, c2 = way_out.c1, way_out.c2
    bridge = way_out.mac_of_bridge()
    own, others = (octets(f"02:ff:ac:13:00:0{number}") for number in (2, 3))
    ipv4 = b"\x08\x00"
    frames = [
        (c1, bridge + own + ipv4 + datagram("172.19.0.2")),  # itself
        (c1, bridge + others + ipv4 + datagram("172.19.0.3")),  # c2, MAC and address
        (c1, bridge + own + ipv4 + datagram("172.19.0.3")),  # c2's address
        (c1, bridge + others + ipv4 + datagram("172.19.0.2")),  # c2's MAC
        (c1, bridge + own + ipv4 + datagram("172.19.1.2")),  # nobody's, one octet off
        (c1, bridge + octets("02:ff:ac:13:01:02") + ipv4 + datagram("172.19.1.2")),  # nobody's
        (c2, bridge + others + ipv4 + datagram("172.19.0.3")),  # c2 itself
    ]
    assert heard(way_out, frames) == ["172.19.0.2", "172.19.0.3"]


def test_the_host_believes_no_arp(way_out: Gateway) -> None:
    """Not one that says that c2's address is c1's."""
    own = octets("02:ff:ac:13:00:02")
    victim, host = socket.inet_aton("172.19.0.3"), socket.inet_aton("172.19.0.1")
    lie = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, own, victim, way_out.mac_of_bridge(), host)
    send(way_out.c1, way_out.mac_of_bridge() + own + b"\x08\x06" + lie)
    assert "02:ff:ac:13:00:03 PERMANENT" in way_out.host.run("ip", "neigh", "show", "172.19.0.3", "dev", "vxnet_gw")
    assert way_out.host.run("ping", "-c1", "-W1", "172.19.0.3")


def test_no_address_that_nobody_gave(way_out: Gateway) -> None:
    """Neither the bridge nor its ports have one of IPv6, and none of it gets through."""
    shown = way_out.host.run("ip", "-6", "-br", "addr")
    assert "vxnet_gw" not in shown and "eth9" not in shown
    way_out.host.sh("ip addr add fd99::1/64 dev vxnet_gw nodad")
    way_out.c1.sh("ip addr add fd99::2/64 dev eth9 nodad")
    assert not way_out.c1.reaches("fd99::1")


def test_rows_that_were_taken_away_come_back(way_out: Gateway) -> None:
    """Nothing tells of them, so they are looked at; without them the container has no way out."""
    host, state = way_out.host, way_out.state
    assert host.do(host.kernel.is_intact, state)
    assert host.reconcile(state, []) == []
    port = way_out.c1.port("eth9")
    for damage in (
        f"bridge fdb del 02:ff:ac:13:00:02 dev {port} master",
        "ip neigh del 172.19.0.2 dev vxnet_gw",
        f"bridge link set dev {port} locked off",
    ):
        host.sh(damage)
        if "locked" not in damage:  # of that an event tells
            assert not host.do(host.kernel.is_intact, state)
        assert len(host.reconcile(state)) == 1
        assert host.do(host.kernel.is_intact, state)
        assert way_out.c1.reaches("172.19.0.1")
    # And go with their container.
    host.reconcile(HostState(sandboxes=state.sandboxes[1:], gateway=GATEWAY))
    assert "172.19.0.2 " not in host.run("ip", "neigh", "show", "dev", "vxnet_gw")

"""The user-space tunnel over paths that are too narrow: who is told, who is believed, and what goes in fragments."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.host.rig import wait_until
from tests.host.throwaway import Place
from tests.host.uvxlan_rig import MACS, PORT, End, Kind, Pair, cable, octets
from vxnet.host import uvxlan

pytestmark = [pytest.mark.host, pytest.mark.slow]


@pytest.mark.parametrize("version", [4, 6])
def test_a_path_that_is_too_narrow_is_told_to_the_sender(make_pair: Callable[..., Pair], version: int) -> None:
    one, two = make_pair()
    wanted = 1300 - 20 - 8 - 8 - 14 if version == 4 else 1280  # below which no sender of IPv6 need go
    one.sh("ip link set eth0 mtu 1300")
    ip = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF") if version == 4 else IPv6(src="fd01::1", dst="fd01::2")
    with one.raw() as back, two.raw() as into:
        back.send(bytes(Ether(src=MACS[0], dst=MACS[1]) / ip / UDP(sport=5, dport=6) / Raw(bytes(1350))))
        while (frame := Ether(back.recv(2000))).dst != MACS[0]:
            pass
        assert frame.src == MACS[1]
        told = frame[IP if version == 4 else IPv6]
        assert (told.src, told.dst) == (ip.dst, ip.src)
        assert (told[ICMP].nexthopmtu if version == 4 else told.payload.mtu) == wanted
        rebuilt = frame.copy()
        if version == 4:
            del rebuilt[ICMP].chksum
        else:
            del rebuilt[IPv6].payload.cksum
        assert bytes(rebuilt) == bytes(frame)
        if version == 4:  # without DF it goes in fragments
            whole = bytes(
                Ether(src=MACS[0], dst=MACS[1]) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=6) / Raw(bytes(1350))
            )
            back.send(whole)
            while (seen := into.recv(2000))[6:12] != octets(MACS[0]):
                pass
            assert seen == whole
    assert one.count("too_big") == (2 if version == 4 else 1)


def waiting(opened: socket.socket) -> Iterator[bytes]:
    """What came so far."""
    opened.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            yield opened.recv(2000)


@pytest.mark.parametrize(("kind", "family"), [("user", 4), ("user", 6), ("kernel", 4)])
def test_what_cannot_be_told_to_its_sender_goes_in_fragments(
    make_pair: Callable[..., Pair], kind: Kind, family: int
) -> None:
    one, two = make_pair(kind, family=family)
    one.sh("ip link set eth0 mtu 1300")
    ether, flagged = Ether(src=MACS[0], dst=MACS[1]), IP(src="10.0.0.1", dst="10.0.0.2", flags="DF")
    large = Raw(bytes(1350))
    sent = {
        "IPv6, no longer than every path has to carry": (
            ether / IPv6(src="fd01::1", dst="fd01::2") / UDP(sport=5, dport=6) / Raw(bytes(1280 - 48))
        ),
        "multicast": (
            Ether(src=MACS[0], dst="01:00:5e:00:00:05")
            / IP(src="10.0.0.1", dst="224.0.0.5", flags="DF")
            / UDP(sport=5, dport=6)
            / large
        ),
        "IPv6 multicast": (
            Ether(src=MACS[0], dst="33:33:00:00:00:05")
            / IPv6(src="fd01::1", dst="ff02::5")
            / UDP(sport=5, dport=6)
            / large
        ),
        "broadcast": Ether(src=MACS[0], dst="ff:ff:ff:ff:ff:ff") / flagged / UDP(sport=5, dport=6) / large,
        "error": ether / flagged / ICMP(type=3, code=1) / flagged / UDP() / large,
    }
    with one.raw() as out, two.raw() as into:
        for name, frame in sent.items():
            out.send(bytes(frame))
            while (seen := into.recv(2000))[6:12] != octets(MACS[0]):
                pass
            assert seen == bytes(frame), name
        assert list(waiting(out)) == [], "no answer"
    if kind == "user":
        assert one.count("too_big") == len(sent)
        assert one.count("not_sent") == 0


class Router(Place):
    """Between two ends, which take each other for neighbours. The way to the second is narrow."""

    def join(self, one: Place, two: Place) -> None:
        self.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0")
        for number, end in enumerate((one, two), 1):
            cable(end, "eth0", self, f"to{number}")
            self.sh(
                f"sysctl -qw net.ipv4.conf.to{number}.proxy_arp=1 net.ipv4.neigh.to{number}.proxy_delay=0"
                f" net.ipv6.conf.to{number}.proxy_ndp=1 net.ipv6.neigh.to{number}.proxy_delay=0;"
                f"ip link set to{number} up; ip -6 neigh add proxy fd00::{3 - number} dev to{number};"
                f"ip route add 192.0.2.{number} dev to{number}; ip -6 route add fd00::{number} dev to{number};"
                f"ip addr add 198.51.100.{number}/32 dev to{number};"
                f"ip addr add fd02::{number}/128 dev to{number} nodad"
            )
        self.sh("ip link set to2 mtu 1300")


@pytest.mark.parametrize("family", [4, 6])
def test_what_a_router_says_of_the_way_is_told_to_the_sender(make_pair: Callable[..., Pair], family: int) -> None:
    router = Router()
    try:
        one, _two = make_pair(family=family, between=router)
        frame = Ether(src=MACS[0], dst=MACS[1]) / IP(src="10.0.0.1", dst="10.0.0.2", flags="DF") / UDP()
        with one.raw() as back:
            back.settimeout(0.1)

            def told() -> bool:
                back.send(bytes(frame / Raw(bytes(1350))))  # what makes the router speak is lost
                try:
                    return Ether(back.recv(2000))[ICMP].nexthopmtu == 1300 - (50 if family == 4 else 70)
                except TimeoutError:
                    return False

            assert wait_until(told)
    finally:
        router.close()


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_said_of_the_way_to_one_host_is_not_the_others(make_pair: Callable[..., Pair], family: int) -> None:
    """A host says without end how narrow the way is to somewhere else."""
    one, two = make_pair(family=family)
    elsewhere = "192.0.2.77" if family == 4 else "fd00::77"
    said = [narrow(one.local, port, elsewhere, two.local) for port in udp_ports(one) if port != PORT]
    assert len(said) == uvxlan.LANES + 1
    stop = threading.Event()

    def say() -> None:
        with socket.socket(*RAW_ICMP[family]) as out:
            while not stop.is_set():
                for message in said:
                    out.sendto(message, (one.local, 0))

    frame = Ether(src=MACS[0], dst=MACS[1]) / IP(src="10.0.0.1", dst="10.0.0.2", flags="DF") / UDP() / Raw(bytes(1350))
    sent = bytes(frame)
    with one.raw() as back, two.raw() as into, ThreadPoolExecutor(1) as thread:
        running = thread.submit(two.do, say)
        try:
            for _ in range(5000):
                back.send(sent)
                while into.recv(2000) != sent:
                    pass
        finally:
            stop.set()
        running.result()
        assert list(waiting(back)) == [], "no answer"
    assert one.count("too_big") == 0


RAW_ICMP = {
    4: (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    6: (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
}


def narrow(source: str, port: int, destination: str, sayer: str) -> bytes:
    """ICMP as a raw socket takes it: 1280 octets at most from ``source`` to ``destination``."""
    udp = UDP(sport=port, dport=PORT, len=1000) / Raw(bytes(8))
    if "." in source:
        return bytes(ICMP(type=3, code=4, nexthopmtu=700) / IP(src=source, dst=destination, len=1020) / udp)
    quoted = IPv6(src=source, dst=destination, plen=1000) / udp
    return bytes(IPv6(bytes(IPv6(src=sayer, dst=source) / ICMPv6PacketTooBig(mtu=1280) / quoted)).payload)


def udp_ports(end: End) -> set[int]:
    """Of the UDP sockets in its namespace."""
    lines = end.run("ss", "-Huan").splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}

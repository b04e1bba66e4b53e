"""The user-space tunnel: against itself and against the kernel's vxlan, frame by frame, in both directions."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.host.uvxlan_rig import MACS, MTU, PORT, VNI, Kind, Pair, octets
from vxnet.host import uvxlan
from vxnet.host.forwarder import Counters
from vxnet.model.errors import HostError

pytestmark = pytest.mark.host


def frames() -> dict[str, Packet]:
    one, two = MACS
    ether = Ether(src=one, dst=two)
    ipv4, ipv6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd01::1", dst="fd01::2")
    payload = Raw(bytes(range(256)) * 4)
    large = IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(sport=5, dport=6) / Raw(os.urandom(2400))
    return {
        "arp": Ether(src=one, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1", pdst="10.0.0.2"),
        "multicast": Ether(src=one, dst="01:00:5e:00:00:05") / IP(src="10.0.0.1", dst="224.0.0.5") / payload,
        "ping": ether / ipv4 / ICMP() / payload,
        "udp": ether / ipv4 / UDP(sport=1000, dport=2000) / payload,
        "udp without checksum": ether / ipv4 / UDP(sport=1000, dport=2000, chksum=0) / payload,
        "tcp": ether / ipv4 / TCP(sport=1000, dport=2000, flags="PA", seq=9, ack=8) / payload,
        "tcp with options": ether / ipv4 / TCP(dport=2000, flags="S", options=[("MSS", 1400), ("SAckOK", b"")]),
        "tcp, bad checksum": ether / ipv4 / TCP(sport=1000, dport=2000, flags="A", chksum=0x1234) / payload,
        "ip options": ether / IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x94\x04\0\0") / UDP(dport=5) / payload,
        "first fragment": ether / fragment(large, 1200)[0],
        "last fragment": ether / fragment(large, 1200)[-1],
        "ipv6 udp": ether / ipv6 / UDP(sport=1000, dport=2000) / payload,
        "ipv6 tcp": ether / ipv6 / TCP(sport=1000, dport=2000, flags="A", seq=3) / payload,
        "ipv6 ping": ether / ipv6 / ICMPv6EchoRequest(data=b"x" * 400),
        "vlan": ether / Dot1Q(vlan=5) / ipv4 / UDP(sport=1000, dport=2000) / payload,
        "two tags": ether / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ipv4 / TCP(sport=1, dport=2, flags="A") / payload,
        "unknown ethertype": Ether(src=one, dst=two, type=0x88B5) / Raw(b"local experiment"),
        "padded": ether / ipv4 / TCP(sport=1000, dport=2000, flags="A") / Raw(b"") / Raw(b""),
        "ip says more than there is": ether / IP(src="10.0.0.1", dst="10.0.0.2", len=900) / UDP(dport=5) / Raw(b"x"),
        "torn ip": Ether(src=one, dst=two, type=0x0800) / Raw(b"\x45\0\0"),
    }


@pytest.mark.parametrize("kinds", [("user", "user"), ("user", "kernel"), ("kernel", "user")], ids=" to ".join)
@pytest.mark.parametrize("family", [4, 6])
def test_every_kind_of_frame_passes(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind], family: int) -> None:
    one, two = make_pair(*kinds, family=family)
    with one.raw() as out, two.raw() as into:
        for name, frame in frames().items():
            if name == "torn ip" and "kernel" in kinds:
                continue  # which looks for the ECN field, and drops what has none
            sent = bytes(frame)
            out.send(sent)
            while (seen := into.recv(2000))[6:12] != octets(MACS[0]):
                pass  # the other end's own
            # A VLAN tag may be handed over beside the frame.
            assert seen == sent or seen == sent[:12] + sent[16:], name


def test_what_is_dropped_is_counted_by_reason(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair()
    plain = bytes(Ether(src=MACS[0], dst=MACS[1]) / IP() / UDP() / Raw(b"x"))
    valid = b"\x08\0\0\0" + (VNI << 8).to_bytes(4)

    def send(data: bytes, source: str = "192.0.2.1") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.bind((source, 0))
            out.sendto(data, ("192.0.2.2", PORT))

    one.sh("ip addr add 192.0.2.9/24 dev eth0")
    for name, data, source in (
        ("truncated", b"\x08\0\0\0", "192.0.2.1"),
        ("truncated", b"", "192.0.2.1"),
        ("bad_header", b"\0" * 8 + plain, "192.0.2.1"),
        ("unknown_vni", b"\x08\0\0\0" + (VNI + 1 << 8).to_bytes(4) + plain, "192.0.2.1"),
        ("unknown_source", valid + plain, "192.0.2.9"),
    ):
        before = two.count(name)
        one.do(send, data, source)
        two.wait_count(name, before + 1)
    before = two.count("received_frames")
    one.do(send, valid + plain)
    two.wait_count("received_frames", before + 1)
    with one.raw() as out:
        out.send(bytes(Ether(src=MACS[0], dst="02:00:00:00:00:77") / IP() / UDP()))
    one.wait_count("unknown_destination", 1)


def test_a_hundred_thousand_rows(make_pair: Callable[..., Pair]) -> None:
    one, _two = make_pair()
    rows = {struct.pack(">HI", 0x0200, at): socket.inet_aton(f"192.0.{at % 250}.2") for at in range(100_000)}
    one.forwarder.replace(VNI, rows)
    assert one.forwarder.rows(VNI) == rows
    one.forwarder.replace(VNI, rows)  # for a moment there are two
    one.forwarder.drop(VNI, list(rows)[::2])
    one.forwarder.put(VNI, {b"\x02\0\0\0\0\0": socket.inet_pton(socket.AF_INET6, "fd00::7")})
    left = dict(list(rows.items())[1::2]) | {b"\x02\0\0\0\0\0": socket.inet_pton(socket.AF_INET6, "fd00::7")}
    assert one.forwarder.rows(VNI) == left
    assert one.forwarder.segments()[VNI].rows == 50_001
    one.forwarder.replace(VNI, {})
    assert one.forwarder.rows(VNI) == {}
    status = Path(f"/proc/{one.forwarders_pid()}/status").read_text()
    assert f"Uid:\t{uvxlan.UID}\t{uvxlan.UID}" in status
    most_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert most_kb < 40 << 10


def test_the_forwarder_outlives_its_daemon_and_is_found_again(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair()
    one.forwarder.close()
    one.ensure()
    assert one.forwarder.segments() == {VNI: (MTU, True, 1)}
    assert one.forwarder.peers() == {one.remote_packed}
    assert one.forwarder.flood(VNI) == {one.remote_packed}
    one.forwarder.remove(VNI)
    assert one.forwarder.segments() == {}
    assert "tunnel" not in one.links()
    with pytest.raises(HostError, match="refused: No such file"):
        one.forwarder.rows(VNI)
    one.forwarder.close()
    one.ensure(PORT + 1)
    assert len(list(one.directory.glob("*.sock"))) == 1
    assert one.forwarder.counters() == Counters(*(0,) * len(Counters.__struct_fields__))
    assert two.forwarder.segments() == {VNI: (MTU, True, 1)}


def test_it_may_hold_more_files_than_the_daemon(make_pair: Callable[..., Pair]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, soft), hard))
    try:
        one, _two = make_pair("user", "kernel")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{one.forwarders_pid()}/limits").read_text()
    assert limits.partition("Max open files")[2].split()[:2] == [str(hard), str(hard)]


def test_a_taken_port_is_said(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    one, _two = make_pair("kernel", "kernel")
    with pytest.raises(HostError, match="Address already in use"):
        one.do(uvxlan.ensure, one.directory, uvxlan.Setting(local=one.local, port=PORT))
    assert list(one.directory.iterdir()) == []


@pytest.mark.parametrize("kind", ["user", "kernel"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_underlays_mark_of_congestion_reaches_the_receiver(
    make_pair: Callable[..., Pair], kind: Kind, family: int
) -> None:
    """Unless the sender knows no such marks: then the frame is dropped (RFC 6040)."""
    one, two = make_pair("user", kind, family=family)
    level, option = (socket.IPPROTO_IP, 1) if family == 4 else (socket.IPPROTO_IPV6, 67)

    def send(mark: int, frame: bytes) -> None:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as out:
            out.setsockopt(level, option, mark)
            out.bind((one.local, 0))
            out.sendto(b"\x08\0\0\0" + (VNI << 8).to_bytes(4) + frame, (one.remote, PORT))

    def packets(mark: int) -> list[Packet]:
        ether = Ether(src=MACS[0], dst=MACS[1])
        return [
            ether / IP(src="10.0.0.1", dst="10.0.0.2", tos=0xB8 | mark) / UDP(sport=1, dport=2) / Raw(b"x" * 40),
            ether / IPv6(src="fd01::1", dst="fd01::2", tc=0xB8 | mark) / UDP(sport=1, dport=2) / Raw(b"x" * 40),
        ]

    with two.raw() as came:
        for number in (0, 1):
            one.do(send, 3, bytes(packets(0)[number]))
            for mark in (1, 2, 3):
                one.do(send, 3, bytes(packets(mark)[number]))
                assert two.do(came.recv, 2000) == bytes(packets(3)[number]), mark
            one.do(send, 2, bytes(packets(0)[number]))
            assert two.do(came.recv, 2000) == bytes(packets(0)[number])
    if kind == "user":
        assert two.count("congested") == 2


@pytest.mark.parametrize("kind", ["user", "kernel"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_underlay_may_mark_what_may_be_marked(make_pair: Callable[..., Pair], kind: Kind, family: int) -> None:
    """The frame's ECN field is the datagram's, too; a mark that it has already stays within (RFC 3168, 9.1.1)."""
    one, two = make_pair(kind, "user", family=family)
    ether, load = Ether(src=MACS[0], dst=MACS[1]), UDP(sport=1, dport=2) / Raw(b"x" * 400)
    fields = [0, 1, 1, 2, 3, 3, 0, 2]
    for version in (4, 6):
        frames = [
            bytes(
                ether
                / (IP(dst="10.0.0.2", tos=0xB8 | field) if version == 4 else IPv6(dst="::2", tc=0xB8 | field))
                / load
            )
            for field in fields
        ]
        piece = 8 + len(frames[0])
        with one.raw() as out, two.raw("eth0") as wire:
            # All lie there before the first is read, so that those that may go as one message do.
            if kind == "user":
                os.kill(one.forwarders_pid(), signal.SIGSTOP)
            for frame in frames:
                out.send(frame)
            if kind == "user":
                os.kill(one.forwarders_pid(), signal.SIGCONT)
            seen: list[tuple[int, int]] = []
            while len(seen) < len(fields):
                packet = Ether(two.do(wire.recv, 1 << 16))
                if UDP not in packet or packet[UDP].dport != PORT:
                    continue
                outer = packet[IP].tos if family == 4 else packet[IPv6].tc
                datagrams = bytes(packet[UDP].payload)
                assert len(datagrams) % piece == 0
                for at in range(0, len(datagrams), piece):
                    inner = Ether(datagrams[at + 8 : at + piece])
                    seen.append((inner[IP].tos & 3 if version == 4 else inner[IPv6].tc & 3, outer))
        assert seen == [(field, 2 if field == 3 else field) for field in fields]


def test_a_tap_that_was_taken_away_keeps_no_thread_busy(make_pair: Callable[..., Pair]) -> None:
    """Until the daemon has made another, its descriptor is ready for ever, and nothing can be read of it."""
    one, _two = make_pair()
    tasks = Path(f"/proc/{one.forwarders_pid()}/task")
    one.sh("ip link del tunnel")
    quiet, deadline = 0, time.monotonic() + 20
    while quiet < 50:
        states = [stat.read_text().rpartition(")")[2].split()[0] for stat in tasks.glob("*/stat")]
        quiet = quiet + 1 if set(states) == {"S"} else 0
        assert time.monotonic() < deadline, states
        time.sleep(0.005)
    assert set(one.forwarder.segments()) == {VNI}

"""The user-space tunnel: against itself and against the kernel's vxlan, frame by frame, in both directions.

::

    Place one                                 Place two
    tunnel (TAP or vxlan) ── underlay ── veth ── underlay ── tunnel (TAP or vxlan)
    192.0.2.1                                 192.0.2.2

There is no bridge: what a test sends and sees on the tunnel's device is what a bridge would.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.host.throwaway import Place
from vxnet.host import tap, uvxlan
from vxnet.host.forwarder import Counters, Forwarder
from vxnet.model.errors import HostError

pytestmark = pytest.mark.host

VNI = 70000
PORT = 4789
MTU = 1450
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
CSRC = Path(__file__).parents[2] / "csrc" / "vxlan"


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class End(Place):
    """A host with a tunnel to one other host."""

    def __init__(self, number: int, kind: str, family: int, directory: Path) -> None:
        super().__init__()
        self.number, self.kind, self.family = number, kind, family
        self.directory = directory / str(number)
        self.directory.mkdir()
        self.local, self.remote = ((f"192.0.2.{at}" if family == 4 else f"fd00::{at}") for at in (number, 3 - number))
        self.mac, self.other_mac = MACS[number - 1], MACS[2 - number]
        self._forwarder: Forwarder | None = None

    @property
    def forwarder(self) -> Forwarder:
        assert self._forwarder is not None
        return self._forwarder

    @property
    def remote_packed(self) -> bytes:
        return socket.inet_pton(socket.AF_INET if self.family == 4 else socket.AF_INET6, self.remote)

    def up(self) -> None:
        for line in (
            f"link set lo up; ip addr add {self.local}/{24 if self.family == 4 else 64} dev eth0 nodad",
            "link set eth0 up",
        ):
            self.sh(f"ip {line}")
        if self.kind == "kernel":
            self.sh(f"ip link add tunnel type vxlan id {VNI} local {self.local} dstport {PORT} nolearning")
            self.sh(f"bridge fdb replace {self.other_mac} dev tunnel dst {self.remote}")
            self.sh(f"bridge fdb append 00:00:00:00:00:00 dev tunnel dst {self.remote}")
        else:
            setting = uvxlan.Setting(local=self.local, port=PORT, virtual_underlay=True)
            forwarder = self._forwarder = self.do(uvxlan.ensure, self.directory, setting)
            made = tap.open_tap(self.fd, "tunnel")
            forwarder.add(VNI, MTU, made)
            for descriptor in made.descriptors:
                os.close(descriptor)
            forwarder.put(VNI, {octets(self.other_mac): self.remote_packed})
            forwarder.set_flood(VNI, [self.remote_packed])
            forwarder.set_peers([self.remote_packed])
        # Quiet: no neighbour discovery of its own between what a test sends.
        self.sh("sysctl -qw net.ipv6.conf.tunnel.disable_ipv6=1")
        self.sh(f"ip link set tunnel address {self.mac} mtu {MTU} up")

    def count(self, name: str) -> int:
        value = getattr(self.forwarder.counters(), name)
        assert isinstance(value, int)
        return value

    def wait_count(self, name: str, least: int) -> None:
        deadline = time.monotonic() + 10
        while self.count(name) < least:
            assert time.monotonic() < deadline, self.forwarder.counters()
            time.sleep(0.01)

    def raw(self) -> socket.socket:
        """A packet socket on the tunnel, which sees what came out of it and sends into it."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind(("tunnel", 3))
            made.settimeout(10)
            return made

        return self.do(make)

    def close(self) -> None:
        if self._forwarder is not None:
            self._forwarder.close()
            uvxlan.stop(self.directory)
        super().close()


Pair = tuple[End, End]


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    made: list[End] = []

    def make(one: str = "user", two: str = "user", family: int = 4) -> Pair:
        ends = End(1, one, family, tmp_path), End(2, two, family, tmp_path)
        made.extend(ends)
        # On a machine with a namespace to itself per end, both veths are called eth0.
        ends[0].sh(f"ip link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/task/{ends[1].tid}/ns/net")
        for end in ends:
            end.up()
        return ends

    try:
        yield make
    finally:
        for end in made:
            end.close()


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
def test_every_kind_of_frame_passes(make_pair: Callable[..., Pair], kinds: tuple[str, str], family: int) -> None:
    one, two = make_pair(*kinds, family)
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


@pytest.mark.parametrize("kinds", [("user", "user"), ("user", "kernel"), ("kernel", "user")], ids=" to ".join)
@pytest.mark.parametrize("version", [4, 6])
def test_a_long_stream_arrives_whole(make_pair: Callable[..., Pair], kinds: tuple[str, str], version: int) -> None:
    one, two = make_pair(*kinds)
    addresses = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fd01::1", "fd01::2")
    for end, address in zip((one, two), addresses, strict=True):
        end.sh("sysctl -qw net.ipv6.conf.tunnel.disable_ipv6=0")
        end.sh(f"ip addr add {address}/{24 if version == 4 else 64} dev tunnel nodad")
    one.sh(f"ip neigh replace {addresses[1]} lladdr {MACS[1]} dev tunnel")
    two.sh(f"ip neigh replace {addresses[0]} lladdr {MACS[0]} dev tunnel")
    kind = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = two.do(socket.create_server, (addresses[1], 0), family=kind)
    piece = os.urandom(1 << 20)
    with listener:
        client = one.do(socket.create_connection, (addresses[1], listener.getsockname()[1]), 10)
        server, _ = listener.accept()
        server.settimeout(20)
        with client, server:
            total = 40
            sending = one._thread.submit(lambda: [client.sendall(piece) for _ in range(total)])
            received = hashlib.sha256()
            left = total * len(piece)
            while left:
                got = server.recv(1 << 20)
                assert got
                received.update(got)
                left -= len(got)
            sending.result(20)
    wanted = hashlib.sha256()
    for _ in range(total):
        wanted.update(piece)
    assert received.digest() == wanted.digest()
    if kinds == ("user", "user"):
        assert two.count("joined_frames") > 1000
    for end in (one, two):
        if end.kind == "user":
            assert end.count("bad_checksum") == end.count("not_written") == end.count("not_sent") == 0


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


@pytest.mark.parametrize("version", [4, 6])
def test_a_path_that_is_too_narrow_is_told_to_the_sender(make_pair: Callable[..., Pair], version: int) -> None:
    one, two = make_pair()
    wanted = 1300 - 20 - 8 - 8 - 14
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
    pid = next(int(line) for line in subprocess.check_output(["pgrep", "-f", str(one.local)], text=True).split())
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{uvxlan.UID}\t{uvxlan.UID}" in status
    most_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert most_kb < 40 << 10


def test_the_forwarder_outlives_its_daemon_and_is_found_again(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair()
    one.forwarder.close()
    same = uvxlan.Setting(local=one.local, port=PORT, virtual_underlay=True)
    one._forwarder = one.do(uvxlan.ensure, one.directory, same)
    assert one.forwarder.segments() == {VNI: (MTU, True, 1)}
    assert one.forwarder.peers() == {one.remote_packed}
    assert one.forwarder.flood(VNI) == {one.remote_packed}
    one.forwarder.remove(VNI)
    assert one.forwarder.segments() == {}
    assert "tunnel" not in one.links()
    with pytest.raises(HostError, match="refused: No such file"):
        one.forwarder.rows(VNI)
    one.forwarder.close()
    other = uvxlan.Setting(local=one.local, port=PORT + 1)
    one._forwarder = one.do(uvxlan.ensure, one.directory, other)
    assert len(list(one.directory.glob("*.sock"))) == 1
    assert one.forwarder.counters() == Counters(*(0,) * 16)
    assert two.forwarder.segments() == {VNI: (MTU, True, 1)}


def test_a_taken_port_is_said(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    one, _two = make_pair("kernel", "kernel")
    with pytest.raises(HostError, match="Address already in use"):
        one.do(uvxlan.ensure, one.directory, uvxlan.Setting(local=one.local, port=PORT))
    assert list(one.directory.iterdir()) == []


@pytest.mark.slow
def test_parsers_with_torn_input_and_cutting_with_joining(tmp_path: Path, seed: int) -> None:
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [CSRC / f"{name}.c" for name in ("packet", "cut", "join", "toobig", "command", "fdb")]
    harness = Path(__file__).parent / "uvxlan_fuzz.c"
    subprocess.run(["gcc", *flags, f"-I{CSRC}", "-o", tmp_path / "fuzz", harness, *sources], check=True)
    done = subprocess.run([tmp_path / "fuzz", str(seed), "10000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 10000, "every frame that was cut is whole again"

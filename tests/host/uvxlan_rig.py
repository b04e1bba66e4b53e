"""Two hosts with a tunnel to each other, each of a kind of its own, and what is sent through it.

::

    Place one                                             Place two
    tunnel (TAP, vxlan or bridge) ── eth0 ── veth ── eth0 ── tunnel (TAP, vxlan or bridge)
    192.0.2.1                                             192.0.2.2

There is no bridge of the host's: what a test sends and sees on the tunnel's device is what a bridge would. Open vSwitch
has bridges only; there it is the bridge's own device.
"""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, Protocol

from tests.host.open_vswitch import OpenVSwitch
from tests.host.throwaway import Place
from vxnet.host import tap, uvxlan
from vxnet.host.forwarder import Forwarder

Kind = Literal["user", "kernel", "ovs"]

VNI = 70000
PORT = 4789
MTU = 1450
"""Over IPv4."""
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
PIECE: Final = 1_000_003
"""Octets. A prime, so that no piece begins where a segment or a buffer does."""
PATIENCE_S: Final = 60.0


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Talker(Place):
    """One of two that talk through a tunnel."""

    number: int

    def address(self, version: int) -> str:
        """In the tunnel."""
        return f"10.0.0.{self.number}" if version == 4 else f"fd01::{self.number}"

    @property
    def mac(self) -> str:
        return MACS[self.number - 1]


class End(Talker):
    """A host with a tunnel to one other host, through which it talks."""

    def __init__(
        self, number: int, kind: Kind, family: int, directory: Path, queues: int, virtual_underlay: bool = True
    ) -> None:
        super().__init__()
        self.number, self.kind, self.family, self.queues = number, kind, family, queues
        self._virtual_underlay = virtual_underlay
        self.directory = directory / str(number)
        self.directory.mkdir()
        self.local, self.remote = ((f"192.0.2.{at}" if family == 4 else f"fd00::{at}") for at in (number, 3 - number))
        self.mtu = MTU if family == 4 else MTU - 20
        self.other_mac = MACS[2 - number]
        self._forwarder: Forwarder | None = None
        self._switch: OpenVSwitch | None = None

    @property
    def forwarder(self) -> Forwarder:
        assert self._forwarder is not None
        return self._forwarder

    @property
    def remote_packed(self) -> bytes:
        return socket.inet_pton(socket.AF_INET if self.family == 4 else socket.AF_INET6, self.remote)

    def up(self) -> None:
        self.sh("ip link set lo up; ip link set eth0 up")
        underlay = "eth0"
        if self.kind == "ovs":
            self._switch = OpenVSwitch(self, self.directory)
            underlay = self._switch.join("eth0", "tunnel", self.mac, remote=self.remote, vni=VNI, port=PORT)
        self.sh(f"ip addr add {self.local}/{24 if self.family == 4 else 64} dev {underlay} nodad")
        if self.kind == "kernel":
            self.sh(f"ip link add tunnel type vxlan id {VNI} local {self.local} dstport {PORT} nolearning")
            self.sh(f"bridge fdb replace {self.other_mac} dev tunnel dst {self.remote}")
            self.sh(f"bridge fdb append 00:00:00:00:00:00 dev tunnel dst {self.remote}")
        elif self.kind == "user":
            self._fill(self.ensure())
        self._raise(self)

    def _raise(self, where: Place) -> None:
        # Quiet: no neighbour discovery of its own between what a test sends.
        where.sh("sysctl -qw net.ipv6.conf.tunnel.disable_ipv6=1")
        where.sh(f"ip link set tunnel address {self.mac} mtu {self.mtu} up")

    def ensure(self, port: int = PORT) -> Forwarder:
        setting = uvxlan.Setting(
            local=self.local, port=port, queues=self.queues, virtual_underlay=self._virtual_underlay
        )
        self._forwarder = self.do(uvxlan.ensure, self.directory, setting)
        return self._forwarder

    def _fill(self, forwarder: Forwarder) -> None:
        self._add(VNI, self)
        forwarder.set_peers([self.remote_packed])

    def _add(self, vni: int, where: Place) -> None:
        made = tap.open_tap(where.fd, "tunnel", self.queues)
        self.forwarder.add(vni, self.mtu, made)
        for descriptor in made.descriptors:
            os.close(descriptor)
        self.forwarder.put(vni, {octets(self.other_mac): self.remote_packed})
        self.forwarder.set_flood(vni, [self.remote_packed])

    def segment(self, vni: int) -> Talker:
        """Another one of this host, with the same addresses: who talks through it sees nothing else. The caller's to
        close."""
        talker = Talker()
        talker.number = self.number
        if self.kind == "user":
            self._add(vni, talker)
        else:
            namespace = f"/proc/{os.getpid()}/task/{talker.tid}/ns/net"
            self.sh(
                f"ip link add tunnel netns {namespace} type vxlan id {vni} local {self.local} dstport {PORT} nolearning"
            )
            talker.sh(f"bridge fdb replace {self.other_mac} dev tunnel dst {self.remote}")
        self._raise(talker)
        return talker

    def forwarders_pid(self) -> int:
        """Of the process with this place's network namespace and the forwarder's user."""
        namespace = self.do(lambda: os.readlink("/proc/thread-self/ns/net"))
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if process.stat().st_uid == uvxlan.UID and os.readlink(process / "ns/net") == namespace:
                    return int(process.name)
            except OSError:
                continue  # it has ended
        raise AssertionError("no forwarder runs here")

    def count(self, name: str) -> int:
        value = getattr(self.forwarder.counters(), name)
        assert isinstance(value, int)
        return value

    def wait_count(self, name: str, least: int) -> None:
        deadline = time.monotonic() + 10
        while self.count(name) < least:
            assert time.monotonic() < deadline, self.forwarder.counters()
            time.sleep(0.01)

    def assert_nothing_refused(self) -> None:
        """All that came was for this host and whole, and all that left it was taken."""
        if self.kind != "user":
            return
        for name in (
            *("bad_checksum", "bad_header", "truncated", "unknown_source", "unknown_vni"),
            *("bad_frame", "unknown_destination", "too_big", "not_sent", "not_written"),
        ):
            assert self.count(name) == 0, self.forwarder.counters()

    def raw(self, device: str = "tunnel") -> socket.socket:
        """A packet socket on the device. On the tunnel, it sees what came out of it and sends into it."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind((device, 3))
            made.settimeout(10)
            return made

        return self.do(make)

    def close(self) -> None:
        if self._forwarder is not None:
            self._forwarder.close()
            uvxlan.stop(self.directory)
        if self._switch is not None:
            self._switch.close()
        super().close()


Pair = tuple[End, End]


class Between(Protocol):
    """What connects two, if no cable does."""

    def join(self, one: Place, two: Place) -> None: ...


def cable(one: Place, name: str, other: Place, other_name: str) -> None:
    # In a namespace each, both ends may have the same name.
    one.sh(f"ip link add {name} type veth peer name {other_name} netns /proc/{os.getpid()}/task/{other.tid}/ns/net")


def give_addresses(pair: tuple[Talker, Talker], version: int) -> None:
    """Addresses in the tunnel, and each other's MAC, for which nobody need ask."""
    for end, other in (pair, pair[::-1]):
        end.sh(
            "sysctl -qw net.ipv6.conf.tunnel.disable_ipv6=0;"
            f"ip addr add {end.address(version)}/{24 if version == 4 else 64} dev tunnel nodad;"
            f"ip neigh replace {other.address(version)} lladdr {other.mac} dev tunnel"
        )


def stream(
    source: Talker,
    sink: Talker,
    version: int,
    pieces: int,
    *,
    flows: int = 1,
    port: int = 0,
    extensions: bytes = b"",
) -> None:
    """Through the tunnel, by TCP: ``pieces`` of random octets over each connection, all at a time. Every octet that
    arrives is compared with the one that was sent. ``extensions``: destination options before each header of TCP.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    piece = os.urandom(PIECE)
    with ExitStack() as stack:
        listener = stack.enter_context(sink.do(socket.create_server, (sink.address(version), port), family=family))
        listener.settimeout(PATIENCE_S)
        threads = stack.enter_context(ThreadPoolExecutor(2 * flows))
        ends: list[Future[int]] = []
        for _ in range(flows):
            client = source.do(socket.create_connection, listener.getsockname()[:2], PATIENCE_S)
            server, _ = listener.accept()
            server.settimeout(PATIENCE_S)
            if extensions:
                client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, extensions)
            ends.append(threads.submit(_receive, stack.enter_context(server), piece))
            threads.submit(_send, stack.enter_context(client), piece, pieces)
        assert [end.result() for end in ends] == [pieces * PIECE] * flows


def _send(client: socket.socket, piece: bytes, pieces: int) -> None:
    for _ in range(pieces):
        client.sendall(piece)
    client.shutdown(socket.SHUT_WR)


def _receive(server: socket.socket, piece: bytes) -> int:
    """How many octets came, which are those of ``piece`` over and over."""
    twice, place = piece + piece, 0
    while got := server.recv(PIECE // 2):
        at = place % PIECE
        assert got == twice[at : at + len(got)], f"other octets between {place} and {place + len(got)}"
        place += len(got)
    return place

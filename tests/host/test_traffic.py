"""What the devices are for: frames between containers on two hosts, and none that should not be."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from tests.host.rig import VNI, Container, Pair, addresses, errors, state
from tests.host.throwaway import Place

pytestmark = pytest.mark.host

VXLAN_PORT = 4789
ARP = 0x0806


KINDS = (("kernel", "kernel"), ("userspace", "userspace"), ("userspace", "kernel"), ("kernel", "userspace"))


@pytest.fixture(params=[(version, kinds) for version in (4, 6) for kinds in KINDS], ids=str)
def either(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(*request.param)
    pair.reconcile()
    yield pair
    pair.close()


class Wire:
    """Everything that passes a host's interface from now on."""

    def __init__(self, place: Place, interface: str) -> None:
        def open_socket() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            opened.bind((interface, 0))
            opened.setblocking(False)
            return opened

        self._socket = place.do(open_socket)

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536))
            except BlockingIOError:
                return found

    def inner_frames(self) -> list[bytes]:
        """What the VXLAN packets among them carry."""
        headers = {0x0800: 14 + 20 + 8 + 8, 0x86DD: 14 + 40 + 8 + 8}
        inner = []
        for frame in self.frames():
            (kind,) = struct.unpack_from("!H", frame, 12)
            skip = headers.get(kind, 0)
            if skip and len(frame) > skip and struct.unpack_from("!H", frame, skip - 14)[0] == VXLAN_PORT:
                inner.append(frame[skip:])
        return inner

    def close(self) -> None:
        self._socket.close()


def test_ping_in_both_families(either: Pair) -> None:
    assert either.c1.reaches("10.0.16.3")
    assert either.c1.reaches("fd00:16::3")
    assert either.d1.reaches("10.0.16.2")


def test_tcp_with_full_segments(either: Pair) -> None:
    payload = bytes(range(256)) * 4096

    def listen() -> socket.socket:
        listening = socket.create_server(("10.0.16.3", 8080))
        listening.settimeout(5)
        return listening

    def connect() -> socket.socket:
        return socket.create_connection(("10.0.16.3", 8080), timeout=5)

    with either.d1.do(listen) as listening, either.c1.do(connect) as client:
        served, peer = listening.accept()
        with served:
            served.settimeout(5)
            received = bytearray()

            def send() -> None:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)

            sending = either.c1._thread.submit(send)
            while chunk := served.recv(65536):
                received += chunk
            sending.result()
    assert peer[0] == "10.0.16.2"
    assert received == payload


def test_address_resolution_stays_on_the_host(pair: Pair) -> None:
    """Requests for remote containers are answered here, those for local ones are kept here, in both families."""
    c2 = Container(4)
    try:
        wanted = state(pair.v1, [pair.c1.sandbox(), c2.sandbox()], [pair.d1.remote(pair.v2)])
        assert errors(pair.h1.reconcile(wanted)) == []
        wire = Wire(pair.h1, "eth0")
        for address in ("10.0.16.3", "fd00:16::3", "10.0.16.4", "fd00:16::4"):
            assert pair.c1.reaches(address)
        frames = wire.inner_frames()
        wire.close()
    finally:
        c2.close()
    assert any(frame[:6].hex(":") == pair.d1.mac() for frame in frames), "the ping itself was seen"
    assert [frame.hex() for frame in frames if frame[12:14] == ARP.to_bytes(2)] == []
    targets = {
        frame[14 + 40 + 8 : 14 + 40 + 24] for frame in frames if frame[12:14] == b"\x86\xdd" and frame[54] == 135
    }
    assert not targets & {ipaddress.ip_address(one).packed for one in ("fd00:16::3", "fd00:16::4")}


def test_broadcast_reaches_the_members(pair: Pair) -> None:
    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("", 9999))
        opened.settimeout(5)
        return opened

    def shout() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            opened.sendto(b"hello", ("255.255.255.255", 9999))

    with pair.d1.do(listen) as listening:
        pair.c1.do(shout)
        assert listening.recvfrom(100)[0] == b"hello"


def test_unknown_unicast_stays(pair: Pair) -> None:
    wire = Wire(pair.h1, "eth0")
    pair.c1.sh("ip neigh replace 10.0.16.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
    assert not pair.c1.run("ping", "-c", "1", "-W", "0.1", "10.0.16.77", check=False).count("1 received")
    assert pair.c1.reaches("10.0.16.3")
    seen = [frame[:6].hex(":") for frame in wire.inner_frames()]
    wire.close()
    assert pair.d1.mac() in seen and "02:00:00:00:00:77" not in seen


def test_way_out_is_masqueraded(pair: Pair) -> None:
    def listen() -> socket.socket:
        listening = socket.create_server((str(pair.v2), 9090))
        listening.settimeout(5)
        return listening

    def connect() -> socket.socket:
        return socket.create_connection((str(pair.v2), 9090), timeout=5)

    with pair.h2.do(listen) as listening, pair.c1.do(connect):
        served, peer = listening.accept()
        served.close()
    assert peer[0] == str(pair.v1)


@pytest.mark.slow
def test_gateway_ports_are_isolated_and_closed(pair: Pair) -> None:
    c2 = Container(4)
    try:
        wanted = state(pair.v1, [pair.c1.sandbox(), c2.sandbox()], [pair.d1.remote(pair.v2)])
        assert errors(pair.h1.reconcile(wanted)) == []
        assert not pair.c1.reaches("172.19.0.4"), "from container to container"
        # Not by way of the host either.
        pair.c1.sh("ip route add 172.19.0.4/32 via 172.19.0.1 onlink dev eth9")
        assert not pair.c1.reaches("172.19.0.4")
        pair.h2.sh(f"ip route add 172.19.0.4/32 via {pair.v1}")
        assert "1 received" not in pair.h2.run("ping", "-c", "1", "-W", "1", "172.19.0.4", check=False), "from outside"
        assert "1 received" in pair.h1.run("ping", "-c", "1", "-W", "2", "172.19.0.4", check=False), "from the host"
    finally:
        c2.close()


def test_resolver_is_reached_although_port_53_is_taken(pair: Pair) -> None:
    def serve(kind: int, address: str, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, kind)
        opened.bind((address, port))
        if kind == socket.SOCK_STREAM:
            opened.listen()
        opened.settimeout(5)
        return opened

    def client(kind: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, kind)
        opened.settimeout(5)
        opened.connect(("127.0.0.11", 53))
        return opened

    kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    taken = [pair.c1.do(serve, kind, "", 53) for kind in kinds]
    resolver = [pair.c1.do(serve, kind, "127.0.0.11", 40000) for kind in kinds]
    with pair.c1.do(client, socket.SOCK_DGRAM) as asking:
        asking.send(b"query")
        query, peer = resolver[0].recvfrom(100)
        resolver[0].sendto(b"answer", peer)
        # Connected: an answer from another source than 127.0.0.11:53 would not arrive.
        assert (query, asking.recv(100)) == (b"query", b"answer")
    with pair.c1.do(client, socket.SOCK_STREAM) as asking:
        served, _ = resolver[1].accept()
        served.close()
        assert asking.recv(1) == b""
    for opened in (*taken, *resolver):
        opened.close()


# Who may speak to the VXLAN port


def vxlan_packet(pair: Pair) -> bytes:
    """A frame to c1 of an experimental EtherType, as its peer would send it."""
    header = struct.pack("!II", 0x08000000, VNI << 8)
    frame = bytes.fromhex(pair.c1.mac().replace(":", "")) + bytes.fromhex(pair.d1.mac().replace(":", "")) + b"\x88\xb5"
    return header + frame + b"forged".ljust(46, b"\0")


def arrives(pair: Pair, send: Callable[[], object]) -> bool:
    """Whether what ``send`` sends comes out at c1; a ping after it shows that there was time enough."""
    wire = Wire(pair.c1, "eth0")
    send()
    assert pair.c1.reaches("10.0.16.3")
    frames = wire.frames()
    wire.close()
    return any(b"forged" in frame for frame in frames)


def shoot(place: Place, packet: bytes, target: str, source: str | None = None) -> Callable[[], object]:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            if source is not None:
                opened.bind((source, 0))
            try:
                opened.sendto(packet, (target, VXLAN_PORT))
            except PermissionError:
                return  # nft's drop in output

    return lambda: place.do(send)


def test_packet_of_a_known_vtep_arrives(pair: Pair) -> None:
    """The control: the forgery itself is well made."""
    pair.h2.sh("nft delete table inet vxnet")
    assert arrives(pair, shoot(pair.h2, vxlan_packet(pair), str(pair.v1)))


def test_user_socket_of_a_member_is_dropped(pair: Pair) -> None:
    assert not arrives(pair, shoot(pair.h2, vxlan_packet(pair), str(pair.v1)))


def test_unknown_vtep_is_dropped(pair: Pair) -> None:
    pair.h2.sh("nft delete table inet vxnet; ip addr add 192.168.9.77/24 dev eth0")
    assert not arrives(pair, shoot(pair.h2, vxlan_packet(pair), str(pair.v1), source="192.168.9.77"))


def test_container_cannot_forge_through_the_gateway(pair: Pair) -> None:
    """Masqueraded, it would come from a known VTEP."""
    assert not arrives(pair, shoot(pair.d1, vxlan_packet(pair), str(pair.v1)))
    # Nor to its own host.
    packet = vxlan_packet(pair)
    assert not arrives(pair, shoot(pair.c1, packet, str(pair.v1)))


def test_members_change_without_rebuilding_the_table(pair: Pair) -> None:
    before = pair.h1.run("nft", "-a", "list", "table", "inet", "vxnet")
    changes = pair.h1.reconcile(replace(pair.s1, vteps=addresses("192.168.9.2", "192.168.9.3", "fd00::3")))
    assert [(change.verb, change.object, change.error) for change in changes] == [
        ("replace", "nft table inet vxnet set vteps4 and vteps6 in the host", "")
    ]
    after = pair.h1.run("nft", "-a", "list", "table", "inet", "vxnet")
    handles = [line.split("# handle")[1] for line in before.splitlines() if "# handle" in line]
    assert handles == [line.split("# handle")[1] for line in after.splitlines() if "# handle" in line]
    assert "192.168.9.2, 192.168.9.3" in after and "fd00::3" in after

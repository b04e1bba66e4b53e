"""Bridges in the host's namespace: the way out of both families, networks of the driver bridge, ports; macvlan.

::

    c1, c2 ── vxnet_gw ─────────┐
                                ├── host ──(eth0 │ lan0)── world 192.168.9.2, fd00:9::2
    c3, c4 ── vxnet_00000000a ──┘
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Literal

import pytest
from msgspec.structs import replace

from tests.host.rig import Container, Machine, addresses, errors, interfaces
from tests.host.throwaway import Host, Place, wire
from vxnet.host import conntrack, elements
from vxnet.host.netlink import Netlink
from vxnet.model.host import GatewayBridge, HostBridge, HostPort, HostState, Interface, MacvlanMode, Sandbox

pytestmark = [pytest.mark.host, pytest.mark.slow]

IN_VAIN_S = 0.7
"""So long for an answer that is not to come."""

Kind = Literal["tcp", "udp"]

GATEWAY = GatewayBridge(addresses=interfaces("172.19.0.1/16", "fd19::ac13:1/64"), mtu=1500)
BLUE = HostBridge(name="vxnet_00000000a", addresses=interfaces("172.20.0.1/24", "fd20::1/64"), mtu=1500)
RED = HostBridge(name="vxnet_00000000b", addresses=interfaces("172.21.0.1/24"), mtu=1400, internal=True)


def on_gateway(one: Container) -> Sandbox:
    """With both families on vxnet_gw alone."""
    foot = Interface(
        name="eth0",
        port=one.port("eth0"),
        vni=None,
        mac=f"02:00:ac:13:00:{one.number:02x}",
        mtu=1500,
        addresses=interfaces(f"172.19.0.{one.number}/16", f"fd19::ac13:{one.number:x}/64"),
    )
    return Sandbox(id=one.id, netns=one.path, interfaces=(foot,), default_via=addresses("172.19.0.1", "fd19::ac13:1"))


def on_bridge(one: Container, bridge: HostBridge) -> Sandbox:
    own = tuple(
        str(place.network.network_address + one.number) + f"/{place.network.prefixlen}" for place in bridge.addresses
    )
    foot = Interface(
        name="eth0",
        port=one.port("eth0"),
        vni=None,
        bridge=bridge.name,
        mac=f"02:00:ac:14:00:{one.number:02x}",
        mtu=bridge.mtu,
        addresses=interfaces(*own),
    )
    via = () if bridge.internal else tuple(place.ip for place in bridge.addresses)
    return Sandbox(id=one.id, netns=one.path, interfaces=(foot,), default_via=via)


class Rig:
    def __init__(self) -> None:
        self.host, self.world = Machine(), Host()
        self.c1, self.c2, self.c3, self.c4, self.c5 = (Container(number) for number in range(2, 7))
        wire(self.host, "eth0", self.world, "lan0")
        self.host.sh("ip addr add 192.168.9.1/24 dev eth0; ip addr add fd00:9::1/64 dev eth0 nodad")
        self.world.sh("ip addr add 192.168.9.2/24 dev lan0; ip addr add fd00:9::2/64 dev lan0 nodad")
        boxes = [on_gateway(self.c1), on_gateway(self.c2), on_bridge(self.c3, BLUE), on_bridge(self.c4, BLUE)]
        boxes.append(on_bridge(self.c5, RED))
        self.state = HostState(sandboxes=tuple(boxes), gateway=GATEWAY, bridges=(BLUE, RED))
        assert errors(self.host.reconcile(self.state)) == []

    def close(self) -> None:
        for place in (self.host, self.world, self.c1, self.c2, self.c3, self.c4, self.c5):
            place.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@contextlib.contextmanager
def serving(place: Place, port: int, kind: Kind = "tcp") -> Iterator[None]:
    """Answers each client with the address that it sees."""

    def listen() -> socket.socket:
        one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind(("::", port))
        if kind == "tcp":
            one.listen()
        return one

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == "udp":
                    said, peer = server.recvfrom(100)
                    if not said:  # shut down
                        return
                    server.sendto(peer[0].encode(), peer)
                else:
                    client, peer = server.accept()
                    with client:
                        client.sendall(peer[0].encode())

    with place.do(listen) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # of UDP, which is woken all the same
                server.shutdown(socket.SHUT_RDWR)
            thread.join(1)


def ask(place: Place, address: str, port: int, kind: Kind = "tcp", patience_s: float = 3.0) -> str:
    """The address that the server saw; empty: it does not answer, or is not to be reached."""

    def go() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
            one.settimeout(patience_s)
            try:
                one.connect((address, port))
                one.send(b"?")
                return plain(one.recv(200).decode())
            except (OSError, TimeoutError):
                return ""

    return place.do(go)


def plain(text: str) -> str:
    found = ip_address(text)
    return str((found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found)


def test_the_same_twice_is_nothing(rig: Rig) -> None:
    assert rig.host.reconcile(rig.state) == []
    rig.host.stop()  # and a daemon that starts anew adopts it all
    rig.host.start()
    assert rig.host.reconcile(rig.state) == []


@pytest.mark.parametrize("family", [4, 6])
def test_the_way_out(rig: Rig, family: int) -> None:
    """From vxnet_gw and from a bridge network by the host's address; not from an internal network."""
    there, host = {4: ("192.168.9.2", "192.168.9.1"), 6: ("fd00:9::2", "fd00:9::1")}[family]
    with serving(rig.world, 8000), serving(rig.world, 8000, "udp"):
        for one in (rig.c1, rig.c3):
            assert ask(one, there, 8000) == host
            assert ask(one, there, 8000, "udp") == host
        assert one.reaches(there)
        assert ask(rig.c5, there, 8000, patience_s=IN_VAIN_S) == ""


def test_who_hears_whom(rig: Rig) -> None:
    """On vxnet_gw nobody hears another, on a bridge network all do; from one network to another nobody does."""
    rig.world.sh("ip route add 172.16.0.0/12 via 192.168.9.1; ip -6 route add fd00::/8 via fd00:9::1")
    assert rig.c3.reaches("172.20.0.5") and rig.c3.reaches("fd20::5")
    assert rig.c5.reaches("172.21.0.1")
    for one, other in (
        (rig.c1, "172.19.0.3"),
        (rig.c1, "fd19::ac13:3"),
        (rig.c1, "172.20.0.4"),
        (rig.c3, "172.19.0.2"),
        (rig.c3, "172.21.0.6"),
        (rig.c3, "fd19::ac13:2"),
        (rig.c5, "172.20.0.4"),
        (rig.c5, "192.168.9.2"),
        (rig.world, "172.19.0.2"),
        (rig.world, "172.20.0.4"),
        (rig.world, "fd20::4"),
    ):
        out = one.run("ping", "-c1", "-W0.3", other, check=False)
        assert "1 received" not in out, (one, other)


@pytest.mark.parametrize("family", [4, 6])
def test_ports_of_the_host(rig: Rig, family: int) -> None:
    """From outside with the client's own address, from the host, from 127.0.0.1, from other containers."""
    host, world, own = {
        4: ("192.168.9.1", "192.168.9.2", "172.19.0.2"),
        6: ("fd00:9::1", "fd00:9::2", "fd19::ac13:2"),
    }[family]
    ports = (
        HostPort(protocol="tcp", published=8080, target=80, to=addresses("172.19.0.2", "fd19::ac13:2")),
        HostPort(protocol="udp", published=8080, target=81, to=addresses("172.19.0.2", "fd19::ac13:2")),
        HostPort(protocol="tcp", published=8081, target=80, to=addresses("172.20.0.4", "fd20::4")),
        HostPort(protocol="tcp", published=8082, target=80, to=addresses(own), addresses=addresses("192.168.9.77")),
        HostPort(
            protocol="tcp",
            published=8083,
            target=80,
            to=addresses("172.19.0.2", "fd19::ac13:2"),
            sources=(ip_network("192.168.9.64/26"), ip_network("fd00:9::40/122")),
        ),
    )
    assert errors(rig.host.reconcile(replace(rig.state, ports=ports))) == []
    assert rig.host.reconcile(replace(rig.state, ports=ports)) == []
    more = HostPort(protocol="udp", published=8099, target=99, to=addresses("172.19.0.2", "fd19::ac13:2"))
    (change,) = rig.host.reconcile(replace(rig.state, ports=(*ports, more)), ())
    assert change.object == "nft table inet vxnet set ports4 and ports6 in the host", "no rule is another"
    assert errors(rig.host.reconcile(replace(rig.state, ports=ports), ())) == []
    with serving(rig.c1, 80), serving(rig.c1, 81, "udp"), serving(rig.c3, 80):
        assert ask(rig.world, host, 8080) == world
        assert ask(rig.world, host, 8080, "udp") == world
        assert ask(rig.world, host, 8081) == world
        assert ask(rig.world, host, 8082, patience_s=IN_VAIN_S) == ""
        assert ask(rig.world, host, 8083, patience_s=IN_VAIN_S) == ""
        assert ask(rig.host, host, 8080) != "" and ask(rig.host, host, 8081) != ""
        if family == 4:
            assert ask(rig.host, "127.0.0.1", 8080) == "172.19.0.1"
        # By the host, from another network, from a neighbour on the same bridge, and from itself. The last two not
        # where br_netfilter hands bridged frames to the firewall: translated there, they are bridged, never routed.
        assert ask(rig.c4, host, 8080) != "" and ask(rig.c1, host, 8081) != ""
        rig.host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
        assert ask(rig.c2, host, 8080) != "" and ask(rig.c1, host, 8080) != ""
        assert ask(rig.c4, host, 8081) != "" and ask(rig.c3, host, 8081) != ""
        assert ask(rig.c5, host, 8080, patience_s=IN_VAIN_S) == ""
        # What listens on the host's loopback is the host's alone.
        with serving(rig.host, 9000):
            assert ask(rig.host, "127.0.0.1", 9000) == "127.0.0.1"
            rig.c1.sh("ip route add 127.0.0.2/32 via 172.19.0.1 2>/dev/null || true")
            assert ask(rig.c1, "127.0.0.2", 9000, patience_s=IN_VAIN_S) == ""


def test_a_port_of_the_loopback_is_the_hosts_alone(rig: Rig) -> None:
    """Also where a neighbour on the underlay routes by hand: what is translated would pass for the host's own."""
    ports = (
        HostPort(
            protocol="udp",
            published=8080,
            target=81,
            to=addresses("172.19.0.2", "fd19::ac13:2"),
            addresses=addresses("127.0.0.1", "::1"),
        ),
    )
    assert errors(rig.host.reconcile(replace(rig.state, ports=ports))) == []
    rig.world.sh(
        "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local;"
        "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip route add 127.0.0.1/32 via 192.168.9.1"
    )
    with serving(rig.c1, 81, "udp"):
        assert ask(rig.host, "127.0.0.1", 8080, "udp") == "172.19.0.1"
        assert "daddr ::1" not in rig.host.sh("nft list chain inet vxnet ports_local")  # no way back
    with rig.c1.do(lambda: socket.socket(type=socket.SOCK_DGRAM)) as server:
        server.bind(("172.19.0.2", 81))
        server.settimeout(0.5)
        with rig.world.do(lambda: socket.socket(type=socket.SOCK_DGRAM)) as stranger:
            stranger.sendto(b"?", ("127.0.0.1", 8080))
        with pytest.raises(TimeoutError):
            server.recv(1)


def test_no_udp_flow_stays_with_who_is_gone(rig: Rig) -> None:
    """A client that goes on sending from its port reaches the container that has the port now."""

    def lead_to(*texts: str) -> None:
        ports = tuple(HostPort(protocol="udp", published=8080, target=81, to=addresses(text)) for text in texts)
        assert errors(rig.host.reconcile(replace(rig.state, ports=ports), ())) == []
        rig.host.kernel._forgetter.wait()

    def to_port_8080() -> set[str]:
        def look() -> set[str]:
            with Netlink(protocol=elements.NETLINK_NETFILTER) as netlink:
                flows = conntrack._flows(netlink, conntrack._UNMARKED, conntrack.UDP.values())
                return {str(flow.address) for flow, _ in flows if flow.port == 8080}

        return rig.host.do(look)

    def asked() -> bool:
        client.send(b"?")
        try:
            return client.recv(100).endswith(b"192.168.9.2")
        except (TimeoutError, ConnectionRefusedError):
            return False

    with rig.world.do(lambda: socket.socket(type=socket.SOCK_DGRAM)) as client:
        client.connect(("192.168.9.1", 8080))
        client.settimeout(0.3)
        assert not asked()  # before anybody has the port
        with rig.host.do(lambda: socket.socket(type=socket.SOCK_DGRAM)) as outwards:
            outwards.sendto(b"?", ("192.168.9.2", 8080))  # is nobody's business
        with serving(rig.c1, 81, "udp"):
            lead_to("172.19.0.2")
            assert asked()
        assert "192.168.9.2" in to_port_8080()
        with serving(rig.c2, 81, "udp"):
            lead_to("172.19.0.3")
            assert asked()
            lead_to()
            assert not asked()


def test_damage_to_a_bridge_network_is_mended(rig: Rig) -> None:
    host = rig.host
    for damage in (
        "ip link del vxnet_00000000a",
        "ip addr del 172.20.0.1/24 dev vxnet_00000000a",
        f"ip link del {rig.c3.port('eth0')}",
        f"ip link set {rig.c3.port('eth0')} nomaster",
        "nft flush ruleset",
    ):
        host.sh(damage)
        assert host.reconcile(rig.state) != []
        assert host.reconcile(rig.state) == []
        assert rig.c3.reaches("172.20.0.5") and rig.c3.reaches("192.168.9.2"), damage
    # A network that is no more goes, and nothing else.
    host.sh("ip link add br0 type bridge; ip link add vxnet_mine type bridge")
    assert errors(host.reconcile(replace(rig.state, bridges=(RED,), sandboxes=rig.state.sandboxes[:2]))) == []
    assert {name for name in host.links() if name.startswith(("vxnet_", "br"))} == {
        "vxnet_gw",
        "vxnet_00000000b",
        "br0",
        "vxnet_mine",
    }


# macvlan


def upon(one: Container, parent: str = "eth0", mode: MacvlanMode = "bridge", mtu: int = 1500) -> Sandbox:
    foot = Interface(
        name="eth1",
        port=one.port("eth1"),
        vni=None,
        parent=parent,
        mode=mode,
        mac=f"02:00:c0:a8:09:{one.number + 30:02x}",
        mtu=mtu,
        addresses=interfaces(f"192.168.9.{one.number + 30}/24", f"fd00:9::{one.number + 30}/64"),
    )
    return Sandbox(id=one.id, netns=one.path, interfaces=(foot,), default_via=addresses("192.168.9.2"))


def test_macvlan(rig: Rig) -> None:
    """On the parent's network with a MAC of its own: neighbours there reach it, the host does not."""
    c1, c2 = rig.c1, rig.c2
    state = HostState(sandboxes=(upon(c1), upon(c2)), gateway=GATEWAY)
    for _ in range(2):  # the others' ports are given a while to go by themselves
        assert errors(rig.host.reconcile(state)) == []
    assert rig.host.reconcile(state) == []
    assert c1.reaches("192.168.9.2") and rig.world.run("ping", "-c1", "-W2", "192.168.9.32")
    assert c1.reaches("192.168.9.33") and c1.reaches("fd00:9::2")
    assert "02:00:c0:a8:09:20" in rig.world.run("ip", "neigh", "show", "192.168.9.32")
    assert not c1.reaches("192.168.9.1")
    assert "default via 192.168.9.2 dev eth1" in c1.run("ip", "route")
    # Damage.
    c1.sh("ip link del eth1")
    c2.sh("ip link set eth1 down; ip addr flush dev eth1")
    assert errors(rig.host.reconcile(state)) == []
    assert rig.host.reconcile(state) == []
    assert c1.reaches("192.168.9.2") and c2.reaches("192.168.9.2")
    # Another mode is another device; one that is not wanted goes.
    private = HostState(sandboxes=(upon(c1, mode="private"), upon(c2, mode="private")), gateway=GATEWAY)
    assert errors(rig.host.reconcile(private)) == []
    assert not c1.reaches("192.168.9.33") and c1.reaches("192.168.9.2")
    rig.host.reconcile(HostState(sandboxes=(on_gateway(c1), Sandbox(id=c2.id, netns=c2.path)), gateway=GATEWAY))
    assert "eth1" not in c1.links() and "eth1" not in c2.links()
    assert c1.reaches("192.168.9.2")


def test_a_macvlan_that_has_its_parent_alone(rig: Rig) -> None:
    """It has the parent's MAC, and leaves it as it was."""
    before = rig.host.links()["eth0"]["address"]
    state = HostState(sandboxes=(upon(rig.c1, mode="passthru"),), gateway=GATEWAY)
    for _ in range(2):
        assert errors(rig.host.reconcile(state)) == []
    assert rig.host.reconcile(state) == []
    assert rig.host.links()["eth0"]["address"] == before == rig.c1.links()["eth1"]["address"]
    assert rig.c1.reaches("192.168.9.2")
    (refused,) = errors(rig.host.reconcile(replace(state, sandboxes=(*state.sandboxes, upon(rig.c2, mode="passthru")))))
    assert refused.sandbox == rig.c2.id


def test_a_macvlan_without_its_parent(rig: Rig) -> None:
    """It says so, and is there when the parent is."""
    state = HostState(sandboxes=(upon(rig.c1, "lan7"),), gateway=GATEWAY)
    (refused,) = errors(rig.host.reconcile(state))
    assert refused.error == "this host has no link lan7" and refused.sandbox == rig.c1.id
    rig.host.sh("ip link add lan7 type veth peer name lan8; ip link set lan7 up; ip link set lan8 up")
    assert errors(rig.host.reconcile(state)) == []
    assert rig.c1.links()["eth1"]["linkinfo"]["info_kind"] == "macvlan"
    rig.host.sh("ip link del lan7")
    assert "eth1" not in rig.c1.links()
    assert len(errors(rig.host.reconcile(state))) == 1

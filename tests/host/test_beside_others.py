"""Beside other people's rules: a closed FORWARD, flushed rules, br_netfilter; and nobody forges a tunnel's packets.

::

    c1 ── vxnet_gw ── h1 ──(eth0)── h2        c1, d1 also on an overlay
    c3 ── vxnet_00000000a ┘
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from tests.host.rig import VNI, Container, Pair, errors, interfaces
from tests.host.test_bridges import BLUE, on_bridge
from tests.host.test_bridges import GATEWAY as BOTH
from tests.host.throwaway import Place, wire
from vxnet.host.kernel import Kernel
from vxnet.model.host import HostState

pytestmark = [pytest.mark.host, pytest.mark.slow]

PORT = 4789
ODD_TYPE = 0x88B5


class Rig:
    def __init__(self) -> None:
        self.pair = Pair()
        self.host, self.world, self.c1 = self.pair.h1, self.pair.h2, self.pair.c1
        self.c3 = Container(9)
        self.host.sh("ip addr add fd00:9::1/64 dev eth0 nodad")
        self.world.sh("ip addr add fd00:9::2/64 dev eth0 nodad")
        box = self.pair.s1.sandboxes[0]
        foot = replace(box.interfaces[-1], addresses=interfaces("172.19.0.2/16", "fd19::ac13:2/64"))
        via = tuple(one.ip for one in BOTH.addresses)
        box = replace(box, interfaces=(*box.interfaces[:-1], foot), default_via=via)
        self.state = replace(self.pair.s1, sandboxes=(box, on_bridge(self.c3, BLUE)), gateway=BOTH, bridges=(BLUE,))
        assert errors(self.host.reconcile(self.state)) == []
        assert errors(self.world.reconcile(self.pair.s2)) == []

    def works(self) -> bool:
        """The overlay and the way out of both families."""
        way_out = all(one.reaches(there) for one in (self.c1, self.c3) for there in ("192.168.9.2", "fd00:9::2"))
        return way_out and self.c1.reaches(self.pair.d1.ip4) and self.pair.d1.reaches(self.c1.ip4)

    def close(self) -> None:
        self.pair.close()
        self.c3.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


CLOSED = {
    "nft policy": "nft add table inet filter; nft 'add chain inet filter forward "
    "{ type filter hook forward priority filter; policy drop; }'",
    "nft reject, as firewalld ends": "nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD "
    "{ type filter hook forward priority 10; }'; nft add rule inet firewalld filter_FORWARD ct state established "
    "accept; nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
    "iptables": "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP",
    "iptables, as ufw does": "iptables-nft -N ufw-before-forward; iptables-nft -A FORWARD -j ufw-before-forward; "
    "iptables-nft -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
    "iptables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -j REJECT",
}


@pytest.mark.parametrize("how", CLOSED)
def test_a_closed_forward(rig: Rig, how: str) -> None:
    host = rig.host
    host.sh(CLOSED[how])
    assert not rig.c1.reaches("192.168.9.2") and rig.c1.reaches(rig.pair.d1.ip4)
    assert not host.do(host.kernel.is_intact, rig.state)
    told = host.do(host.kernel.obstacles, ())
    assert told and all("drops what containers send" in line for line in told)
    changes = host.reconcile(rig.state)
    assert errors(changes) == [] and {change.verb for change in changes} == {"add"}
    assert rig.works() and host.do(host.kernel.is_intact, rig.state)
    assert host.do(host.kernel.obstacles, ()) == []
    assert host.reconcile(rig.state) == []
    # Their rules are as they were, and readable to their own tool.
    if "iptables" in CLOSED[how]:
        assert "-A FORWARD -i vxnet_+" in host.run("iptables-nft", "-S", "FORWARD")
        assert "-P FORWARD DROP" in host.run("iptables-nft", "-S", "FORWARD")
    # Containers are no more open to others than before.
    rig.world.sh("ip route add 172.16.0.0/12 via 192.168.9.1")
    assert "1 received" not in rig.world.run("ping", "-c1", "-W0.3", "172.19.0.2", check=False)
    # And it goes with vxnet.
    host.reconcile(HostState())
    assert "vxnet" not in host.run("nft", "list", "ruleset")


def test_kept_out_it_writes_nothing_and_says_so(rig: Rig) -> None:
    host = rig.host
    host.sh(CLOSED["nft policy"])
    assert errors(host.reconcile(rig.state)) == []
    host.stop()
    host.kernel = host.do(lambda: Kernel(host._clock, keep_out=True))
    assert "delete accept in inet filter forward" in [f"{one.verb} {one.object}" for one in host.reconcile(rig.state)]
    assert host.do(host.kernel.is_intact, rig.state)
    assert "vxnet" not in host.run("nft", "list", "table", "inet", "filter")
    (told,) = host.do(host.kernel.obstacles, ())
    assert (
        told.startswith("inet filter forward drops") and 'nft insert rule inet filter forward iifname "vxnet_*"' in told
    )


def test_an_input_that_drops_is_told(rig: Rig) -> None:
    """With the port, what for, and the cure; not where a rule lets it in."""
    host = rig.host
    ports = (("udp", 4789, "VXLAN"), ("tcp", 7946, "gossip"), ("udp", 7946, "gossip"), ("tcp", 2377, "managers"))
    assert host.do(host.kernel.obstacles, ports) == []
    host.sh(
        "nft add table inet filter;"
        "nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }';"
        "nft add rule inet filter input tcp dport { 22, 7900-7950 } accept;"
        "nft add rule inet filter input udp dport 4789 accept"
    )
    told = host.do(host.kernel.obstacles, ports)
    assert [line.split("speaks of ")[1].split(":")[0] for line in told] == [
        "udp port 7946 (gossip)",
        "tcp port 2377 (managers)",
    ]
    host.sh(told[0].split("): ")[1])
    host.sh(told[1].split("): ")[1])
    assert host.do(host.kernel.obstacles, ports) == []


@pytest.mark.parametrize("value", [0, 1])
def test_br_netfilter(rig: Rig, value: int) -> None:
    """Bridged frames that pass the firewall, with a FORWARD that drops: overlays never meet it."""
    host = rig.host
    for name in ("iptables", "ip6tables", "arptables"):
        host.sh(f"sysctl -qw net.bridge.bridge-nf-call-{name}={value}")
    host.sh(CLOSED["nft policy"])
    host.reconcile(rig.state)
    assert rig.works()
    assert host.inside("sysctl", "-n", "net.bridge.bridge-nf-call-iptables").strip() == "0"


def test_rules_that_were_flushed(rig: Rig) -> None:
    """All is there again, the operator's own from their file."""
    host = rig.host
    host.stop()
    host.sh("echo 'add rule inet vxnet_user forward iifname \"vxnet_gw\" ip daddr 192.168.9.2 drop' > /run/hooks.nft")
    host.kernel = host.do(lambda: Kernel(host._clock, hooks_file=Path("/run/hooks.nft")))
    host.sh(CLOSED["nft policy"] + "; nft flush ruleset")
    assert not host.do(host.kernel.is_intact, rig.state)
    assert errors(host.reconcile(rig.state)) == []
    assert host.do(host.kernel.is_intact, rig.state) and host.reconcile(rig.state) == []
    assert not rig.c1.reaches("192.168.9.2") and rig.c1.reaches("fd00:9::2") and rig.c1.reaches(rig.pair.d1.ip4)
    # What somebody adds stays, whatever else changes.
    host.sh("nft add rule inet vxnet_user forward ip6 daddr fd00:9::2 drop")
    host.reconcile(replace(rig.state, bridges=(), sandboxes=rig.state.sandboxes[:1]))
    assert not rig.c1.reaches("fd00:9::2")
    # A file that nft does not understand is told, and costs nothing else.
    host.sh("echo nonsense > /run/hooks.nft; nft delete table inet vxnet_user")
    (error,) = errors(host.reconcile(rig.state))
    assert "rules of /run/hooks.nft" in error.object and error.error
    assert host.reconcile(rig.state) == [] and rig.works()


# Nobody but the tunnels speaks to the VXLAN port


def vxlan(vni: int, frame: bytes) -> bytes:
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def broadcast(name: str) -> bytes:
    """An Ethernet frame to everybody, of an experimental type (IEEE 802)."""
    return b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x66" + struct.pack("!H", ODD_TYPE) + name.encode().ljust(46, b"\0")


def listen() -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ODD_TYPE))
    one.bind(("eth0", ODD_TYPE))
    return one


def heard(one: socket.socket, last: str) -> set[str]:
    """Names of the frames that come, up to the last."""
    one.settimeout(5)
    found: set[str] = set()
    while last not in found:
        found.add(one.recv(2000)[14:].rstrip(b"\0").decode())
    return found - {last}


class Forger(NamedTuple):
    """Sends a datagram with a frame of the overlay in it, from a socket in ``place``."""

    place: Place
    to: str
    source: str = ""
    raw: bool = False

    def send(self, name: str) -> None:
        with contextlib.suppress(OSError):  # refused at once is as good
            self.place.do(self._send, vxlan(VNI, broadcast(name)))

    def _send(self, payload: bytes) -> None:
        _, to, source, raw = self
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        if raw:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
                udp = struct.pack("!HHHH", 5555, PORT, 8 + len(payload), 0) + payload
                head = struct.pack(
                    "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, *map(socket.inet_aton, (source, to))
                )
                one.sendto(head + udp, (to, 0))
            return
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            if source:
                one.bind((source, 0))
            one.sendto(payload, (to, PORT))


def send_honestly(place: Place, name: str) -> None:
    def go() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
            one.bind(("eth0", 0))
            one.send(broadcast(name))

    place.do(go)


def test_no_forged_frame_gets_into_a_network(rig: Rig) -> None:
    """From sockets of this host's users and of a stranger's, from containers by vxnet_gw and by a bridge network, of
    both families, with their own and with forged sources. What a container itself sends on the overlay does come."""
    host, world, c1, c3, d1 = rig.host, rig.world, rig.c1, rig.c3, rig.pair.d1
    world.sh("ip addr add 192.168.9.66/24 dev eth0")
    for one in (c1, c3):
        one.sh("ip addr add 192.168.9.1/32 dev lo; ip addr add 192.168.9.2/32 dev lo")
    tries = {
        "a user to the other host": Forger(host, "192.168.9.2"),
        "a user to this host": Forger(host, "192.168.9.1"),
        "a user by loopback": Forger(host, "127.0.0.1"),
        "a user in IPv6": Forger(host, "fd00:9::2"),
        "a raw socket, as the peer": Forger(host, "192.168.9.1", "192.168.9.2", raw=True),
        "a raw socket to the peer": Forger(host, "192.168.9.2", "192.168.9.1", raw=True),
        "a stranger on the underlay": Forger(world, "192.168.9.1", "192.168.9.66"),
    }
    for name, one, gateway in (("gw", c1, "172.19.0.1"), ("bridge", c3, "172.20.0.1")):
        tries |= {
            f"{name} to the other host": Forger(one, "192.168.9.2"),
            f"{name} to this host": Forger(one, "192.168.9.1"),
            f"{name} to the bridge's address": Forger(one, gateway),
            f"{name} as the peer": Forger(one, "192.168.9.1", "192.168.9.2", raw=True),
            f"{name} as this host": Forger(one, "192.168.9.2", "192.168.9.1", raw=True),
            f"{name} in IPv6 to the other host": Forger(one, "fd00:9::2"),
            f"{name} in IPv6 to this host": Forger(one, "fd00:9::1"),
        }
    other = Place()
    wire(host, "docker0", other, "eth0")  # type: ignore[arg-type]
    host.sh(
        "ip addr add 172.30.0.1/24 dev docker0; nft add table ip other;"
        "nft 'add chain ip other post { type nat hook postrouting priority srcnat; }';"
        "nft add rule ip other post ip saddr 172.30.0.0/24 oifname eth0 masquerade"
    )
    other.sh("ip addr add 172.30.0.2/24 dev eth0; ip route add default via 172.30.0.1")
    tries["somebody else's container"] = Forger(other, "192.168.9.2")
    with contextlib.closing(other), c1.do(listen) as at_c1, d1.do(listen) as at_d1:
        for _ in range(2):  # and with a FORWARD that others have closed, and vxnet has opened for itself
            for name, forger in tries.items():
                forger.send(name)
            send_honestly(d1, "last")
            assert heard(at_c1, "last") == set()
            send_honestly(c1, "last")
            assert heard(at_d1, "last") == set()
            host.sh(CLOSED["nft policy"])
            assert errors(host.reconcile(rig.state)) == []
        # Were the guard not there, they would.
        host.sh("nft flush ruleset")
        tries["a user to the other host"].send("forged")
        send_honestly(c1, "last")
        assert heard(at_d1, "last") == {"forged"}

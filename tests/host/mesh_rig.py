"""A client outside the cluster, two nodes with the routing mesh, and tasks on them.

::

    client ──(c2: 192.168.52.0/24)── h1 ── t1, t2     ingress 10.0.0.0/20, fd00:a::/64: feet .2 and .3, tasks .11 …
       └─────(c3: 192.168.53.0/24)── h2 ── t3         app 10.1.16.0/24 with VIP .100; underlay 192.168.9.0/24
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
from collections.abc import Sequence
from typing import Literal

from tests.host.rig import GATEWAY, Machine, addresses, errors, interfaces, way_out
from tests.host.throwaway import Place, wire
from vxnet.core.allocate import mac_of
from vxnet.model.address import IPAddress
from vxnet.model.host import (
    Answers,
    Change,
    HostState,
    Ingress,
    Interface,
    MeshPort,
    Remote,
    Sandbox,
    Segment,
    VirtualService,
)
from vxnet.model.published import PortProtocol

VNI = 65536
APP = 65537
VIP = "10.1.16.100"
MTU = 1450
TIMEOUT_S = 3.0
PORTS: tuple[tuple[PortProtocol, int], ...] = (("tcp", 5201), ("tcp", 8080), ("tcp", 9090), ("udp", 5353))
"""What tasks answer; published as 80/tcp and 53/udp."""


def of_ingress(number: int) -> tuple[IPAddress, IPAddress]:
    return ipaddress.ip_address(f"10.0.0.{number}"), ipaddress.ip_address(f"fd00:a::{number:x}")


class Task(Place):
    """A namespace on the ingress network, with or without a way out."""

    def __init__(self, number: int, *, way_out: bool = True) -> None:
        super().__init__()
        self.number = number
        self.id = f"{number:08x}" * 8
        self.way_out = way_out
        self.addresses = of_ingress(number)

    @property
    def mac(self) -> str:
        return mac_of(VNI, self.addresses[0])

    @property
    def app_address(self) -> IPAddress:
        return ipaddress.ip_address(f"10.1.16.{self.number}")

    @property
    def app_mac(self) -> str:
        return mac_of(APP, self.app_address)

    def sandbox(self, via: int) -> Sandbox:
        made = [
            Interface(
                name="ingress0",
                port=f"v{self.id[:8]}.in",
                vni=VNI,
                mac=self.mac,
                mtu=MTU,
                addresses=interfaces(f"10.0.0.{self.number}/20", f"fd00:a::{self.number:x}/64"),
            )
        ]
        made.append(
            Interface(
                name="eth0",
                port=f"v{self.id[:8]}.eth0",
                vni=APP,
                mac=self.app_mac,
                mtu=MTU,
                addresses=interfaces(f"10.1.16.{self.number}/24"),
            )
        )
        if self.way_out:
            made.append(way_out(f"v{self.id[:8]}.eth9", self.number))
        return Sandbox(
            id=self.id,
            netns=self.path,
            interfaces=tuple(sorted(made, key=lambda one: one.name)),
            default_via=addresses("172.19.0.1") if self.way_out else (),
            answers=Answers(interface="ingress0", ports=PORTS, via=of_ingress(via)),
        )


class Node(Machine):
    def __init__(self, number: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.number = number
        self.tasks = tasks
        self.vtep = ipaddress.ip_address(f"192.168.9.{number}")
        self.feet = of_ingress(number)
        self.outside = ipaddress.ip_address(f"192.168.5{number}.1"), ipaddress.ip_address(f"fd00:5{number}::1")
        self.ports: tuple[MeshPort, ...] = ()


class Site:
    def __init__(self, *, way_out: bool = True) -> None:
        self.client = Place()
        self.t1, self.t2, self.t3 = (Task(number, way_out=way_out) for number in (11, 12, 13))
        self.h1, self.h2 = Node(2, [self.t1, self.t2]), Node(3, [self.t3])
        self.nodes = (self.h1, self.h2)
        self.client.sh("ip link set lo up")
        wire(self.h1, "eth0", self.h2, "eth0")
        for node in self.nodes:
            n = node.number
            node.sh(f"ip addr add {node.vtep}/24 dev eth0; ip link set lo up")
            wire(node, "c0", self.client, f"c{n}")  # type: ignore[arg-type]
            node.sh(f"ip addr add {node.outside[0]}/24 dev c0; ip addr add {node.outside[1]}/64 dev c0 nodad")
            self.client.sh(
                f"ip addr add 192.168.5{n}.9/24 dev c{n}; ip addr add fd00:5{n}::9/64 dev c{n} nodad;"
                f"ip link set c{n} up"
            )
        self._open: list[socket.socket] = []
        self.put()

    def client_address(self, node: Node, version: int) -> str:
        return f"192.168.5{node.number}.9" if version == 4 else f"fd00:5{node.number}::9"

    def state(self, node: Node) -> HostState:
        others = [one for one in self.nodes if one is not node]
        remotes = [
            Remote(mac=mac_of(VNI, addresses[0]), addresses=addresses, vtep=other.vtep)
            for other in others
            for addresses in (other.feet, *(task.addresses for task in other.tasks))
        ]
        ingress = Ingress(
            vni=VNI,
            mac=mac_of(VNI, node.feet[0]),
            mtu=MTU,
            addresses=interfaces(f"{node.feet[0]}/20", f"{node.feet[1]}/64"),
            ports=node.ports,
            gateways=tuple(mac_of(VNI, one.feet[0]) for one in self.nodes),
        )
        on_app = tuple(
            Remote(mac=task.app_mac, addresses=(task.app_address,), vtep=other.vtep)
            for other in others
            for task in other.tasks
        )
        vteps = tuple(other.vtep for other in others)
        everybody = tuple(task.app_address for one in self.nodes for task in one.tasks)
        vip = VirtualService(address=ipaddress.ip_address(VIP), backends=everybody)
        return HostState(
            segments=(
                Segment(vni=VNI, mtu=MTU, local=node.vtep, remotes=tuple(remotes), flood=vteps, ingress=True),
                Segment(vni=APP, mtu=MTU, local=node.vtep, remotes=on_app, flood=vteps, services=(vip,)),
            ),
            sandboxes=tuple(task.sandbox(node.number) for task in node.tasks),
            gateway=GATEWAY,
            ingress=ingress,
            vteps=vteps,
        )

    def put(self, *, look: bool = True) -> list[Change]:
        changes = []
        for node in self.nodes:
            done = node.reconcile(self.state(node), None if look else ())
            assert errors(done) == []
            changes += done
        return changes

    def publish(self, *ports: MeshPort, nodes: Sequence[Node] = ()) -> list[Change]:
        for node in nodes or self.nodes:
            node.ports = ports
        return self.put(look=False)

    def publish_to(self, *tasks: Task, draining: Sequence[Task] = ()) -> list[Change]:
        """80/tcp and 53/udp in both families."""
        versions: tuple[Literal[4, 6], ...] = (4, 6)
        return self.publish(*(port(*one, version, tasks, draining) for one in PUBLISHED for version in versions))

    def forget(self) -> None:
        """Wait until stale flows are forgotten."""
        for node in self.nodes:
            node.kernel._forgetter.wait()

    def keep(self, opened: socket.socket) -> socket.socket:
        opened.settimeout(TIMEOUT_S)
        self._open.append(opened)
        return opened

    def listen(self, task: Place, number: int = 8080) -> socket.socket:
        made = task.do(lambda: socket.create_server(("::", number), family=socket.AF_INET6, dualstack_ipv6=True))
        return self.keep(made)

    def udp(self, place: Place, number: int = 0, version: int = 6) -> socket.socket:
        """Bound to the wildcard; of version 6: of both families."""

        def bound() -> socket.socket:
            made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
            made.bind(("" if version == 4 else "::", number))
            return made

        return self.keep(place.do(bound))

    def connect(self, place: Place, address: str, number: int = 80) -> socket.socket:
        return self.keep(place.do(lambda: socket.create_connection((address, number), timeout=TIMEOUT_S)))

    def accept(self, listening: Sequence[socket.socket]) -> tuple[int, socket.socket, str]:
        """Which of them got a connection, its end of it, and the address that it sees."""
        ready, _, _ = select.select(listening, [], [], TIMEOUT_S)
        assert ready, "nobody was asked"
        connection, peer = ready[0].accept()
        return listening.index(ready[0]), self.keep(connection), peer[0].removeprefix("::ffff:")

    def answers(self, place: Place, address: str, listening: Sequence[socket.socket], number: int = 80) -> str:
        """Have a connection made and used; the address that the server sees."""
        ours = self.connect(place, address, number)
        _, theirs, seen = self.accept(listening)
        ours.sendall(b"question")
        assert theirs.recv(100) == b"question"
        theirs.sendall(b"answer")
        assert ours.recv(100) == b"answer"
        ours.close()
        theirs.close()
        return seen

    def ask(
        self, ours: socket.socket, address: str, servers: Sequence[socket.socket], number: int = 53
    ) -> tuple[int, str]:
        """A datagram there and back; who was asked, and by whom as it sees it."""
        ours.connect((address, number))
        ours.send(b"question")
        ready, _, _ = select.select(servers, [], [], TIMEOUT_S)
        assert ready, "nobody was asked"
        _, peer = ready[0].recvfrom(100)
        ready[0].sendto(b"answer", peer)
        assert ours.recv(100) == b"answer"
        return servers.index(ready[0]), peer[0].removeprefix("::ffff:")

    def hang_up(self) -> None:
        for one in self._open:
            one.close()
        self._open.clear()

    def close(self) -> None:
        self.hang_up()
        for node in self.nodes:
            node.close()
        for task in (self.t1, self.t2, self.t3):
            task.close()
        with contextlib.suppress(OSError):
            self.client.close()


PUBLISHED: tuple[tuple[PortProtocol, int, int], ...] = (("tcp", 80, 8080), ("udp", 53, 5353))


def port(
    protocol: PortProtocol,
    published: int,
    target: int,
    version: Literal[4, 6],
    tasks: Sequence[Task],
    draining: Sequence[Task] = (),
) -> MeshPort:
    at = 0 if version == 4 else 1
    return MeshPort(
        protocol=protocol,
        published=published,
        version=version,
        target=target,
        backends=tuple(task.addresses[at] for task in tasks),
        draining=tuple(task.addresses[at] for task in draining),
    )

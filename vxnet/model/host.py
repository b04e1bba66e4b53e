"""The whole desired state of one host's kernel: what :mod:`vxnet.core.plan` returns and :mod:`vxnet.host` does.

::

     host namespace                namespace "vxnet"               sandbox (a container's namespace)
     vxnet_gw ──── veth ────────────────────────────────────────── ethN   Interface(vni=None)
     HostBridge ── veth ────────────────────────────────────────── ethN   Interface(vni=None, bridge=…)
     eth1 (parent) ─────────────────────────────────────────────── ethN   Interface(vni=None, parent="eth1")
     vxnet_in ──── veth ── br<VNI>                                        Ingress
     udp/4789 <─── vx<VNI> ── br<VNI> ──── veth ────────────────── eth0   Interface(vni=VNI)
                   └──── Segment ────┘                             Sandbox

Handing over the same state twice is harmless. Sequences are sorted, so that equal states are equal records.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

from vxnet.model.address import MAC, IPAddress, IPInterface, IPNetwork
from vxnet.model.cluster import DATA_PORT, Record, TakenPort
from vxnet.model.published import PortProtocol

DATAPATH_NAMESPACE = "vxnet"
GATEWAY_BRIDGE = "vxnet_gw"
BRIDGE_PREFIX = "vxnet_"
"""Of all links in the host's namespace by which packets of containers come: what filters them goes by this."""
INGRESS_LINK = "vxnet_in"
NFT_TABLE = "vxnet"

MacvlanMode = Literal["bridge", "private", "vepa", "passthru"]
"""include/uapi/linux/if_link.h: with whom on the same parent a container may talk. ``bridge``: with all, directly;
``private``: with none; ``vepa``: by way of the switch outside, if that sends frames back; ``passthru``: it is alone.
"""

TunnelKind = Literal["kernel", "userspace"]
"""The kernel's vxlan device, or a TAP and vxnet's own forwarder (csrc/vxlan). On the wire they are the same."""
RESOLVER = ipaddress.ip_address("127.0.0.11")
"""In a container, and Docker's too."""


class Remote(Record, frozen=True, kw_only=True, gc=False):
    """An endpoint of this segment on another host: two FDB rows and a neighbour for each address."""

    mac: MAC
    addresses: tuple[IPAddress, ...]
    vtep: IPAddress


VIP_MARK = 0x80000000
"""Bit of a connection's mark (conntrack): its destination was chosen here. In its client's namespace that was a virtual
IP, in the host's a published port."""
STICKY_BUCKETS = 64


class VirtualService(Record, frozen=True, kw_only=True):
    """A virtual IP of a service: where new connections to it go. An address of each family is one of these."""

    address: IPAddress
    backends: tuple[IPAddress, ...] = ()
    """Each new connection goes to one of them, all with the same chance. None: it is refused."""
    draining: tuple[IPAddress, ...] = ()
    """They keep what they have."""
    sticky: bool = False
    """The client's address alone chooses; ``backends`` are STICKY_BUCKETS then, one for each value of its hash."""


class MeshPort(Record, frozen=True, kw_only=True):
    """A published port as this node answers it: where new connections to it go. Each address family is one of these."""

    protocol: PortProtocol
    published: int
    version: Literal[4, 6]
    target: int
    """In the tasks."""
    addresses: tuple[IPAddress, ...] = ()
    """The node's own that it is bound to; none: all of the family."""
    guarded: bool = False
    """``sources`` alone may use it, and this host itself."""
    sources: tuple[IPNetwork, ...] = ()
    backends: tuple[IPAddress, ...] = ()
    """Each new connection goes to one of them, all with the same chance. None: it is refused."""
    draining: tuple[IPAddress, ...] = ()
    """They keep what they have; so do those that get no new connections because nearer ones do."""
    sticky: bool = False
    """As of :class:`VirtualService`."""


class Ingress(Record, frozen=True, kw_only=True):
    """This node's foot in the network of the routing mesh: ``vxnet_in``, and the ports that the node answers."""

    vni: int
    mac: MAC
    mtu: int
    addresses: tuple[IPInterface, ...]
    ports: tuple[MeshPort, ...] = ()
    """By protocol, number and family."""
    gateways: tuple[MAC, ...] = ()
    """Of all nodes' feet, this one's too: the only ones who hand connections to tasks."""


class Answers(Record, frozen=True, kw_only=True):
    """How a task answers what came by the routing mesh: back to the node that it came from."""

    interface: str
    """In the ingress network."""
    ports: tuple[tuple[PortProtocol, int], ...]
    """What it answers there; everything else is dropped."""
    via: tuple[IPAddress, ...]
    """Some node's foot in that network, one a family: the route goes there, and each frame to the right one."""


class Segment(Record, frozen=True, kw_only=True):
    """One overlay network as far as this host takes part in it: ``vx<VNI>`` and ``br<VNI>``."""

    vni: int
    mtu: int
    """Of bridge, tunnel and the containers' interfaces; octets."""
    local: IPAddress
    """This host's VTEP."""
    kind: TunnelKind = "kernel"
    remotes: tuple[Remote, ...] = ()
    flood: tuple[IPAddress, ...] = ()
    """VTEPs that get broadcast and multicast: hosts with an endpoint in this VNI (head-end replication)."""
    foreign: tuple[IPAddress, ...] = ()
    """VTEPs without vxnet that take part in this VNI, and in no other. What is behind them is learnt from what they
    send; they get what goes to all, and to MACs that nobody knows.
    """
    services: tuple[VirtualService, ...] = ()
    """Of which its containers may be clients; by address."""
    ingress: bool = False
    """It is the routing mesh's: this host's own sockets send into it, too."""


class Interface(Record, frozen=True, kw_only=True):
    """A veth pair, ``name`` in the sandbox and ``port`` on the bridge; with a ``parent`` a macvlan upon it."""

    name: str
    port: str
    """At most 15 characters, unique on the host; of a veth pair."""
    vni: int | None
    """Of the segment it joins; None: something in the host's namespace."""
    bridge: str = ""
    """In the host's namespace; empty: ``vxnet_gw``."""
    parent: str = ""
    """The host's link that a macvlan is made upon."""
    mode: MacvlanMode = "bridge"
    mac: MAC
    mtu: int
    """0, of a macvlan: its parent's."""
    addresses: tuple[IPInterface, ...]
    links: tuple[IPNetwork, ...] = ()
    """Further prefixes that are reached without a next hop: the other subnets of its network."""
    unreachable: tuple[IPNetwork, ...] = ()
    """Subnets of its network in a family that it has no address of."""


class Sandbox(Record, frozen=True, kw_only=True):
    id: str
    """The container's."""
    netns: str
    """Path to open: ``/proc/PID/ns/net``."""
    interfaces: tuple[Interface, ...] = ()
    default_via: tuple[IPAddress, ...] = ()
    """Next hops of the default routes, one a family at most; each on the interface whose prefix it is in."""
    dns_port: int = 0
    """``resolver``:53, UDP and TCP, lead to this port there; 0: no resolver."""
    resolver: IPAddress = RESOLVER
    foreign: bool = False
    """Somebody else's namespace: only what is vxnet's own is set in it."""
    answers: Answers | None = None


class HostBridge(Record, frozen=True, kw_only=True):
    """A bridge in the host's namespace, which is its containers' router to the world, by NAT."""

    name: str
    """``vxnet_…``."""
    addresses: tuple[IPInterface, ...]
    """The host's own on it."""
    mtu: int
    isolated: bool = False
    """No frame goes from one container to another."""
    internal: bool = False
    """No way out, and none in."""


class GatewayBridge(HostBridge, frozen=True, kw_only=True):
    """``vxnet_gw``: the way out, with NAT and without traffic between containers.

    The last four octets of a container's address there, of either family, are those of its MAC.
    """

    name: str = GATEWAY_BRIDGE
    isolated: bool = True


class HostPort(Record, frozen=True, kw_only=True):
    """A port of this host that leads to one container."""

    protocol: Literal["tcp", "udp"]
    published: int
    target: int
    to: tuple[IPAddress, ...]
    """The container's, one a family at the most."""
    addresses: tuple[IPAddress, ...] = ()
    """Of the host, that it is bound to. The unspecified one means all of its family; none: all of both."""
    sources: tuple[IPNetwork, ...] = ()
    """Who may use it; empty: everybody."""


class HostState(Record, frozen=True, kw_only=True):
    segments: tuple[Segment, ...] = ()
    sandboxes: tuple[Sandbox, ...] = ()
    gateway: GatewayBridge | None = None
    bridges: tuple[HostBridge, ...] = ()
    """Networks of the driver bridge, by name; ``gateway`` is not among them."""
    ports: tuple[HostPort, ...] = ()
    ingress: Ingress | None = None
    data_port: int = DATA_PORT
    vteps: tuple[IPAddress, ...] = ()
    """The only sources from which the VXLAN port accepts packets."""


def host_bridges(state: HostState) -> tuple[HostBridge, ...]:
    """All of them, ``vxnet_gw`` first."""
    return (*((state.gateway,) if state.gateway is not None else ()), *state.bridges)


class HostAddress(Record, frozen=True, kw_only=True):
    interface: str
    address: IPInterface


class HostFacts(Record, frozen=True, kw_only=True):
    """What this host tells of itself before anything is built."""

    hostname: str
    machine_id: str
    addresses: tuple[HostAddress, ...]
    """Global ones of interfaces that are up, without vxnet's own."""
    routes: tuple[IPNetwork, ...]
    """Destinations in the main table but the default, without vxnet's own."""
    nameservers: tuple[IPAddress, ...]
    """Of /etc/resolv.conf, in order."""
    cpus: float = 0.0
    memory: int = 0
    """Octets."""
    os: str = ""
    arch: str = ""
    """As ``uname -m`` says it."""
    ports: tuple[TakenPort, ...] = ()
    """Of its programs, but those from which the kernel gives clients theirs."""
    datapath: TunnelKind = "kernel"
    """What this host's tunnels are."""
    datapath_reason: str = ""
    """Why they are not the kernel's although that was to be tried."""
    ipv6: bool = False
    """It is not switched off here."""
    missing: tuple[str, ...] = ()
    """Kernel features and programs that vxnet needs and did not find, each with its cure."""


class Change(Record, frozen=True, kw_only=True):
    """One thing done to the kernel, or tried."""

    verb: Literal["add", "replace", "delete"]
    object: str
    """As an operator would say it: ``fdb 02:42:0a:00:10:03 dev vx65536 dst 192.168.56.12``."""
    error: str = ""
    """The kernel's words; empty if it was done."""
    sandbox: str = ""
    """Id of the container that it belongs to, if to one."""

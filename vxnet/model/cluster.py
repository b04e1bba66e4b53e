"""Wishes: what the managers store and hand out."""

from __future__ import annotations

from typing import Literal

import msgspec

from vxnet.model.address import IPAddress, IPNetwork

Role = Literal["worker", "manager"]
Driver = Literal["overlay", "bridge", "macvlan", "host", "null"]
Scope = Literal["swarm", "local"]
Availability = Literal["active", "pause", "drain"]
"""``pause``: no new tasks; ``drain``: none at all."""

CONTROL_PORT = 2377
GOSSIP_PORT = 7946
DATA_PORT = 4789
FIRST_VNI = 65536
LAST_VNI = (1 << 24) - 3
"""The two behind it are an examination's (core/checkup) and a measurement's (tools/bench_end)."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the stored records. Fields may be added; unknown ones are ignored when read."""


GossipProfile = Literal["lan", "wan"]


class Cluster(Record, frozen=True, kw_only=True):
    """Settled at ``init``; one a cluster."""

    id: str
    data_port: int = DATA_PORT
    """UDP port of VXLAN on every node."""
    pools: tuple[IPNetwork, ...]
    """Where subnets of networks without ``--subnet`` come from."""
    pool_prefixlen: int = 20
    created_at: float
    """Seconds since 1970, as all ``*_at``."""
    gossip_label: str = ""
    """memberlist's cluster label: packets with another one are dropped. Empty: none, as agents before it need it."""
    gossip_profile: GossipProfile = "lan"
    """Which of the gossip's settings (core/timing) all nodes go by."""


class TakenPort(Record, frozen=True, kw_only=True, order=True):
    """A port of a host that a program of it has, or a container by ``run -p``: no service can have it there."""

    number: int
    protocol: Literal["tcp", "udp"]
    address: IPAddress | None = None
    """Of the host; None: all."""
    holder: str
    """``sshd``, ``container web``."""


class NodeAddresses(Record, frozen=True, kw_only=True):
    """Where a node is, as the managers have it; see :class:`Node`."""

    advertise_addr: IPAddress
    data_path_addr: IPAddress


class Node(Record, frozen=True, kw_only=True):
    id: str
    name: str
    """Host name; unique in the cluster as it is also the gossip's node name."""
    role: Role
    advertise_addr: IPAddress
    """Where the others reach its 7946 and, on a manager, its 2377."""
    data_path_addr: IPAddress
    """Its VTEP: source and destination of its VXLAN packets."""
    joined_at: float
    routes: tuple[IPNetwork, ...] = ()
    """Prefixes its main routing table reaches, as last reported; pools avoid them."""
    version: str = ""
    """Of vxnet on it, as last reported."""
    key: str = ""
    """SHA-256 of the public key it joined with: a join that is tried again is the same node."""
    key_epochs: tuple[int, ...] = ()
    """Of the gossip keys that it accepts, as last reported, the one it uses first."""
    authorities: tuple[str, ...] = ()
    """SHA-256 of the CAs' certificates that it trusts, as last reported, its own certificate's first."""
    availability: Availability = "active"
    labels: dict[str, str] = {}
    cpus: float = 0.0
    """What it has, as last reported; 0: not told yet."""
    memory: int = 0
    """Octets."""
    os: str = ""
    arch: str = ""
    ports: tuple[TakenPort, ...] = ()
    """As last reported."""

    @property
    def addresses(self) -> NodeAddresses:
        return NodeAddresses(advertise_addr=self.advertise_addr, data_path_addr=self.data_path_addr)


class Subnet(Record, frozen=True, kw_only=True):
    prefix: IPNetwork
    gateway: IPAddress
    """Reserved, answered by nobody: the way out is ``vxnet_gw``."""
    range: IPNetwork | None = None
    """Where addresses that nobody chose come from (``--ip-range``); None: the whole prefix."""
    auxiliary: dict[str, IPAddress] = {}
    """Kept for machines that are none of vxnet's (``--aux-address``), by their names there."""


class ForeignPeer(Record, frozen=True, kw_only=True):
    """A VXLAN endpoint without vxnet that takes part in one network (RFC 7348)."""

    vtep: IPAddress
    name: str = ""
    """For people."""


class Network(Record, frozen=True, kw_only=True):
    id: str
    name: str
    driver: Driver = "overlay"
    scope: Scope = "swarm"
    vni: int = 0
    """RFC 7348 network identifier; 0 for drivers without one."""
    subnets: tuple[Subnet, ...] = ()
    attachable: bool = False
    internal: bool = False
    ingress: bool = False
    """The routing mesh's: one a cluster. Each node has a foot in it (a row of kind ``gateway``), and each task of a
    service with published ports an endpoint."""
    mtu: int | None = None
    """``--opt mtu=``: of the containers' interfaces. None: the path's less the encapsulation."""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    peers: tuple[ForeignPeer, ...] = ()
    created_at: float = 0.0


class Lease(Record, frozen=True, kw_only=True):
    """A block of a network's subnet that one node may hand out, or a service's virtual IP. Never ended by silence."""

    network: str
    vni: int
    prefix: IPNetwork
    node: str
    epoch: int
    """Grows with each lease of a network: of two that claim an address, the higher is right."""
    service: str = ""
    """Id of the service whose virtual IP this one address is; ``node`` is empty then."""
    chosen: bool = False
    """One address that somebody asked for (``--ip``): it goes back as soon as nobody has it."""


class LeaseSet(Record, frozen=True, kw_only=True):
    """All leases of a node, as its proof: signed by a manager, shown by the node to everybody."""

    node: str
    revision: int
    """Of the store when it was made; the highest is valid."""
    leases: tuple[Lease, ...]


class Signed(Record, frozen=True, kw_only=True):
    """Bytes that somebody vouches for. Kept and passed on as they are, so that the signature stays good."""

    content: bytes
    signature: bytes
    """Ed25519 over a purpose string and ``content``."""
    certificate: bytes
    """DER; of the signer. It chains to the cluster's CA."""


class GossipKey(Record, frozen=True, kw_only=True):
    epoch: int
    secret: bytes
    """16, 24 or 32 octets (AES-128/192/256-GCM)."""


class Manager(Record, frozen=True, kw_only=True):
    id: str
    name: str
    addr: IPAddress
    port: int = CONTROL_PORT

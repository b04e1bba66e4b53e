"""What travels between the command line, the daemon and the managers beside the stored records."""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import DATA_PORT, Availability, Driver, GossipProfile, Network, Node, Record, Role, TakenPort
from vxnet.model.container import ContainerState, RestartPolicy
from vxnet.model.host import TunnelKind
from vxnet.model.mesh import MeshView
from vxnet.model.published import PublishedPort
from vxnet.model.service import DesiredState, Service, ServiceSpec, TaskState
from vxnet.model.store import StoreWish

MemberStatus = Literal["ready", "suspect", "down", "left", "unknown"]


class InitRequest(StoreWish, frozen=True, kw_only=True):
    advertise_addr: str = ""
    """Address or interface; empty: the one that the default route uses, if that is unambiguous."""
    data_path_addr: str = ""
    data_path_port: int = DATA_PORT
    default_addr_pool: tuple[IPNetwork, ...] = ()
    gossip_label: str = ""
    gossip_profile: GossipProfile = "lan"
    force_new_cluster: bool = False
    """Go on as the only manager: the others, and the store's quorum, are lost for good."""


class JoinRequest(Record, frozen=True, kw_only=True):
    token: str
    manager: str
    """``HOST[:PORT]``."""
    advertise_addr: str = ""
    data_path_addr: str = ""


class JoinClaim(Record, frozen=True, kw_only=True):
    """From a joiner to a manager, over a connection whose CA the token pins."""

    secret: str
    csr: bytes
    """PKCS#10, DER; of the joiner's Ed25519 key."""
    name: str
    advertise_addr: IPAddress
    data_path_addr: IPAddress
    routes: tuple[IPNetwork, ...] = ()
    version: str = ""


class JoinGrant(Record, frozen=True, kw_only=True):
    node: Node
    certificate: bytes
    """DER."""
    assignment: Assignment


class NodeReport(Record, frozen=True, kw_only=True):
    """What an agent tells the managers of its host, at every start and change."""

    routes: tuple[IPNetwork, ...] = ()
    version: str = ""
    key_epochs: tuple[int, ...] = ()
    """Of the gossip keys that it accepts, the one it uses first: so a manager knows when a new one may be used."""
    authorities: tuple[str, ...] = ()
    """SHA-256 of the CAs' certificates that it trusts, its own certificate's first: the same for a new CA."""
    cpus: float = 0.0
    memory: int = 0
    """Octets."""
    os: str = ""
    arch: str = ""
    ports: tuple[TakenPort, ...] = ()


class TaskReport(Record, frozen=True, kw_only=True):
    """What a node says of one of its tasks. Times are given as ages, since clocks differ."""

    task: str
    state: TaskState
    age_s: float = 0.0
    """Since when it is in ``state``."""
    ran_s: float | None = None
    """How long it runs, or did."""
    message: str = ""
    exit_status: int | None = None
    container: str = ""
    ports: tuple[PublishedPort, ...] = ()


class NodeUpdate(Record, frozen=True, kw_only=True):
    availability: Availability | None = None
    labels_added: dict[str, str] = {}
    labels_removed: tuple[str, ...] = ()
    advertise_addr: IPAddress | None = None
    """Another one that the host has now. The data path goes along if it was at the same address."""
    data_path_addr: IPAddress | None = None


class ServiceUpdate(Record, frozen=True, kw_only=True):
    spec: ServiceSpec
    base: ServiceSpec
    """What ``spec`` was made of: an update that somebody else made meanwhile is not undone by accident."""
    rebalance: bool = False


class TaskView(Record, frozen=True, kw_only=True):
    """A line of ``service ps`` and ``node ps``."""

    id: str
    name: str
    """``my-app.1``."""
    service: str
    """Name."""
    node: str
    """Name of the host; empty: none yet."""
    desired: DesiredState
    state: TaskState
    since: float
    started_at: float | None = None
    message: str = ""
    exit_status: int | None = None
    container: str = ""
    superseded: bool = False
    """Another task has taken its slot."""
    version: int = 0
    argv: tuple[str, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    """Of its host, mode host."""


class ServiceView(Record, frozen=True, kw_only=True):
    """A line of ``service ls``, and ``service inspect``."""

    service: Service
    running: int
    """Tasks that run and are to."""
    wanted: int
    networks: dict[str, str] = {}
    """Names by id."""
    pending: str = ""
    """Why tasks have no node."""
    mesh: tuple[MeshView, ...] = ()
    """Of ``inspect``: who gets a connection to its ports."""


class ServiceProgress(Record, frozen=True, kw_only=True):
    """A service and its tasks, told each time when they are others than before."""

    view: ServiceView
    tasks: tuple[TaskView, ...]


class TaskReports(Record, frozen=True, kw_only=True):
    reports: tuple[TaskReport, ...]


class LeaseRequest(Record, frozen=True, kw_only=True):
    network: str
    """Id."""
    addresses: int = 1
    """How many more are wanted."""
    address: IPAddress | None = None
    """One chosen address (``--ip``): a block of one."""
    family: int = 0
    """IP version in which they are wanted; 0: in each that the network has."""
    early: bool = False
    """Nobody waits for them: they are refused where addresses are scarce, and left to those who need one."""


class SubnetWish(Record, frozen=True, kw_only=True):
    """``--subnet`` and what belongs to it, of `network create` and `network update`."""

    subnets: tuple[IPNetwork, ...] = ()
    gateways: tuple[IPAddress, ...] = ()
    """Each lies in one of the subnets and is that one's, as are ``ranges`` and ``auxiliary``."""
    ranges: tuple[IPNetwork, ...] = ()
    auxiliary: dict[str, IPAddress] = {}


class NetworkCreate(SubnetWish, frozen=True, kw_only=True):
    name: str
    driver: Driver = "overlay"
    attachable: bool = False
    internal: bool = False
    ingress: bool = False
    """The routing mesh's, of which there is one."""
    ipv4: bool | None = None
    """True: with a subnet of IPv4, from the cluster's pool if none is given. None: unless only IPv6 ones are given."""
    ipv6: bool = False
    """With a subnet of IPv6, from the cluster's pool if none is given."""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class NetworkUpdate(SubnetWish, frozen=True, kw_only=True):
    """What is added to a network in use; nothing is taken away from it."""

    labels: dict[str, str] = {}
    labels_removed: tuple[str, ...] = ()


class NetworkPrune(Record, frozen=True, kw_only=True):
    """Which of the networks that nobody uses are to be removed."""

    labels: tuple[str, ...] = ()
    """``KEY`` or ``KEY=VALUE``, each of which must be there."""
    until: float | None = None
    """Made before this moment, in seconds since 1970."""


class NodeView(Record, frozen=True, kw_only=True):
    """A line of ``node ls``."""

    node: Node
    status: MemberStatus
    self: bool = False
    leader: bool = False
    datapath: str = ""
    """What its tunnels are, as it says in the gossip; empty while it is not met there."""


class EndpointView(Record, frozen=True, kw_only=True):
    name: str
    node: str
    """Name of the host it lives on."""
    addresses: tuple[IPAddress, ...]
    mac: str
    vtep: IPAddress
    state: str
    container: str = ""
    aliases: tuple[str, ...] = ()


class GatewayView(Record, frozen=True, kw_only=True):
    """A node's foot in the ingress network."""

    node: str
    """Name."""
    addresses: tuple[IPAddress, ...]
    mac: str
    vtep: IPAddress


class PeerView(Record, frozen=True, kw_only=True):
    name: str
    vtep: IPAddress


class NetworkView(Record, frozen=True, kw_only=True):
    """``network inspect``; ``endpoints`` and ``peers`` of the whole cluster with ``-v``, else of this host."""

    network: Network
    mtu: int = 0
    """In force on this host; 0 where the network is not live here."""
    leases: tuple[IPNetwork, ...] = ()
    """This node's blocks."""
    endpoints: tuple[EndpointView, ...] = ()
    gateways: tuple[GatewayView, ...] = ()
    """Of the ingress network; as ``endpoints``."""
    peers: tuple[PeerView, ...] = ()
    warnings: tuple[str, ...] = ()
    """About paths that carry less than this network's interfaces send; about neighbours of a macvlan's parent."""
    about: str = ""
    """For people: what ``vxnet_gw`` is."""
    link: str = ""
    """Of a network of this host: its bridge, or the parent of its macvlans."""


class NetworkConnect(Record, frozen=True, kw_only=True):
    container: str
    ip: IPAddress | None = None
    ip6: IPAddress | None = None
    aliases: tuple[str, ...] = ()


EventType = Literal["container", "network", "service", "node", "daemon"]


class Event(Record, frozen=True, kw_only=True):
    """A line of ``events``."""

    time: float
    """When the daemon saw it."""
    type: EventType
    action: str
    id: str = ""
    """Of what it is about."""
    name: str = ""
    attributes: dict[str, str] = {}


class Health(Record, frozen=True, kw_only=True):
    """``/healthz``; with any problem its status is 503."""

    healthy: bool
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What harms nothing that there is."""


class LogRequest(Record, frozen=True, kw_only=True):
    follow: bool = False
    tail: int = -1
    """Lines from the end; -1: all."""
    since: str = ""
    """RFC 3339 in UTC with nine digits of a second, as the log has it."""


class ContainerView(Record, frozen=True, kw_only=True):
    """A line of ``ps``."""

    id: str
    name: str
    argv: tuple[str, ...]
    state: ContainerState
    exit_status: int | None = None
    restarts: int = 0
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    networks: tuple[str, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    """Of this host, that lead to it now."""
    labels: dict[str, str] = {}


class ProcessView(Record, frozen=True, kw_only=True):
    """A line of ``top``."""

    pid: int
    """As the host counts."""
    ppid: int
    uid: int
    state: str
    """The kernel's letter: R runs, S sleeps, Z has ended …"""
    cpu_s: float
    rss: int
    """Octets of memory, those that it shares included."""
    command: str


class PathView(Record, frozen=True, kw_only=True):
    """The path to another host's VTEP."""

    name: str
    vtep: IPAddress
    promised: int
    """MTU of the route; octets of an IP packet."""
    carried: int | None = None
    """The largest packet that came back; None: the host answers no echoes, or is not reached."""


class UsageView(Record, frozen=True, kw_only=True):
    """What a container has used so far; `stats` shows the difference of two."""

    id: str
    name: str
    at_s: float
    """When it was read; a clock of the host's that never goes back."""
    cpu_s: float
    memory: int
    memory_limit: int
    """Its own, or all that the host has."""
    pids: int
    """Processes and threads."""
    received: int
    """Octets, on all networks."""
    sent: int
    read: int
    """Octets from disks."""
    written: int


class ContainerUpdate(Record, frozen=True, kw_only=True):
    """What is to be different from now on; None: as it is."""

    restart: RestartPolicy | None = None
    memory: int | None = None
    cpus: float | None = None
    pids_limit: int | None = None


class Info(Record, frozen=True, kw_only=True):
    version: str
    name: str
    cluster: str = ""
    """Id; empty: not in a cluster."""
    node: str = ""
    role: Role | None = None
    advertise_addr: IPAddress | None = None
    data_path_addr: IPAddress | None = None
    data_port: int = DATA_PORT
    managers: tuple[str, ...] = ()
    """``name (address:port)``."""
    manager_reachable: bool = False
    nodes: int = 0
    nodes_alive: int = 0
    networks: int = 0
    containers: int = 0
    containers_running: int = 0
    segments: int = 0
    """Overlay networks live on this host."""
    rows: int = 0
    rows_refused: dict[str, int] = {}
    """Rows kept without effect, by reason."""
    datapath: TunnelKind = "kernel"
    drift: int = 0
    """Repairs since the daemon's start: how often the kernel was found different although no wish had changed."""
    drain_timeouts: int = 0
    """Tasks that were told to end before every other node had said that it sends them nothing new."""
    key_epoch: int = 0
    health: int = 0
    """Lifeguard's awareness score: 0 is healthy."""
    queue: int = 0
    """Pieces of news and of rows that wait to be passed on by gossip."""
    paths: tuple[PathView, ...] = ()
    warnings: tuple[str, ...] = ()

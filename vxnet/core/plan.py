"""What this host's kernel shall look like, out of the cluster's wishes and the gossiped facts.

Pure: the same arguments give the same record, byte for byte, whatever order they came in.

A segment exists only where a container of this host lives on the network; its remotes are the other hosts' endpoints
in it, and broadcast goes to just their VTEPs. A container finds others at the MTU of the underlay less what the
encapsulation adds: 14 inner Ethernet + 8 VXLAN + 8 UDP + 20 IPv4 or 40 IPv6 (RFC 7348, section 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from vxnet.core.balance import Balance
from vxnet.core.facts import NO_FACTS, Facts
from vxnet.core.local_networks import NOTHING_LOCAL, PARENT, LocalPart, link_name, macvlan_mode
from vxnet.core.mesh import NOTHING_HELD, Held, Mesh
from vxnet.core.remembered import Remembered
from vxnet.core.remotes import Group, Groups, Known
from vxnet.model.address import IPAddress, IPInterface, IPNetwork
from vxnet.model.cluster import Cluster, Network, Node
from vxnet.model.container import Attachment, Container
from vxnet.model.host import (
    RESOLVER,
    Answers,
    GatewayBridge,
    HostState,
    Ingress,
    Interface,
    Sandbox,
    Segment,
    TunnelKind,
    VirtualService,
)
from vxnet.model.published import PortProtocol
from vxnet.model.service import PublicService

DEFAULT_MTU = 1500
OVERHEAD_IPV4 = 50
OVERHEAD_IPV6 = 70
PORT_NAME_MAX = 15
"""IFNAMSIZ less its zero octet."""
_ID_DIGITS_MIN = 8


def overhead(vtep: IPAddress) -> int:
    """Octets that the encapsulation adds between VTEPs of this one's IP version."""
    return OVERHEAD_IPV4 if vtep.version == 4 else OVERHEAD_IPV6


def plan(
    *,
    self_node: Node | None,
    cluster: Cluster | None,
    networks: Mapping[str, Network],
    containers: Sequence[Container],
    facts: Facts,
    members: Mapping[str, IPAddress],
    underlay_mtu: int | Callable[[Sequence[IPAddress]], int],
    gateway: GatewayBridge | None,
    dns_ports: Mapping[str, int],
    groups: Groups | None = None,
    services: Sequence[PublicService] = (),
    serving: Facts = NO_FACTS,
    balance: Balance | None = None,
    boxes: Remembered[Sandbox] | None = None,
    datapath: TunnelKind = "kernel",
    ingress: Attachment | None = None,
    published: Sequence[PublicService] | None = None,
    held: Held = NOTHING_HELD,
    mesh: Mesh | None = None,
    own: LocalPart = NOTHING_LOCAL,
) -> HostState:
    """The desired state. A host in no cluster (``self_node`` and ``cluster`` None) has its containers' way out alone.

    ``containers``: of this host, guests or with a living first process. ``facts``: judged good; rows of this host's own
    are passed over. ``members``: VTEP of each node that may send, by node id. ``underlay_mtu``: of the paths to the
    VTEPs, or a function of them. ``dns_ports``: where each container's resolver listens. ``services``: all;
    ``serving``: the rows that count for load balancing, which ends with an owner's death though its paths stay.
    ``own``: networks and ports of this host alone. ``ingress``: this node's foot in the routing mesh's network;
    ``published``: the services with those of their ports that this node can answer, None: with all; ``held``: the
    addresses of its links. ``groups``, ``balance``, ``boxes``, ``mesh``: what earlier calls made of all this, for
    speed; the result is the same without.
    """
    boxes = Remembered() if boxes is None else boxes
    if self_node is None or cluster is None:
        sandboxes = _sandboxes(containers, networks, {}, gateway, dns_ports, boxes, own.networks, _NO_ANSWERS)
        way_out = gateway if sandboxes else None
        return HostState(sandboxes=sandboxes, gateway=way_out, bridges=own.bridges, ports=own.ports)
    local = self_node.data_path_addr
    vteps = _sorted_addresses({*members.values()} - {local})
    path_mtu = underlay_mtu if isinstance(underlay_mtu, int) else underlay_mtu(vteps)
    lived_in = _lived_in(networks, containers, ingress, path_mtu - overhead(local))

    groups = Groups() if groups is None else groups
    elsewhere = groups.of(facts, {(one.network.id, one.network.vni) for one in lived_in.values()})
    balance = Balance() if balance is None else balance
    virtual = balance.of(serving, services, lived_in.keys())
    segments = []
    for one in sorted(lived_in.values(), key=lambda one: one.network.vni):
        others = [group for group in elsewhere[one.network.id, one.network.vni] if group.owner != self_node.id]
        remotes = _remotes(one, local, groups, others)
        segments.append(_segment(one, local, datapath, remotes, virtual[one.network.id]))

    foot, answering = None, _NO_ANSWERS
    if ingress is not None and ingress.network in lived_in:
        one = lived_in[ingress.network]
        mesh = Mesh() if mesh is None else mesh
        behind = partial(balance.behind, ingress.network)
        foot = Ingress(
            vni=one.network.vni,
            mac=ingress.mac,
            mtu=one.mtu,
            addresses=ingress.addresses,
            ports=mesh.ports(services if published is None else published, behind, self_node.id, held),
            gateways=mesh.gateways(facts, ingress.network, ingress.mac),
        )
        answering = _Answering(ingress.network, ingress.addresses, _targets(services))
    mtus = {network: one.mtu for network, one in lived_in.items()}
    return HostState(
        segments=tuple(segments),
        sandboxes=_sandboxes(containers, networks, mtus, gateway, dns_ports, boxes, own.networks, answering),
        gateway=gateway,
        ingress=foot,
        bridges=own.bridges,
        ports=own.ports,
        data_port=cluster.data_port,
        # Also of nodes that are gone from the members but whose containers are still kept on the paths.
        vteps=_sorted_addresses({*vteps, *(vtep for segment in segments for vtep in segment.flood)}),
    )


class _LivedIn(NamedTuple):
    """An overlay network in which this host has containers, or its foot."""

    network: Network
    mtu: int
    places: list[Attachment]


def _lived_in(
    networks: Mapping[str, Network], containers: Sequence[Container], ingress: Attachment | None, inner_mtu: int
) -> dict[str, _LivedIn]:
    found: dict[str, _LivedIn] = {}
    places = [place for container in containers for place in container.attachments]
    for place in (*places, *((ingress,) if ingress is not None else ())):
        network = networks.get(place.network)
        if network is not None and network.driver == "overlay":
            found.setdefault(network.id, _LivedIn(network, network.mtu or inner_mtu, [])).places.append(place)
    return found


def _remotes(here: _LivedIn, local: IPAddress, groups: Groups, others: Sequence[Group]) -> Known:
    """What the segment is to know of ``others``, those that live elsewhere."""
    # A tunnel's ends are of one family: the kernel refuses others.
    there = [group for group in others if group.vtep != local and group.vtep.version == local.version]
    # An interface is its address, too; making that anew takes longer than all that is asked of it.
    addresses = (interface for place in here.places for interface in place.addresses)
    macs = (place.mac for place in here.places)
    return groups.settle((here.network.id, here.network.vni), there, macs, addresses)


def _segment(
    here: _LivedIn, local: IPAddress, datapath: TunnelKind, remotes: Known, services: tuple[VirtualService, ...]
) -> Segment:
    network = here.network
    return Segment(
        vni=network.vni,
        mtu=here.mtu,
        local=local,
        kind=datapath,
        remotes=remotes.remotes,
        flood=remotes.vteps,
        services=services,
        ingress=network.ingress,
        foreign=_sorted_addresses({peer.vtep for peer in network.peers if peer.vtep.version == local.version}),
    )


_Ports = tuple[tuple[PortProtocol, int], ...]


class _Answering(NamedTuple):
    """What tasks need to answer the routing mesh."""

    network: str
    """Id of the ingress network; empty: there is none here."""
    via: tuple[IPInterface, ...]
    targets: Mapping[str, _Ports]
    """By service, the ports of its tasks that are published."""

    def of(self, container: Container) -> Answers | None:
        ports = self.targets.get(container.task.service) if container.task is not None else None
        place = next((one for one in container.attachments if one.network == self.network), None)
        if not ports or place is None:
            return None
        return Answers(interface=place.ifname, ports=ports, via=tuple(one.ip for one in self.via))


_NO_ANSWERS = _Answering("", (), {})


def _targets(services: Sequence[PublicService]) -> dict[str, _Ports]:
    return {
        service.id: tuple(sorted({(port.protocol, port.target) for port in service.ports if port.mode == "ingress"}))
        for service in services
        if service.ports
    }


def _sandboxes(
    containers: Sequence[Container],
    networks: Mapping[str, Network],
    mtus: Mapping[str, int],
    gateway: GatewayBridge | None,
    dns_ports: Mapping[str, int],
    boxes: Remembered[Sandbox],
    local: Mapping[str, Network],
    answering: _Answering,
) -> tuple[Sandbox, ...]:
    boxes.look()
    made = []
    for container in sorted(containers, key=lambda container: container.id):
        if container.spec.shares_host_network:
            continue
        port = dns_ports.get(container.id, 0)
        around = [
            (networks.get(one.network), local.get(one.network), mtus.get(one.network)) for one in container.attachments
        ]
        answers = answering.of(container)
        make = partial(_sandbox, container, networks, mtus, gateway, port, local, answers)
        made.append(boxes.of(container.id, (container, port, gateway, answers, *around), make))
    return tuple(made)


def _sandbox(
    container: Container,
    networks: Mapping[str, Network],
    mtus: Mapping[str, int],
    gateway: GatewayBridge | None,
    dns_port: int,
    local: Mapping[str, Network],
    answers: Answers | None,
) -> Sandbox:
    interfaces = [
        _interface(container, attachment, networks[attachment.network], mtus[attachment.network])
        for attachment in container.attachments
        if attachment.network in mtus
    ]
    interfaces += [
        _local_interface(container, attachment, local[attachment.network], gateway)
        for attachment in container.attachments
        if attachment.network in local
    ]
    # A guest's way out is its own affair.
    places = () if container.netns else container.attachments
    default_via = next((one.way_out for one in places if one.way_out and one.network in local), ())
    if gateway is not None and container.gateway is not None:
        interfaces.append(_interface(container, container.gateway, None, gateway.mtu))
        versions = {interface.version for interface in container.gateway.addresses}
        default_via = tuple(interface.ip for interface in gateway.addresses if interface.version in versions)
    return Sandbox(
        id=container.id,
        netns=container.netns or f"/proc/{container.pid}/ns/net",
        interfaces=tuple(sorted(interfaces, key=lambda interface: interface.name)),
        default_via=_sorted_addresses(set(default_via)),
        dns_port=dns_port,
        resolver=container.resolver or RESOLVER,
        foreign=bool(container.netns),
        answers=answers,
    )


def _interface(container: Container, attachment: Attachment, network: Network | None, mtu: int) -> Interface:
    return Interface(
        name=attachment.ifname,
        port=port_name(container.id, attachment.ifname),
        vni=None if network is None else network.vni,
        mac=attachment.mac,
        mtu=mtu,
        addresses=attachment.addresses,
        links=() if network is None else _other_subnets(network, attachment, same_family=True),
        unreachable=() if network is None else _other_subnets(network, attachment, same_family=False),
    )


def _local_interface(
    container: Container, attachment: Attachment, network: Network, gateway: GatewayBridge | None
) -> Interface:
    whole = _interface(container, attachment, None, network.mtu or (DEFAULT_MTU if gateway is None else gateway.mtu))
    if network.driver == "macvlan":
        # Without a choice of its own it takes the parent's.
        return replace(whole, mtu=network.mtu or 0, parent=network.options[PARENT], mode=macvlan_mode(network))
    return replace(whole, bridge=link_name(network))


def _other_subnets(network: Network, attachment: Attachment, *, same_family: bool) -> tuple[IPNetwork, ...]:
    """The network's other subnets of the families that the attachment has addresses of, or of the others.

    The first are on the same link: nothing routes between them. The others were added after it came, and its way out
    is no way to them: a program that hears of an address there is to be told so at once, and takes the other family's
    (RFC 6724, section 6, rule 1).
    """
    if len(network.subnets) == 1:
        return ()
    own = {interface.network for interface in attachment.addresses}
    versions = {interface.version for interface in attachment.addresses}
    others = {subnet.prefix for subnet in network.subnets} - own
    return tuple(sorted((prefix for prefix in others if (prefix.version in versions) == same_family), key=str))


def port_name(container_id: str, ifname: str) -> str:
    """Of the host's end of a veth pair: ``v1a2b3c4d5e.eth0``. Readable by the first digits of the id; where the
    interface's name leaves too few of them, a digest stands for the name."""
    tail = f".{ifname}"
    digits = PORT_NAME_MAX - 1 - len(tail)
    if digits < _ID_DIGITS_MIN:
        tail = f".{hashlib.blake2s(ifname.encode(), digest_size=2).hexdigest()}"
        digits = PORT_NAME_MAX - 1 - len(tail)
    return f"v{container_id[:digits]}{tail}"


def _sorted_addresses(addresses: set[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: (address.version, address.packed)))

"""What people are shown of a place in the cluster."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from vxnet import __version__
from vxnet.core.holdings import NO_NETWORK, by_network, holdings
from vxnet.core.local_networks import PARENT, link_name
from vxnet.core.rotation import use_of
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import Place
from vxnet.model.api import (
    ContainerView,
    EndpointView,
    GatewayView,
    Info,
    MemberStatus,
    NetworkView,
    NodeView,
    PeerView,
)
from vxnet.model.cluster import Network, Subnet
from vxnet.model.container import Container
from vxnet.model.gossip import GossipKeyView, GossipMember, GossipView, NetworkDigest, OwnerRows
from vxnet.model.host import GatewayBridge, HostFacts, HostState
from vxnet.model.row import Endpoint, Gateway

STATUS: Mapping[str, MemberStatus] = {"alive": "ready", "suspect": "suspect", "dead": "down", "left": "left"}
WAY_OUT = (
    "Every container's way out of the host, what docker_gwbridge is in Docker: a bridge in the host's own namespace "
    "with NAT behind it. A container on an overlay has one interface there and its default route by it; containers do "
    "not reach each other over it (that is what their networks are for), and ports that a container publishes in mode "
    "host lead to its address here. Containers whose networks are all --internal have no place on it."
)
NEIGHBOURS = (
    "the parent has an address of this host: containers here are its neighbours, and may send from any address, also "
    "to the VXLAN port; this host and they do not reach each other"
)
REMOVED = "this node was removed from the cluster: `vxnet leave --force`, then join again"


def container(container: Container, networks: Mapping[str, Network]) -> ContainerView:
    return ContainerView(
        id=container.id,
        name=container.spec.name,
        argv=container.spec.argv,
        state=container.state,
        exit_status=container.exit_status,
        restarts=container.restarts,
        created_at=container.created_at,
        started_at=container.started_at,
        finished_at=container.finished_at,
        networks=tuple(
            networks[attachment.network].name if attachment.network in networks else attachment.network
            for attachment in container.attachments
        ),
        addresses=tuple(interface.ip for attachment in container.attachments for interface in attachment.addresses),
        ports=container.published,
        labels=container.spec.labels,
    )


def endpoints(place: Place, network_id: str) -> tuple[EndpointView, ...]:
    names = place.names()
    views = [
        EndpointView(
            name=value.name,
            node=names.get(key.owner, key.owner),
            addresses=value.addresses,
            mac=value.mac,
            vtep=value.vtep,
            state=value.state,
            container=key.id.partition(".")[0],
            aliases=value.aliases,
        )
        for key, _, value in place.rows()
        if isinstance(value, Endpoint) and value.network == network_id
    ]
    return tuple(sorted(views, key=lambda view: (view.node, view.name)))


def feet(place: Place, network_id: str) -> tuple[GatewayView, ...]:
    names = place.names()
    views = [
        GatewayView(node=names.get(key.owner, key.owner), addresses=value.addresses, mac=value.mac, vtep=value.vtep)
        for key, _, value in place.rows()
        if isinstance(value, Gateway) and value.network == network_id
    ]
    return tuple(sorted(views, key=lambda view: view.node))


def network(place: Place, record: Network, mtu: int, verbose: bool) -> NetworkView:
    """``mtu``: in force on this host, 0 if the network is not live here."""
    found, gateways = endpoints(place, record.id), feet(place, record.id)
    return NetworkView(
        network=record,
        mtu=mtu,
        leases=tuple(lease.prefix for lease in place.blocks.get(record.id, ())),
        endpoints=tuple(endpoint for endpoint in found if verbose or endpoint.node == place.node.name),
        gateways=tuple(gateway for gateway in gateways if verbose or gateway.node == place.node.name),
        peers=tuple(
            PeerView(name=name, vtep=vtep)
            for name, vtep in sorted(
                {(one.node, one.vtep) for one in found} | {(one.node, one.vtep) for one in gateways}, key=str
            )
        ),
    )


def way_out(record: Network, bridge: GatewayBridge, hostname: str, containers: Iterable[Container]) -> NetworkView:
    """vxnet_gw as a network."""
    address = bridge.addresses[0]
    subnets = tuple(Subnet(prefix=one.network, gateway=one.ip) for one in bridge.addresses)
    return NetworkView(
        network=replace(record, subnets=subnets),
        about=WAY_OUT,
        mtu=bridge.mtu,
        endpoints=tuple(
            EndpointView(
                name=container.spec.name,
                node=hostname,
                addresses=tuple(interface.ip for interface in container.gateway.addresses),
                mac=container.gateway.mac,
                vtep=address.ip,
                state=container.state,
                container=container.id,
            )
            for container in containers
            if container.gateway is not None
        ),
    )


def local_network(record: Network, state: HostState, facts: HostFacts, containers: Iterable[Container]) -> NetworkView:
    """A network of this host alone."""
    link = link_name(record)
    mtu = next((bridge.mtu for bridge in state.bridges if bridge.name == link), record.mtu or 0)
    warnings = []
    if record.driver == "macvlan" and any(one.interface == record.options[PARENT] for one in facts.addresses):
        warnings.append(NEIGHBOURS)
    return NetworkView(
        network=record,
        link=link if record.driver == "bridge" else record.options[PARENT],
        mtu=mtu,
        warnings=tuple(warnings),
        endpoints=tuple(
            EndpointView(
                name=container.spec.name,
                node=facts.hostname,
                addresses=tuple(interface.ip for interface in attachment.addresses),
                mac=attachment.mac,
                vtep=record.subnets[0].gateway,
                state=container.state,
                container=container.id[:12],
                aliases=attachment.aliases,
            )
            for container in containers
            for attachment in container.attachments
            if attachment.network == record.id
        ),
    )


def host_warnings(facts: HostFacts) -> tuple[str, ...]:
    if not facts.datapath_reason:
        return ()
    cure = 'after `modprobe vxlan`, restart vxnetd; datapath = "userspace" in vxnet.toml if they shall stay as they are'
    return (f"tunnels are in user space: the kernel has no vxlan devices ({facts.datapath_reason}); {cure}",)


def nodes(place: Place, manager: Manager) -> tuple[NodeView, ...]:
    members = place.members()
    status = {member.id: STATUS[member.status] for member in members}
    datapaths = {member.id: member.tags.get("datapath", "") for member in members}
    return tuple(
        NodeView(
            node=node,
            status="ready" if node.id == place.node.id else status.get(node.id, "unknown"),
            self=node.id == place.node.id,
            leader=node.id == manager.leader,
            datapath=datapaths.get(node.id, ""),
        )
        for node in manager.nodes()
    )


def gossip(place: Place) -> GossipView:
    """What this host knows by gossip, and how the gossip is."""
    names, networks = place.names(), {network.id: network.name for network in place.networks.values()}
    held = holdings(place.gossip.table())
    statistics = place.gossip.statistics()
    return GossipView(
        node=place.node.name,
        label=place.assignment.cluster.gossip_label,
        profile=place.assignment.cluster.gossip_profile,
        encrypted=bool(place.assignment.keys),
        key_epoch=key_epoch(place),
        health=statistics["health"],
        queue=queue(statistics),
        members=tuple(
            GossipMember(
                name=member.name,
                node=member.id,
                address=member.address,
                port=member.port,
                status=member.status,
                since_s=round(place.gossip.age_s(member), 3),
                incarnation=member.incarnation,
                tags=dict(sorted(member.tags.items())),
            )
            for member in sorted(place.gossip.members(), key=lambda member: member.name)
        ),
        rows=tuple(
            sorted(
                (
                    OwnerRows(
                        node=names.get(owner, owner),
                        network=networks.get(network, network),
                        rows=one.rows,
                        newest=f"{one.newest.incarnation}.{one.newest.seq}",
                    )
                    for (owner, network), one in held.items()
                ),
                key=lambda rows: (rows.node, rows.network),
            )
        ),
        digests=tuple(
            NetworkDigest(network=networks.get(network, network), rows=one.rows, digest=f"{one.digest:016x}")
            for network, one in sorted(by_network(held).items(), key=lambda item: networks.get(item[0], item[0]))
            if network != NO_NETWORK
        ),
        rows_refused=dict(place.gossip.refused()),
        dropped=dict(place.gossip.dropped()),
        statistics=statistics,
    )


def gossip_keys(place: Place) -> tuple[GossipKeyView, ...]:
    """The ring, the key in use first."""
    keys = place.assignment.keys
    return tuple(
        GossipKeyView(
            epoch=key.epoch,
            key=base64.b64encode(key.secret).decode(),
            bits=8 * len(key.secret),
            use=use_of(key, keys),
        )
        for key in keys
    )


def key_epoch(place: Place) -> int:
    """Of the key in use."""
    return place.assignment.keys[0].epoch if place.assignment.keys else 0


def queue(statistics: Mapping[str, int]) -> int:
    return statistics["news"] + statistics["row_queue"]


def info(place: Place) -> Info:
    members = place.members()
    statistics = place.gossip.statistics()
    return Info(
        version=__version__,
        name=place.node.name,
        cluster=place.assignment.cluster.id,
        node=place.node.id,
        role=place.node.role,
        advertise_addr=place.node.advertise_addr,
        data_path_addr=place.node.data_path_addr,
        data_port=place.assignment.cluster.data_port,
        managers=tuple(f"{m.name} ({m.addr}:{m.port})" for m in place.assignment.managers),
        manager_reachable=place.manager_reachable,
        nodes=len(members),
        nodes_alive=sum(member.present for member in members),
        networks=len(place.networks),
        rows=len(place.rows()),
        rows_refused=dict(place.gossip.refused()),
        key_epoch=key_epoch(place),
        health=statistics["health"],
        queue=queue(statistics),
        warnings=(REMOVED,) if place.removed else (),
    )

"""What people are shown of a place in the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from vxnet import __version__
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import Place
from vxnet.model.api import EndpointView, Info, MemberStatus, NodeView
from vxnet.model.row import Endpoint

STATUS: Mapping[str, MemberStatus] = {"alive": "ready", "suspect": "suspect", "dead": "down", "left": "left"}
REMOVED = "this node was removed from the cluster: `vxnet leave --force`, then join again"


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


def nodes(place: Place, manager: Manager) -> tuple[NodeView, ...]:
    status = {member.id: STATUS[member.status] for member in place.members()}
    return tuple(
        NodeView(
            node=node,
            status="ready" if node.id == place.node.id else status.get(node.id, "unknown"),
            self=node.id == place.node.id,
            leader=node.role == "manager",
        )
        for node in manager.nodes()
    )


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
        key_epoch=place.assignment.keys[0].epoch if place.assignment.keys else 0,
        health=statistics.get("health", 0),
        warnings=(REMOVED,) if place.removed else (),
    )

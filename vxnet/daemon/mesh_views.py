"""What people are shown of the routing mesh: for each node, which tasks a connection to a published port would get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vxnet.core.balance import Balance
from vxnet.core.facts import Facts
from vxnet.core.mesh import choose
from vxnet.core.networks import ingress_of
from vxnet.core.ports import in_mesh
from vxnet.daemon.place import Place
from vxnet.model.address import IPAddress
from vxnet.model.mesh import MeshChoice, MeshTarget, MeshTraffic, MeshView
from vxnet.model.published import PublishedPort
from vxnet.model.row import Endpoint, Gateway
from vxnet.model.service import PublicService


def mesh_of(place: Place, traffic: Sequence[MeshTraffic]) -> tuple[MeshView, ...]:
    """As this node has it. ``traffic``: through this node."""
    network = ingress_of(place.networks.values())
    if network is None:
        return ()
    return mesh(place.assignment.services, network.id, place.rows(), place.names(), traffic)


def mesh(
    services: Iterable[PublicService],
    network: str,
    rows: Facts,
    names: Mapping[str, str],
    traffic: Sequence[MeshTraffic],
) -> tuple[MeshView, ...]:
    """All ports, by number. ``network``: id of the ingress one; ``rows``: that count for load balancing; ``names``: of
    nodes, by id. Nodes are those with a foot in the network: the others do not answer, yet.
    """
    services = [service for service in services if in_mesh(service.ports)]
    balance = Balance()
    balance.of(rows, services, [network])
    tasks: dict[IPAddress, MeshTarget] = {}
    nodes = set()
    for key, _, row in rows:
        node = names.get(key.owner, key.owner)
        if isinstance(row, Gateway) and row.network == network:
            nodes.add(key.owner)
        if isinstance(row, Endpoint) and row.network == network:
            tasks |= {one: MeshTarget(task=row.name, node=node, address=one) for one in row.addresses}
    counted = {(one.protocol, one.published): one for one in traffic}

    def view(service: PublicService, port: PublishedPort) -> MeshView:
        behind = balance.behind(network, service.id)
        choices = []
        for node in sorted(nodes, key=lambda id: names.get(id, id)):
            choice = choose(behind, node, port.policy)
            chosen = sorted((tasks[one] for one in choice.tasks if one.version == 4), key=lambda one: one.task)
            choices.append(MeshChoice(node=names.get(node, node), tasks=tuple(chosen), why=choice.why))
        seen = counted.get((port.protocol, port.published), MeshTraffic(protocol="", published=0))
        return MeshView(
            service=service.name,
            port=port,
            choices=tuple(choices),
            connections=seen.connections,
            refused=seen.refused,
            received=seen.received,
            sent=seen.sent,
        )

    found = [view(service, port) for service in services for port in service.ports if port.mode == "ingress"]
    return tuple(sorted(found, key=lambda one: (one.port.published, one.port.protocol, one.service)))

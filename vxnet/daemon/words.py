"""What a node says of itself in the gossip, and what it reads of others' words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vxnet import __version__
from vxnet.core.facts import Facts
from vxnet.core.members import Member
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import Manager, Node, Role
from vxnet.model.host import HostFacts
from vxnet.model.row import Endpoint


def tags_of(node: Node, facts: HostFacts) -> dict[str, str]:
    return {
        "id": node.id,
        "role": node.role,
        "vtep": str(node.data_path_addr),
        "version": __version__,
        "datapath": facts.datapath,
    }


def role_in(assignment: Assignment, node_id: str) -> Role:
    return "manager" if any(one.id == node_id for one in assignment.managers) else "worker"


def managers_among(members: Iterable[Member], assignment: Assignment, own_id: str) -> tuple[Manager, ...]:
    """Those that the managers told of, where they told and where they are in the gossip (a manager's address may have
    changed); then who calls itself one in the gossip: where to look when all those are gone for good. A certificate has
    to prove it.
    """
    told = {manager.id: manager.addr for manager in assignment.managers}
    met = [
        Manager(id=one.id, name=one.name, addr=one.address)
        for one in members
        if one.present and one.id != own_id and told.get(one.id) != one.address
        if one.id in told or one.tags.get("role") == "manager"
    ]
    return (*assignment.managers, *met)


def users_among(rows: Facts, names: Mapping[str, str], network_id: str) -> list[str]:
    """``web on h2``: whoever still uses a network. ``names`` of hosts by node id."""
    return [
        f"{value.name} on {names.get(key.owner, key.owner)}"
        for key, _, value in rows
        if isinstance(value, Endpoint) and value.network == network_id
    ]

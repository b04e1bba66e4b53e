"""What people may do with nodes, CA and gossip of the cluster: the agent's part of the local API that is theirs."""

from __future__ import annotations

from vxnet.core import networks
from vxnet.daemon import views
from vxnet.daemon.membership import Membership, is_own
from vxnet.daemon.services import Services
from vxnet.model.api import NodeUpdate, NodeView
from vxnet.model.ca import CaView
from vxnet.model.cluster import Node, Role
from vxnet.model.errors import CallerError
from vxnet.model.gossip import GossipKeyView, GossipView, RotateKeys, Rotation


class NodeCommands:
    """The methods are those of :class:`vxnet.daemon.local_api.AgentApi`; on a worker most raise
    :class:`ConflictError`, naming the managers.
    """

    _membership: Membership

    async def join_token(self, role: Role, rotate: bool) -> str:
        manager = self._membership.manager("join-token")
        return await manager.rotate_token(role) if rotate or not manager.has_token(role) else manager.join_token(role)

    async def nodes(self) -> tuple[NodeView, ...]:
        return views.nodes(self._membership.joined(), self._membership.manager("node ls"))

    async def node(self, ref: str) -> NodeView:
        listed = views.nodes(self._membership.joined(), self._membership.manager("node inspect"))
        wanted = networks.find(ref, [view.node for view in listed], "node").id
        return next(view for view in listed if view.node.id == wanted)

    async def remove_node(self, ref: str, force: bool) -> None:
        await self._membership.manager("node rm").remove_node(ref, force)

    async def set_role(self, ref: str, role: Role) -> Node:
        command = "node promote" if role == "manager" else "node demote"
        return await self._membership.manager(command).set_role(ref, role)

    async def gossip(self) -> GossipView:
        return views.gossip(self._membership.joined())

    async def gossip_keys(self) -> tuple[GossipKeyView, ...]:
        return views.gossip_keys(self._membership.joined())

    async def ca(self) -> CaView:
        return self._membership.manager("ca").ca.view()

    async def rotate_ca(self) -> CaView:
        return await self._membership.manager("ca rotate").ca.rotate()

    async def rotation(self) -> Rotation:
        return self._membership.manager("gossip rotate-keys").rotation()

    async def rotate_keys(self, request: RotateKeys) -> Rotation:
        return await self._membership.manager("gossip rotate-keys").rotate_keys(request)

    async def update_node(self, ref: str, update: NodeUpdate) -> Node:
        manager = self._membership.manager("node update")
        if networks.find(ref, manager.nodes(), "node").id == manager.node_id:
            for address in (update.advertise_addr, update.data_path_addr):
                if address is not None and not is_own(address):
                    raise CallerError(
                        f"this host does not have the address {address}", hint="give it to one of its interfaces first"
                    )
        return await manager.update_node(ref, update)

    def services(self, command: str) -> Services:
        """Raises :class:`ConflictError` on a worker: ``command`` is a manager's."""
        return self._membership.manager(command).services

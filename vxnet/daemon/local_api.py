"""The local API: routes under ``/v1`` on a unix socket, each a call of one method of the agent.

Who may: whoever may open the socket (root and the group vxnet). Bodies and answers are the records of
:mod:`vxnet.model` in JSON; errors as in :mod:`vxnet.cluster.failure`.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from vxnet.cluster.api import (
    empty_response,
    json_response,
    make_app,
    peer_uid,
    query_flag,
    read_record,
    takes,
)
from vxnet.cluster.client import TokenAnswer
from vxnet.daemon.container_api import ContainerRoutes, ContainersApi
from vxnet.daemon.service_api import ServiceRoutes, ServicesApi
from vxnet.model.api import (
    Info,
    InitRequest,
    JoinRequest,
    NetworkConnect,
    NetworkCreate,
    NetworkPrune,
    NetworkUpdate,
    NetworkView,
    NodeUpdate,
    NodeView,
)
from vxnet.model.ca import CaView
from vxnet.model.cluster import ForeignPeer, Network, Node, Role
from vxnet.model.errors import CallerError, ForbiddenError
from vxnet.model.gossip import GossipKeyView, GossipView, RotateKeys, Rotation
from vxnet.model.guest import GuestView, GuestWish
from vxnet.model.mesh import MeshView
from vxnet.model.store import Backup, RestoreRequest, StoreWish


class StoreApi(Protocol):
    async def migrate(self, wish: StoreWish, /) -> None: ...
    async def back_up(self) -> Backup: ...
    async def restore(self, request: RestoreRequest, /) -> Node: ...


class AgentApi(ContainersApi, Protocol):
    """What the agent offers. ``ref`` is a name, an id, or an unambiguous start of an id.

    All raise :class:`VxnetError`; a ref without its object is a :class:`NotFoundError`.
    """

    async def info(self) -> Info: ...
    async def init(self, request: InitRequest, /) -> Node: ...
    async def join(self, request: JoinRequest, /) -> Node: ...
    async def leave(self, force: bool, /) -> None: ...
    async def join_token(self, role: Role, rotate: bool, /) -> str: ...
    async def ca(self) -> CaView: ...
    async def rotate_ca(self) -> CaView: ...
    async def nodes(self) -> tuple[NodeView, ...]: ...
    async def node(self, ref: str, /) -> NodeView: ...
    async def remove_node(self, ref: str, force: bool, /) -> None: ...
    async def set_role(self, ref: str, role: Role, /) -> Node: ...
    async def update_node(self, ref: str, update: NodeUpdate, /) -> Node: ...
    async def mesh(self) -> tuple[MeshView, ...]: ...

    @property
    def store(self) -> StoreApi: ...

    async def gossip(self) -> GossipView: ...
    def services(self, command: str, /) -> ServicesApi: ...
    async def gossip_keys(self) -> tuple[GossipKeyView, ...]: ...
    async def rotation(self) -> Rotation: ...
    async def rotate_keys(self, request: RotateKeys, /) -> Rotation: ...
    async def networks(self) -> tuple[Network, ...]: ...
    async def network(self, ref: str, verbose: bool, /) -> NetworkView: ...
    async def create_network(self, request: NetworkCreate, /) -> Network: ...
    async def update_network(self, ref: str, request: NetworkUpdate, /) -> Network: ...
    async def add_peer(self, ref: str, peer: ForeignPeer, /) -> Network: ...
    async def remove_peer(self, ref: str, peer: str, /) -> Network: ...
    async def prune_networks(self, request: NetworkPrune, /) -> tuple[Network, ...]: ...
    async def remove_network(self, ref: str, /) -> None: ...
    async def connect(self, ref: str, request: NetworkConnect, /) -> None: ...
    async def disconnect(self, ref: str, request: NetworkConnect, force: bool, /) -> None: ...
    async def guests(self) -> tuple[GuestView, ...]: ...
    async def connect_guest(self, ref: str, wish: GuestWish, /) -> GuestView: ...
    async def disconnect_guest(self, ref: str, wish: GuestWish, /) -> None: ...


BACKUP_LIMIT = 1 << 30
"""Octets of a backup: 10,000 tasks are about 20 MB."""


def build_app(agent: AgentApi) -> web.Application:
    app = make_app()
    for routes in (_ClusterRoutes, _GossipRoutes, _NetworkRoutes, ServiceRoutes, ContainerRoutes):
        app.router.add_routes(routes(agent).table())
    return app


def _ref(request: web.Request) -> str:
    return request.match_info["ref"]


class _ClusterRoutes:
    def __init__(self, agent: AgentApi) -> None:
        self._agent = agent

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/info", self.info),
            web.post("/v1/cluster/init", self.init),
            web.post("/v1/cluster/join", self.join),
            web.post("/v1/cluster/leave", self.leave),
            web.get("/v1/store/backup", self.back_up_store),
            web.post("/v1/store/migrate", self.migrate_store),
            web.post("/v1/store/restore", self.restore_store),
            web.get("/v1/join-token/{role}", self.join_token),
            web.post("/v1/join-token/{role}/rotate", self.rotate_token),
            web.get("/v1/cluster/ca", self.ca),
            web.post("/v1/cluster/ca/rotate", self.rotate_ca),
            web.get("/v1/nodes", self.nodes),
            web.get("/v1/nodes/{ref}", self.node),
            web.delete("/v1/nodes/{ref}", self.remove_node),
            web.post("/v1/nodes/{ref}/update", self.update_node),
            web.post("/v1/nodes/{ref}/role/{role}", self.set_role),
            web.get("/v1/nodes/{ref}/tasks", self.tasks),
        ]

    async def info(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.info())

    async def init(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.init(await read_record(request, InitRequest)))

    async def join(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.join(await read_record(request, JoinRequest)))

    async def leave(self, request: web.Request) -> web.Response:
        await self._agent.leave(query_flag(request, "force"))
        return empty_response()

    async def join_token(self, request: web.Request) -> web.Response:
        return json_response(TokenAnswer(token=await self._agent.join_token(_role(request), False)))

    async def rotate_token(self, request: web.Request) -> web.Response:
        return json_response(TokenAnswer(token=await self._agent.join_token(_role(request), True)))

    async def ca(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.ca())

    async def rotate_ca(self, request: web.Request) -> web.Response:
        _check_root(request, "change the CA")
        return json_response(await self._agent.rotate_ca())

    async def nodes(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.nodes())

    async def node(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.node(_ref(request)))

    async def remove_node(self, request: web.Request) -> web.Response:
        await self._agent.remove_node(_ref(request), query_flag(request, "force"))
        return empty_response()

    async def update_node(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.update_node(_ref(request), await read_record(request, NodeUpdate)))

    async def back_up_store(self, request: web.Request) -> web.Response:
        _check_root(request, "back the store up: it holds the CA's key and the gossip's")
        return json_response(await self._agent.store.back_up())

    async def migrate_store(self, request: web.Request) -> web.Response:
        await self._agent.store.migrate(await read_record(request, StoreWish))
        return empty_response()

    @takes(BACKUP_LIMIT)
    async def restore_store(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.store.restore(await read_record(request, RestoreRequest)))

    async def set_role(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.set_role(_ref(request), _role(request)))

    async def tasks(self, request: web.Request) -> web.Response:
        return json_response(self._agent.services("node ps").tasks_of_node(_ref(request)))


def _role(request: web.Request) -> Role:
    match request.match_info["role"]:
        case "worker":
            return "worker"
        case "manager":
            return "manager"
        case other:
            raise CallerError(f"a role is worker or manager, found {other!r}")


class _GossipRoutes:
    def __init__(self, agent: AgentApi) -> None:
        self._agent = agent

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/mesh", self.mesh),
            web.get("/v1/gossip", self.gossip),
            web.get("/v1/gossip/keys", self.keys),
            web.get("/v1/gossip/rotation", self.rotation),
            web.post("/v1/gossip/rotate-keys", self.rotate),
        ]

    async def mesh(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.mesh())

    async def gossip(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.gossip())

    async def keys(self, request: web.Request) -> web.Response:
        _check_root(request, "see the gossip's keys")
        return json_response(await self._agent.gossip_keys())

    async def rotation(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.rotation())

    async def rotate(self, request: web.Request) -> web.Response:
        _check_root(request, "change the gossip's keys")
        return json_response(await self._agent.rotate_keys(await read_record(request, RotateKeys)))


def _check_root(request: web.Request, what: str) -> None:
    """The group vxnet may use this host's daemon; who has the gossip's keys can speak as any host."""
    if peer_uid(request) != 0:
        raise ForbiddenError(f"only root may {what}", hint="use sudo")


class _NetworkRoutes:
    def __init__(self, agent: AgentApi) -> None:
        self._agent = agent

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/networks", self.networks),
            web.post("/v1/networks", self.create),
            web.post("/v1/networks/prune", self.prune),
            web.get("/v1/networks/{ref}", self.network),
            web.delete("/v1/networks/{ref}", self.remove),
            web.post("/v1/networks/{ref}/update", self.update),
            web.post("/v1/networks/{ref}/peers", self.add_peer),
            web.delete("/v1/networks/{ref}/peers/{peer}", self.remove_peer),
            web.get("/v1/guests", self.guests),
            web.post("/v1/networks/{ref}/connect-guest", self.connect_guest),
            web.post("/v1/networks/{ref}/disconnect-guest", self.disconnect_guest),
            web.post("/v1/networks/{ref}/connect", self.connect),
            web.post("/v1/networks/{ref}/disconnect", self.disconnect),
        ]

    async def networks(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.networks())

    async def create(self, request: web.Request) -> web.Response:
        network = await self._agent.create_network(await read_record(request, NetworkCreate))
        return json_response(network, status=201)

    async def network(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.network(_ref(request), query_flag(request, "verbose")))

    async def remove(self, request: web.Request) -> web.Response:
        await self._agent.remove_network(_ref(request))
        return empty_response()

    async def prune(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.prune_networks(await read_record(request, NetworkPrune)))

    async def update(self, request: web.Request) -> web.Response:
        wish = await read_record(request, NetworkUpdate)
        return json_response(await self._agent.update_network(_ref(request), wish))

    async def add_peer(self, request: web.Request) -> web.Response:
        peer = await read_record(request, ForeignPeer)
        return json_response(await self._agent.add_peer(_ref(request), peer), status=201)

    async def remove_peer(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.remove_peer(_ref(request), request.match_info["peer"]))

    async def connect(self, request: web.Request) -> web.Response:
        await self._agent.connect(_ref(request), await read_record(request, NetworkConnect))
        return empty_response()

    async def guests(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.guests())

    async def connect_guest(self, request: web.Request) -> web.Response:
        wish = await read_record(request, GuestWish)
        return json_response(await self._agent.connect_guest(_ref(request), wish), status=201)

    async def disconnect_guest(self, request: web.Request) -> web.Response:
        await self._agent.disconnect_guest(_ref(request), await read_record(request, GuestWish))
        return empty_response()

    async def disconnect(self, request: web.Request) -> web.Response:
        wish = await read_record(request, NetworkConnect)
        await self._agent.disconnect(_ref(request), wish, query_flag(request, "force"))
        return empty_response()

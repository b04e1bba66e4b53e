"""An agent that keeps everything in memory: what the local API, its client and the command line are tested on.

It makes no kernel object and starts no process, but refuses what the real one refuses: an unknown or ambiguous ref, a
taken name, a network in use, the removal of a running container. `print(agent)` shows its state as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import tempfile
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, TypeVar

from msgspec.structs import replace

from tests.daemon.memory_services import MemoryServices
from vxnet.cluster.api import serve_unix
from vxnet.cluster.client import Client
from vxnet.core import networks, restoration
from vxnet.core.decisions import is_prunable, update_node
from vxnet.daemon import history
from vxnet.daemon.local_api import AgentApi, build_app
from vxnet.model.api import (
    ContainerUpdate,
    ContainerView,
    EndpointView,
    Info,
    InitRequest,
    JoinRequest,
    LogRequest,
    NetworkConnect,
    NetworkCreate,
    NetworkPrune,
    NetworkUpdate,
    NetworkView,
    NodeUpdate,
    NodeView,
    ProcessView,
    UsageView,
)
from vxnet.model.ca import AuthorityView, CaView
from vxnet.model.cluster import ForeignPeer, Network, Node, Role, Subnet
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import CallerError, ConflictError, ForbiddenError, HostError, NotFoundError
from vxnet.model.gossip import GossipKeyView, GossipMember, GossipView, NetworkDigest, OwnerRows, RotateKeys, Rotation
from vxnet.model.guest import GuestView, GuestWish
from vxnet.model.mesh import MeshChoice, MeshTarget, MeshView
from vxnet.model.published import PublishedPort
from vxnet.model.store import Backup, RestoreRequest, StoreWish

T = TypeVar("T")

CREATED_AT = 1_700_000_000.0
TOKEN = "VXTKN-1-ca-secret"


def make_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class MemoryStore:
    def __init__(self, agent: MemoryAgent) -> None:
        self._agent = agent
        self.moved_to = ""

    async def migrate(self, wish: StoreWish) -> None:
        if self.moved_to:
            raise ConflictError("this cluster's store is etcd already")
        self.moved_to = wish.store

    async def back_up(self) -> Backup:
        return restoration.make_backup("c", 7, {"cluster": b"{}"}, 0.0, "1")

    async def restore(self, request: RestoreRequest) -> Node:
        restoration.check_backup(request.backup)
        raise ConflictError("this host is already in a cluster")


class MemoryAgent:
    def __init__(self) -> None:
        self.cluster_nodes: dict[str, Node] = {}
        self.self_id = ""
        self.network_table: dict[str, Network] = {}
        self.container_table: dict[str, Container] = {}
        self.members: dict[tuple[str, str], NetworkConnect] = {}
        """(network id, container id) → how it was connected."""
        self.guest_table: dict[str, GuestView] = {}
        self.rotations = 0
        self.ca_rotated, self.ca_looks = False, 0
        self.history = history.History()
        self.key_epoch = 1
        self.ring: dict[int, Literal["in use", "next", "old"]] = {1: "in use"}
        self.rotate_requests: list[RotateKeys] = []
        self.service_table = MemoryServices()
        self.store = MemoryStore(self)
        self.log: list[bytes] = []
        self.signals: list[tuple[str, int]] = []
        self.patience: list[float | None] = []
        """Seconds that `stop` and `restart` were given."""
        self.files: dict[str, bytes] = {}
        """What was copied into containers, by path."""
        self.looks = 0
        """At what containers use."""
        self.info_warnings: tuple[str, ...] = ()
        self.changed = asyncio.Condition()
        self.pause: asyncio.Event | None = None
        """Set: `create_network` waits for it halfway."""
        self.creations = 0
        """Of networks, begun."""
        self.waiters = 0
        self.open_logs = 0
        self.log_requests: list[LogRequest] = []

    def __str__(self) -> str:
        lines = [f"node {node.id[:12]} {node.name} {node.role}" for node in self.cluster_nodes.values()]
        lines += [f"network {network.id[:12]} {network.name}" for network in self.network_table.values()]
        lines += [f"container {c.id[:12]} {c.spec.name} {c.state}" for c in self.container_table.values()]
        return "\n".join(lines)

    def add_node(self, name: str, role: Role, address: str) -> Node:
        node = Node(
            id=make_id(name),
            name=name,
            role=role,
            advertise_addr=ip_address(address),
            data_path_addr=ip_address(address),
            joined_at=CREATED_AT,
            version="0.1.0",
        )
        self.cluster_nodes[node.id] = node
        return node

    def services(self, command: str) -> MemoryServices:
        """Those of a manager; a host in no cluster says so as for every other such command."""
        self._joined()
        self.service_table.follow(self.cluster_nodes, self.network_table)
        return self.service_table

    async def update_node(self, ref: str, update: NodeUpdate) -> Node:
        node = (await self.node(ref)).node
        self.service_table.follow(self.cluster_nodes, self.network_table)
        _, changed = update_node(self.service_table.wishes, node.id, update)
        self.cluster_nodes[node.id] = changed
        self.service_table.follow(self.cluster_nodes, self.network_table)
        self.service_table.settle()
        return changed

    # cluster

    async def info(self) -> Info:
        own = self.cluster_nodes.get(self.self_id)
        containers = self.container_table.values()
        return Info(
            version="0.1.0",
            name="h1",
            cluster=make_id("cluster") if own else "",
            node=self.self_id,
            role=own.role if own else None,
            advertise_addr=own.advertise_addr if own else None,
            data_path_addr=own.data_path_addr if own else None,
            managers=("h1 (192.168.56.11:2377)",) if own else (),
            manager_reachable=own is not None,
            nodes=len(self.cluster_nodes),
            nodes_alive=len(self.cluster_nodes),
            networks=len(self.network_table),
            containers=len(containers),
            containers_running=sum(c.state == "running" for c in containers),
            rows_refused={"lease": 2} if own else {},
            warnings=self.info_warnings,
        )

    async def init(self, request: InitRequest, /) -> Node:
        if self.self_id:
            raise ConflictError("this host is in a cluster already", hint="`vxnet leave` takes it out")
        node = self.add_node("h1", "manager", request.advertise_addr or "192.168.56.11")
        self.self_id = node.id
        return node

    async def join(self, request: JoinRequest, /) -> Node:
        if request.token != TOKEN:
            raise ForbiddenError("the manager refused the join token")
        node = self.add_node("h1", "worker", "192.168.56.12")
        self.self_id = node.id
        return node

    async def leave(self, force: bool, /) -> None:
        if not force and any(c.state == "running" for c in self.container_table.values()):
            raise ConflictError("containers run on this host", hint="`--force` ends them")
        self.cluster_nodes.clear()
        self.self_id = ""

    async def join_token(self, role: Role, rotate: bool, /) -> str:
        self.rotations += rotate
        return TOKEN if not self.rotations else f"{TOKEN}{self.rotations}"

    async def nodes(self) -> tuple[NodeView, ...]:
        return tuple(self._node_view(node) for node in self.cluster_nodes.values())

    async def node(self, ref: str, /) -> NodeView:
        return self._node_view(find("node", ref, self.cluster_nodes, lambda node: node.name))

    async def remove_node(self, ref: str, force: bool, /) -> None:
        view = await self.node(ref)
        if view.status == "ready" and not force:
            raise ConflictError(f"node {view.node.name} is alive", hint="`--force` removes it all the same")
        del self.cluster_nodes[view.node.id]

    def _node_view(self, node: Node) -> NodeView:
        own = node.id == self.self_id
        return NodeView(node=node, status="ready" if own else "down", self=own, leader=own and node.role == "manager")

    # the routing mesh

    async def mesh(self) -> tuple[MeshView, ...]:
        self._joined()
        web = PublishedPort(published=80, target=8080)
        task = MeshTarget(task="web.1.x", node="h1", address=ip_address("10.0.0.11"))
        return (
            MeshView(
                service="web",
                port=web,
                choices=(
                    MeshChoice(node="h1", tasks=(task,), why="prefer-local: ready here"),
                    MeshChoice(node="h2", why="no task is ready, so it is refused"),
                ),
                connections=3,
                refused=1,
                received=900,
                sent=7000,
            ),
        )

    # gossip

    async def set_role(self, ref: str, role: Role, /) -> Node:
        node = replace((await self.node(ref)).node, role=role)
        self.cluster_nodes[node.id] = node
        return node

    async def gossip(self) -> GossipView:
        self._joined()
        return GossipView(
            node="h1",
            key_epoch=self.key_epoch,
            members=(
                GossipMember(
                    name="h1",
                    node=self.self_id,
                    address=ip_address("192.168.56.11"),
                    port=7946,
                    status="alive",
                    since_s=90.0,
                    incarnation=2,
                    tags={"role": "manager", "vtep": "192.168.56.11", "datapath": "kernel", "version": "0.1.0"},
                ),
                GossipMember(
                    name="s1", address=ip_address("fd00::9"), port=7946, status="dead", since_s=5.0, incarnation=1
                ),
            ),
            rows=(
                OwnerRows(node="h1", network="", rows=2, newest="1.2"),
                OwnerRows(node="h1", network="blue", rows=1, newest="1.3"),
            ),
            digests=(NetworkDigest(network="blue", rows=1, digest="00c0ffee00c0ffee"),),
            dropped={"no key opens it": 3},
        )

    async def gossip_keys(self) -> tuple[GossipKeyView, ...]:
        self._joined()
        return tuple(
            GossipKeyView(epoch=epoch, key="AAAAAAAAAAAAAAAAAAAAAA==", bits=128, use=use)
            for epoch, use in self.ring.items()
        )

    async def ca(self) -> CaView:
        """Moves on with each look."""
        self._joined()
        old = AuthorityView(number=1, use="old", digest="0" * 64, pem="old\n", ends_at=CREATED_AT)
        new = AuthorityView(number=2, use="signs", digest="1" * 64, pem="new\n", ends_at=CREATED_AT)
        self.ca_looks += 1
        if not self.ca_rotated:
            return CaView(authorities=(replace(old, use="signs"),))
        return CaView(authorities=(new,)) if self.ca_looks > 2 else CaView(authorities=(new, old), waiting=("h2",))

    async def rotate_ca(self) -> CaView:
        self.ca_rotated, self.ca_looks = True, 0
        return await self.ca()

    async def rotation(self) -> Rotation:
        """Moves on with each look."""
        self._joined()
        if self.key_epoch not in self.ring:
            self.key_epoch = max(self.ring)
        waiting = ("h2",) if self.ring[max(self.ring)] == "next" else ()
        found = Rotation(epoch=max(self.ring), in_use=not waiting, made_at=CREATED_AT, waiting=waiting)
        self.ring = {max(self.ring): "in use", self.key_epoch: "old"} if waiting else self.ring
        self.key_epoch = max(self.ring)
        return found

    async def rotate_keys(self, request: RotateKeys, /) -> Rotation:
        self._joined()
        self.rotate_requests.append(request)
        if request.key and len(request.key) not in (16, 24, 32):
            raise CallerError(f"a gossip key has 16, 24 or 32 octets, not {len(request.key)}")
        self.ring = {self.key_epoch: "in use", self.key_epoch + 1: "next"}
        return Rotation(epoch=self.key_epoch + 1, in_use=False, made_at=CREATED_AT, waiting=("h2",))

    def _joined(self) -> None:
        if not self.self_id:
            raise ConflictError("this host is in no cluster", hint="`vxnet init` makes one, `vxnet join` joins one")

    # networks

    async def networks(self) -> tuple[Network, ...]:
        return tuple(self.network_table.values())

    async def network(self, ref: str, verbose: bool, /) -> NetworkView:
        network = self._network(ref)
        endpoints = [
            EndpointView(
                name=self.container_table[container].spec.name,
                node="h1",
                addresses=(ip_address("10.0.16.3"),),
                mac="02:00:0a:00:10:03",
                vtep=ip_address("192.168.56.11"),
                state="ready",
            )
            for of, container in self.members
            if of == network.id
        ]
        return NetworkView(network=network, mtu=1450, endpoints=tuple(endpoints) if verbose else ())

    async def create_network(self, request: NetworkCreate, /) -> Network:
        if any(network.name == request.name for network in self.network_table.values()):
            raise ConflictError(f"network {request.name} exists already")
        self.creations += 1
        if self.pause is not None:
            await self.pause.wait()
        prefixes = request.subnets or (ip_network("10.0.16.0/20"),)
        network = Network(
            id=make_id(request.name),
            name=request.name,
            driver=request.driver,
            vni=65536 + len(self.network_table),
            subnets=tuple(Subnet(prefix=prefix, gateway=prefix[1]) for prefix in prefixes),
            attachable=request.attachable,
            internal=request.internal,
            options=request.options,
            labels=request.labels,
            created_at=CREATED_AT,
        )
        self.network_table[network.id] = network
        return network

    async def update_network(self, ref: str, request: NetworkUpdate, /) -> Network:
        others = self.network_table.values()
        return self._keep(networks.grow_network(self._network(ref), request, networks=others, nodes=()))

    async def add_peer(self, ref: str, peer: ForeignPeer, /) -> Network:
        return self._keep(networks.add_peer(self._network(ref), peer, ()))

    async def remove_peer(self, ref: str, peer: str, /) -> Network:
        return self._keep(networks.remove_peer(self._network(ref), peer))

    async def prune_networks(self, request: NetworkPrune, /) -> tuple[Network, ...]:
        used = {of for of, _ in self.members}
        doomed = [net for net in self.network_table.values() if net.id not in used and is_prunable(net, request)]
        for network in doomed:
            del self.network_table[network.id]
        return tuple(doomed)

    def _keep(self, network: Network) -> Network:
        self.network_table[network.id] = network
        return network

    async def remove_network(self, ref: str, /) -> None:
        network = self._network(ref)
        if users := [self.container_table[container].spec.name for of, container in self.members if of == network.id]:
            raise ConflictError(f"network {network.name} is in use by {', '.join(users)}", hint="remove them first")
        del self.network_table[network.id]

    async def connect(self, ref: str, request: NetworkConnect, /) -> None:
        key = (self._network(ref).id, self._container(request.container).id)
        if key in self.members:
            raise ConflictError(f"{request.container} is connected to {ref} already")
        self.members[key] = request

    async def disconnect(self, ref: str, request: NetworkConnect, force: bool, /) -> None:
        key = (self._network(ref).id, self._container(request.container).id)
        if self.members.pop(key, None) is None:
            raise NotFoundError(f"{request.container} is not connected to {ref}")

    async def guests(self) -> tuple[GuestView, ...]:
        return tuple(self.guest_table.values())

    async def connect_guest(self, ref: str, wish: GuestWish, /) -> GuestView:
        name = wish.name or (f"pid-{wish.pid}" if wish.pid else Path(wish.netns).name)
        self.guest_table[name] = GuestView(
            id=make_id(name),
            name=name,
            pid=wish.pid,
            netns=wish.netns,
            networks=(self._network(ref).name,),
            addresses=(wish.ip or ip_address("10.0.16.7"),),
            interfaces=(wish.ifname or "eth0",),
            resolver=ip_address("127.0.0.11"),
        )
        return self.guest_table[name]

    async def disconnect_guest(self, ref: str, wish: GuestWish, /) -> None:
        self._network(ref)
        found = [view.name for view in self.guest_table.values() if (view.pid, view.netns) == (wish.pid, wish.netns)]
        if not found:
            raise NotFoundError("it is on no network")
        del self.guest_table[found[0]]

    def _network(self, ref: str) -> Network:
        return find("network", ref, self.network_table, lambda network: network.name)

    # containers

    async def containers(self, all: bool, /) -> tuple[ContainerView, ...]:
        return tuple(
            ContainerView(
                id=c.id,
                name=c.spec.name,
                argv=c.spec.argv,
                state=c.state,
                exit_status=c.exit_status,
                created_at=c.created_at,
                started_at=c.started_at,
                finished_at=c.finished_at,
                networks=tuple(wish.network for wish in c.spec.networks),
                addresses=tuple(wish.ip for wish in c.spec.networks if wish.ip),
                labels=c.spec.labels,
            )
            for c in self.container_table.values()
            if all or c.state == "running"
        )

    async def container(self, ref: str, /) -> Container:
        return self._container(ref)

    async def create_container(self, spec: ContainerSpec, /) -> Container:
        name = spec.name or "happy_ant"
        if any(container.spec.name == name for container in self.container_table.values()):
            raise ConflictError(f"the name {name} is taken by another container of this host")
        networks = [self._network(wish.network) for wish in spec.networks]
        container = Container(id=make_id(name), spec=replace(spec, name=name), created_at=CREATED_AT)
        self.container_table[container.id] = container
        for network, wish in zip(networks, spec.networks, strict=True):
            self.members[network.id, container.id] = NetworkConnect(container=container.id, ip=wish.ip)
        return container

    async def start(self, ref: str, /) -> Container:
        container = self._container(ref)
        if container.spec.argv[0] == "no-such-command":
            self._put(replace(container, state="exited", exit_status=127, error="no-such-command: not found"))
            raise CallerError("cannot run 'no-such-command': not found", exit_status=127)
        if container.spec.argv[0] == "broken":
            raise HostError("cannot make the namespaces: no memory")
        return self._put(replace(container, state="running", pid=4711, started_at=CREATED_AT))

    async def prepare(self, ref: str, /) -> Container:
        container = self._container(ref)
        if container.state == "running":
            raise ConflictError(f"container {container.spec.name} runs")
        return self._put(replace(container, state="created", exit_status=None))

    async def restart(self, ref: str, timeout_s: float | None, /) -> Container:
        self.patience.append(timeout_s)
        if self._container(ref).state == "running":
            await self.finish(self._container(ref).id, 143)
        return await self.start((await self.prepare(ref)).id)

    async def rename(self, ref: str, name: str, /) -> None:
        container = self._container(ref)
        if any(other.spec.name == name for other in self.container_table.values()):
            raise ConflictError(f"the name {name} is taken")
        self._put(replace(container, spec=replace(container.spec, name=name)))

    async def stop(self, ref: str, timeout_s: float | None, /) -> None:
        self.patience.append(timeout_s)
        await self.finish(self._container(ref).id, 143)

    async def kill(self, ref: str, signal: int, /) -> None:
        container = self._container(ref)
        if container.state != "running":
            raise ConflictError(f"container {container.spec.name} does not run")
        self.signals.append((container.spec.name, signal))

    async def wait(self, ref: str, /) -> Container:
        container = self._container(ref)

        def ended() -> bool:
            nonlocal container
            container = self.container_table.get(container.id, container)
            return container.state == "exited" or container.id not in self.container_table

        self.waiters += 1
        try:
            async with self.changed:
                await self.changed.wait_for(ended)
        finally:
            self.waiters -= 1
        return container

    async def finish(self, container_id: str, status: int) -> None:
        """The container's command ends."""
        async with self.changed:
            container = self.container_table[container_id]
            self._put(replace(container, state="exited", pid=0, exit_status=status, finished_at=CREATED_AT))
            self.changed.notify_all()

    async def remove(self, ref: str, force: bool, /) -> None:
        container = self._container(ref)
        if container.state == "running" and not force:
            raise ConflictError(f"container {container.spec.name} runs", hint="stop it first, or use --force")
        async with self.changed:
            del self.container_table[container.id]
            self.changed.notify_all()
        self.members = {key: wish for key, wish in self.members.items() if key[1] != container.id}

    async def usage(self, refs: tuple[str, ...], /) -> tuple[UsageView, ...]:
        """Each look finds a second and a quarter of a processor's more."""
        self.looks += 1
        found = [self._container(ref) for ref in refs] or list(self.container_table.values())
        return tuple(
            UsageView(
                id=container.id, name=container.spec.name, at_s=self.looks, cpu_s=1.25 * self.looks, memory=3 << 20,
                memory_limit=12 << 20, pids=2, received=1500, sent=70, read=0, written=2_000_000,
            )
            for container in found
            if container.state == "running"
        )  # fmt: skip

    async def update(self, ref: str, request: ContainerUpdate, /) -> None:
        container = self._container(ref)
        restart = request.restart or container.spec.restart
        memory = request.memory or container.spec.memory
        self._put(replace(container, spec=replace(container.spec, restart=restart, memory=memory)))

    async def top(self, ref: str, /) -> tuple[ProcessView, ...]:
        container = self._container(ref)
        if container.state != "running":
            raise ConflictError(f"container {container.spec.name} does not run")
        command = " ".join(container.spec.argv)
        return (ProcessView(pid=71, ppid=70, uid=0, state="S", cpu_s=75.5, rss=3 << 19, command=command),)

    async def logs(self, ref: str, request: LogRequest, /) -> AsyncIterator[bytes]:
        self.log_requests.append(request)
        container_id = self._container(ref).id
        self.open_logs += 1
        try:
            for piece in list(self.log):
                yield piece
            if request.follow:
                async with self.changed:
                    await self.changed.wait_for(lambda: self.container_table[container_id].state == "exited")
        finally:
            self.open_logs -= 1

    async def read_files(self, ref: str, path: str, follow: bool, /) -> AsyncIterator[bytes]:
        self._container(ref)
        if path not in self.files:
            raise NotFoundError(f"no {path}")
        yield self.files[path]

    async def write_files(self, ref: str, path: str, pieces: AsyncIterable[bytes], owners: bool, /) -> None:
        self._container(ref)
        if path.startswith("/refused"):
            raise ConflictError("not there")
        self.files[path] = b"".join([piece async for piece in pieces])

    async def shim(self, ref: str, /) -> str:
        container = self._container(ref)
        if container.state == "exited":
            raise ConflictError(f"container {container.spec.name} does not run")
        return f"/run/vxnet/c/{container.id[:12]}.sock"

    async def close(self) -> None:
        """The daemon stops."""

    def _container(self, ref: str) -> Container:
        return find("container", ref, self.container_table, lambda container: container.spec.name)

    def _put(self, container: Container) -> Container:
        self.container_table[container.id] = container
        return container


def find(what: str, ref: str, records: Mapping[str, T], name_of: Callable[[T], str]) -> T:
    """Of ``records`` by id: by name, id, or an unambiguous start of an id."""
    for record_id, record in records.items():
        if ref in (name_of(record), record_id):
            return record
    starting = [record for record_id, record in records.items() if record_id.startswith(ref)]
    if len(starting) > 1:
        raise ConflictError(f"{ref} is the start of several ids")
    if not starting:
        raise NotFoundError(f"no such {what}: {ref}")
    return starting[0]


class Daemon:
    """A :class:`MemoryAgent` behind the real local API on a real socket, in a thread of its own."""

    def __init__(self, path: Path, agent: MemoryAgent, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.agent = agent
        self.client = Client(str(path))
        self._loop = loop

    def finish(self, name: str, status: int) -> None:
        """Let a container end, from any thread."""
        asyncio.run_coroutine_threadsafe(self.agent.finish(make_id(name), status), self._loop).result(10)


@contextlib.contextmanager
def daemon(given: MemoryAgent | None = None) -> Iterator[Daemon]:
    started: queue.SimpleQueue[tuple[Daemon, Callable[[], object]]] = queue.SimpleQueue()

    async def serve(path: Path) -> None:
        agent = given or MemoryAgent()
        api: AgentApi = agent
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        app = build_app(api)
        app.router.add_routes(history.routes(agent.history))
        async with serve_unix(app, path):
            started.put((Daemon(path, agent, loop), lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()
        await agent.close()

    with tempfile.TemporaryDirectory(prefix="vxnet-test-") as folder:  # short: a unix path has 107 octets
        thread = threading.Thread(target=lambda: asyncio.run(serve(Path(folder) / "vxnet.sock")))
        thread.start()
        running, stop = started.get(timeout=20)
        try:
            yield running
        finally:
            stop()
            thread.join(20)
        assert not thread.is_alive()

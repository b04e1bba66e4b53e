"""The agent: one a host. It joins the parts and answers the local API; each part keeps its own state.

::

     Membership ── networks, blocks ──┐                 ┌──> Kernel   (host namespace, "vxnet", sandboxes)
     gossip     ── rows, members ─────┼─> core/plan ────┤
     Containers ── attachments, pids ─┘                 └──> Resolver (names follow what the kernel carries)
          │
          └── rows "starting", "ready" ──> gossip
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog
from aiohttp import web
from msgspec.structs import astuple, replace

from vxnet import __version__
from vxnet.cluster.dns import Resolver
from vxnet.core import networks, plan
from vxnet.core.balance import Balance
from vxnet.core.facts import NO_FACTS, Fact, Facts
from vxnet.core.local_networks import local_part
from vxnet.core.mesh import Mesh, by_link
from vxnet.core.names import view_of
from vxnet.core.remembered import Remembered
from vxnet.core.remotes import Groups
from vxnet.daemon import benches, mesh_views, metrics, views, watch
from vxnet.daemon.assigned import Assigned
from vxnet.daemon.blocks import Blocks
from vxnet.daemon.config import Config
from vxnet.daemon.container_commands import ContainerCommands
from vxnet.daemon.containers import Containers
from vxnet.daemon.diagnosis import Doctor
from vxnet.daemon.foot import Foot
from vxnet.daemon.guests import Guests
from vxnet.daemon.history import History, look_at
from vxnet.daemon.local_networks import OWNER, LocalNetworks
from vxnet.daemon.membership import Membership
from vxnet.daemon.metrics import Measured
from vxnet.daemon.node_commands import NodeCommands
from vxnet.daemon.paths import Paths
from vxnet.daemon.reconcile import Plan, Reconciler
from vxnet.daemon.state import StateDirectory
from vxnet.daemon.store_commands import StoreCommands
from vxnet.daemon.way_out import WayOut
from vxnet.host.dnsfast import FastNames
from vxnet.host.facts import choose_tunnel, observe_host
from vxnet.host.kernel import Kernel
from vxnet.host.tunnels import Options
from vxnet.model.address import IPNetwork
from vxnet.model.api import (
    Health,
    Info,
    InitRequest,
    JoinRequest,
    NetworkCreate,
    NetworkPrune,
    NetworkUpdate,
    NetworkView,
)
from vxnet.model.cluster import CONTROL_PORT, GOSSIP_PORT, ForeignPeer, Network, Node
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError, HostError, NotFoundError
from vxnet.model.host import GATEWAY_BRIDGE, Change, HostFacts, Sandbox
from vxnet.model.mesh import MeshTraffic, MeshView
from vxnet.model.service import PublicService
from vxnet.model.store import CLIENT_PORT, PEER_PORT

log = structlog.get_logger()

NAMES_WAIT_S = 3.0
"""Longest silence of the name servers after a start; glibc's resolver asks again after 5 s."""
FOLLOW_S = 0.01
"""After a change of this host's own until the kernel follows, unless it is asked to before. A container's rows are said
5 ms after its record was changed, and whoever starts it asks for the kernel: one plan serves them all."""
HOST_INTERVAL_S = 30.0
"""How often the host's own addresses, routes and resolvers are looked at."""


class _Seen(NamedTuple):
    """From what a plan was made: what may be told once the kernel carries it."""

    rows: Facts
    networks: Mapping[str, Network]
    services: tuple[PublicService, ...]
    vnis: frozenset[int]
    """Of the segments on this host."""
    local_rows: tuple[Fact, ...]
    local_networks: Mapping[str, Network]


class Agent(ContainerCommands, NodeCommands):
    """Use as ``async with Agent.open(…)``. The methods are those of :class:`vxnet.daemon.local_api.AgentApi`."""

    def __init__(
        self, config: Config, state: StateDirectory, run_directory: Path, facts: HostFacts, resolver: Resolver
    ) -> None:
        self._config = config
        self._state = state
        self._facts = facts
        self._resolver = resolver
        self._kernel = Kernel(
            tunnels=Options(run_directory, *astuple(config.userspace)), keep_out=config.firewall.keep_out
        )
        self._groups = Groups()
        self._balance = Balance()
        self._mesh = Mesh()
        self._boxes: Remembered[Sandbox] = Remembered()
        self._viewed: dict[str, Container] = {}
        """By id, as its name server last heard of it."""
        self._membership = Membership(
            state,
            config,
            lambda: self._containers.ports.told(self._facts),
            self._changed,
            self._told,
            lambda errand: self._assigned.deliver(errand),
        )
        self.store = StoreCommands(self._membership, self._look_at_host)
        self.history = History()
        self._reconciler = Reconciler(self._kernel, self._plan, self._applied, self._observe)
        self._paths = Paths(self._membership, self._reconciler, self._kernel)
        self._local = LocalNetworks(
            state,
            facts.machine_id or facts.hostname,
            lambda: self._membership.networks.values(),
            lambda: [*self._occupied(), *(one.network for one in self._way_out.addresses())],
            lambda: (*self._containers.all(), *self._guests.live()),
            self._changed,
        )
        self._way_out = WayOut(
            config.gateway, state, lambda: self._facts, self._occupied, lambda: self._containers.all()
        )
        self._containers = Containers(
            state,
            run_directory,
            self._membership,
            self._way_out.addresses,
            self._changed,
            self._settle,
            resolver,
            lambda: self._guests.live(),
            lambda: self._membership.services,
            lambda: self._foot.held(),
            lambda: self._local.networks,
        )
        self._foot = Foot(state, self._membership, self._changed)
        parts = self._membership, self._reconciler, self._paths, self._containers.all, lambda: self._facts
        self.doctor = Doctor(state, run_directory, *parts)
        self._blocks = Blocks(self._membership, self._containers.attachments)
        attachments, all_containers = self._containers.attachments, self._containers.all
        self._guests = Guests(
            state, self._membership, attachments, resolver, all_containers, self._changed, self._settle
        )
        self._assigned = Assigned(self._containers, lambda: self._membership.place, self._reconciler.settle, state)
        self._assigned.bench = lambda wish: benches.end(wish, config.userspace)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: Config, state_path: Path, run_directory: Path) -> AsyncIterator[Agent]:
        """Adopts what runs on this host, and takes its place in the cluster again. Leaving stops nothing of it."""
        state = StateDirectory(state_path)
        tunnel = await asyncio.to_thread(choose_tunnel, config.datapath)
        if tunnel.reason:
            log.warning("tunnels are in user space: the kernel has no vxlan devices", reason=tunnel.reason)
        facts = replace(await asyncio.to_thread(observe_host), datapath=tunnel.kind, datapath_reason=tunnel.reason)
        if facts.missing:
            raise HostError(f"this host lacks what vxnet needs: {'; '.join(facts.missing)}")
        with FastNames() as fast:
            async with Resolver(fast) as resolver, asyncio.TaskGroup() as group:
                agent = cls(config, state, run_directory, facts, resolver)
                resolver.set_upstreams(facts.nameservers)
                resolver.pause()
                async with agent._membership, agent._containers, agent._guests:
                    agent._way_out.check()
                    agent._membership.republished()
                    # Not before all is adopted: the plan of half a state would take the other half away.
                    await agent._paths.measure()
                    loops = [group.create_task(loop) for loop in agent._loops()]
                    try:
                        await agent._reconciler.settle()
                        loops.append(group.create_task(agent._answer_names()))
                        yield agent
                        await agent._membership.announce_restart()
                    finally:
                        # Nor after the parts have let go of it.
                        for loop in loops:
                            loop.cancel()
                        await asyncio.wait(loops)

    def _loops(self) -> tuple[Coroutine[None, None, None], ...]:
        return (
            self._reconciler.run(),
            *watch.loops(self._kernel, self._reconciler),
            self._watch_host(),
            *self._paths.loops(),
            *self._blocks.loops(),
            self._foot.run(self._containers.attachments),
            self._containers.ports.run(),
            self._assigned.run(),
            self.doctor.run(),
        )

    # The state, in and out

    def _changed(self) -> None:
        """Something that rows, names or the kernel follow from is different."""
        self._foot.look()
        if self._containers.ports.look():
            self._membership.facts_changed()
        self._membership.publish({**self._containers.wiring.rows(), **self._foot.rows()})
        self._view_names()
        self._blocks.look()
        self._assigned.wake()
        self._paths.look()
        self.doctor.look()
        self._observe()
        self._reconciler.wake(within_s=FOLLOW_S)

    def _told(self) -> None:
        """Members or rows are others than before: nothing that this host itself has, or the managers want of it."""
        self._paths.look()
        self._observe()
        self._reconciler.wake()

    def _view_names(self) -> None:
        before, self._viewed = self._viewed, {}
        for container in map(self._containers.wiring.joined, self._containers.live()):
            if before.get(container.id) is not container:
                self._resolver.update(container.id, view_of(container))
            self._viewed[container.id] = container

    def _observe(self) -> None:
        known = self._containers.all(), self._reconciler.drift, self._local.networks
        self.history.observe(look_at(self._membership.place, *known))

    def _plan(self) -> Plan[_Seen]:
        place = self._membership.place
        live = [*(container for container in self._containers.live() if container.pid), *self._guests.live()]
        services = self._membership.services
        rows = place.rows() if place is not None else NO_FACTS
        needed = place is not None or live
        mtu = self._paths.mtu
        own = local_part(
            self._local.networks, self._config.gateway.mtu or mtu, self._containers.live(), self._facts.addresses
        )
        state = plan.plan(
            self_node=place.node if place is not None else None,
            cluster=place.assignment.cluster if place is not None else None,
            networks=self._membership.networks,
            containers=live,
            facts=place.paths() if place is not None else NO_FACTS,
            members=place.vteps() if place is not None else {},
            underlay_mtu=self._paths.mtu,
            gateway=self._way_out.bridge(mtu) if needed else None,
            dns_ports=self._containers.dns_ports() | self._guests.dns_ports(),
            groups=self._groups,
            services=services,
            serving=rows,
            balance=self._balance,
            boxes=self._boxes,
            datapath=self._facts.datapath,
            ingress=self._foot.attachment(),
            published=self._containers.ports.answered(services),
            held=by_link(self._facts),
            mesh=self._mesh,
            own=own,
        )
        vnis = frozenset(segment.vni for segment in state.segments)
        local = self._local.rows(self._containers.wiring.local_endpoints(own.networks))
        return Plan(state, _Seen(rows, self._membership.networks, services, vnis, local, own.networks))

    def _applied(self, seen: _Seen) -> None:
        """A name is told only once its path is there."""
        rows = Facts({**seen.rows.by_owner, OWNER: seen.local_rows}) if seen.local_rows else seen.rows
        self._resolver.know(rows, {**seen.networks, **seen.local_networks}, seen.services)
        if (place := self._membership.place) is not None:
            place.acknowledge(seen.rows, seen.vnis)

    async def _settle(self, container_id: str) -> Sequence[Change]:
        """Until this host's kernel has what a container needs, and the others' what leads back to it."""
        changes = await self._reconciler.settle(container_id)
        if (place := self._membership.place) is not None:
            await place.known(self._containers.wiring.row_ids(container_id))
        return changes

    def _occupied(self) -> list[IPNetwork]:
        """What ``vxnet_gw`` must not overlap: the host's routes, and all that the cluster has or may give."""
        known = (*self._membership.networks.values(), *self._local.networks.values())
        subnets = [subnet.prefix for network in known for subnet in network.subnets]
        place = self._membership.place
        return [*self._facts.routes, *subnets, *(place.assignment.cluster.pools if place is not None else ())]

    async def _watch_host(self) -> None:
        """The host's own addresses and routes change under a running daemon."""
        while True:
            await asyncio.sleep(HOST_INTERVAL_S)
            await self._look_at_host()

    async def _look_at_host(self) -> None:
        before = self._facts
        self._facts = replace(
            await asyncio.to_thread(observe_host),
            datapath=before.datapath,
            datapath_reason=before.datapath_reason,
        )
        self._resolver.set_upstreams(self._facts.nameservers)
        self._membership.facts_changed()
        self._reconciler.wake()

    async def _answer_names(self) -> None:
        """After a start queries wait until the others' names are known again: a late answer harms nobody, a wrong "no
        such name" does. Who sees nobody answers after a while with what it has.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NAMES_WAIT_S):
                await self._membership.caught_up()
        await self._reconciler.settle()
        self._resolver.resume()

    # The cluster

    async def info(self) -> Info:
        place, containers = self._membership.place, self._containers.all()
        info = views.info(place) if place is not None else Info(version=__version__, name=self._facts.hostname)
        return replace(
            info,
            paths=self._paths.views(),
            datapath=self._facts.datapath,
            warnings=(
                *info.warnings,
                *views.host_warnings(self._facts),
                *self._paths.warnings(),
                *self._containers.ports.warnings(),
                *self._way_out.warnings(),
                *await self.obstacles(),
            ),
            containers=len(containers),
            containers_running=sum(container.state == "running" for container in containers),
            segments=len(self._plan().state.segments),
            drift=self._reconciler.drift,
            drain_timeouts=self._assigned.drain_timeouts,
        )

    async def obstacles(self) -> list[str]:
        """What of this host's firewalls is in vxnet's way, with the cure."""
        if (place := self._membership.place) is None:
            return []
        cluster = place.assignment.cluster
        ports = [("udp", cluster.data_port, "VXLAN"), ("tcp", GOSSIP_PORT, "gossip"), ("udp", GOSSIP_PORT, "gossip")]
        if place.node.role == "manager":
            ports.append(("tcp", CONTROL_PORT, "managers"))
        if place.manager is not None and place.manager.electors.is_managed:
            ports += [("tcp", CLIENT_PORT, "etcd's clients"), ("tcp", PEER_PORT, "etcd")]
        with contextlib.suppress(HostError):  # `info` is for hosts that are not well, too
            return await self._reconciler.call(self._kernel.obstacles, ports)
        return []

    async def measured(self) -> Measured:
        place = self._membership.place
        names, mesh = self._resolver.statistics(), await self._mesh_traffic()
        tunnels = await self._reconciler.call(Kernel.tunnel_traffic, self._kernel)
        return metrics.measure(await self.info(), place, self._containers.all(), names, mesh, tunnels)

    def bench_routes(self) -> list[web.RouteDef]:
        return benches.routes(self._membership, self._assigned.bench)

    def health(self) -> Health:
        return metrics.health(self._membership.place, settled=self._reconciler.settled is not None)

    async def init(self, request: InitRequest) -> Node:
        await self._look_at_host()
        return await self._membership.init(request)

    async def join(self, request: JoinRequest) -> Node:
        await self._look_at_host()
        return await self._membership.join(request)

    async def leave(self, force: bool) -> None:
        """Out of the cluster, and every trace of vxnet's off this host."""
        self._membership.check_leave(force)
        # Services' tasks go elsewhere by themselves: they are in nobody's way.
        live = [container for container in self._containers.live() if container.task is None]
        names = [container.spec.name for container in live if container.attachments]
        guests = [guest.spec.name for guest in self._guests.live()]
        if (names or guests) and not force:
            raise ConflictError(
                f"containers on this host are on the cluster's networks: {', '.join([*names, *guests])}",
                hint="remove them first, or use --force to have them removed",
            )
        await self._remove_containers(names)
        await self._guests.disconnect_all()
        await self._membership.leave(force)
        await self._remove_containers([c.spec.name for c in self._containers.all() if c.attachments or c.task])
        # Without a cluster the plan is empty: the kernel's part goes.
        await self._reconciler.settle()

    async def _remove_containers(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(NotFoundError):  # with --rm it goes by itself
                await self._containers.remove(name, force=True)

    # The routing mesh

    async def _mesh_traffic(self) -> tuple[MeshTraffic, ...]:
        return await self._reconciler.call(Kernel.mesh_traffic, self._kernel)

    async def mesh(self) -> tuple[MeshView, ...]:
        return mesh_views.mesh_of(self._membership.joined(), await self._mesh_traffic())

    # Networks

    async def networks(self) -> tuple[Network, ...]:
        made = (*self._membership.networks.values(), *self._local.networks.values())
        return (*networks.LOCAL_NETWORKS, *sorted(made, key=lambda network: network.name))

    async def network(self, ref: str, verbose: bool) -> NetworkView:
        for local in networks.LOCAL_NETWORKS:
            if ref in (local.id, local.name):
                if local.name != GATEWAY_BRIDGE:
                    return NetworkView(network=local)
                bridge = self._way_out.bridge(self._paths.mtu)
                return views.way_out(local, bridge, self._facts.hostname, self._containers.live())
        if (own := self._local.find(ref)) is not None:
            live = (*self._containers.live(), *self._guests.live())
            return views.local_network(own, self._plan().state, self._facts, live)
        try:
            network = networks.find(ref, self._membership.networks.values(), "network")
        except NotFoundError:
            await self._membership.heard()  # it may have been made just now
            network = networks.find(ref, self._membership.networks.values(), "network")
        segment = next((seg for seg in self._plan().state.segments if seg.vni == network.vni), None)
        view = views.network(self._membership.joined(), network, segment.mtu if segment is not None else 0, verbose)
        peers = frozenset(peer.vtep for peer in view.peers)
        return replace(view, warnings=self._paths.warnings_of(view.mtu, peers)) if view.mtu else view

    async def create_network(self, request: NetworkCreate) -> Network:
        if request.driver != "overlay":
            return await self._local.create(request)
        if (own := self._local.find(request.name)) is not None and own.name == request.name:
            raise ConflictError(f"this host has a network {own.name!r} of its own", hint="choose another name")
        return await self._membership.manager("network create").create_network(request)

    async def update_network(self, ref: str, request: NetworkUpdate) -> Network:
        if (own := self._local.find(ref)) is not None:
            raise ConflictError(f"network {own.name!r} is this host's own: it stays as it was made")
        return await self._membership.manager("network update").update_network(ref, request)

    async def add_peer(self, ref: str, peer: ForeignPeer) -> Network:
        return await self._membership.manager("network peer add").add_peer(ref, peer)

    async def remove_peer(self, ref: str, peer: str) -> Network:
        return await self._membership.manager("network peer rm").remove_peer(ref, peer)

    async def prune_networks(self, request: NetworkPrune) -> tuple[Network, ...]:
        own = self._local.prune(request)
        if own and ((place := self._membership.place) is None or place.node.role != "manager"):
            return tuple(own)  # of the others a manager decides
        return (*own, *await self._membership.manager("network prune").prune_networks(request))

    async def remove_network(self, ref: str) -> None:
        if ref in networks.RESERVED_NAMES:
            raise ConflictError(f'network "{ref}" is part of every host and cannot be removed')
        if (own := self._local.find(ref)) is not None:
            self._local.remove(own)
            return
        await self._membership.manager("network rm").remove_network(ref)

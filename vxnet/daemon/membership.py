"""This host's place in a cluster: identity, the managers' word, gossip; and, on a manager, the manager itself.

::

     wishes   manager (2377) ── assignment stream ──> assignment.json ──> networks, blocks, keys, roots
     facts    the other agents (7946) <── gossip ──> rows, members

A host that is in no cluster has a Membership too: one without networks and rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog
from msgspec.structs import replace

from vxnet import __version__
from vxnet.cluster import control
from vxnet.core import restoration, trust
from vxnet.core.wire import LABEL_LIMIT
from vxnet.daemon import moves
from vxnet.daemon.addresses import choose_address
from vxnet.daemon.config import Config
from vxnet.daemon.founding import new_store
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import OwnRows, Place
from vxnet.daemon.seat import unreachable
from vxnet.daemon.state import LocalNode, StateDirectory
from vxnet.model.address import IPAddress
from vxnet.model.api import InitRequest, JoinClaim, JoinRequest, LeaseRequest
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import CONTROL_PORT, DATA_PORT, GOSSIP_PORT, Lease, Network, Node
from vxnet.model.errand import Errand
from vxnet.model.errors import (
    CallerError,
    ConflictError,
    ForbiddenError,
    HostError,
    UnavailableError,
    VxnetError,
)
from vxnet.model.host import HostFacts
from vxnet.model.service import PublicService
from vxnet.model.store import RestoreRequest, StoreWish

log = structlog.get_logger()

LOOK_S = 0.5
"""Between two looks whether an address is there."""
RESTART_S = 60
"""How long others keep the names of a host whose daemon was stopped on purpose: an upgrade takes less."""


class Membership:
    """Use as ``async with membership``: entering resumes the place that the state directory tells of.

    ``changed`` is called when networks, blocks or the place itself may be others than before, ``told`` when rows or
    members may.
    """

    def __init__(
        self,
        state: StateDirectory,
        config: Config,
        facts: Callable[[], HostFacts],
        changed: Callable[[], None],
        told: Callable[[], None] = lambda: None,
        errand: Callable[[Errand], None] = lambda errand: None,
    ) -> None:
        self._state = state
        self._config = config
        self._facts = facts
        self._changed = changed
        self._told = told
        self._errand = errand
        self._place: Place | None = None
        self._moving = False
        self._running: asyncio.Task[None] | None = None
        self._group = asyncio.TaskGroup()
        self._busy = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        local = self._state.local_node()
        if local is not None:
            local = replace(local, row_incarnation=local.row_incarnation + 1)
            try:
                self._state.save_local_node(local)
            except HostError as error:
                # Of no two lives the same, or the others would mix their rows up: the next one counts on from before
                # this, hears of it, and goes above.
                local = replace(local, row_incarnation=max(local.row_incarnation, int(time.time())))
                log.error("this start is not counted", error=str(error))
            await self._enter(local, self._state.assignment())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._busy:
            await self._exit()
        await self._group.__aexit__(kind, error, trace)

    # What is known

    @property
    def place(self) -> Place | None:
        return self._place

    @property
    def networks(self) -> Mapping[str, Network]:
        return self._place.networks if self._place is not None else {}

    @property
    def services(self) -> tuple[PublicService, ...]:
        """Of the whole cluster."""
        return self._place.assignment.services if self._place is not None else ()

    @property
    def data_path_addr(self) -> IPAddress | None:
        return self._place.node.data_path_addr if self._place is not None else None

    @property
    def data_port(self) -> int:
        """UDP port of VXLAN; what it would be where there is no cluster."""
        return self._place.assignment.cluster.data_port if self._place is not None else DATA_PORT

    def blocks(self, network: str) -> tuple[Lease, ...]:
        return self._place.blocks.get(network, ()) if self._place is not None else ()

    async def heard(self) -> None:
        """Until what the managers have said is in use here."""
        if self._place is not None:
            await self._place.heard()

    async def lease(self, request: LeaseRequest) -> None:
        await self.joined().lease(request)

    def joined(self) -> Place:
        """Raises :class:`ConflictError` on a host that is in no cluster."""
        if self._place is None:
            raise ConflictError("this host is in no cluster", hint="`vxnet init` makes one, `vxnet join` joins one")
        return self._place

    def manager(self, command: str) -> Manager:
        """For commands that only a manager can carry out. Raises :class:`ConflictError` naming the managers."""
        place = self.joined()
        if place.manager is None and place.node.role == "manager":
            raise unreachable(place.seat.trouble)
        if place.manager is None:
            managers = ", ".join(f"{m.name} ({m.addr})" for m in place.assignment.managers) or "not known yet"
            raise ConflictError(
                f"this node is a worker, and `vxnet {command}` is a manager's", hint=f"run it on a manager: {managers}"
            )
        return place.manager

    def publish(self, rows: OwnRows) -> None:
        if self._place is not None:
            self._place.publish(rows)

    def facts_changed(self) -> None:
        if self._place is not None:
            self._place.facts_changed()

    def republished(self) -> None:
        """After a start: all rows of this host have been published again."""
        if self._place is not None:
            self._place.gossip.republished()

    async def caught_up(self) -> None:
        """Until the rows of those who were there before are known again."""
        if self._place is not None:
            await self._place.caught_up()

    async def announce_restart(self) -> None:
        """Before a planned stop: the others keep this host's names."""
        if self._place is not None:
            await self._place.gossip.restarting(RESTART_S)

    # In and out

    async def init(self, request: InitRequest) -> Node:
        """A new cluster with this host as its manager."""
        if request.force_new_cluster:
            return await self._force_new_cluster()
        async with self._busy:
            self._check_free()
            facts = self._facts()
            advertise, data_path = self._addresses(request.advertise_addr, request.data_path_addr)
            if not 1024 <= request.data_path_port <= 49151:
                raise CallerError(f"--data-path-port {request.data_path_port}: use one from 1024 to 49151")
            if len(request.gossip_label.encode()) > LABEL_LIMIT:
                raise CallerError(f"--gossip-label is longer than {LABEL_LIMIT} octets")
            await asyncio.to_thread(check_ports, advertise)
            key = trust.node_key(secrets.token_bytes(32))
            self._check_no_store()
            async with contextlib.AsyncExitStack() as undo:
                undo.callback(self._state.forget_cluster)
                made = await new_store(request, self._state, facts.hostname, advertise, data_path, undo)
                undo.push_async_callback(made.store.close)
                manager = await Manager.create(
                    made.store,
                    name=facts.hostname,
                    advertise_addr=advertise,
                    data_path_addr=data_path,
                    key=key,
                    data_port=request.data_path_port,
                    pools=request.default_addr_pool,
                    routes=facts.routes,
                    version=__version__,
                    gossip_label=request.gossip_label,
                    gossip_profile=request.gossip_profile,
                    etcd_ca=made.etcd_ca,
                )
                manager.access = made.access
                if made.access is not None:
                    self._state.save_store_access(made.access)
                self._state.save_credentials(trust.certificate_to_pem(manager.certificate), trust.key_to_pem(key))
                local = LocalNode(node=manager.node, row_incarnation=1)
                self._state.save_local_node(local)
                undo.pop_all()
            await self._enter(local, None, manager)
            log.info("cluster made", node=local.node.id, address=str(advertise))
            return local.node

    async def _force_new_cluster(self) -> Node:
        async with self._busy:
            return await moves.stay_alone(self._state, self.joined())

    async def migrate(self, wish: StoreWish) -> None:
        """The managers' records into another store. What runs, and its traffic, is not touched."""
        async with self._busy:
            await moves.migrate(self._state, self.joined(), self.manager("store migrate"), wish)

    async def restore(self, request: RestoreRequest) -> Node:
        """A cluster whose managers are all gone goes on with this host as its manager."""
        async with self._busy:
            self._check_free()
            self._check_no_store()
            restoration.check_backup(request.backup)
            facts = self._facts()
            advertise, data_path = self._addresses(request.advertise_addr, request.data_path_addr)
            await asyncio.to_thread(check_ports, advertise)
            node = Node(
                id=trust.make_id(secrets.token_bytes(16)),
                name=facts.hostname,
                role="manager",
                advertise_addr=advertise,
                data_path_addr=data_path,
                joined_at=time.time(),
                routes=facts.routes,
                version=__version__,
            )
            manager = await moves.restore(self._state, node, request)
            await self._enter(LocalNode(node=manager.node, row_incarnation=1), None, manager)
            seeds = [other.advertise_addr for other in manager.nodes() if other.id != node.id]
            self.joined().gossip.join([(str(address), GOSSIP_PORT) for address in seeds])
            log.info("cluster restored", node=node.id, revision=request.backup.revision)
            return manager.node

    async def join(self, request: JoinRequest) -> Node:
        """Into the cluster that the token pins."""
        async with self._busy:
            self._check_free()
            token = trust.parse_token(request.token)
            host, port = control.parse_manager(request.manager)
            facts = self._facts()
            advertise, data_path = self._addresses(request.advertise_addr, request.data_path_addr)
            await asyncio.to_thread(check_ports, advertise)
            key = trust.node_key(secrets.token_bytes(32))
            roots = await control.fetch_roots(host, port, token)
            claim = JoinClaim(
                secret=token.secret,
                csr=trust.make_csr(key, facts.hostname),
                name=facts.hostname,
                advertise_addr=advertise,
                data_path_addr=data_path,
                routes=facts.routes,
                version=__version__,
            )
            grant = await control.join(host, port, roots, claim)
            try:
                self._state.save_credentials(trust.certificate_to_pem(grant.certificate), trust.key_to_pem(key))
                self._state.save_assignment(grant.assignment)
                local = LocalNode(node=grant.node, row_incarnation=1)
                self._state.save_local_node(local)
            except BaseException:
                self._state.forget_cluster()
                raise
            await self._enter(local, grant.assignment)
            log.info("cluster joined", node=local.node.id, manager=host)
            return local.node

    def check_leave(self, force: bool) -> None:
        """Raises :class:`ConflictError` where leaving loses what nobody else has."""
        place = self.joined()
        if place.node.role != "manager" or force:
            return
        others = [one.name for one in place.assignment.managers if one.id != place.node.id]
        if others:
            left = f"{len(others)} of {len(others) + 1} managers"
            raise ConflictError(
                f"this node is a manager: without it there are {left}",
                hint="`vxnet node demote` it first, or use --force",
            )
        raise ConflictError(
            "this node is the cluster's last manager: networks, addresses and the CA would be lost",
            hint="use --force to give the cluster up",
        )

    async def leave(self, force: bool) -> None:
        """Tell the others, and forget. With ``force`` also where no manager can be told."""
        async with self._busy:
            place = self.joined()
            try:
                await place.resign()
            except ForbiddenError as error:
                log.info("the managers know: they removed this node", error=str(error))
            except VxnetError as error:
                if not force:
                    raise UnavailableError(
                        f"no manager could be told: {error.message}", hint="use --force, and `vxnet node rm` there"
                    ) from error
                log.warning("left without a word to the managers", error=str(error))
            await place.say_goodbye()
            await self._exit()
            await place.seat.give_up()
            self._state.forget_cluster()
            self._changed()
            log.info("cluster left")

    def _check_free(self) -> None:
        if self._place is not None:
            raise ConflictError("this host is already in a cluster", hint="`vxnet leave` first")

    def _check_no_store(self) -> None:
        """Who goes on without it is rid of it as soon as anything fails."""
        if self._state.store_path.exists():
            raise ConflictError(
                f"{self._state.store_path} holds a cluster already, and this host is not in it",
                hint=f"restore the other files of {self._state.path} beside it, or move it away",
            )

    def _addresses(self, advertise: str, data_path: str) -> tuple[IPAddress, IPAddress]:
        facts = self._facts()
        address = choose_address(advertise or self._config.advertise_addr, facts, "--advertise-addr")
        path = data_path or self._config.data_path_addr
        return address, choose_address(path, facts, "--data-path-addr") if path else address

    async def _enter(self, local: LocalNode, assignment: Assignment | None, manager: Manager | None = None) -> None:
        self._place = await Place.open(
            self._state, local, assignment, manager, self._facts, self._heard, self._told, self._errand
        )
        self._running = self._group.create_task(self._place.run())
        self._changed()

    def _heard(self) -> None:
        """Something is different in the place; its addresses too, maybe."""
        place = self._place
        if place is not None and not self._moving and place.assignment.addresses not in (None, place.node.addresses):
            self._moving = True
            self._group.create_task(self._move(place))
        self._changed()

    async def _move(self, place: Place) -> None:
        """To the addresses that the managers have for this node: as after a restart, with what runs untouched."""
        try:
            await self._wait_addressed(place)
            async with self._busy:
                wanted, local = place.assignment.addresses, self._state.local_node()
                if self._place is not place or wanted in (None, place.node.addresses) or local is None:
                    return
                assert wanted is not None
                node = replace(place.node, advertise_addr=wanted.advertise_addr, data_path_addr=wanted.data_path_addr)
                incarnation = max(local.row_incarnation, place.gossip.core.author.incarnation) + 1
                local = replace(local, node=node, row_incarnation=incarnation)
                self._state.save_local_node(local)
                await self._stop()
                await self._enter(local, place.assignment)
                self.republished()
                log.info(
                    "this node has another address", address=str(node.advertise_addr), data=str(node.data_path_addr)
                )
        except VxnetError as error:
            log.error("this node does not get to its new address: start its daemon anew", error=str(error))
        finally:
            self._moving = False

    async def _wait_addressed(self, place: Place) -> None:
        """Until this host has the addresses, or the managers think better of it: so long the node stays where it is."""
        told = None
        while self._place is place and (wanted := place.assignment.addresses) not in (None, place.node.addresses):
            assert wanted is not None
            lacking = sorted({str(one) for one in (wanted.advertise_addr, wanted.data_path_addr) if not is_own(one)})
            if not lacking:
                return
            if told != wanted:
                log.warning("the managers have an address for this node that the host has not (yet)", address=lacking)
                told = wanted
            await asyncio.sleep(LOOK_S)

    async def _exit(self) -> None:
        self._place = None
        await self._stop()

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None


def is_own(address: IPAddress) -> bool:
    """Whether this host has the address, at this moment."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def check_ports(address: IPAddress) -> None:
    """Raises :class:`ConflictError` if another program holds one of our ports. Blocks for microseconds."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    for port, kind, word in (
        (CONTROL_PORT, socket.SOCK_STREAM, "tcp"),
        (GOSSIP_PORT, socket.SOCK_STREAM, "tcp"),
        (GOSSIP_PORT, socket.SOCK_DGRAM, "udp"),
    ):
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(address), port))
            except OSError as error:
                raise ConflictError(
                    f"port {port}/{word} of {address} cannot be used: {error.strerror}",
                    hint=f"`ss -lp 'sport = {port}'` shows who holds it",
                ) from error

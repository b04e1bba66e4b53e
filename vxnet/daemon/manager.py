"""The manager: decides over the wishes, remembers them in the store, tells the nodes.

::

      agent on this host ──┐                          ┌── store (commit)
      manager_api (2377) ──┴─> Manager ── decision ───┤
            ^                     ^                   └── store (watch) ──> Wishes, the mirror
            └── assignments ──────┴──────────────────────────────────────────┘

Decisions are pure (:mod:`vxnet.core.decisions`): they look at the mirror and are committed with guards, so that one
over an old state is refused by the store and made again. Each manager carries out the commands that it is given. One
of them leads: it schedules, and mends what was left undone (blocks of new nodes, leases of removed networks), whoever
left it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.cluster.store import Leadership, Store
from vxnet.core import decisions, lease_sets, managership, rotation, trust
from vxnet.core.allocate import DEFAULT_POOL
from vxnet.core.assignment import Update
from vxnet.core.decisions import Decision
from vxnet.core.wishes import JoinSecret, Signer, Wishes
from vxnet.daemon.authorities import Authorities
from vxnet.daemon.commits import Commits, encoded
from vxnet.daemon.electors import Electors
from vxnet.daemon.mirror import Mirror
from vxnet.daemon.services import Services
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import (
    JoinClaim,
    JoinGrant,
    LeaseRequest,
    NetworkCreate,
    NetworkPrune,
    NetworkUpdate,
    NodeReport,
    NodeUpdate,
    TaskReport,
)
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import (
    DATA_PORT,
    Cluster,
    ForeignPeer,
    GossipProfile,
    Lease,
    LeaseSet,
    Network,
    Node,
    Role,
    Signed,
)
from vxnet.model.errors import ConflictError, NotFoundError, UnsupportedError, VxnetError
from vxnet.model.gossip import RotateKeys, Rotation
from vxnet.model.store import StoreAccess

MEND_AGAIN_S = 10.0
"""After the store refused to be written."""
KEYS_LOOK_S = 2.0
"""How often is looked whether the gossip's keys are to be turned: nodes die and come back without the store's word."""
KEYS_PAUSE_S = 0.05
"""Between two looks when the store moves: a thousand nodes report at once."""


log = structlog.get_logger(__name__)


class Manager:
    """Made by :meth:`create` or :meth:`open`; works while :meth:`run` runs.

    Everything but the questions can raise :class:`HostError` or :class:`UnavailableError` (the store), and has done
    nothing then.
    """

    def __init__(
        self,
        store: Store,
        leadership: Leadership | None,
        wishes: Wishes,
        node_id: str,
        key: Ed25519PrivateKey,
        certificate: bytes,
        now: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.node_id = node_id
        self.certificate = certificate
        """DER."""
        self.users_of: Callable[[str], list[str]] = lambda network_id: []
        """Names of the endpoints that use a network; the daemon sets it once gossip runs."""
        self.alive: Callable[[str], bool] = lambda node_id: True
        """Whether a node answers; the daemon sets it once gossip runs."""
        self.gone: Callable[[str], bool] = lambda node_id: False
        """Whether a node is known to be dead; the daemon sets it once gossip runs."""
        self.store = store
        self._key = key
        self._now = now
        self._entropy = entropy
        self._mirror = Mirror(store, wishes, self._sign_leases)
        self.trust_changed = self._mirror.trust_changed  # certificate or roots: for the server on 2377
        self.commits = Commits(store, self._mirror, leadership)
        self._decide = self.commits.decide
        self.ca = Authorities(self._mirror, self.commits, entropy, now)
        self.electors = Electors(self._mirror, self.commits, entropy, now)
        self.services = Services(node_id, self._mirror, self.commits, self._new_id, now)
        self.errands = self.services.errands

    # Birth

    @classmethod
    async def create(
        cls,
        store: Store,
        *,
        name: str,
        advertise_addr: IPAddress,
        data_path_addr: IPAddress,
        key: Ed25519PrivateKey,
        data_port: int = DATA_PORT,
        pools: Sequence[IPNetwork] = (),
        pool_prefixlen: int = 20,
        routes: Sequence[IPNetwork] = (),
        version: str = "",
        gossip_label: str = "",
        gossip_profile: GossipProfile = "lan",
        etcd_ca: trust.CertificateAuthority | None = None,
        now: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> Manager:
        """A new cluster with this host, whose key ``key`` is, as its first node. Raises :class:`ConflictError` if the
        store holds one, :class:`CallerError` on pools or names that cannot be.
        """
        cluster = Cluster(
            id=trust.make_id(entropy(16)),
            data_port=data_port,
            pools=tuple(pools) or (DEFAULT_POOL,),
            pool_prefixlen=pool_prefixlen,
            created_at=now(),
            gossip_label=gossip_label,
            gossip_profile=gossip_profile,
        )
        first = Node(
            id=trust.make_id(entropy(16)),
            name=name,
            role="manager",
            advertise_addr=advertise_addr,
            data_path_addr=data_path_addr,
            joined_at=now(),
            routes=tuple(routes),
            version=version,
        )
        decision, node, certificate = decisions.found(
            cluster,
            first,
            trust.make_csr(key, name),
            ca_entropy=entropy(48),
            serial=entropy(8),
            secret=entropy(16),
            gossip_key=entropy(32),
        )
        if etcd_ca is not None:
            decision.changes["etcd/ca"] = etcd_ca
        try:
            await store.commit(encoded(decision), dict.fromkeys(decision.guards, 0))
        except ConflictError:
            raise ConflictError("the store holds a cluster already", hint="`vxnet leave --force` first") from None
        return await cls.open(store, node_id=node.id, key=key, certificate=certificate, now=now, entropy=entropy)

    @classmethod
    async def open(
        cls,
        store: Store,
        *,
        node_id: str,
        key: Ed25519PrivateKey,
        certificate: bytes,
        now: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> Manager:
        """The manager of the cluster in ``store`` on the node with this id, key and certificate. Raises
        :class:`NotFoundError` if the store is not that cluster's.
        """
        # Where only one can lead, it does everything as the leader.
        leadership = None if store.several_managers else await store.lead(node_id)
        wishes = Wishes.of(*await store.load())
        if wishes.cluster is None or node_id not in wishes.nodes:
            raise NotFoundError(f"the store holds no cluster with node {node_id}", hint="restore it from a backup")
        return cls(store, leadership, wishes, node_id, key, certificate, now, entropy)

    # The loop

    async def run(self) -> None:
        """Mirror the store, lead if it is this one's turn. Ends with the error that stops it, or cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._mirror.run())
                tasks.create_task(self._introduce())
                tasks.create_task(self.commits.keep_leading(self.node_id, self._is_gone, self._leading))
        except* VxnetError as errors:
            raise errors.exceptions[0] from None

    async def _introduce(self) -> None:
        """By the certificate with which this manager signs. Also if it is the same: lease sets signed from now on must
        be newer than any that was signed before.
        """
        while True:
            try:
                await self._put(f"signer/{self.node_id}", Signer(digest=trust.certificate_digest(self.certificate)))
                await self.electors.introduce(self.node)
                return
            except VxnetError as error:
                log.warning("this manager cannot introduce itself", error=str(error))
                await asyncio.sleep(MEND_AGAIN_S)

    def _leading(self) -> list[Coroutine[Any, Any, None]]:
        """What only the leader does."""
        return [self._keep_mending(), self._keep_turning(), self.services.run()]

    def _is_gone(self, node_id: str) -> bool:
        return self.gone(node_id) or node_id not in self._wishes.nodes

    async def close(self) -> None:
        """Let go of the store. To be called when :meth:`run` has ended; harmless twice."""
        await self.store.close()

    async def _keep_mending(self) -> None:
        unsettled = self._mirror.unsettled
        while True:
            await unsettled.wait()
            unsettled.clear()
            try:
                await self.mend()
            except VxnetError as error:
                log.warning("blocks not looked after", error=str(error))
                await asyncio.sleep(MEND_AGAIN_S)
                unsettled.set()

    async def mend(self) -> None:
        while await self.commits.decide_as_leader(lambda wishes: decisions.mend(wishes, self._now())):
            pass

    async def _keep_turning(self) -> None:
        while True:
            seen = self._wishes.revision
            try:
                await self.turn_keys()
                await self.ca.turn()
            except VxnetError as error:
                log.warning("gossip keys and CA not looked after", error=str(error))
                await asyncio.sleep(MEND_AGAIN_S)
            await asyncio.sleep(KEYS_PAUSE_S)
            if self._wishes.revision == seen:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KEYS_LOOK_S):
                        await self._mirror.wait_moved()

    async def turn_keys(self) -> None:
        """The next step of the change of the gossip's keys, if it is time for one."""
        before = self._wishes.ring
        secret, now = self._entropy(32), self._now()
        ring = await self.commits.decide_as_leader(lambda wishes: decisions.turn_keys(wishes, secret, self.alive, now))
        if ring != before:
            log.info("gossip keys turned", accepted=[key.epoch for key in ring.keys], used=ring.keys[0].epoch)

    # Questions

    @property
    def cluster(self) -> Cluster:
        assert self._wishes.cluster is not None
        return self._wishes.cluster

    @property
    def node(self) -> Node:
        """This host's own."""
        return self._wishes.nodes[self.node_id]

    @property
    def roots(self) -> tuple[bytes, ...]:
        return self._wishes.roots

    @property
    def leader(self) -> str:
        """A node id; empty: nobody leads."""
        return self._wishes.leader.holder if self._wishes.leader is not None else ""

    @property
    def access(self) -> StoreAccess | None:
        """How a manager reaches the store, if several can."""
        return self.electors.access

    @access.setter
    def access(self, access: StoreAccess | None) -> None:
        self.electors.access = access

    def role_of(self, node_id: str) -> Role:
        """Raises :class:`ForbiddenError` if it was removed, :class:`UnavailableError` if it is not known (yet)."""
        return decisions.member(self._wishes, node_id).role

    def networks(self) -> tuple[Network, ...]:
        return tuple(sorted(self._wishes.networks.values(), key=lambda network: network.name))

    def nodes(self) -> tuple[Node, ...]:
        return tuple(sorted(self._wishes.nodes.values(), key=lambda node: node.name))

    def rotation(self) -> Rotation:
        """How far the change of the gossip's keys is."""
        ring = self._wishes.ring
        assert ring is not None
        waiting = () if ring.settled else rotation.unready(ring, self._wishes.nodes, self.alive)
        names = sorted(self._wishes.nodes[node_id].name for node_id in waiting)
        return Rotation(epoch=ring.newest.epoch, in_use=not ring.installing, made_at=ring.made_at, waiting=tuple(names))

    def assignment_of(self, node_id: str) -> Assignment:
        return self._mirror.assignment_of(node_id)

    def assignments(self, node_id: str, since: int | None = None) -> AsyncGenerator[Update, None]:
        """See :meth:`Mirror.updates`."""
        return self._mirror.updates(node_id, since)

    # Commands. Each raises what its decision does.

    async def create_network(self, request: NetworkCreate) -> Network:
        id, now = self._new_id(), self._now()
        network = await self._decide(lambda wishes: decisions.create_network(wishes, request, id, now))
        log.info("network created", network=network.id, name=network.name, vni=network.vni)
        return network

    async def update_network(self, ref: str, request: NetworkUpdate) -> Network:
        network = await self._decide(lambda wishes: decisions.update_network(wishes, ref, request))
        log.info("network changed", network=network.id, name=network.name, subnets=len(network.subnets))
        return network

    async def add_peer(self, ref: str, peer: ForeignPeer) -> Network:
        network = await self._decide(lambda wishes: decisions.add_peer(wishes, ref, peer))
        log.info("foreign peer let in", network=network.id, name=network.name, vtep=str(peer.vtep))
        return network

    async def remove_peer(self, ref: str, peer: str) -> Network:
        network = await self._decide(lambda wishes: decisions.remove_peer(wishes, ref, peer))
        log.info("foreign peer shut out", network=network.id, name=network.name, peer=peer)
        return network

    async def remove_network(self, ref: str) -> Network:
        network = await self._decide(lambda wishes: decisions.remove_network(wishes, ref, self.users_of))
        log.info("network removed", network=network.id, name=network.name)
        return network

    async def prune_networks(self, request: NetworkPrune) -> tuple[Network, ...]:
        """Remove those that nobody uses; which they were."""
        removed = []
        for network in self.networks():
            if decisions.is_prunable(network, request) and not self.users_of(network.id):
                with contextlib.suppress(ConflictError, NotFoundError):  # in use by now, or gone
                    removed.append(await self.remove_network(network.id))
        return tuple(removed)

    def join_token(self, role: Role) -> str:
        """Raises :class:`UnsupportedError` for managers where the store takes only one."""
        self._check_role(role)
        return trust.make_token(self._wishes.pinned, self._wishes.secrets[role].secret)

    def has_token(self, role: Role) -> bool:
        return role in self._wishes.secrets

    async def rotate_token(self, role: Role) -> str:
        """The old one is worth nothing from now on."""
        self._check_role(role)
        await self._put(f"token/{role}", JoinSecret(secret=trust.make_secret(self._entropy(16))))
        log.info("join token rotated", role=role)
        return self.join_token(role)

    async def rotate_keys(self, request: RotateKeys) -> Rotation:
        """Another gossip key begins its way into all rings. Raises :class:`CallerError` on one that cannot be."""
        secret, now = request.key or self._entropy(request.bits // 8), self._now()
        ring = await self._decide(lambda wishes: decisions.rotate_keys(wishes, secret, now, at_once=request.force))
        log.info("gossip key asked for", epoch=ring.newest.epoch, at_once=request.force)
        return self.rotation()

    async def join(self, claim: JoinClaim, peer: str = "") -> JoinGrant:
        """``peer`` is for the log."""
        id, serial, now = self._new_id(), self._entropy(8), self._now()
        node, certificate = await self._decide(
            lambda wishes: decisions.join(wishes, claim, self.alive, id, serial, now)
        )
        log.info("node joined", node=node.id, name=node.name, role=node.role, peer=peer)
        return JoinGrant(node=node, certificate=certificate, assignment=self.assignment_of(node.id))

    async def report(self, node_id: str, report: NodeReport) -> None:
        await self._decide(lambda wishes: decisions.report(wishes, node_id, report))

    async def leave(self, node_id: str) -> None:
        """The node itself asks to be forgotten."""
        decisions.member(self._wishes, node_id)
        await self.remove_node(node_id, force=True)

    async def remove_node(self, ref: str, force: bool = False) -> Node:
        now, managed = self._now(), self.electors.is_managed
        node = await self._decide(
            lambda wishes: managership.remove(wishes, ref, force, self.alive, now, managed=managed)
        )
        log.info("node removed", node=node.id, name=node.name)
        return node

    async def set_role(self, ref: str, role: Role) -> Node:
        """The node itself does what follows."""

        def decide(wishes: Wishes) -> tuple[Decision, Node]:
            if role == "manager":
                decision, node = managership.promote(wishes, ref)
                if decision.changes:
                    self._check_role(role)
                return decision, node
            return managership.demote(wishes, ref, self.alive, managed=self.electors.is_managed)

        node = await self._decide(decide)
        log.info("node has a role", node=node.id, name=node.name, role=node.role)
        return node

    async def grant_store(self, node_id: str, csr: bytes) -> StoreAccess:
        """See :meth:`Electors.grant`."""
        return await self.electors.grant(node_id, csr)

    async def update_node(self, ref: str, update: NodeUpdate) -> Node:
        managed = self.electors.is_managed
        node = await self._decide(lambda wishes: decisions.update_node(wishes, ref, update, managed=managed))
        address = str(node.advertise_addr)
        log.info("node updated", node=node.id, name=node.name, availability=node.availability, address=address)
        return node

    async def report_tasks(self, node_id: str, reports: Sequence[TaskReport]) -> None:
        decisions.member(self._wishes, node_id)
        await self.services.report(node_id, reports)

    def renew(self, node_id: str, csr: bytes) -> bytes:
        """A new certificate, DER. Raises :class:`ForbiddenError` if it is no node (any more)."""
        node = decisions.member(self._wishes, node_id)
        return decisions.certify(self._wishes.authority, node, csr, self._entropy(8), self._now())

    async def use_certificate(self, certificate: bytes) -> None:
        """This manager's own new one (of the same key): all lease sets are signed and told anew."""
        self.certificate = certificate
        self.trust_changed.set()
        await self._put(f"signer/{self.node_id}", Signer(digest=trust.certificate_digest(certificate)))

    async def lease(self, node_id: str, request: LeaseRequest) -> Signed:
        """The node's set of leases, in which now is one more block, or the chosen address."""
        await self._decide(lambda wishes: decisions.lease(wishes, node_id, request))
        return self._mirror.leases_of(node_id)

    async def release(self, node_id: str, leases: Sequence[Lease]) -> Signed:
        """The node's set of leases without these; for the caller's part see :func:`allocate.idle_blocks`."""
        while await self._decide(lambda wishes: decisions.release(wishes, node_id, leases)):
            pass
        return self._mirror.leases_of(node_id)

    # Parts

    @property
    def _wishes(self) -> Wishes:
        return self._mirror.wishes

    async def _put(self, key: str, record: object) -> None:
        await self._decide(lambda wishes: (Decision({key: record}), None))

    def _new_id(self) -> str:
        return trust.make_id(self._entropy(16))

    def _check_role(self, role: Role) -> None:
        if role == "manager" and not self.store.several_managers:
            raise UnsupportedError(
                "this cluster's store is SQLite, which takes one manager",
                hint="`vxnet store migrate --managed-etcd` moves it to etcd, and then there can be several",
            )

    def _sign_leases(self, node_id: str) -> Signed:
        leases = LeaseSet(node=node_id, revision=self._wishes.revision, leases=self._wishes.leases_of_node(node_id))
        return trust.sign(trust.LEASES_PURPOSE, lease_sets.pack(leases), self._key, self.certificate)

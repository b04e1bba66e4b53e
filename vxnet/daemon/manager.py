"""The manager: decides over the wishes, remembers them in the store, tells the nodes.

::

      agent on this host ──┐                          ┌── store (commit)
      manager_api (2377) ──┴─> Manager ── decision ───┤
            ^                     ^                   └── store (watch) ──> Wishes, the mirror
            └── assignments ──────┴──────────────────────────────────────────┘

A decision looks at the mirror and is committed with guards, so that a decision over an old state is refused by the
store and made again. What the mirror lacks (blocks of new nodes) or has too much (leases of removed networks) is
mended by :meth:`Manager.run`, whoever left it so.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from vxnet.cluster.store import Leadership, Store
from vxnet.core import allocate, networks, trust
from vxnet.core.assignment import Update
from vxnet.core.nodes import check_claim
from vxnet.core.wishes import Counter, JoinSecret, KeyRing, RemovedNode, Signer, Wishes, lease_key
from vxnet.daemon.mirror import Mirror
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import JoinClaim, JoinGrant, LeaseRequest, NetworkCreate, NodeReport
from vxnet.model.cluster import (
    DATA_PORT,
    Assignment,
    Cluster,
    GossipKey,
    Lease,
    LeaseSet,
    Network,
    Node,
    Role,
    Signed,
)
from vxnet.model.codec import to_json
from vxnet.model.errors import ConflictError, ForbiddenError, NotFoundError, UnsupportedError, VxnetError

BLOCKS_AT_ONCE = 90
"""Leases in a commit, which takes at most 100 records."""
ATTEMPTS = 5
"""At a decision that another manager's commits outrun."""
MEND_AGAIN_S = 10.0
"""After the store refused to be written."""

R = TypeVar("R")
log = structlog.get_logger(__name__)


class Decision(NamedTuple):
    """Records to write (None: delete); the keys whose versions in the mirror must still hold; what to answer."""

    changes: Mapping[str, object | None]
    guards: Collection[str] = ()


class Manager:
    """Made by :meth:`create` or :meth:`open`; works while :meth:`run` runs.

    Everything but the questions can raise :class:`HostError` or :class:`UnavailableError` (the store), and has done
    nothing then.
    """

    def __init__(
        self,
        store: Store,
        leadership: Leadership,
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
        self.certificate_changed = asyncio.Event()
        """For the server on 2377."""
        self.users_of: Callable[[str], list[str]] = lambda network_id: []
        """Names of the endpoints that use a network; the daemon sets it once gossip runs."""
        self.alive: Callable[[str], bool] = lambda node_id: True
        """Whether a node answers; the daemon sets it once gossip runs."""
        self._store = store
        self._leadership = leadership
        self._key = key
        self._now = now
        self._entropy = entropy
        self._mirror = Mirror(store, wishes, self._sign_leases)
        self._deciding = asyncio.Lock()

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
        now: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> Manager:
        """A new cluster with this host, whose key ``key`` is, as its first node. Raises :class:`ConflictError` if the
        store holds one, :class:`CallerError` on pools or names that cannot be.
        """
        pools = tuple(pools) or (networks.DEFAULT_POOL,)
        networks.check_pools(pools, pool_prefixlen)
        cluster = Cluster(
            id=trust.make_id(entropy(16)),
            data_port=data_port,
            pools=pools,
            pool_prefixlen=pool_prefixlen,
            created_at=now(),
        )
        ca = trust.make_ca(entropy(48), cluster.id, now())
        csr = trust.make_csr(key, name)
        node = Node(
            id=trust.make_id(entropy(16)),
            name=name,
            role="manager",
            advertise_addr=advertise_addr,
            data_path_addr=data_path_addr,
            joined_at=now(),
            routes=tuple(routes),
            version=version,
            key=trust.key_digest(csr),
        )
        identity = trust.Identity(node=node.id, role="manager")
        addresses = sorted({advertise_addr, data_path_addr}, key=str)
        certificate = trust.issue(ca, csr, identity, name, addresses, entropy(8), now())
        changes: dict[str, object] = {
            "cluster": cluster,
            "ca/1": ca,
            "token/worker": JoinSecret(secret=trust.make_secret(entropy(16))),
            "gossip/keys": KeyRing(keys=(GossipKey(epoch=1, secret=entropy(32)),)),
            f"node/{node.id}": node,
        }
        try:
            await store.commit({key: to_json(record) for key, record in changes.items()}, {"cluster": 0})
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
        leadership = await store.lead(node_id)
        signer = to_json(Signer(digest=trust.certificate_digest(certificate)))
        # Also if it is the same: lease sets signed from now on must be newer than any that was signed before.
        await store.commit({f"signer/{node_id}": signer}, leadership.guard)
        wishes = Wishes.of(*await store.load())
        if wishes.cluster is None or node_id not in wishes.nodes:
            raise NotFoundError(f"the store holds no cluster with node {node_id}", hint="restore it from a backup")
        return cls(store, leadership, wishes, node_id, key, certificate, now, entropy)

    # The loop

    async def run(self) -> None:
        """Mirror the store and mend what was left undone. Ends with the error that stops it, or cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._mirror.run())
                tasks.create_task(self._keep_mending())
        except* VxnetError as errors:
            raise errors.exceptions[0] from None

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
        """Release what removed nodes and networks had, and give first blocks to those that have none."""
        while await self._decide(self._mending):
            pass

    def _mending(self) -> tuple[Decision, bool]:
        wishes = self._wishes
        changes: dict[str, object | None] = {
            lease_key(lease.network, lease.prefix): None
            for lease in wishes.leases()
            if lease.network not in wishes.networks or lease.node not in wishes.nodes
        }
        guards = ["set/lease", "set/node"]
        for network in wishes.networks.values():
            if network.attachable and len(changes) < BLOCKS_AT_ONCE:
                given = allocate.first_blocks(network, wishes.leases_of_network(network.id), wishes.nodes)
                changes |= self._leases(network, given)
                guards += [f"network/{network.id}"] if given else []
        if not changes:
            return Decision({}), False
        some = dict(list(changes.items())[:BLOCKS_AT_ONCE])
        return Decision({**some, "set/lease": Counter()}, guards), True

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

    def is_node(self, node_id: str) -> bool:
        """Whether it joined and was not removed."""
        return node_id in self._wishes.nodes

    def networks(self) -> tuple[Network, ...]:
        return tuple(sorted(self._wishes.networks.values(), key=lambda network: network.name))

    def nodes(self) -> tuple[Node, ...]:
        return tuple(sorted(self._wishes.nodes.values(), key=lambda node: node.name))

    def assignment_of(self, node_id: str) -> Assignment:
        return self._mirror.assignment_of(node_id)

    def assignments(self, node_id: str, since: int | None = None) -> AsyncGenerator[Update, None]:
        """See :meth:`Mirror.updates`."""
        return self._mirror.updates(node_id, since)

    # Networks

    async def create_network(self, request: NetworkCreate) -> Network:
        """Raises as :func:`networks.decide_network`."""

        def decide() -> tuple[Decision, Network]:
            wishes = self._wishes
            vnis = {network.vni for network in wishes.networks.values()}
            network = networks.decide_network(
                request,
                id=trust.make_id(self._entropy(16)),
                vni=allocate.next_vni(vnis, wishes.counter("vni")),
                cluster=self.cluster,
                networks=wishes.networks.values(),
                nodes=wishes.nodes.values(),
                now=self._now(),
            )
            changes: dict[str, object | None] = {f"network/{network.id}": network, "set/vni": Counter(last=network.vni)}
            if network.attachable:
                given = allocate.first_blocks(network, (), wishes.nodes)[:BLOCKS_AT_ONCE]
                changes |= self._leases(network, given)
            return Decision(changes, ["set/vni", "set/node"]), network

        network = await self._decide(decide)
        log.info("network created", network=network.id, name=network.name, vni=network.vni)
        return network

    async def remove_network(self, ref: str) -> Network:
        """Raises :class:`NotFoundError`, or :class:`ConflictError` naming who still uses it."""

        def decide() -> tuple[Decision, Network]:
            network = networks.find(ref, self._wishes.networks.values(), "network")
            if users := sorted(self.users_of(network.id)):
                shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
                raise ConflictError(
                    f"network {network.name} is still in use by {shown}",
                    hint="remove those containers, or `vxnet network disconnect` them",
                )
            leases = self._wishes.leases_of_network(network.id)[:BLOCKS_AT_ONCE]
            changes: dict[str, object | None] = {lease_key(network.id, lease.prefix): None for lease in leases}
            return Decision({**changes, f"network/{network.id}": None}, [f"network/{network.id}"]), network

        network = await self._decide(decide)
        log.info("network removed", network=network.id, name=network.name)
        return network

    # Nodes

    def join_token(self, role: Role) -> str:
        """Raises :class:`UnsupportedError` for managers where the store takes only one."""
        self._check_role(role)
        return trust.make_token(self._wishes.roots[0], self._wishes.secrets[role].secret)

    async def rotate_token(self, role: Role) -> str:
        """The old one is worth nothing from now on."""
        self._check_role(role)
        secret = trust.make_secret(self._entropy(16))
        await self._decide(lambda: (Decision({f"token/{role}": JoinSecret(secret=secret)}), None))
        return self.join_token(role)

    async def join(self, claim: JoinClaim, peer: str = "") -> JoinGrant:
        """Raises :class:`ForbiddenError` on a wrong secret, else as :func:`check_claim`; ``peer`` is for the log."""

        def decide() -> tuple[Decision, tuple[Node, bytes]]:
            wishes = self._wishes
            role = wishes.role_of(claim.secret, trust.same_secret)
            if role is None:
                raise ForbiddenError(
                    "the join token is not valid, or no longer",
                    hint="`vxnet join-token worker` on a manager prints the one that is",
                )
            self._check_role(role)
            key = trust.key_digest(claim.csr)
            again = check_claim(claim, key, wishes.nodes.values(), self.alive)
            node = Node(
                id=again.id if again else trust.make_id(self._entropy(16)),
                name=claim.name,
                role=role,
                advertise_addr=claim.advertise_addr,
                data_path_addr=claim.data_path_addr,
                joined_at=again.joined_at if again else self._now(),
                routes=claim.routes,
                version=claim.version,
                key=key,
            )
            certificate = self._issue(node, claim.csr)
            changes: dict[str, object | None] = {f"node/{node.id}": node, "set/node": Counter(), "set/lease": Counter()}
            guards = ["set/node", "set/lease", f"node/{node.id}", f"token/{role}"]
            for network in wishes.networks.values():
                if network.attachable and len(changes) < BLOCKS_AT_ONCE:
                    leases = wishes.leases_of_network(network.id)
                    given = allocate.first_blocks(network, leases, {*wishes.nodes, node.id})
                    changes |= self._leases(network, [(one, block) for one, block in given if one == node.id])
                    guards.append(f"network/{network.id}")
            return Decision(changes, guards), (node, certificate)

        node, certificate = await self._decide(decide)
        log.info("node joined", node=node.id, name=node.name, role=node.role, peer=peer)
        return JoinGrant(node=node, certificate=certificate, assignment=self.assignment_of(node.id))

    async def report(self, node_id: str, report: NodeReport) -> None:
        """Raises :class:`ForbiddenError` if it is no node (any more)."""

        def decide() -> tuple[Decision, None]:
            node = self._own(node_id)
            changed = replace(node, routes=report.routes, version=report.version)
            return Decision({f"node/{node_id}": changed} if changed != node else {}, [f"node/{node_id}"]), None

        await self._decide(decide)

    async def leave(self, node_id: str) -> None:
        """The node itself asks to be forgotten. Raises :class:`ConflictError` for the last manager."""
        self._own(node_id)
        await self.remove_node(node_id, force=True)

    async def remove_node(self, ref: str, force: bool = False) -> Node:
        """Its leases end and its certificate counts for nothing. Raises :class:`ConflictError` if it is alive and
        ``force`` is not given, or if it is the last manager.
        """

        def decide() -> tuple[Decision, Node]:
            wishes = self._wishes
            node = networks.find(ref, wishes.nodes.values(), "node")
            if node.role == "manager" and len(wishes.managers) == 1:
                raise ConflictError(
                    f"node {node.name} is the last manager: without it there is no cluster",
                    hint="`vxnet leave --force` on it ends the cluster",
                )
            if not force and self.alive(node.id):
                raise ConflictError(
                    f"node {node.name} is alive", hint="run `vxnet leave` there, or remove it with --force"
                )
            changes: dict[str, object | None] = {
                lease_key(lease.network, lease.prefix): None
                for lease in wishes.leases_of_node(node.id)[:BLOCKS_AT_ONCE]
            }
            changes |= {
                f"node/{node.id}": None,
                f"removed/{node.id}": RemovedNode(id=node.id, name=node.name, removed_at=self._now()),
                "set/node": Counter(),
                "set/lease": Counter(),
            }
            return Decision(changes, [f"node/{node.id}", "set/node", "set/lease"]), node

        node = await self._decide(decide)
        log.info("node removed", node=node.id, name=node.name)
        return node

    def renew(self, node_id: str, csr: bytes) -> bytes:
        """A new certificate, DER, for the node with its present role and addresses."""
        return self._issue(self._own(node_id), csr)

    async def use_certificate(self, certificate: bytes) -> None:
        """This manager's own new one (of the same key): all lease sets are signed and told anew."""
        self.certificate = certificate
        self.certificate_changed.set()
        signer = Signer(digest=trust.certificate_digest(certificate))
        await self._decide(lambda: (Decision({f"signer/{self.node_id}": signer}), None))

    # Leases

    async def lease(self, node_id: str, request: LeaseRequest) -> Signed:
        """The node's set of leases with one more block in it, or the chosen address.

        Raises :class:`NotFoundError` (network), :class:`ExhaustedError`, :class:`ConflictError` or
        :class:`CallerError` (chosen address), :class:`ForbiddenError` (no node).
        """

        def decide() -> tuple[Decision, None]:
            self._own(node_id)
            wishes = self._wishes
            network = wishes.networks.get(request.network)
            if network is None:
                raise NotFoundError(f"there is no network with id {request.network}", hint="it may have been removed")
            leases = wishes.leases_of_network(network.id)
            if request.address is not None:
                chosen = self._chosen(network, leases, node_id, request.address)
                blocks: tuple[IPNetwork, ...] = (chosen,) if chosen is not None else ()
            else:
                blocks = allocate.lease_blocks(
                    network, leases, node_id, request.addresses, len(wishes.nodes), request.family
                )
            changes = self._leases(network, [(node_id, block) for block in blocks])
            if not changes:
                return Decision({}), None
            guards = ["set/lease", f"network/{network.id}", f"node/{node_id}"]
            return Decision({**changes, "set/lease": Counter()}, guards), None

        await self._decide(decide)
        return self._mirror.leases_of(node_id)

    async def release(self, node_id: str, leases: Sequence[Lease]) -> Signed:
        """The node's set without these. They are named with their epochs, so that a repeated or late return does not
        take a block that was leased anew; what the node no longer has is no error.
        """

        def decide() -> tuple[Decision, bool]:
            self._own(node_id)
            mine = [lease for lease in self._wishes.leases_of_node(node_id) if lease in leases]
            keys = [lease_key(lease.network, lease.prefix) for lease in mine[:BLOCKS_AT_ONCE]]
            return Decision(dict.fromkeys(keys), keys), len(mine) > BLOCKS_AT_ONCE

        while await self._decide(decide):
            pass
        return self._mirror.leases_of(node_id)

    # Parts

    @property
    def _wishes(self) -> Wishes:
        return self._mirror.wishes

    async def _decide(self, decide: Callable[[], tuple[Decision, R]]) -> R:
        """Commit what ``decide`` makes of the mirror, and answer when the mirror shows it."""
        async with self._deciding:
            for attempt in range(ATTEMPTS):
                decision, answer = decide()
                if not decision.changes:
                    return answer
                changes = {key: None if record is None else to_json(record) for key, record in decision.changes.items()}
                guards = {key: self._wishes.version(key) for key in decision.guards} | self._leadership.guard
                seen = self._wishes.revision
                try:
                    revision = await self._store.commit(changes, guards)
                except ConflictError:
                    if attempt == ATTEMPTS - 1:
                        raise
                    await self._mirror.reach(seen + 1)
                else:
                    await self._mirror.reach(revision)
                    return answer
        raise AssertionError("unreachable")

    def _own(self, node_id: str) -> Node:
        node = self._wishes.nodes.get(node_id)
        if node is None:
            raise ForbiddenError(
                f"node {node_id} was removed from the cluster", hint="`vxnet leave --force`, then join again"
            )
        return node

    def _check_role(self, role: Role) -> None:
        if role == "manager" and not self._store.several_managers:
            raise UnsupportedError(
                "more than one manager needs etcd as the store, which is not built yet: this cluster's store is SQLite",
                hint="join as a worker: `vxnet join-token worker`",
            )

    def _issue(self, node: Node, csr: bytes) -> bytes:
        identity = trust.Identity(node=node.id, role=node.role)
        addresses = sorted({node.advertise_addr, node.data_path_addr}, key=str)
        return trust.issue(self._wishes.authority, csr, identity, node.name, addresses, self._entropy(8), self._now())

    def _leases(self, network: Network, given: Sequence[tuple[str, IPNetwork]]) -> dict[str, object | None]:
        """Records. Their epoch is above that of every lease of the network before, as the commit's guards see to."""
        epoch = self._wishes.revision + 1
        return {
            lease_key(network.id, block): Lease(
                network=network.id, vni=network.vni, prefix=block, node=node, epoch=epoch
            )
            for node, block in given
        }

    def _chosen(
        self, network: Network, leases: Collection[Lease], node_id: str, address: IPAddress
    ) -> IPNetwork | None:
        holder = next((lease.node for lease in leases if address in lease.prefix and lease.node != node_id), None)
        if holder is not None:
            name = self._wishes.nodes[holder].name if holder in self._wishes.nodes else holder
            raise ConflictError(
                f"address {address} of network {network.name} lies in a block that is leased to node {name}",
                hint=f"choose another address, or start the container on {name}",
            )
        return allocate.lease_address(network, leases, node_id, address)

    def _sign_leases(self, node_id: str) -> Signed:
        leases = LeaseSet(node=node_id, revision=self._wishes.revision, leases=self._wishes.leases_of_node(node_id))
        return trust.sign(trust.LEASES_PURPOSE, to_json(leases), self._key, self.certificate)

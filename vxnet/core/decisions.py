"""What a manager decides: the wishes and a request in, a commit's worth of changes and an answer out.

A decision names the records whose versions must still be those of the wishes it was made over (its guards). It fits
into one commit; what would not (thousands of leases of a removed node) is left to :func:`mend`, which is repeated until
it has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from vxnet.core import allocate, networks, rotation, succession, trust
from vxnet.core.nodes import check_claim, moved
from vxnet.core.ports import in_mesh
from vxnet.core.rotation import GossipKeys
from vxnet.core.wishes import Counter, JoinSecret, RemovedNode, Wishes, lease_key
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import JoinClaim, LeaseRequest, NetworkCreate, NetworkPrune, NetworkUpdate, NodeReport, NodeUpdate
from vxnet.model.cluster import Cluster, ForeignPeer, GossipKey, Lease, Network, Node
from vxnet.model.errors import (
    CallerError,
    ConflictError,
    ExhaustedError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
)
from vxnet.model.service import Service

BLOCKS_AT_ONCE = 90
"""Leases in a commit, which takes at most 100 records."""
FORGOTTEN_S = (trust.CERTIFICATE_DAYS + 1) * 86400
"""After its removal no certificate of a node can be valid any more: it need not be called revoked."""
FIRST_INGRESS_BLOCKS = 60
"""The rest follow: its own records stand in the commit, too."""
_SHOWN_USERS = 10


class Decision(NamedTuple):
    changes: dict[str, object | None]
    """Records by key; None: delete. Empty: nothing to do."""
    guards: Collection[str] = ()


class Founding(NamedTuple):
    """A new cluster and its first node."""

    decision: Decision
    node: Node
    certificate: bytes


def found(
    cluster: Cluster, node: Node, csr: bytes, *, ca_entropy: bytes, serial: bytes, secret: bytes, gossip_key: bytes
) -> Founding:
    """``node`` is the first manager, ``csr`` its request; entropy: 48, 8, 16 and 32 octets."""
    networks.check_pools(cluster.pools, cluster.pool_prefixlen)
    ca = trust.make_ca(ca_entropy, cluster.id, cluster.created_at)
    node = replace(node, key=trust.key_digest(csr))
    changes: dict[str, object | None] = {
        "cluster": cluster,
        "ca/1": ca,
        "token/worker": JoinSecret(secret=trust.make_secret(secret)),
        "gossip/keys": GossipKeys(
            keys=(GossipKey(epoch=1, secret=gossip_key),), made_at=cluster.created_at, turned_at=cluster.created_at
        ),
        f"node/{node.id}": node,
    }
    changes |= _first_ingress(cluster, {node.id: node}, {}, 0, 0)
    return Founding(Decision(changes, ["cluster"]), node, certify(ca, node, csr, serial, cluster.created_at))


def certify(ca: trust.CertificateAuthority, node: Node, csr: bytes, serial: bytes, now: float) -> bytes:
    """DER, with the node's present role and addresses."""
    identity = trust.Identity(node=node.id, role=node.role)
    addresses = sorted({node.advertise_addr, node.data_path_addr}, key=str)
    return trust.issue(ca, csr, identity, node.name, addresses, serial, now)


# Networks


def create_network(wishes: Wishes, request: NetworkCreate, id: str, now: float) -> tuple[Decision, Network]:
    """With first blocks for the nodes. Raises as :func:`networks.decide_network`."""
    assert wishes.cluster is not None
    vnis = {network.vni for network in wishes.networks.values()}
    network = networks.decide_network(
        request,
        id=id,
        vni=allocate.next_vni(vnis, wishes.counter("vni")),
        cluster=wishes.cluster,
        networks=wishes.networks.values(),
        nodes=wishes.nodes.values(),
        now=now,
    )
    changes: dict[str, object | None] = {f"network/{id}": network, "set/vni": Counter(last=network.vni)}
    guards = ["set/vni", "set/node"]
    if has_first_blocks(network):
        changes |= _leases(network, allocate.first_blocks(network, (), wishes.nodes)[:BLOCKS_AT_ONCE], wishes.revision)
    if network.ingress:
        changes["set/ingress"] = Counter()
        guards.append("set/ingress")
    return Decision(changes, guards), network


def has_first_blocks(network: Network) -> bool:
    """Whether each node is leased addresses of it before it asks: for containers, or for its foot in the ingress."""
    return network.attachable or network.ingress


def _first_ingress(
    cluster: Cluster, nodes: Mapping[str, Node], known: Mapping[str, Network], last_vni: int, revision: int
) -> dict[str, object | None]:
    """The ingress network that a cluster is given once; nothing as long as the pools or its name are taken."""
    try:
        vni = allocate.next_vni({network.vni for network in known.values()}, last_vni)
        network = networks.first_ingress(cluster, nodes.values(), known.values(), vni)
    except (ExhaustedError, ConflictError):
        return {}
    blocks = allocate.first_blocks(network, (), nodes)[:FIRST_INGRESS_BLOCKS]
    return {
        f"network/{network.id}": network,
        "set/vni": Counter(last=vni),
        "set/ingress": Counter(),
        **_leases(network, blocks, revision),
    }


def update_network(wishes: Wishes, ref: str, request: NetworkUpdate) -> tuple[Decision, Network]:
    """Blocks out of new subnets follow from :func:`mend`, and from nodes that ask. Raises as
    :func:`networks.grow_network`, or :class:`NotFoundError`.
    """
    network = networks.find(ref, wishes.networks.values(), "network")
    grown = networks.grow_network(network, request, networks=wishes.networks.values(), nodes=wishes.nodes.values())
    # ``set/vni`` is what `create_network` guards: two of them must not choose the same subnet.
    return _changed(network, grown, {"set/vni": Counter(last=wishes.counter("vni"))}, ["set/vni", "set/node"])


def add_peer(wishes: Wishes, ref: str, peer: ForeignPeer) -> tuple[Decision, Network]:
    """Raises as :func:`networks.add_peer`, or :class:`NotFoundError`."""
    network = networks.find(ref, wishes.networks.values(), "network")
    return _changed(network, networks.add_peer(network, peer, wishes.nodes.values()), {}, ["set/node"])


def remove_peer(wishes: Wishes, ref: str, peer: str) -> tuple[Decision, Network]:
    """Raises :class:`NotFoundError`."""
    network = networks.find(ref, wishes.networks.values(), "network")
    return _changed(network, networks.remove_peer(network, peer), {}, [])


def _changed(
    before: Network, after: Network, more: dict[str, object | None], guards: Sequence[str]
) -> tuple[Decision, Network]:
    key = f"network/{before.id}"
    return Decision({key: after} | more, [key, *guards]) if after != before else Decision({}), after


def is_prunable(network: Network, request: NetworkPrune) -> bool:
    """Whether `network prune` means it, if nobody uses it. The ingress network is for ports that are to come."""
    if network.ingress:
        return False
    held = {*network.labels, *(f"{key}={value}" for key, value in network.labels.items())}
    return held.issuperset(request.labels) and (request.until is None or network.created_at < request.until)


def remove_network(wishes: Wishes, ref: str, users_of: Callable[[str], list[str]]) -> tuple[Decision, Network]:
    """Raises :class:`NotFoundError`, or :class:`ConflictError` naming who still uses it."""
    network = networks.find(ref, wishes.networks.values(), "network")
    services = sorted(
        service.name for service in wishes.services.values() if network.id in _networks_of_service(service)
    )
    if services:
        raise ConflictError(
            f"network {network.name} is still in use by service {', '.join(services[:_SHOWN_USERS])}",
            hint="remove it with `vxnet service rm`, or `vxnet service update --network-rm`",
        )
    if network.ingress and (using := sorted(one.name for one in wishes.services.values() if in_mesh(one.spec.ports))):
        raise ConflictError(
            f"network {network.name} is still in use by the published ports of {', '.join(using[:_SHOWN_USERS])}",
            hint="remove these services, or `vxnet service update --publish-rm`",
        )
    if users := sorted(users_of(network.id)):
        more = f" and {len(users) - _SHOWN_USERS} more" if len(users) > _SHOWN_USERS else ""
        raise ConflictError(
            f"network {network.name} is still in use by {', '.join(users[:_SHOWN_USERS])}{more}",
            hint="remove those containers, or `vxnet network disconnect` them",
        )
    changes = _end(wishes.leases_of_network(network.id)) | {f"network/{network.id}": None}
    guards = [f"network/{network.id}", "set/service"]
    if network.ingress:
        changes["set/ingress"] = Counter()
        guards.append("set/ingress")
    return Decision(changes, guards), network


def _networks_of_service(service: Service) -> set[str]:
    """Also those that an update which is under way may have to go back to."""
    again = service.fallback.task.container.networks if service.fallback is not None else ()
    return {place.network for place in service.networks} | {wish.network for wish in again}


# Nodes


def join(
    wishes: Wishes, claim: JoinClaim, alive: Callable[[str], bool], id: str, serial: bytes, now: float
) -> tuple[Decision, tuple[Node, bytes]]:
    """The node (``id`` if it is new) and its certificate. Raises :class:`ForbiddenError` on a wrong secret, else as
    :func:`check_claim`.
    """
    role = wishes.role_of(claim.secret, trust.same_secret)
    if role is None:
        raise ForbiddenError(
            "the join token is not valid, or no longer",
            hint="`vxnet join-token worker` on a manager prints the one that is",
        )
    key = trust.key_digest(claim.csr)
    again = check_claim(claim, key, wishes.nodes.values(), alive)
    node = again or Node(
        id=id,
        name=claim.name,
        role=role,
        advertise_addr=claim.advertise_addr,
        data_path_addr=claim.data_path_addr,
        joined_at=now,
        key=key,
    )
    node = replace(node, role=role, routes=claim.routes, version=claim.version)
    certificate = certify(wishes.authority, node, claim.csr, serial, now)
    changes: dict[str, object | None] = {f"node/{node.id}": node, "set/node": Counter(), "set/lease": Counter()}
    guards = ["set/node", "set/lease", f"node/{node.id}", f"token/{role}"]
    # A manager that is late must not let anybody in with a certificate of a CA that has been removed.
    guards += [f"ca/{number}" for number in wishes.authorities]
    for network in wishes.networks.values():
        if has_first_blocks(network) and len(changes) < BLOCKS_AT_ONCE:
            leases = wishes.leases_of_network(network.id)
            blocks = allocate.first_blocks(network, leases, {*wishes.nodes, node.id})
            given = [(one, block) for one, block in blocks if one == node.id]
            changes |= _leases(network, given, wishes.revision)
            guards += [f"network/{network.id}"] if given else []
    return Decision(changes, guards), (node, certificate)


def report(wishes: Wishes, node_id: str, news: NodeReport) -> tuple[Decision, None]:
    node = member(wishes, node_id)
    changed = replace(
        node,
        routes=news.routes,
        version=news.version,
        key_epochs=news.key_epochs,
        authorities=news.authorities,
        cpus=news.cpus,
        memory=news.memory,
        os=news.os,
        arch=news.arch,
        ports=news.ports,
    )
    return Decision({f"node/{node_id}": changed} if changed != node else {}, [f"node/{node_id}"]), None


def remove_node(
    wishes: Wishes, ref: str, force: bool, alive: Callable[[str], bool], now: float
) -> tuple[Decision, Node]:
    """Its leases end, its certificate counts for nothing; whether a manager can be spared says
    :func:`managership.remove`. Raises :class:`NotFoundError`, or :class:`ConflictError` if it is alive, without
    ``force``.
    """
    node = networks.find(ref, wishes.nodes.values(), "node")
    if not force and alive(node.id):
        raise ConflictError(f"node {node.name} is alive", hint="run `vxnet leave` there, or remove it with --force")
    changes = _end(wishes.leases_of_node(node.id)) | {
        f"node/{node.id}": None,
        f"removed/{node.id}": RemovedNode(id=node.id, name=node.name, removed_at=now),
        "set/node": Counter(),
        "set/lease": Counter(),
    }
    if node.role == "manager":
        # So that the others sign all sets of leases anew: what it has signed counts for nothing, too.
        changes[f"signer/{node.id}"] = None
    return Decision(changes, [f"node/{node.id}", "set/node", "set/lease"]), node


def update_node(wishes: Wishes, ref: str, update: NodeUpdate, *, managed: bool = False) -> tuple[Decision, Node]:
    """Raises :class:`NotFoundError`, :class:`CallerError` (a label that is not there), and as :func:`nodes.moved`."""
    node = networks.find(ref, wishes.nodes.values(), "node")
    labels = {key: value for key, value in node.labels.items() if key not in update.labels_removed}
    for key in update.labels_removed:
        if key not in node.labels:
            raise CallerError(f"node {node.name} has no label {key!r}")
    changed = replace(node, availability=update.availability or node.availability, labels=labels | update.labels_added)
    changed = moved(changed, update, wishes.nodes.values(), managed=managed)
    changes: dict[str, object | None] = {f"node/{node.id}": changed} if changed != node else {}
    if changed.addresses != node.addresses:
        changes["set/node"] = Counter()  # what keeps addresses from being given twice
    return Decision(changes, [f"node/{node.id}", "set/node"] if "set/node" in changes else [f"node/{node.id}"]), changed


def member(wishes: Wishes, node_id: str) -> Node:
    """Raises :class:`ForbiddenError` if it is no node any more, :class:`UnavailableError` if it is not known."""
    node = wishes.nodes.get(node_id)
    if node is None and node_id not in wishes.removed:
        # It joined by another manager a moment ago, or after the backup that this store was restored from.
        raise UnavailableError(f"node {node_id} is not known to this manager", hint="it may be in a moment")
    if node is None:
        raise ForbiddenError(
            f"node {node_id} was removed from the cluster", hint="`vxnet leave --force`, then join again"
        )
    return node


# Gossip keys


def rotate_keys(wishes: Wishes, secret: bytes, now: float, *, at_once: bool) -> tuple[Decision, GossipKeys]:
    """A new key is put into all rings, or the one that is on its way already. ``at_once``: it is used without waiting
    for those that do not have it yet. Raises :class:`CallerError` on a key that cannot be.
    """
    ring = _ring(wishes)
    changed = rotation.install(ring, secret, now)
    if at_once:
        changed = rotation.use(changed, now)
    return _turned(ring, changed), changed


def turn_keys(wishes: Wishes, secret: bytes, alive: Callable[[str], bool], now: float) -> tuple[Decision, GossipKeys]:
    """The next step of a rotation, or the first of the one that is due."""
    ring = _ring(wishes)
    changed = rotation.step(ring, wishes.nodes, alive, now)
    if changed == ring and rotation.is_due(ring, (one.removed_at for one in wishes.removed.values()), now):
        changed = rotation.install(ring, secret, now)
    return _turned(ring, changed), changed


def _ring(wishes: Wishes) -> GossipKeys:
    if wishes.ring is None:
        raise NotFoundError("the store holds no gossip keys", hint="restore a backup")
    return wishes.ring


def _turned(before: GossipKeys, after: GossipKeys) -> Decision:
    return Decision({"gossip/keys": after} if after != before else {}, ["gossip/keys"])


# The CA


def rotate_ca(wishes: Wishes, entropy: bytes, now: float) -> tuple[Decision, None]:
    """A new CA begins its way to all nodes, if none is on it already. ``entropy`` is 48 octets."""
    assert wishes.cluster is not None
    made = succession.successor(wishes.authorities, wishes.cluster.id, entropy, now)
    return _succeeded(wishes, dict([made] if made is not None else [])), None


def turn_ca(wishes: Wishes, now: float) -> tuple[Decision, bool]:
    """The next step of that, if it is time for one; whether it was."""
    changes = succession.step(wishes.authorities, wishes.nodes.values(), now)
    return _succeeded(wishes, changes), bool(changes)


def _succeeded(wishes: Wishes, changes: Mapping[str, object | None]) -> Decision:
    named = {f"ca/{number}": authority for number, authority in changes.items()}
    # Who joins meanwhile knows the roots of its moment: the step is judged anew with it.
    return Decision(named, [*named, *(f"ca/{number}" for number in wishes.authorities), "set/node"] if named else [])


# Leases


def lease(wishes: Wishes, node_id: str, request: LeaseRequest) -> tuple[Decision, None]:
    """Raises :class:`NotFoundError` (network), :class:`ExhaustedError`, :class:`ConflictError` or :class:`CallerError`
    (chosen address), :class:`ForbiddenError` (no node).
    """
    member(wishes, node_id)
    network = wishes.networks.get(request.network)
    if network is None:
        raise NotFoundError(f"there is no network with id {request.network}", hint="it may have been removed")
    leases = wishes.leases_of_network(network.id)
    if request.address is not None:
        blocks = _chosen(wishes, network, leases, node_id, request.address)
    else:
        blocks = allocate.lease_blocks(
            network, leases, node_id, request.addresses, len(wishes.nodes), request.family, early=request.early
        )
    if not blocks:
        return Decision({}), None
    given = [(node_id, block) for block in blocks]
    changes = _leases(network, given, wishes.revision, chosen=request.address is not None)
    return Decision(changes | {"set/lease": Counter()}, ["set/lease", f"network/{network.id}", f"node/{node_id}"]), None


def release(wishes: Wishes, node_id: str, leases: Sequence[Lease]) -> tuple[Decision, bool]:
    """Whether more is to be released after this. What the node does not have (any more) is no error; leases of the same
    prefix but another epoch are others.
    """
    member(wishes, node_id)
    returned = set(leases)
    held = [lease for lease in wishes.leases_of_node(node_id) if lease in returned]
    changes = _end(held)
    return Decision(changes, list(changes)), len(held) > len(changes)


def mend(wishes: Wishes, now: float) -> tuple[Decision, bool]:
    """End the leases of removed nodes and networks, give first blocks to nodes that have none, forget removed nodes
    whose certificates have expired, make the ingress network of a cluster that is older than those. Whether there was
    anything to do.
    """
    assert wishes.cluster is not None
    if not wishes.version("set/ingress"):
        made = _first_ingress(wishes.cluster, wishes.nodes, wishes.networks, wishes.counter("vni"), wishes.revision)
        if made:
            return Decision(made, ["set/vni", "set/node", "set/ingress"]), True
    lost = [one for one in wishes.leases() if one.network not in wishes.networks or not _has_holder(wishes, one)]
    changes = _end(lost)
    forgotten = [one.id for one in wishes.removed.values() if one.removed_at + FORGOTTEN_S < now]
    changes |= {f"removed/{id}": None for id in forgotten[: BLOCKS_AT_ONCE - len(changes)]}
    guards = ["set/lease", "set/node"]
    for network in wishes.networks.values():
        room = BLOCKS_AT_ONCE - len(changes)
        if has_first_blocks(network) and room > 0:
            given = allocate.first_blocks(network, wishes.leases_of_network(network.id), wishes.nodes)[:room]
            changes |= _leases(network, given, wishes.revision)
            guards += [f"network/{network.id}"] if given else []
    if not changes:
        return Decision({}), False
    return Decision(changes | {"set/lease": Counter()}, guards), True


def _leases(
    network: Network, given: Iterable[tuple[str, IPNetwork]], revision: int, *, chosen: bool = False
) -> dict[str, object | None]:
    """Their epoch is above that of every lease of the network before, as the guard of ``set/lease`` sees to.
    ``revision``: of the wishes.
    """
    epoch = revision + 1
    return {
        lease_key(network.id, block): Lease(
            network=network.id, vni=network.vni, prefix=block, node=node, epoch=epoch, chosen=chosen
        )
        for node, block in given
    }


def _end(leases: Sequence[Lease]) -> dict[str, object | None]:
    return {lease_key(lease.network, lease.prefix): None for lease in leases[:BLOCKS_AT_ONCE]}


def _has_holder(wishes: Wishes, lease: Lease) -> bool:
    return lease.service in wishes.services if lease.service else lease.node in wishes.nodes


def _chosen(
    wishes: Wishes, network: Network, leases: Sequence[Lease], node_id: str, address: IPAddress
) -> tuple[IPNetwork, ...]:
    holder = next((one.node for one in leases if address in one.prefix and one.node not in (node_id, "")), None)
    if holder is not None:
        name = wishes.nodes[holder].name if holder in wishes.nodes else holder
        raise ConflictError(
            f"address {address} of network {network.name} lies in a block that is leased to node {name}",
            hint=f"choose another address, or start the container on {name}",
        )
    block = allocate.lease_address(network, leases, node_id, address)
    return () if block is None else (block,)

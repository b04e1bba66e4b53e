"""Which members the managers' etcd has, and which certificates still open it: decided by which nodes are managers.

::

    a node is no manager any more ── dismiss ──> Dismissal ── etcd removes the member ── settle ──> its certificates are
                                                                                                    revoked

etcd's own list of members cannot be guarded by who leads: a leader that was deposed while it slept could still remove
one. So what is removed is decided first, in a commit that only the leader can make, and stands from then on: a member's
id is never given again, and whoever carries a dismissal out, and whenever, does what was decided. A node that is made
manager again meanwhile gets a new member.

Certificates are revoked last, since of two members both are needed to remove one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from msgspec.structs import replace

from vxnet.core.decisions import BLOCKS_AT_ONCE, Decision
from vxnet.core.wishes import Dismissal, StoreCertificate, Wishes
from vxnet.model.cluster import Node
from vxnet.model.store import CLIENT_PORT, PEER_PORT, StoreMember, etcd_url

STUCK_S = 30.0
"""A learner whose host is away for so long is taken out: etcd has room for one at a time."""


def places(
    members: Iterable[StoreMember], nodes: Iterable[Node], own: str
) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Endpoints of the members that have a vote, ``own`` (an endpoint) first, and their hosts' names by endpoint; None:
    nobody is known to have one.
    """
    hosts = {etcd_url(node.advertise_addr, CLIENT_PORT): node.name for node in nodes}
    found = [one.clients[0] for one in members if one.clients and not one.learner]
    found.sort(key=lambda place: (place != own, place))
    return (tuple(found), {place: hosts[place] for place in found if place in hosts}) if found else None


class Patience:
    """With learners whose hosts are away."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(
        self, members: Iterable[StoreMember], nodes: Iterable[Node], alive: Callable[[str], bool], now: float
    ) -> frozenset[int]:
        """Ids of those that were waited for long enough; ``now`` is of any clock."""
        owners = _owners(nodes)
        away = {
            one.id
            for one in members
            if one.learner and any(not alive(owners[peer].id) for peer in one.peers if peer in owners)
        }
        self._since = {id: self._since.get(id, now) for id in away}
        return frozenset(id for id, since in self._since.items() if now - since > STUCK_S)


def dismiss(wishes: Wishes, members: Collection[StoreMember], stuck: Collection[int]) -> tuple[Decision, int | None]:
    """The next member that etcd is to remove, by id: of a host that is no manager (any more), or ``stuck``."""
    owners = _owners(wishes.managers)
    for one in members:
        if f"{one.id:x}" in wishes.dismissed:
            return Decision({}), one.id
    for one in members:
        if one.id in stuck or not any(peer in owners for peer in one.peers):
            key = f"dismissed/{one.id:x}"
            record = Dismissal(member=one.id, name=one.name or ", ".join(one.peers))
            # ``set/node`` is what a promotion changes.
            return Decision({key: record}, [key, "set/node"]), one.id
    return Decision({}), None


def settle(wishes: Wishes, members: Collection[StoreMember]) -> tuple[Decision, int]:
    """After the removals: dismissals that have been carried out are forgotten, and certificates of nodes that are no
    managers and have no member left are revoked; how many changes that are. ``members`` must be the list as it is, not
    an older one.
    """
    there = {f"{one.id:x}" for one in members}
    changes: dict[str, object | None] = {f"dismissed/{id}": None for id in wishes.dismissed if id not in there}
    managers = {node.id for node in wishes.managers}
    peers = {peer for one in members for peer in one.peers}
    for serial, one in wishes.store_certificates.items():
        gone = one.node not in managers and etcd_url(one.address, PEER_PORT) not in peers
        if gone and not one.revoked and len(changes) < BLOCKS_AT_ONCE:
            changes[f"storecert/{serial}"] = replace(one, revoked=True)
    return Decision(changes, [*changes, "set/node"] if changes else ()), len(changes)


def admit(wishes: Wishes, node: Node, serial: int) -> tuple[Decision, None]:
    """Remember that ``node``, a manager, has the certificate with this number. To be committed before it is used."""
    key = f"storecert/{serial:x}"
    if wishes.version(key):
        return Decision({}), None
    record = StoreCertificate(node=node.id, address=node.advertise_addr)
    return Decision({key: record}, [key, f"node/{node.id}"]), None


def revoked(wishes: Wishes) -> frozenset[int]:
    """Numbers of the certificates that open nothing any more."""
    return frozenset(int(serial, 16) for serial, one in wishes.store_certificates.items() if one.revoked)


def _owners(nodes: Iterable[Node]) -> dict[str, Node]:
    """Of the managers' members, by peer URL."""
    return {etcd_url(node.advertise_addr, PEER_PORT): node for node in nodes if node.role == "manager"}

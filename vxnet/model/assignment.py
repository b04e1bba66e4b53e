"""Everything that one node has to know of the wishes."""

from __future__ import annotations

from vxnet.model.cluster import Cluster, GossipKey, Manager, Network, NodeAddresses, Record, Signed
from vxnet.model.service import PublicService, Task


class Assignment(Record, frozen=True, kw_only=True):
    """As the assignment stream brings it; kept on the node's disk."""

    revision: int
    cluster: Cluster
    networks: tuple[Network, ...] = ()
    services: tuple[PublicService, ...] = ()
    """All of the cluster: a container may come to any network at any time, also without a manager."""
    tasks: tuple[Task, ...] = ()
    """Of this node, those that are to stop too."""
    addresses: NodeAddresses | None = None
    """Of this node: where it is to be. None: as before."""
    leases: Signed | None = None
    """A :class:`LeaseSet`, as :mod:`vxnet.core.lease_sets` packs it."""
    keys: tuple[GossipKey, ...] = ()
    """All are accepted, the first is used; which is the newest, except while it is on its way to everybody."""
    roots: tuple[bytes, ...] = ()
    """CA certificates, DER."""
    managers: tuple[Manager, ...] = ()
    revoked: tuple[str, ...] = ()
    """Ids of removed nodes: their certificates count for nothing."""
    others: dict[str, str] = {}
    """What a newer manager told and this version cannot read: JSON by ``kind/id``."""

"""The store's records as a manager sees them: typed, indexed, kept up to date by the store's watch.

========================  ==============================================================================
key                       record
========================  ==============================================================================
``cluster``               :class:`Cluster`
``ca/<number>``           :class:`CertificateAuthority`; all are roots, which one signs says :mod:`core.succession`
``token/<role>``          :class:`JoinSecret`
``gossip/keys``           :class:`GossipKeys`
``network/<id>``          :class:`Network`
``node/<id>``             :class:`Node`
``removed/<id>``          :class:`RemovedNode`: its certificate counts for nothing
``lease/<network>/<p>``   :class:`Lease` of prefix p
``service/<id>``          :class:`Service`
``task/<id>``             :class:`Task`; written by the scheduler alone
``status/<task>``         :class:`TaskStatus`, as its node reports
``etcd/ca``               :class:`CertificateAuthority` of the etcd that vxnet runs itself
``storecert/<number>``    :class:`StoreCertificate`: opens that etcd, unless it is revoked
``dismissed/<member>``    :class:`Dismissal`: that etcd is to remove that member
``signer/<node>``         :class:`Signer`: certificate with which that manager signs lease sets
``set/<name>``            :class:`Counter`: changed with every addition to a set, which is what guards it
``lead``                  :class:`Leader`; the store's own
========================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vxnet.core import succession
from vxnet.core.assignment import Item, item
from vxnet.core.rotation import GossipKeys
from vxnet.core.trust import CertificateAuthority
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.cluster import Cluster, Lease, Manager, Network, Node, Record, Role
from vxnet.model.codec import from_json
from vxnet.model.errors import HostError
from vxnet.model.service import PublicService, Service, Task, TaskStatus
from vxnet.model.store import Leader


class JoinSecret(Record, frozen=True, kw_only=True):
    secret: str


class RemovedNode(Record, frozen=True, kw_only=True):
    id: str
    name: str
    removed_at: float


class Signer(Record, frozen=True, kw_only=True):
    digest: str
    """SHA-256 of the certificate."""


class StoreCertificate(Record, frozen=True, kw_only=True):
    """Of a CA that :mod:`vxnet.core.etcd_trust` tells of."""

    node: str
    """Id of the manager that it was granted to."""
    address: IPAddress
    """Its advertise address then."""
    revoked: bool = False


class Dismissal(Record, frozen=True, kw_only=True):
    """See :mod:`vxnet.core.electorate`."""

    member: int
    """etcd's id of it."""
    name: str


class Counter(Record, frozen=True, kw_only=True):
    last: int = 0
    """Of ``set/vni``: the last VNI that was given. Elsewhere without a meaning."""


_TYPES: dict[str, Any] = {
    "cluster": Cluster,
    "ca": CertificateAuthority,
    "etcd": CertificateAuthority,
    "storecert": StoreCertificate,
    "dismissed": Dismissal,
    "lead": Leader,
    "token": JoinSecret,
    "gossip": GossipKeys,
    "network": Network,
    "node": Node,
    "removed": RemovedNode,
    "lease": Lease,
    "signer": Signer,
    "set": Counter,
    "service": Service,
    "task": Task,
    "status": TaskStatus,
}
SCHEDULED = frozenset(("service", "task", "status", "node"))
"""Kinds of records that the scheduler looks at."""


def lease_key(network: str, prefix: IPNetwork) -> str:
    return f"lease/{network}/{prefix}"


class Delta(NamedTuple):
    """What a commit means to the nodes."""

    items: tuple[Item, ...]
    """For all."""
    nodes: frozenset[str]
    """Whose set of leases is another now."""
    all_leases: bool
    """All of them are to be signed anew."""
    sets_changed: bool
    """A node, network or subnet came or went: blocks may be missing or left over."""
    own: Mapping[str, tuple[Item, ...]] = {}
    """For one node each: its tasks, and where it is."""
    scheduled: bool = False
    """Something that the scheduler looks at is different."""


class Wishes:
    def __init__(self) -> None:
        self.revision = 0
        self.cluster: Cluster | None = None
        self.authorities: dict[str, CertificateAuthority] = {}
        self.secrets: dict[str, JoinSecret] = {}
        self.ring: GossipKeys | None = None
        self.leader: Leader | None = None
        self.etcd_ca: CertificateAuthority | None = None
        self.store_certificates: dict[str, StoreCertificate] = {}
        self.dismissed: dict[str, Dismissal] = {}
        self.networks: dict[str, Network] = {}
        self.nodes: dict[str, Node] = {}
        self.removed: dict[str, RemovedNode] = {}
        self._leases: dict[str, Lease] = {}
        self._leases_of_network: dict[str, dict[str, Lease]] = {}
        self._leases_of_node: dict[str, dict[str, Lease]] = {}
        self.services: dict[str, Service] = {}
        self.tasks: dict[str, Task] = {}
        self.tasks_of_service: dict[str, dict[str, Task]] = {}
        self.statuses: dict[str, TaskStatus] = {}
        self._tasks_of_node: dict[str, dict[str, Task]] = {}
        self._counters: dict[str, Counter] = {}
        self._versions: dict[str, int] = {}

    @classmethod
    def of(cls, revision: int, records: Mapping[str, tuple[bytes, int]]) -> Wishes:
        """From a snapshot: (value, version) by key. Raises :class:`HostError` on a record that cannot be read."""
        wishes = cls()
        for key, (value, version) in records.items():
            wishes._put(key, value, version)
        wishes.revision = revision
        return wishes

    def apply(self, revision: int, changes: Mapping[str, bytes | None]) -> Delta:
        """By one commit. Raises :class:`HostError` as above, before anything is changed."""
        for key, value in changes.items():
            if value is not None:
                _read(key, value)
        leases = [self._leases.get(key) for key in changes]
        before = self._served(changes)
        managers = {f"node/{node.id}" for node in self.managers}
        public = {key: self._public(key) for key in changes if key.startswith("service/")}
        nodes_of_tasks = {key: self.tasks[id].node for key, id in _of_kind("task", changes) if id in self.tasks}
        places = {id: self.nodes[id].addresses for _, id in _of_kind("node", changes) if id in self.nodes}
        for key, value in changes.items():
            self._put(key, value, revision)
        leases += [self._leases.get(key) for key in changes]
        self.revision = revision
        managers |= {f"node/{node.id}" for node in self.managers}
        kinds = {key.partition("/")[0] for key in changes}
        told = [
            key
            for key in changes
            if (not key.startswith("node/") or key in managers)
            and (key not in public or public[key] != self._public(key))
        ]
        own: dict[str, list[Item]] = {}
        for key, id in _of_kind("task", changes):
            task = self.tasks.get(id)
            node = task.node if task is not None else nodes_of_tasks.get(key, "")
            if node:
                own.setdefault(node, []).append(item("task", id, task))
        for id, before_this in places.items():
            if id in self.nodes and self.nodes[id].addresses != before_this:
                own.setdefault(id, []).append(item("addresses", "", self.nodes[id].addresses))
        return Delta(
            items=tuple(self._items(told)),
            nodes=frozenset(lease.node for lease in leases if lease is not None),
            all_leases="signer" in kinds,
            sets_changed=before != self._served(changes),
            own={node: tuple(items) for node, items in own.items()},
            scheduled=not kinds.isdisjoint(SCHEDULED),
        )

    # Questions

    def version(self, key: str) -> int:
        """0: does not exist."""
        return self._versions.get(key, 0)

    def counter(self, name: str) -> int:
        return self._counters.get(name, Counter()).last

    @property
    def authority(self) -> CertificateAuthority:
        """The one that signs."""
        return self.authorities[succession.in_order(self.authorities)[0]]

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Certificates, the signing CA's first."""
        return tuple(self.authorities[number].certificate for number in succession.in_order(self.authorities))

    @property
    def pinned(self) -> bytes:
        """The root that join tokens name: the oldest, which vouches for the newer one."""
        return self.authorities[min(self.authorities, key=int)].certificate

    @property
    def managers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes.values() if node.role == "manager")

    def role_of(self, secret: str, same: Any) -> Role | None:
        """Whose join secret that is; ``same`` compares two texts."""
        roles: tuple[Role, ...] = ("worker", "manager")
        return next((role for role in roles if role in self.secrets and same(self.secrets[role].secret, secret)), None)

    def leases_of_network(self, network: str) -> tuple[Lease, ...]:
        return tuple(self._leases_of_network.get(network, {}).values())

    def leases_of_node(self, node: str) -> tuple[Lease, ...]:
        return tuple(lease for _, lease in sorted(self._leases_of_node.get(node, {}).items()))

    def tasks_of_node(self, node: str) -> tuple[Task, ...]:
        return tuple(task for _, task in sorted(self._tasks_of_node.get(node, {}).items()))

    def leases(self) -> Iterable[Lease]:
        return self._leases.values()

    def all_items(self) -> tuple[Item, ...]:
        """What every node is told."""
        keys = ["cluster", "ca", "gossip/keys"]
        keys += [f"network/{id}" for id in self.networks]
        keys += [f"node/{node.id}" for node in self.managers]
        keys += [f"removed/{id}" for id in self.removed]
        keys += [f"service/{id}" for id in self.services]
        return tuple(self._items(keys))

    # Parts

    def _served(self, keys: Iterable[str]) -> tuple[object, ...]:
        """What decides over first blocks; of the networks only those in ``keys`` in detail."""
        touched = [self.networks.get(key.removeprefix("network/")) for key in keys if key.startswith("network/")]
        subnets = [network.subnets if network is not None else () for network in touched]
        return set(self.nodes), set(self.networks), subnets

    def _put(self, key: str, value: bytes | None, version: int) -> None:
        kind, _, rest = key.partition("/")
        record = None if value is None else _read(key, value)
        if value is None:
            self._versions.pop(key, None)
        else:
            self._versions[key] = version
        tables: dict[str, dict[str, Any]] = {
            "ca": self.authorities,
            "token": self.secrets,
            "network": self.networks,
            "node": self.nodes,
            "removed": self.removed,
            "set": self._counters,
            "service": self.services,
            "status": self.statuses,
            "storecert": self.store_certificates,
            "dismissed": self.dismissed,
        }
        if kind == "cluster":
            self.cluster = record
        elif kind == "gossip":
            self.ring = record
        elif kind == "lead":
            self.leader = record
        elif kind == "etcd":
            self.etcd_ca = record
        elif kind == "lease":
            self._put_lease(key, record)
        elif kind == "task":
            self._put_task(rest, record)
        elif kind in tables:
            _set(tables[kind], rest, record)

    def _put_lease(self, key: str, lease: Lease | None) -> None:
        before = self._leases.get(key)
        for one, value in ((before, None), (lease, lease)):
            if one is not None:
                _set_below(self._leases_of_network, one.network, key, value)
                _set_below(self._leases_of_node, one.node, key, value)
        _set(self._leases, key, lease)

    def _put_task(self, id: str, task: Task | None) -> None:
        before = self.tasks.get(id)
        for one, value in ((before, None), (task, task)):
            if one is not None:
                _set_below(self.tasks_of_service, one.service, id, value)
                _set_below(self._tasks_of_node, one.node, id, value)
        _set(self.tasks, id, task)

    def _public(self, key: str) -> PublicService | None:
        service = self.services.get(key.removeprefix("service/"))
        return service.public if service is not None else None

    def _items(self, keys: Iterable[str]) -> Iterable[Item]:
        for key in keys:
            kind, _, rest = key.partition("/")
            if kind == "cluster":
                yield item("cluster", "", self.cluster)
            elif kind == "ca":
                yield item("roots", "", self.roots)
            elif kind == "gossip":
                yield item("keys", "", self.ring.keys if self.ring is not None else ())
            elif kind == "network":
                yield item("network", rest, self.networks.get(rest))
            elif kind == "node":
                yield item("manager", rest, self._manager(rest))
            elif kind == "service":
                yield item("service", rest, self._public(key))
            elif kind == "removed":
                yield item("revoked", rest, True if rest in self.removed else None)

    def _manager(self, id: str) -> Manager | None:
        node = self.nodes.get(id)
        if node is None or node.role != "manager":
            return None
        return Manager(id=node.id, name=node.name, addr=node.advertise_addr)


def _of_kind(kind: str, keys: Iterable[str]) -> list[tuple[str, str]]:
    """(key, id) of the records of a kind among ``keys``."""
    return [(key, key.removeprefix(f"{kind}/")) for key in keys if key.startswith(f"{kind}/")]


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _set_below(tables: dict[str, dict[str, Any]], name: str, key: str, value: Any) -> None:
    """In the table ``name``, which is there as long as something is in it."""
    table = tables.setdefault(name, {})
    _set(table, key, value)
    if not table:
        del tables[name]


def _read(key: str, value: bytes) -> Any:
    """None for a kind that this version does not know."""
    kind = _TYPES.get(key.partition("/")[0])
    if kind is None:
        return None
    try:
        return from_json(value, kind)
    except ValueError as error:
        hint = "if a newer vxnet wrote it, install that again; else restore a backup"
        raise HostError(f"record {key} of the store cannot be read ({error})", hint=hint) from error

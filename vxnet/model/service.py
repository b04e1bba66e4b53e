"""Services: what was asked for, what the managers made of it, and what of that every node hears.

::

     Service   one a name       spec, version, its place on each network (VIPs)            store: service/<id>
       └─ Task  one a life      slot, node, desired state, the spec it was born with       store: task/<id>
            └─ TaskStatus       what its node last said of it                              store: status/<task>

A task runs once: what replaces it in its slot is another task. Its node makes a container of it, whose rows
(:class:`vxnet.model.row.Endpoint`) refer back: ``service`` is :attr:`Service.id`, ``task`` is :attr:`Task.id`,
``name`` is :attr:`Task.name`, ``ports`` are :attr:`TaskSpec.ports`, and ``aliases`` is empty. ``state`` is *starting*
until the task runs and is healthy, then *ready*, and *draining* from the wish to stop it until SIGTERM.

The names ``service``, ``tasks.service``, its aliases and ``tasks.ALIAS`` belong to the service: they are computed from
the rows and from the :class:`PublicService` that the assignment stream brings to every node (item kind ``service``;
:attr:`vxnet.model.assignment.Assignment.services`).
"""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record
from vxnet.model.container import ContainerSpec
from vxnet.model.published import PublishedPort

ServiceMode = Literal["replicated", "global"]
EndpointMode = Literal["vip", "dnsrr"]
Affinity = Literal["", "client-ip"]
RestartCondition = Literal["none", "on-failure", "any"]
UpdateOrder = Literal["stop-first", "start-first"]
FailureAction = Literal["pause", "continue", "rollback"]

TaskState = Literal[
    "pending", "assigned", "preparing", "starting", "running", "complete", "shutdown", "failed", "rejected", "orphaned"
]
"""In the order in which a task goes through them, never back; from ``complete`` on it has ended.

``pending``: no node yet. ``starting``: its command runs and is not healthy yet. ``complete``: ended by itself with
status 0. ``shutdown``: ended because it was to. ``rejected``: its node could not even start it. ``orphaned``: its node
was lost, and it was given up.
"""
DesiredState = Literal["ready", "running", "shutdown"]
"""``ready``: to be prepared, and started later, when its predecessor has ended or its delay is over."""


class RestartPolicy(Record, frozen=True, kw_only=True):
    condition: RestartCondition = "any"
    delay_s: float = 5.0
    """From the end of a task to the start of its replacement. Tasks that keep failing wait longer:
    core/schedule says how long."""
    max_attempts: int = 0
    """0: no end."""
    window_s: float = 0.0
    """A task that ran for so long has succeeded: attempts are counted from zero again. 0: never."""
    host_grace_s: float = 1.0
    """From the moment when gossip calls a host dead until its tasks are given up and replaced."""


class HealthCheck(Record, frozen=True, kw_only=True):
    argv: tuple[str, ...]
    """Run in the container; status 0 is healthy."""
    interval_s: float = 30.0
    timeout_s: float = 30.0
    retries: int = 3
    """So many failures in a row make it unhealthy: it is ended, and counts as failed."""
    start_period_s: float = 0.0
    """Failures before that do not count."""
    start_interval_s: float = 0.25
    """Between checks until the first that succeeds."""


class Placement(Record, frozen=True, kw_only=True):
    constraints: tuple[str, ...] = ()
    """``node.labels.zone==a``, ``node.hostname!=h1`` …: all must hold."""
    preferences: tuple[str, ...] = ()
    """``node.labels.zone``: tasks are spread over its values, the first preference first."""
    max_per_node: int = 0
    """0: any number."""


class UpdateConfig(Record, frozen=True, kw_only=True):
    """How tasks are replaced, by an update or by its rollback."""

    parallelism: int = 1
    """Slots at once; 0: all."""
    delay_s: float = 0.0
    """Between one batch that runs and the next."""
    order: UpdateOrder = "stop-first"
    monitor_s: float = 5.0
    """A new task that fails within this time has failed the update."""
    failure_action: FailureAction = "pause"
    max_failure_ratio: float = 0.0


class TaskSpec(Record, frozen=True, kw_only=True):
    """What each task of a service is. Changing it replaces them."""

    container: ContainerSpec
    """Its ``networks`` are ids. Before a task is placed, texts may hold templates: ``{{.Task.Slot}}``."""
    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    placement: Placement = Placement()
    reserve_cpus: float = 0.0
    reserve_memory: int = 0
    """Octets."""
    stop_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    drain_s: float = 5.0
    """Longest wait, before SIGTERM, for the other nodes to send no new connections."""
    ports: tuple[str, ...] = ()
    """``http:80/tcp``: name, port, protocol, for SRV."""
    force: int = 0
    """Counts ``update --force``, which replaces tasks although nothing else changed."""


class ServiceSpec(Record, frozen=True, kw_only=True):
    """What ``service create`` and ``update`` ask for."""

    name: str
    task: TaskSpec
    mode: ServiceMode = "replicated"
    replicas: int = 1
    """Of a replicated service."""
    endpoint_mode: EndpointMode = "vip"
    affinity: Affinity = ""
    """``client-ip``: a client's connections go to one task, as long as the tasks are the same."""
    ports: tuple[PublishedPort, ...] = ()
    """Published ones. Those with mode host stand in ``task.container.ports``, too: other ones are other tasks."""
    update: UpdateConfig = UpdateConfig()
    rollback: UpdateConfig = UpdateConfig()
    labels: dict[str, str] = {}


class ServiceNetwork(Record, frozen=True, kw_only=True):
    """A service's place on one network."""

    network: str
    """Id."""
    aliases: tuple[str, ...] = ()
    vips: tuple[IPAddress, ...] = ()
    """One in each address family of the network; none with endpoint mode dnsrr. Each is a lease of its own
    (:class:`vxnet.model.cluster.Lease` with ``service`` set), so that it is given to nobody else."""


class PublicService(Record, frozen=True, kw_only=True):
    """What every node hears of a service: enough for names, virtual IPs and the routing mesh."""

    id: str
    name: str
    networks: tuple[ServiceNetwork, ...] = ()
    endpoint_mode: EndpointMode = "vip"
    affinity: Affinity = ""
    ports: tuple[PublishedPort, ...] = ()
    """With one of mode ingress, the service's tasks have an endpoint on the network ``ingress`` as well, and every node
    hears of the service."""


UpdateState = Literal["updating", "paused", "completed", "rollback_started", "rollback_paused", "rollback_completed"]


class UpdateStatus(Record, frozen=True, kw_only=True):
    state: UpdateState
    started_at: float
    completed_at: float | None = None
    message: str = ""
    revisits: bool = False
    """The version is one that the service had before: some of its tasks are older than this update."""


class Service(Record, frozen=True, kw_only=True):
    id: str
    spec: ServiceSpec
    version: int = 1
    """Of ``spec.task``: another one when tasks have to be replaced. What a task was born with."""
    last_version: int = 1
    """The highest that was given: going back to ``previous`` goes back to its version, so that its tasks are kept."""
    previous: ServiceSpec | None = None
    """What ``service rollback`` goes back to."""
    previous_version: int = 0
    networks: tuple[ServiceNetwork, ...] = ()
    created_at: float
    updated_at: float
    update: UpdateStatus | None = None
    rebalance: bool = False
    """Tasks are to be moved until they are spread evenly."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def fallback(self) -> ServiceSpec | None:
        """What an update that is under way, or has paused and may go on, may have to go back to."""
        return self.previous if self.update is not None and self.update.state in ("updating", "paused") else None

    @property
    def public(self) -> PublicService:
        return PublicService(
            id=self.id,
            name=self.spec.name,
            networks=self.networks,
            endpoint_mode=self.spec.endpoint_mode,
            affinity=self.spec.affinity,
            ports=self.spec.ports,
        )


class Task(Record, frozen=True, kw_only=True):
    id: str
    service: str
    """Id."""
    name: str
    """``my-app.1.5f0c…``; of a global service the node's id stands for the slot. Its container's name, too."""
    slot: int = 0
    """From 1; 0 in a global service, where the node is the slot."""
    generation: int = 1
    """Counts the tasks of a slot: the highest is the one that matters."""
    node: str = ""
    """Id; empty: none fits, yet."""
    version: int
    """Of the service's, when the task was made."""
    spec: TaskSpec
    desired: DesiredState = "running"
    not_before: float = 0.0
    """Of a ready one: when it may run at the earliest."""
    attempt: int = 0
    """How many tasks have ended in this slot, one soon after the other, before this one."""
    created_at: float


class TaskStatus(Record, frozen=True, kw_only=True):
    """As last reported by the task's node, or ``orphaned`` by the managers. Times are by the managers' clock."""

    task: str
    state: TaskState
    since: float
    started_at: float | None = None
    """When it came to run."""
    message: str = ""
    exit_status: int | None = None
    container: str = ""
    """Id."""
    ports: tuple[PublishedPort, ...] = ()
    """Of mode host, with the numbers that they have on its node."""

"""Services in memory: the real decisions and the real scheduler, over nodes whose tasks do at once what they are to.

Time goes on only when nothing else is left to be done, and then to the next moment at which something is.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping

from vxnet.core import networks, schedule, services
from vxnet.core.allocate import DEFAULT_POOL
from vxnet.core.decisions import Decision
from vxnet.core.lifecycle import ENDED, advance, state_of
from vxnet.core.schedule import State
from vxnet.core.wishes import Wishes
from vxnet.daemon import service_views as views
from vxnet.model.api import LogRequest, ServiceProgress, ServiceUpdate, ServiceView, TaskReport, TaskView
from vxnet.model.cluster import Cluster, Network, Node
from vxnet.model.codec import to_json
from vxnet.model.service import Service, ServiceSpec, Task

HORIZON_S = 3600.0
ROUNDS = 1000
"""Plans in one moment, at most."""


class MemoryServices:
    """``act`` is what a node makes of a task that is to run; by default it runs."""

    def __init__(self, act: Callable[[Task], TaskReport] | None = None) -> None:
        self.wishes = Wishes()
        self.wishes.cluster = Cluster(id="cluster", pools=(DEFAULT_POOL,), created_at=0.0)
        self.now = 1_700_000_000.0
        self.lost: dict[str, float] = {}
        self._act = act or (lambda task: TaskReport(task=task.id, state="running", ran_s=0.0, container="c" * 64))
        self._ids = (f"{number:025d}" for number in itertools.count(1))

    def follow(self, nodes: Mapping[str, Node], known: Mapping[str, Network]) -> None:
        """The nodes and networks that there are."""
        changes: dict[str, object | None] = {f"node/{id}": node for id, node in nodes.items()}
        changes |= {f"network/{id}": network for id, network in known.items()}
        changes |= {f"node/{id}": None for id in self.wishes.nodes.keys() - nodes.keys()}
        changes |= {f"network/{id}": None for id in self.wishes.networks.keys() - known.keys()}
        self.write(changes)

    def write(self, changes: Mapping[str, object | None]) -> None:
        encoded = {key: None if value is None else to_json(value) for key, value in changes.items()}
        if encoded:
            self.wishes.apply(self.wishes.revision + 1, encoded)

    def state(self) -> State:
        wishes = self.wishes
        tasks = {service: tasks.values() for service, tasks in wishes.tasks_of_service.items()}
        return State(wishes.services, tasks, wishes.statuses, wishes.nodes, self.lost)

    def settle(self) -> None:
        """Until nothing is left to be done within :data:`HORIZON_S`."""
        until = self.now + HORIZON_S
        rounds = 0
        while True:
            rounds += 1
            assert rounds < ROUNDS, "there is always something else to do, and time stands still"
            plan = schedule.plan(self.state(), self.now, self._ids)
            self.write(services.with_places(self.wishes, plan.changes))
            if not self._work() and not plan.changes:
                if plan.next_at is None or plan.next_at > until:
                    return
                self.now, rounds = max(plan.next_at, self.now + 0.001), 0

    def _work(self) -> bool:
        statuses = {}
        for task in self.wishes.tasks.values():
            status = self.wishes.statuses.get(task.id)
            if not task.node or task.node in self.lost or state_of(task, status) in ENDED:
                continue
            report = TaskReport(task=task.id, state="shutdown")
            if task.desired == "running":
                report = self._act(task)
            elif task.desired == "ready":
                continue
            if (new := advance(task, status, report, self.now)) is not None:
                statuses[f"status/{task.id}"] = new
        self.write(statuses)
        return bool(statuses)

    # As vxnet.daemon.services.Services

    def all(self) -> tuple[ServiceView, ...]:
        return views.services(self.state(), self.wishes.networks)

    def service(self, ref: str) -> ServiceView:
        id = networks.find(ref, self.wishes.services.values(), "service").id
        return next(view for view in self.all() if view.service.id == id)

    def tasks(self, ref: str) -> tuple[TaskView, ...]:
        service = networks.find(ref, self.wishes.services.values(), "service")
        return views.tasks(self.state(), self.wishes.tasks_of_service.get(service.id, {}).values())

    def tasks_of_node(self, ref: str) -> tuple[TaskView, ...]:
        node = networks.find(ref, self.wishes.nodes.values(), "node")
        return views.tasks(self.state(), self.wishes.tasks_of_node(node.id))

    async def progress(self, ref: str) -> AsyncIterator[ServiceProgress]:
        yield ServiceProgress(view=self.service(ref), tasks=self.tasks(ref))

    async def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        for task in self.tasks(ref):
            yield f"{task.name} {task.node} 2026-11-25T10:00:00.000000000Z stdout F hello\n".encode()

    async def create(self, spec: ServiceSpec) -> Service:
        return self._done(services.create(self.wishes, spec, next(self._ids), self.now))

    async def update(self, ref: str, update: ServiceUpdate) -> Service:
        return self._done(services.update(self.wishes, ref, update, self.now))

    async def scale(self, ref: str, replicas: int) -> Service:
        return self._done(services.scale(self.wishes, ref, replicas, self.now))

    async def roll_back(self, ref: str) -> Service:
        return self._done(services.roll_back(self.wishes, ref, self.now))

    async def remove(self, ref: str) -> Service:
        return self._done(services.remove(self.wishes, ref))

    def _done(self, decided: tuple[Decision, Service]) -> Service:
        decision, service = decided
        self.write(decision.changes)
        self.settle()
        return service

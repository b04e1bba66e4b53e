"""The manager's part in services: commands and questions; what follows from them is the scheduler's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

import structlog
from msgspec.structs import replace

from vxnet.core import networks, services
from vxnet.core.decisions import Decision
from vxnet.core.wishes import Wishes
from vxnet.daemon import service_views as views
from vxnet.daemon.commits import Commits
from vxnet.daemon.errands import Errands
from vxnet.daemon.mirror import Mirror
from vxnet.daemon.nicknames import nickname
from vxnet.daemon.scheduler import Scheduler
from vxnet.model.api import LogRequest, ServiceProgress, ServiceUpdate, ServiceView, TaskReport, TaskView
from vxnet.model.errors import VxnetError
from vxnet.model.service import Service, ServiceSpec, Task

R = TypeVar("R")
LINES = 64
"""Held for a reader of logs who is slower than the nodes."""
LINE_OCTETS = 1 << 16
"""Of a line that a node has not ended yet; shims write shorter ones."""
log = structlog.get_logger(__name__)


class Services:
    """Works while :meth:`run` runs. ``ref`` is a name, an id, or an unambiguous start of an id.
    ``own``: id of the manager, as a node."""

    def __init__(
        self,
        own: str,
        mirror: Mirror,
        commits: Commits,
        new_id: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        self._mirror = mirror
        self._decide = commits.decide
        self._new_id = new_id
        self._now = now
        self.scheduler = Scheduler(lambda: mirror.wishes, mirror.schedule_due, commits, iter(new_id, ""), now)

        self.errands = Errands(own, mirror, new_id)

    async def run(self) -> None:
        await self.scheduler.run()

    async def report(self, node_id: str, reports: Sequence[TaskReport]) -> None:
        await self.scheduler.report(node_id, reports)

    # Questions. Each raises NotFoundError.

    def all(self) -> tuple[ServiceView, ...]:
        return views.services(self.scheduler.known(), self._wishes.networks)

    def service(self, ref: str) -> ServiceView:
        id = networks.find(ref, self._wishes.services.values(), "service").id
        return next(view for view in self.all() if view.service.id == id)

    def tasks(self, ref: str) -> tuple[TaskView, ...]:
        service = networks.find(ref, self._wishes.services.values(), "service")
        return views.tasks(self.scheduler.known(), self._wishes.tasks_of_service.get(service.id, {}).values())

    def tasks_of_node(self, ref: str) -> tuple[TaskView, ...]:
        node = networks.find(ref, self._wishes.nodes.values(), "node")
        return views.tasks(self.scheduler.known(), self._wishes.tasks_of_node(node.id))

    async def progress(self, ref: str) -> AsyncGenerator[ServiceProgress, None]:
        """A service and its tasks, now and whenever they are others. Ends when it is removed."""
        id = self.service(ref).service.id
        told: ServiceProgress | None = None
        while id in self._wishes.services:
            news = ServiceProgress(view=self.service(id), tasks=self.tasks(id))
            if news != told:
                yield news
                told = news
            await self._mirror.wait_moved()

    async def logs(self, ref: str, request: LogRequest) -> AsyncGenerator[bytes, None]:
        """The logs of a service's tasks, or of one task, each line behind ``task node ``; with ``follow`` also of tasks
        that come later. Raises :class:`NotFoundError`.
        """
        chosen = self._chosen(ref)
        lines: asyncio.Queue[bytes | None] = asyncio.Queue(LINES)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask_all(chosen, request, lines))
            try:
                while (line := await lines.get()) is not None:
                    yield line
            finally:
                asking.cancel()

    def _chosen(self, ref: str) -> Callable[[], Iterable[Task]]:
        wishes = self._wishes
        task = next((one for one in wishes.tasks.values() if ref in (one.id, one.name)), None)
        if task is not None:
            return lambda: [task]
        id = networks.find(ref, wishes.services.values(), "service").id
        return lambda: self._wishes.tasks_of_service.get(id, {}).values()

    async def _ask_all(
        self, chosen: Callable[[], Iterable[Task]], request: LogRequest, lines: asyncio.Queue[bytes | None]
    ) -> None:
        asked: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                for task in sorted(chosen(), key=lambda task: task.created_at):
                    status = self._wishes.statuses.get(task.id)
                    if task.id not in asked and status is not None and status.container:
                        asked.add(task.id)
                        group.create_task(self._ask(task, request, lines))
                if not request.follow:
                    break
                await self._mirror.wait_moved()
        await lines.put(None)

    async def _ask(self, task: Task, request: LogRequest, lines: asyncio.Queue[bytes | None]) -> None:
        node = self._wishes.nodes.get(task.node)
        label = f"{task.name} {node.name if node is not None else task.node} ".encode()
        rest = b""
        try:
            async with aclosing(self.errands.logs(task.node, task.id, request)) as pieces:
                async for piece in pieces:
                    *whole, rest = (rest + piece).split(b"\n")
                    if len(rest) > LINE_OCTETS:
                        whole, rest = [*whole, rest], b""
                    for line in whole:
                        await lines.put(label + line + b"\n")
        except VxnetError as error:
            await lines.put(label + b"- stderr F vxnet: no log: " + error.message.encode() + b"\n")

    # Commands. Each raises what its decision does.

    async def create(self, spec: ServiceSpec) -> Service:
        id, now = self._new_id(), self._now()

        def decide(wishes: Wishes) -> tuple[Decision, Service]:
            taken = {service.name for service in wishes.services.values()}
            name = spec.name or nickname(secrets.choice, taken)
            return services.create(wishes, replace(spec, name=name), id, now)

        service = await self._decide(decide)
        log.info("service created", service=service.id, name=service.name)
        return service

    async def update(self, ref: str, update: ServiceUpdate) -> Service:
        now = self._now()
        service = await self._decide(lambda wishes: services.update(wishes, ref, update, now))
        log.info("service updated", service=service.id, name=service.name, version=service.version)
        return service

    async def scale(self, ref: str, replicas: int) -> Service:
        now = self._now()
        service = await self._decide(lambda wishes: services.scale(wishes, ref, replicas, now))
        log.info("service scaled", service=service.id, name=service.name, replicas=replicas)
        return service

    async def roll_back(self, ref: str) -> Service:
        now = self._now()
        service = await self._decide(lambda wishes: services.roll_back(wishes, ref, now))
        log.info("service rolled back", service=service.id, name=service.name, version=service.version)
        return service

    async def remove(self, ref: str) -> Service:
        service = await self._decide(lambda wishes: services.remove(wishes, ref))
        log.info("service removed", service=service.id, name=service.name)
        return service

    @property
    def _wishes(self) -> Wishes:
        return self._mirror.wishes

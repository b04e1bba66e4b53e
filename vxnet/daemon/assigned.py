"""The tasks that the managers gave this host, as containers.

::

     assignment (place) ──> one caretaker a task ──> Containers ──> rows
                                  │      ^ health
                                  └──> reports ──> managers

A caretaker compares what its task is to be with what its container is, and does the next step; then it waits until one
of them is different. So it is the same to it whether the daemon has just started, a manager was away for a day, or the
task is new.

The end of a task::

     rows "draining" ──> this kernel, and all others, send no new connections (or drain_s is over) ──> the connections
     that were just being served have ended (or QUIET_S is over) ──> SIGTERM ──> stop_grace_s ──> SIGKILL
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import structlog
from msgspec.structs import replace

from vxnet.core.lifecycle import ENDED
from vxnet.core.ports import in_mesh
from vxnet.daemon.containers import Containers
from vxnet.daemon.health import watch_health
from vxnet.daemon.keeping import keep
from vxnet.daemon.place import Place
from vxnet.daemon.state import EndedTasks, StateDirectory, TaskFact
from vxnet.host.processes import open_connections
from vxnet.model.api import NetworkConnect, TaskReport
from vxnet.model.bench import BenchWish
from vxnet.model.container import Container, NetworkWish, TaskRef
from vxnet.model.errand import Errand
from vxnet.model.errors import ConflictError, NotFoundError, UnavailableError, VxnetError
from vxnet.model.service import HealthCheck, Task, TaskState

RETRY_S = 1.0
"""After a manager or the host refused something that may go well later."""
REPORT_RETRY_S = (0.2, 5.0)
"""First and longest pause between two attempts to report, doubling."""
QUIET_S = 0.5
"""Longest wait, once nobody sends new connections, for those that are open to end. Most requests take less; one that is
kept open is cut by its server's own end, as SIGTERM asks for."""
QUIET_LOOK_S = 0.02
QUIET_LOOKS = 2
"""In a row without a connection: on a busy host a packet that was sent before the other nodes' word comes after it."""

log = structlog.get_logger()


class Assigned:
    """Works while :meth:`run` runs. ``settle`` waits until this host's kernel carries the rows as they are."""

    def __init__(
        self,
        containers: Containers,
        place: Callable[[], Place | None],
        settle: Callable[[], Awaitable[object]],
        state: StateDirectory,
    ) -> None:
        self._containers = containers
        self.bench: Callable[[BenchWish], AsyncGenerator[bytes, None]]
        """An end of a measurement on this host."""
        self._place = place
        self._settle = settle
        self._due = asyncio.Event()
        self._report_due = asyncio.Event()
        self._wakers: dict[str, asyncio.Event] = {}
        """One a caretaker, by task."""
        self._state = state
        self._facts = dict(state.ended_tasks().facts)
        self._moved = asyncio.Event()
        """Set when facts are others than before."""
        self._told: dict[str, TaskFact] = {}
        self._errands: deque[Errand] = deque()
        """That nobody has set out on yet."""
        self._group = asyncio.TaskGroup()
        self._watched: dict[str, asyncio.Task[None]] = {}
        """The health checks, by task."""
        self._sick: dict[str, str] = {}
        """Why tasks are ended although they run: what their health check said."""
        self.drain_timeouts = 0
        """How often a node that did not answer was waited for to the end."""

    def wake(self) -> None:
        """Assignment or containers may be others than before."""
        self._due.set()

    async def run(self) -> None:
        async with self._group:
            self._group.create_task(self._report())
            self._group.create_task(keep("ended tasks", self._state.save_ended_tasks, self._ended, self._wait_moved))
            while True:
                while self._errands:
                    self._group.create_task(self._deliver(self._errands.popleft()))
                for id in self._known() - self._wakers.keys():
                    self._wakers[id] = asyncio.Event()
                    self._group.create_task(self._care(id))
                for waker in self._wakers.values():
                    waker.set()
                await self._due.wait()
                self._due.clear()

    def _known(self) -> set[str]:
        if self._place() is None:
            return set()
        with_container = {one.task.task for one in self._containers.all() if one.task is not None}
        return self._tasks().keys() | with_container | self._facts.keys()

    def _tasks(self) -> Mapping[str, Task]:
        place = self._place()
        return {task.id: task for task in place.assignment.tasks} if place is not None else {}

    def _container_of(self, id: str) -> Container | None:
        """The container that is, or was, this task."""
        for container in self._containers.all():
            if container.task is not None and container.task.task == id:
                return container
        return None

    # One task

    async def _care(self, id: str) -> None:
        waker = self._wakers[id]
        try:
            while self._place() is not None:
                waker.clear()
                try:
                    if not await self._step(id):
                        return
                except (UnavailableError, ConflictError) as error:
                    log.info("task has to wait", task=id[:12], error=str(error))
                    await self._pause(waker)
                except VxnetError as error:
                    log.warning("task not looked after", task=id[:12], error=str(error))
                    await self._pause(waker)
                else:
                    await waker.wait()
            self._drop(id)  # no longer in a cluster
        finally:
            del self._wakers[id]
            self._due.set()

    async def _pause(self, waker: asyncio.Event) -> None:
        await asyncio.sleep(RETRY_S)
        waker.set()

    async def _step(self, id: str) -> bool:
        """What is due now; False: the task is forgotten. Raises :class:`VxnetError` when it is to be tried again."""
        task, container = self._tasks().get(id), self._container_of(id)
        if task is None or task.desired == "shutdown":
            if container is not None and container.state in ("created", "running"):
                await self._stop(container)
            if task is None:
                await self._forget(id)
                return False
            if (fact := self._facts.get(id)) is None or fact.state not in ENDED:
                self._say(id, TaskFact("shutdown", time.time(), container=container.id if container else ""))
        elif container is None:
            await self._create(task)
        elif container.state == "created" and task.desired == "running":
            await self._start(task, container)
        elif container.state == "running" and id in self._sick:
            await self._stop(container)
        elif container.state == "running":
            self._say_running(task, container)
            await self._keep_in_mesh(task, container)
        elif container.state in ("exited", "dead"):
            self._say_ended(container)
        return True

    async def _create(self, task: Task) -> None:
        if task.id in self._facts:
            # It had one, and somebody took it away; or it could not be made.
            if self._facts[task.id].state not in ENDED:
                self._say(task.id, TaskFact("failed", time.time(), message="its container was removed by hand"))
            return
        self._say(task.id, TaskFact("preparing", time.time()))
        try:
            container = await self._containers.create(
                replace(
                    task.spec.container,
                    name=task.name,
                    networks=(
                        *(replace(wish, aliases=()) for wish in task.spec.container.networks),
                        *(NetworkWish(network=network) for network in self._mesh(task)),
                    ),
                ),
                TaskRef(
                    task=task.id,
                    service=task.service,
                    ports=task.spec.ports,
                    stop_grace_s=task.spec.stop_grace_s,
                    drain_s=task.spec.drain_s,
                ),
                unready=task.spec.health is not None,
            )
        except UnavailableError:
            del self._facts[task.id]
            raise
        except VxnetError as error:
            self._say(task.id, TaskFact("rejected", time.time(), message=str(error)))
            return
        log.info("task prepared", task=task.id[:12], name=task.name, container=container.id[:12])
        self._wakers[task.id].set()

    def _mesh(self, task: Task) -> tuple[str, ...]:
        """Id of the ingress network, if the task's service publishes ports there."""
        place = self._place()
        assert place is not None
        service = next((one for one in place.assignment.services if one.id == task.service), None)
        if service is None or not in_mesh(service.ports):
            return ()
        return tuple(network.id for network in place.networks.values() if network.ingress)

    async def _keep_in_mesh(self, task: Task, container: Container) -> None:
        """Its service publishes ports since it has begun, or does so no longer."""
        place = self._place()
        assert place is not None
        wanted = {*self._mesh(task)}
        there = {
            one.network
            for one in container.attachments
            if (network := place.networks.get(one.network)) is not None and network.ingress
        }
        wiring = self._containers.wiring
        for id in wanted - there:
            await wiring.connect(id, NetworkConnect(container=container.id))
        for id in there - wanted:
            await wiring.disconnect(id, NetworkConnect(container=container.id))

    async def _start(self, task: Task, container: Container) -> None:
        try:
            self._containers.ports.check(container.spec)
        except ConflictError as error:
            self._say(task.id, TaskFact("rejected", time.time(), message=str(error), container=container.id))
            await self._containers.stop(container.id)
            return
        try:
            await self._containers.start(container.id)
        except ConflictError:
            raise
        except VxnetError as error:
            self._say(task.id, TaskFact("rejected", time.time(), message=str(error), container=container.id))
            return
        self._wakers[task.id].set()

    def _say_running(self, task: Task, container: Container) -> None:
        check = task.spec.health
        if check is not None and task.id not in self._watched:
            self._watched[task.id] = self._group.create_task(self._watch(task.id, container, check))
        state: TaskState = "starting" if container.unready else "running"
        now = time.time()
        fact = TaskFact(state, now, container.started_at or now, container=container.id, ports=container.published)
        self._say(task.id, fact)

    async def _watch(self, id: str, container: Container, check: HealthCheck) -> None:
        try:
            why = await watch_health(
                check,
                lambda: self._containers.inside.execute(container.id, check.argv, check.timeout_s),
                lambda: self._containers.wiring.set_ready(container.id),
                not container.unready,
            )
            if why:
                log.warning("task is unhealthy", task=id[:12], container=container.id[:12], why=why)
                self._sick[id] = why
        finally:
            self._watched.pop(id, None)
            self.wake()

    def _say_ended(self, container: Container) -> None:
        assert container.task is not None
        id = container.task.task
        if id in self._facts and self._facts[id].state in ENDED:
            return
        state: TaskState = "complete" if container.exit_status == 0 and id not in self._sick else "failed"
        message = self._sick.get(id) or container.error
        if not message and container.exit_status is None:
            message = "its process vanished: the host was restarted, or it was killed from outside"
        self._say(
            id,
            TaskFact(
                state,
                container.finished_at or time.time(),
                container.started_at,
                message,
                container.exit_status,
                container.id,
            ),
        )

    async def _stop(self, container: Container) -> None:
        assert container.task is not None
        ref = container.task
        if container.state == "running" and not container.unready:
            await self._drain(container, ref)
        with contextlib.suppress(NotFoundError):
            await self._containers.stop(container.id, ref.stop_grace_s)

    async def _drain(self, container: Container, ref: TaskRef) -> None:
        rows = self._containers.wiring.set_draining(container.id)
        place = self._place()
        if not rows or place is None:
            return
        begun = time.monotonic()
        if not await place.drained(rows, ref.drain_s):
            self.drain_timeouts += 1
            log.warning("drained without everybody's word", task=ref.task[:12], bound_s=ref.drain_s)
        await self._settle()  # this host's own clients: its table has the row by now, its kernel may not
        deadline = time.monotonic() + QUIET_S
        quiet = 0
        while (quiet := 0 if await _in_use(container.pid) else quiet + 1) < QUIET_LOOKS and time.monotonic() < deadline:
            await asyncio.sleep(QUIET_LOOK_S)
        log.info("task drained", task=ref.task[:12], after_s=round(time.monotonic() - begun, 3))

    async def _forget(self, id: str) -> None:
        if (watch := self._watched.get(id)) is not None:
            watch.cancel()
        container = self._container_of(id)
        if container is not None:
            with contextlib.suppress(NotFoundError):
                await self._containers.remove(container.id, force=True)
        self._drop(id)

    def _drop(self, id: str) -> None:
        for table in (self._facts, self._told, self._sick):
            table.pop(id, None)
        self._moved.set()

    def deliver(self, errand: Errand) -> None:
        """What a manager asks for. It may do so before this runs: the place is there first."""
        self._errands.append(errand)
        self._due.set()

    async def _deliver(self, errand: Errand) -> None:
        place, container = self._place(), self._container_of(errand.task)
        if place is not None and errand.bench is not None:
            with contextlib.suppress(VxnetError):
                async with contextlib.aclosing(self.bench(errand.bench)) as pieces:
                    await place.deliver(errand, pieces)
            return
        if place is None or container is None:
            return
        try:
            await place.deliver(errand, self._containers.inside.logs(container.id, errand.request))
        except VxnetError as error:
            log.debug("log not delivered", task=errand.task[:12], error=str(error))

    # What the managers hear

    def _say(self, id: str, fact: TaskFact) -> None:
        old = self._facts.get(id)
        if old is not None and replace(old, since=0.0) == replace(fact, since=0.0):
            return
        self._facts[id] = fact
        self._report_due.set()
        self._moved.set()

    # What outlives this daemon

    def _ended(self) -> EndedTasks:
        """A task runs once: its container may be taken away by hand, and then nothing else tells that it did."""
        return EndedTasks(facts={id: fact for id, fact in self._facts.items() if fact.state in ENDED})

    async def _wait_moved(self) -> None:
        await self._moved.wait()
        self._moved.clear()

    async def _report(self) -> None:
        pause_s = REPORT_RETRY_S[0]
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            news = {id: fact for id, fact in self._facts.items() if self._told.get(id) != fact}
            place = self._place()
            if not news or place is None:
                continue
            try:
                await place.report_tasks([_report(id, fact) for id, fact in news.items()])
            except VxnetError as error:
                log.debug("tasks not reported", error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, REPORT_RETRY_S[1])
                self._report_due.set()
            else:
                self._told |= news
                pause_s = REPORT_RETRY_S[0]


async def _in_use(pid: int) -> bool:
    return await asyncio.to_thread(open_connections, pid) > 0


def _report(id: str, fact: TaskFact) -> TaskReport:
    now = time.time()
    until = fact.since if fact.state in ENDED else now
    return TaskReport(
        task=id,
        state=fact.state,
        age_s=max(now - fact.since, 0.0),
        ran_s=max(until - fact.started_at, 0.0) if fact.started_at is not None else None,
        message=fact.message,
        exit_status=fact.exit_status,
        container=fact.container,
        ports=fact.ports,
    )

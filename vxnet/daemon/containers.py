"""The containers of this host: their life from ``run`` to ``rm``.

::

     create   reserve name and addresses → rows "starting" (the other hosts program the path meanwhile)
              → shim: namespaces, root → kernel: veths, addresses, routes → resolver
     start    the command runs → rows "ready" (now its name is answered)
     exit     rows gone → resolver gone → the kernel's part went with the namespace; --rm: files gone
     again    (`start`, `restart`, a policy) its addresses if they are free, its files as it left them, then as above;
              while it waits for that by policy it keeps its addresses, and its rows are "starting"

The records here are the only truth about this host's containers: rows, names and the kernel's state are computed from
them again and again. A crash between two steps therefore leaves nothing that the next start does not finish or undo.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from msgspec.structs import replace

from vxnet.cluster.dns import Resolver
from vxnet.core.containers import check_spec
from vxnet.core.etc import check_host_gateway
from vxnet.core.names import view_of
from vxnet.core.networks import RESERVED_NAMES
from vxnet.core.restarts import runs_again
from vxnet.daemon.attachments import Attachments, Cluster
from vxnet.daemon.inside import Inside
from vxnet.daemon.nicknames import nickname
from vxnet.daemon.ports import Ports
from vxnet.daemon.records import Making, Records, ended, files_of
from vxnet.daemon.restarts import Restarts
from vxnet.daemon.state import StateDirectory
from vxnet.daemon.wiring import Wiring
from vxnet.host import tasks
from vxnet.model.address import IPInterface
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment, Container, ContainerSpec, NetworkWish, TaskRef
from vxnet.model.errors import CallerError, ConflictError, HostError, UnavailableError, VxnetError
from vxnet.model.host import Change
from vxnet.model.service import PublicService

log = structlog.get_logger()

STOP_S = 10.0
"""From SIGTERM to SIGKILL, as Docker's."""
ENDING = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT})
"""Who sends these does not want the container back; others tell a command to do something."""
KILL_TIMEOUT_S = 10.0
"""How long the kernel may take to end a process tree after SIGKILL before that is an error."""


class Containers:
    """All methods run in the event loop. ``changed`` is called when rows or addresses may be others than before;
    ``settle`` waits until the kernel has what a container needs.
    """

    def __init__(
        self,
        state: StateDirectory,
        run_directory: Path,
        cluster: Cluster,
        gateway: Callable[[], tuple[IPInterface, ...]],
        changed: Callable[[], None],
        settle: Callable[[str], Awaitable[Sequence[Change]]],
        resolver: Resolver,
        guests: Callable[[], tuple[Container, ...]] = lambda: (),
        services: Callable[[], Sequence[PublicService]] = lambda: (),
        foot: Callable[[], Attachment | None] = lambda: None,
        local: Callable[[], Mapping[str, Network]] = dict,
    ) -> None:
        """``guests``: who beside containers has a name and addresses on this host. ``services``: of the whole cluster.
        ``foot``: this node's own place in the ingress network. ``local``: networks of this host alone.
        """
        self._state = state
        self._guests = guests
        self._run_directory = run_directory
        self._cluster = cluster
        self._changed = changed
        self._settle = settle
        self._resolver = resolver
        self._records = Records(state)
        self._tasks: dict[str, tasks.Task] = {}
        self._making = Making()
        self._held: set[str] = set()
        """``--rm`` does not take them away now."""
        self._restarts = Restarts(self._start_again)
        self._watchers: dict[str, asyncio.Task[None]] = {}
        """Of the tasks, by the same ids."""
        self._loops: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self.ports = Ports(services, self.live, changed, lambda: cluster.data_port)
        self.attachments = Attachments(cluster, gateway, self._all_live, foot, local)
        self.inside = Inside(state, run_directory, self._records, self._tasks, self._making)
        self.wiring = Wiring(state, self._records, cluster, self.attachments, changed, settle, self._all_live)

    # Looking

    def all(self) -> tuple[Container, ...]:
        return self._records.all()

    def live(self) -> tuple[Container, ...]:
        """Those that hold a name, addresses and (once ``pid`` is set) a sandbox."""
        return self._records.live()

    def _all_live(self) -> tuple[Container, ...]:
        return (*self.live(), *self._guests())

    def find(self, ref: str) -> Container:
        """By name, id or the unambiguous beginning of an id. Raises :class:`NotFoundError`, :class:`ConflictError`."""
        return self._records.find(ref)

    # Making one

    async def create(self, spec: ContainerSpec, task: TaskRef | None = None, unready: bool = False) -> Container:
        """Everything but the command: see the picture above. Whatever fails, nothing of it stays."""
        container = self._reserve(spec, task, unready)
        with self._making.hold(container.id):
            try:
                wishes = [wish for wish in spec.networks if wish.network not in RESERVED_NAMES]
                return await self._make(container.id, wishes)
            except BaseException:
                await asyncio.shield(self._discard(container.id))
                raise

    def _reserve(self, spec: ContainerSpec, task: TaskRef | None, unready: bool) -> Container:
        """A record that holds the name, before anything that waits."""
        names = {container.spec.name for container in (*self._records.all(), *self._guests())}
        # A task's name is the managers' making: longer than a person's may be.
        check_spec(spec if task is None else replace(spec, name=""))
        if task is None:
            self.ports.check(spec)
        if not spec.name:
            spec = replace(spec, name=nickname(secrets.choice, names))
        else:
            self._check_free(spec.name)
        container = Container(id=secrets.token_hex(32), spec=spec, task=task, unready=unready, created_at=time.time())
        self._records.begin(container)
        return container

    def _check_free(self, name: str) -> None:
        """Raises :class:`ConflictError` if a container has this name."""
        holder = next((container for container in self._records.all() if container.spec.name == name), None)
        if holder is not None:
            raise ConflictError(
                f'the name "{name}" is taken by container {holder.id[:12]}',
                hint=f"remove that with `vxnet rm {name}`, or choose another name",
            )
        if any(guest.spec.name == name for guest in self._guests()):
            raise ConflictError(f'the name "{name}" is taken (`vxnet network guests`)', hint="choose another name")

    async def prepare(self, ref: str) -> Container:
        """An ended one as :meth:`create` left it: its addresses, or others where they are taken, and a sandbox; its
        files as it left them. Whatever fails, it is as before. Harmless if it waits for its start already.
        """
        container = self.find(ref)
        self._records.check_stays(container)
        if container.id in self._making:
            raise ConflictError(f'container "{container.spec.name}" is still being made', hint="try again")
        if container.id in self._tasks:
            if container.state == "running":
                raise ConflictError(f'container "{container.spec.name}" is running')
            return container
        self._restarts.cancel(container.id)
        return await self._prepare(replace(container, restarts=0, stopped=False))

    async def _prepare(self, before: Container) -> Container:
        with self._making.hold(before.id):
            try:
                return await self._make(before.id, self._begin_again(before))
            except BaseException as error:
                await asyncio.shield(self._back_to(before, str(error)))
                raise

    def _begin_again(self, before: Container) -> list[NetworkWish]:
        """A record with the places that it can have again; the others, which are to be found anew."""
        container, wishes = self.attachments.again(before)
        self._records.begin(replace(container, state="created", published=(), error=""))
        return wishes

    async def _back_to(self, before: Container, error: str) -> None:
        """After a start that failed. A stop meanwhile counts."""
        now = self._records.get(before.id)
        stopped = now is not None and now.stopped
        await self._end(before.id)
        if self._records.get(before.id) is not None:
            before = self._records.put(replace(before, error=error, stopped=stopped))
            with contextlib.suppress(HostError):
                self._records.keep(before)
            if before.state != "restarting":
                self._records.end(before)
        self._changed()

    async def _make(self, container_id: str, wishes: Sequence[NetworkWish]) -> Container:
        """Places on the networks of ``wishes`` beside those that it has, and the sandbox."""
        for wish in wishes:
            await self.wiring.attach(container_id, wish)
        container = self._records.now(container_id)
        container = replace(container, gateway=self.attachments.way_out(container))
        reached = self.attachments.reached(container)
        self.ports.check_way(container, reached)
        check_host_gateway(container, reached)
        self._records.keep(self.ports.claim(container) if container.task is None else container)
        self._changed()
        container = await self._open_sandbox(container_id)
        if container_id not in self._tasks:
            raise HostError(f'the sandbox of "{container.spec.name}" ended while it was being wired')
        return container

    async def _open_sandbox(self, container_id: str) -> Container:
        container = self._records.now(container_id)
        directory = self._state.container_directory(container_id)
        task = await tasks.start(container, directory, files_of(container), self._run_directory)
        # The pid is nothing for the disk: whoever adopts the container hears it from its shim.
        container = self._serve(replace(self._records.now(container_id), pid=task.pid), task)
        if task.root != "overlay":
            log.warning("container writes to memory", container=container_id[:12], name=container.spec.name)
        await self.wiring.settled(container_id)
        return container

    def _serve(self, container: Container, task: tasks.Task) -> Container:
        """From here on its exit is noticed, and its name server answers. Raises :class:`HostError` if it cannot."""
        self._tasks[container.id] = task
        self._watchers[container.id] = self._loop(self._watch(container.id, task))
        self._records.put(container)
        if task.udp is not None and task.tcp is not None:
            self._resolver.add(container.id, task.udp, task.tcp, view_of(container))
            task.udp = task.tcp = None
        return container

    def _loop(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        loop = self._group.create_task(work)
        self._loops.add(loop)
        loop.add_done_callback(self._loops.discard)
        return loop

    async def start(self, ref: str) -> Container:
        """Let the command run; of one that has ended, again. Harmless if it runs. Raises :class:`CallerError` if it
        cannot be executed.
        """
        container = self.find(ref)
        if container.state == "running":
            return container
        return await self._launch((await self.prepare(container.id)).id)

    async def _launch(self, container_id: str) -> Container:
        container = self._records.now(container_id)
        task = self._tasks.get(container_id)
        ended = self._records.ended(container_id)  # with --rm it is not to be found there afterwards
        if task is None or container.stopped:
            await self._end(container_id)
            raise ConflictError(f'container "{container.spec.name}" was stopped while it was being started')
        try:
            if container.spec.ports and not container.published:  # a task: the one before it has had them so far
                container = self._records.keep(self.ports.claim(container))
                self._changed()
            await task.start_main()
        except ConflictError:  # somebody else was faster: to start it, or to remove it
            raise
        except CallerError:
            await asyncio.shield(ended)
            raise
        if (now := self._records.get(container_id)) is None:
            return container  # it has ended, and --rm has removed it
        if now.state == "created":
            now = self._records.keep(replace(now, state="running", exit_status=None, started_at=time.time()))
        self._changed()
        return now

    async def restart(self, ref: str, timeout_s: float | None = None) -> Container:
        """:meth:`stop`, then :meth:`start`; ``--rm`` notwithstanding."""
        container = self.find(ref)
        self._held.add(container.id)
        try:
            await self.stop(container.id, timeout_s)
            return await self.start(container.id)
        finally:
            self._held.discard(container.id)

    async def rename(self, ref: str, name: str) -> None:
        """Others find it by that name from now on; its hostname stays."""
        container = self.find(ref)
        if name == container.spec.name:
            return
        check_spec(replace(container.spec, name=name))
        self._check_free(name)
        self._records.keep(replace(container, spec=replace(container.spec, name=name)))
        self._changed()

    # Its end

    async def stop(self, ref: str, timeout_s: float | None = None) -> None:
        """SIGTERM, and SIGKILL after ``timeout_s``, unless it was created with others. Harmless if it has ended."""
        container = self.find(ref)
        if timeout_s is None:
            timeout_s = STOP_S if container.spec.stop_timeout_s is None else container.spec.stop_timeout_s
        ended = self._records.ended(container.id)
        self._put_stopped(container.id)
        if container.state == "restarting":
            self._restarts.cancel(container.id)
            self._gave_up(self._records.now(container.id))
        await self._making.wait_over(container.id)  # who starts it will see that it is to be stopped
        task = self._tasks.get(container.id)
        if container.state == "running" and task is not None:
            first = container.spec.stop_signal or signal.SIGTERM
            for number, patience_s in ((first, timeout_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
                with contextlib.suppress(ConflictError, UnavailableError):
                    await task.signal(number)
                done, _ = await asyncio.wait([ended], timeout=patience_s)
                if done:
                    break
        await self._end(container.id)

    def _put_stopped(self, container_id: str) -> None:
        """On disk before it ends: a daemon that dies meanwhile must not bring it back."""
        container = self._records.now(container_id)
        stopped = self._records.put(replace(container, stopped=True))
        if stopped.spec.restart.name != "no" and not container.stopped:
            self._records.keep(stopped)

    async def kill(self, ref: str, number: int) -> None:
        container = self.find(ref)
        if container.state != "running":
            raise ConflictError(f'container "{container.spec.name}" is not running')
        if number in ENDING:
            self._put_stopped(container.id)
        await self._tasks[container.id].signal(number)

    async def wait(self, ref: str) -> Container:
        """Until it has ended for good; its last record, even if ``--rm`` has removed it by then."""
        return await asyncio.shield(self._records.ended(self.find(ref).id))

    async def remove(self, ref: str, force: bool) -> None:
        container = self.find(ref)
        again = container.started_at is not None
        if container.id in self._making and not (again and force):
            raise ConflictError(f'container "{container.spec.name}" is still being made', hint="try again")
        if container.state in ("running", "restarting") and not force:
            raise ConflictError(
                f'container "{container.spec.name}" is {container.state}', hint="stop it first, or use `vxnet rm -f`"
            )
        if container.id in self._making:
            self._put_stopped(container.id)
            await self._making.wait_over(container.id)
        await self._discard(container.id)

    async def _watch(self, container_id: str, task: tasks.Task) -> None:
        """Take notice of the exit."""
        end = await task.wait()
        if self._tasks.get(container_id) is task:
            del self._tasks[container_id]
            del self._watchers[container_id]
        task.close()
        self._resolver.remove(container_id)
        container = self._records.get(container_id)
        if container is None:
            return
        container = ended(container, end)
        again = container_id not in self._making and runs_again(container)
        if again:
            container = replace(container, state="restarting", restarts=container.restarts + 1)
        self._records.put(container)
        log.info("container ended", container=container_id[:12], name=container.spec.name, status=end.status)
        self._changed()
        try:
            if container.spec.remove and container_id not in self._held:
                await self._discard(container_id)
            else:
                self._records.keep(container)
        except HostError as error:  # a full disk, say: the next start finds the end in the shim's own file
            log.error("end of a container not written", container=container_id[:12], error=str(error))
        if again:
            self._restarts.put(container)
        elif container_id not in self._making:
            self._records.end(container)

    async def _end(self, container_id: str) -> None:
        """Make sure that no process of it is left. Raises :class:`HostError` if the kernel will not end one."""
        task = self._tasks.get(container_id)
        if task is not None:
            watcher = self._watchers[container_id]
            self._records.put(replace(self._records.now(container_id), stopped=True))
            await task.destroy()
            await asyncio.wait([watcher])

    async def _discard(self, container_id: str) -> None:
        """Everything of it: processes, files, rows, names."""
        self._restarts.cancel(container_id)
        with self._records.doom(container_id):  # nobody makes it anew meanwhile
            await self._end(container_id)
            if self._records.get(container_id) is None:
                return
            await asyncio.to_thread(self._records.remove_files, container_id, self._run_directory)
        if not self._records.forget(container_id):
            return  # --rm and `vxnet rm` met here; the other was faster
        self.wiring.forget(container_id)
        self._restarts.forget(container_id)
        self._changed()

    # By policy

    async def _start_again(self, container_id: str) -> None:
        """The pause is over. Somebody may have started, ended or removed it in the same moment."""
        container = self._records.get(container_id)
        if container is None or container.state != "restarting":
            return
        try:
            self._records.check_stays(container)
            await self._prepare(container)
            await self._launch(container_id)
        except VxnetError as error:
            log.warning("container not started again", container=container_id[:12], error=str(error))
            now = self._records.get(container_id)
            if now is None or now.state != "restarting":
                return
            if now.stopped or isinstance(error, CallerError):
                self._gave_up(now)
            else:  # no manager in reach, a full disk: that passes
                self._restarts.put(replace(now, started_at=None, finished_at=None))

    def _gave_up(self, container: Container) -> None:
        """A restarting one that will not run again."""
        container = replace(container, state="dead" if container.exit_status is None else "exited")
        with contextlib.suppress(HostError):
            self._records.keep(container)
        self._records.end(container)
        self._changed()

    # Over restarts

    async def __aenter__(self) -> Self:
        """Adopts the containers that an earlier daemon started, and starts those that should run and do not."""
        await self._group.__aenter__()
        self._loop(self._restarts.run())
        for container in self._state.containers():
            self._records.begin(container)
            directory = self._state.container_directory(container.id)
            task = None
            if container.state in ("created", "running"):
                task = await tasks.adopt(container.id, directory, self._run_directory)
            elif (lost := await tasks.adopt(container.id, directory, self._run_directory)) is not None:
                await lost.destroy()  # somebody copied its files
                await asyncio.to_thread(tasks.sweep, container.id, directory, self._run_directory)
            if task is not None:
                self._serve(replace(container, pid=task.pid), task)
                log.info("container adopted", container=container.id[:12], name=container.spec.name, pid=task.pid)
                if container.state == "created" and container.started_at is not None:
                    self._loop(self._finish_start(container.id))
                continue
            if container.state in ("created", "running"):
                container = ended(container, tasks.exit_of(directory) or tasks.Exit(None, finished_at=time.time()))
            await self._found_ended(container)
        self._changed()
        return self

    async def _found_ended(self, container: Container) -> None:
        again = container.state == "restarting" or runs_again(container, daemon_starts=True)
        if again:
            container = replace(container, state="restarting", stopped=False)
        with contextlib.suppress(HostError):  # a full disk is no reason to be without a daemon
            if container != self._records.get(container.id):
                self._records.keep(container)
            if container.spec.remove:
                await self._discard(container.id)
        if again:
            self._restarts.put(container, at_once=True)
        else:
            self._records.end(container)

    async def _finish_start(self, container_id: str) -> None:
        """The daemon before this one died between the sandbox and the command."""
        try:
            await self._launch(container_id)
        except VxnetError as error:
            log.warning("container not started again", container=container_id[:12], error=str(error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of them: they run on."""
        for loop in self._loops:
            loop.cancel()
        await self._group.__aexit__(kind, error, trace)
        for task in self._tasks.values():
            task.close()

    def dns_ports(self) -> dict[str, int]:
        return {container_id: task.dns_port for container_id, task in self._tasks.items()}

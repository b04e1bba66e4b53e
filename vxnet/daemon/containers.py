"""The containers of this host: their life from ``run`` to ``rm``.

::

     create   reserve name and addresses → rows "starting" (the other hosts program the path meanwhile)
              → shim: namespaces, root → kernel: veths, addresses, routes → resolver
     start    the command runs → rows "ready" (now its name is answered)
     exit     rows gone → resolver gone → the kernel's part went with the namespace; --rm: files gone

The records here are the only truth about this host's containers: rows, names and the kernel's state are computed from
them again and again. A crash between two steps therefore leaves nothing that the next start does not finish or undo.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from msgspec.structs import replace

from vxnet.cluster.dns import Resolver
from vxnet.core.containers import check_aliases, check_spec
from vxnet.core.etc import etc_files
from vxnet.core.names import view_of
from vxnet.daemon.attachments import Attachments, Cluster
from vxnet.daemon.logs import read_log
from vxnet.daemon.nicknames import nickname
from vxnet.daemon.state import StateDirectory
from vxnet.host import tasks
from vxnet.host.processes import processes_beside
from vxnet.model.address import IPInterface
from vxnet.model.api import LogRequest, NetworkConnect, ProcessView
from vxnet.model.container import Container, ContainerSpec, NetworkWish
from vxnet.model.errors import (
    CallerError,
    ConflictError,
    HostError,
    NotFoundError,
    UnavailableError,
    VxnetError,
)
from vxnet.model.host import Change
from vxnet.model.row import Endpoint

log = structlog.get_logger()

KILL_TIMEOUT_S = 10.0
"""How long the kernel may take to end a process tree after SIGKILL before that is an error."""
NOT_OVERLAYS = ("bridge", "none", "vxnet_gw")
"""``--network`` values that mean the way out alone, or nothing."""


class Containers:
    """All methods run in the event loop. ``changed`` is called when rows or addresses may be others than before;
    ``settle`` waits until the kernel has what a container needs.
    """

    def __init__(
        self,
        state: StateDirectory,
        run_directory: Path,
        cluster: Cluster,
        gateway: Callable[[], IPInterface],
        changed: Callable[[], None],
        settle: Callable[[str], Awaitable[Sequence[Change]]],
        resolver: Resolver,
    ) -> None:
        self._state = state
        self._run_directory = run_directory
        self._cluster = cluster
        self._changed = changed
        self._settle = settle
        self._resolver = resolver
        self._records: dict[str, Container] = {}
        self._tasks: dict[str, tasks.Task] = {}
        self._ended: dict[str, asyncio.Future[Container]] = {}
        """Results are their last records."""
        self._wiring: dict[str, asyncio.Lock] = {}
        """Held while somebody changes a container's networks."""
        self._watchers: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self.attachments = Attachments(cluster, gateway, self.live)

    # Looking

    def all(self) -> tuple[Container, ...]:
        return tuple(self._records.values())

    def live(self) -> tuple[Container, ...]:
        """Those that hold a name, addresses and (once ``pid`` is set) a sandbox."""
        return tuple(container for container in self._records.values() if container.state in ("created", "running"))

    def find(self, ref: str) -> Container:
        """By name, id or the unambiguous beginning of an id. Raises :class:`NotFoundError`, :class:`ConflictError`."""
        for container in self._records.values():
            if ref in (container.spec.name, container.id):
                return container
        found = [container for container in self._records.values() if ref and container.id.startswith(ref)]
        if len(found) > 1:
            raise ConflictError(f'"{ref}" is the beginning of {len(found)} containers\' ids', hint="give more digits")
        if not found:
            raise NotFoundError(f'no container "{ref}" on this host', hint="`vxnet ps -a` lists them")
        return found[0]

    def _record(self, container_id: str) -> Container:
        """As it is now, behind an ``await``. Raises :class:`NotFoundError` if it was removed meanwhile."""
        if (container := self._records.get(container_id)) is None:
            raise NotFoundError(f"container {container_id[:12]} has just been removed")
        return container

    def endpoints(self) -> dict[str, Endpoint]:
        """The rows that this host should publish now, by row id."""
        vtep = self._cluster.data_path_addr
        rows = {}
        for container in self.live():
            for attachment in container.attachments:
                network = self._cluster.networks.get(attachment.network)
                if network is None or vtep is None:
                    continue
                rows[f"{container.id[:12]}.{network.id}"] = Endpoint(
                    network=network.id,
                    vni=network.vni,
                    addresses=tuple(interface.ip for interface in attachment.addresses),
                    mac=attachment.mac,
                    vtep=vtep,
                    name=container.spec.name,
                    aliases=attachment.aliases,
                    state="ready" if container.state == "running" else "starting",
                )
        return rows

    # Making one

    async def create(self, spec: ContainerSpec) -> Container:
        """Everything but the command: see the picture above. Whatever fails, nothing of it stays."""
        container = self._reserve(spec)
        try:
            for wish in spec.networks:
                if wish.network not in NOT_OVERLAYS:
                    await self._attach(container.id, wish)
            container = self._records[container.id]
            self._keep(replace(container, gateway=self.attachments.way_out(container)))
            self._changed()
            return await self._open_sandbox(container.id)
        except BaseException:
            await asyncio.shield(self._discard(container.id))
            raise

    def _reserve(self, spec: ContainerSpec) -> Container:
        """A record that holds the name, before anything that waits."""
        names = {container.spec.name for container in self._records.values()}
        check_spec(spec)
        if not spec.name:
            spec = replace(spec, name=nickname(secrets.choice, names))
        elif spec.name in names:
            holder = self.find(spec.name)
            raise ConflictError(
                f'the name "{spec.name}" is taken by container {holder.id[:12]}',
                hint=f"remove that with `vxnet rm {spec.name}`, or choose another name",
            )
        container = Container(id=secrets.token_hex(32), spec=spec, created_at=time.time())
        self._records[container.id] = container
        self._ended[container.id] = asyncio.get_running_loop().create_future()
        return container

    async def _attach(self, container_id: str, wish: NetworkWish) -> None:
        """One more interface. Its addresses are taken from here on."""
        network = await self.attachments.join(self._record(container_id), wish)
        container = self._record(container_id)
        attachment = self.attachments.attach(container, network, wish)
        self._records[container_id] = replace(container, attachments=(*container.attachments, attachment))

    async def _open_sandbox(self, container_id: str) -> Container:
        container = self._records[container_id]
        directory = self._state.container_directory(container_id)
        task = await tasks.start(container, directory, etc_files(container), self._run_directory)
        container = self._keep(self._serve(replace(container, pid=task.pid), task))
        if task.root != "overlay":
            log.warning("container writes to memory", container=container_id[:12], name=container.spec.name)
        await self._settled(container_id)
        return container

    def _serve(self, container: Container, task: tasks.Task) -> Container:
        """From here on its exit is noticed and its name server answers. Cannot fail half-way."""
        self._tasks[container.id] = task
        self._records[container.id] = container
        if task.udp is not None and task.tcp is not None:
            self._resolver.add(container.id, task.udp, task.tcp, view_of(container))
            task.udp = task.tcp = None
        watcher = self._group.create_task(self._watch(container.id, task))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return container

    async def _settled(self, container_id: str) -> None:
        """Raises :class:`HostError` with the kernel's words if it refused something that the container needs."""
        container = self._record(container_id)
        # Of what is shared only the devices: how to reach others is not this container's affair.
        devices = {
            f"link {kind}{row.vni}"
            for key, row in self.endpoints().items()
            if key.startswith(container_id[:12])
            for kind in ("vx", "br")
        }
        for change in await self._settle(container_id):
            needed = change.sandbox == container_id or " ".join(change.object.split()[:2]) in devices
            if change.error and change.verb != "delete" and needed:
                raise HostError(
                    f'the kernel refused {change.object} for "{container.spec.name}": {change.error}',
                    hint="`vxnet info` and the daemon's log tell more",
                )

    async def start(self, ref: str) -> Container:
        """Let the command of a created container run. Raises :class:`CallerError` if it cannot be executed."""
        container = self.find(ref)
        if container.state != "created":
            raise ConflictError(f'container "{container.spec.name}" is {container.state}, not created')
        task = self._tasks.get(container.id)
        if task is None:
            raise ConflictError(f'container "{container.spec.name}" is still being made', hint="try again")
        ended = self._ended[container.id]  # with --rm it is not to be found there afterwards
        try:
            await task.start_main()
        except ConflictError:  # somebody else was faster: to start it, or to remove it
            raise
        except CallerError:
            await asyncio.shield(ended)
            raise
        if (now := self._records.get(container.id)) is None:
            return container  # it has ended, and --rm has removed it
        if now.state == "created":
            now = self._keep(replace(now, state="running", started_at=time.time()))
        self._changed()
        return now

    # Its end

    async def stop(self, ref: str, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL after ``timeout_s``. Harmless if it has ended."""
        container = self.find(ref)
        task = self._tasks.get(container.id)
        if container.state == "running" and task is not None:
            ended = self._ended[container.id]
            for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
                with contextlib.suppress(ConflictError, UnavailableError):
                    await task.signal(number)
                done, _ = await asyncio.wait([ended], timeout=patience_s)
                if done:
                    break
        await self._end(container.id)

    async def kill(self, ref: str, number: int) -> None:
        container = self.find(ref)
        if container.state != "running":
            raise ConflictError(f'container "{container.spec.name}" is not running')
        await self._tasks[container.id].signal(number)

    async def wait(self, ref: str) -> Container:
        """Until it has ended; its last record, even if ``--rm`` has removed it by then."""
        return await asyncio.shield(self._ended[self.find(ref).id])

    async def remove(self, ref: str, force: bool) -> None:
        container = self.find(ref)
        if container.state == "created" and not container.pid:
            raise ConflictError(f'container "{container.spec.name}" is still being made', hint="try again")
        if container.state == "running" and not force:
            raise ConflictError(
                f'container "{container.spec.name}" is running', hint="stop it first, or use `vxnet rm -f`"
            )
        await self._discard(container.id)

    async def _watch(self, container_id: str, task: tasks.Task) -> None:
        """Take notice of the exit."""
        end = await task.wait()
        if self._tasks.get(container_id) is task:
            del self._tasks[container_id]
        task.close()
        self._resolver.remove(container_id)
        container = self._records.get(container_id)
        if container is None:
            return
        self._records[container_id] = container = _ended(container, end)
        log.info("container ended", container=container_id[:12], name=container.spec.name, status=end.status)
        self._changed()
        ended = self._ended[container_id]
        try:
            if container.spec.remove:
                await self._discard(container_id)
            else:
                self._keep(container)
        except HostError as error:  # a full disk, say: the next start finds the end in the shim's own file
            log.error("end of a container not written", container=container_id[:12], error=str(error))
        if not ended.done():
            ended.set_result(container)

    async def _end(self, container_id: str) -> None:
        """Make sure that no process of it is left. Raises :class:`HostError` if the kernel will not end one."""
        task = self._tasks.get(container_id)
        if task is not None:
            ended = self._ended[container_id]  # with --rm it is not to be found there afterwards
            await task.destroy()
            await asyncio.shield(ended)

    async def _discard(self, container_id: str) -> None:
        """Everything of it: processes, rows, names, files, the record last."""
        await self._end(container_id)
        container = self._records.get(container_id)
        if container is None:
            return
        await asyncio.to_thread(
            tasks.remove, container_id, self._state.container_directory(container_id), self._run_directory
        )
        if self._records.pop(container_id, None) is None:
            return  # --rm and `vxnet rm` met here; the other was faster
        self._wiring.pop(container_id, None)
        ended = self._ended.pop(container_id)
        if not ended.done():
            ended.set_result(container)
        self._changed()

    # Networks of a container that lives

    async def connect(self, ref: str, request: NetworkConnect) -> None:
        check_aliases(request.aliases)
        wish = NetworkWish(network=ref, ip=request.ip, aliases=request.aliases)
        async with self._rewiring(request.container) as container_id:
            await self._attach(container_id, wish)

    async def disconnect(self, ref: str, request: NetworkConnect) -> None:
        async with self._rewiring(request.container) as container_id:
            container = self._record(container_id)
            network = self.attachments.network(ref)
            rest = tuple(attachment for attachment in container.attachments if attachment.network != network.id)
            if len(rest) == len(container.attachments):
                raise NotFoundError(f'container "{container.spec.name}" is not on network "{network.name}"')
            self._records[container_id] = replace(container, attachments=rest)

    @contextlib.asynccontextmanager
    async def _rewiring(self, ref: str) -> AsyncIterator[str]:
        """The body changes the attachments; on leaving they are kept, told and built, or are what they were before."""
        before = self.find(ref)
        async with self._wiring.setdefault(before.id, asyncio.Lock()):
            before = self._record(before.id)
            if not before.pid:
                raise ConflictError(f'container "{before.spec.name}" is {before.state}: its networks are fixed')
            try:
                yield before.id
                container = self._record(before.id)
                container = self._keep(replace(container, gateway=self.attachments.way_out(container)))
                await asyncio.to_thread(self._write_hosts, container)
                self._changed()
                await self._settled(container.id)
            except VxnetError:
                if (now := self._records.get(before.id)) is not None:
                    with contextlib.suppress(HostError):
                        self._keep(replace(now, attachments=before.attachments, gateway=before.gateway))
                    self._changed()
                raise

    def _write_hosts(self, container: Container) -> None:
        path = self._state.container_directory(container.id) / "hosts"
        try:
            path.write_text(etc_files(container)["hosts"])
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error

    # Its output

    def shim(self, ref: str) -> str:
        """Path of the shim's socket. Raises :class:`ConflictError` if the container has ended."""
        container = self.find(ref)
        if container.id not in self._tasks:
            raise ConflictError(f'container "{container.spec.name}" is not running')
        return str(tasks.socket_path(container.id, self._run_directory))

    async def top(self, ref: str) -> tuple[ProcessView, ...]:
        """Raises :class:`ConflictError` if it does not run."""
        container = self.find(ref)
        if container.state != "running":
            raise ConflictError(f'container "{container.spec.name}" is not running')
        return await asyncio.to_thread(processes_beside, container.pid)

    def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        """The log as the shim writes it (CRI lines), in pieces."""
        container = self.find(ref)
        return read_log(self._state.container_directory(container.id), request, self._ended[container.id])

    # Over restarts

    async def __aenter__(self) -> Self:
        """Adopts the containers that an earlier daemon started."""
        await self._group.__aenter__()
        for container in self._state.containers():
            self._records[container.id] = container
            self._ended[container.id] = asyncio.get_running_loop().create_future()
            directory = self._state.container_directory(container.id)
            task = None
            if container.state in ("created", "running"):
                task = await tasks.adopt(container.id, directory, self._run_directory)
            if task is not None:
                self._serve(replace(container, pid=task.pid), task)
                log.info("container adopted", container=container.id[:12], name=container.spec.name, pid=task.pid)
                continue
            if container.state in ("created", "running"):
                end = tasks.exit_of(directory) or tasks.Exit(None, finished_at=time.time())
                container = _ended(container, end)
                with contextlib.suppress(HostError):  # a full disk is no reason to be without a daemon
                    self._keep(container)
            self._ended[container.id].set_result(container)
            if container.spec.remove:
                with contextlib.suppress(HostError):
                    await self._discard(container.id)
        self._changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of them: they run on."""
        for watcher in self._watchers:
            watcher.cancel()
        await self._group.__aexit__(kind, error, trace)
        for task in self._tasks.values():
            task.close()

    def dns_ports(self) -> dict[str, int]:
        return {container_id: task.dns_port for container_id, task in self._tasks.items()}

    def _keep(self, container: Container) -> Container:
        self._records[container.id] = container
        self._state.save_container(container)
        return container


def _ended(container: Container, end: tasks.Exit) -> Container:
    return replace(
        container,
        state="dead" if end.status is None else "exited",
        pid=0,
        exit_status=end.status,
        error=end.error,
        started_at=end.started_at or container.started_at,
        finished_at=end.finished_at or time.time(),
    )

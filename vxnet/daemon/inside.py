"""Into containers: their processes, their output, their files, commands beside the first."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from vxnet.core.containers import check_spec
from vxnet.daemon.logs import read_log
from vxnet.daemon.records import Making, Records, files_of
from vxnet.daemon.state import StateDirectory
from vxnet.host import cgroups, tasks
from vxnet.host.processes import processes_beside
from vxnet.host.usage import usage_of
from vxnet.model.api import ContainerUpdate, LogRequest, ProcessView, UsageView
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import ConflictError


class Inside:
    """``running`` are the tasks of the containers that have a sandbox, by id; who is in ``making`` will get one, and
    nobody else may touch it.
    """

    def __init__(
        self,
        state: StateDirectory,
        run_directory: Path,
        records: Records,
        running: Mapping[str, tasks.Task],
        making: Making,
    ) -> None:
        self._state = state
        self._run_directory = run_directory
        self._records = records
        self._tasks = running
        self._making = making

    def _running(self, ref: str) -> Container:
        """Raises :class:`ConflictError` if it does not run."""
        container = self._records.find(ref)
        if container.state != "running":
            raise ConflictError(f'container "{container.spec.name}" is not running')
        return container

    def shim(self, ref: str) -> str:
        """Path of the shim's socket. Raises :class:`ConflictError` if the container has ended."""
        container = self._records.find(ref)
        if container.id not in self._tasks:
            raise ConflictError(f'container "{container.spec.name}" is not running')
        return str(tasks.socket_path(container.id, self._run_directory))

    async def execute(self, ref: str, argv: Sequence[str], timeout_s: float) -> tuple[int, bytes]:
        """A command beside the first: see :meth:`tasks.Task.execute`."""
        container = self._running(ref)
        return await self._tasks[container.id].execute(argv, timeout_s=timeout_s)

    async def update(self, ref: str, request: ContainerUpdate) -> None:
        """At once, and at its next starts. Raises :class:`ConflictError`, and changes nothing, if it runs in no control
        group that could bear a limit.
        """
        container = self._records.find(ref)
        spec = _updated(container.spec, request)
        check_spec(spec)
        before = cgroups.wanted(container.spec)
        limits = {name: files for name, files in cgroups.wanted(spec).items() if before.get(name) != files}
        if container.id in self._tasks and limits:
            groups = tasks.groups_of(self._state.container_directory(container.id))
            await asyncio.to_thread(cgroups.update, groups, limits)
        now = self._records.now(container.id)  # with what others have changed meanwhile
        self._records.keep(replace(now, spec=_updated(now.spec, request)))

    async def usage(self, refs: Sequence[str]) -> tuple[UsageView, ...]:
        """Of those, or of all that run. What has just ended is left out."""
        wanted = (
            [self._running(ref) for ref in refs]
            if refs
            else [container for container in self._records.all() if container.state == "running"]
        )
        return await asyncio.to_thread(lambda: tuple(filter(None, map(self._usage, wanted))))

    def _usage(self, container: Container) -> UsageView | None:
        return usage_of(container, tasks.groups_of(self._state.container_directory(container.id)))

    async def top(self, ref: str) -> tuple[ProcessView, ...]:
        """Raises :class:`ConflictError` if it does not run."""
        container = self._running(ref)
        return await asyncio.to_thread(processes_beside, container.pid)

    @contextlib.asynccontextmanager
    async def mounts(self, ref: str) -> AsyncIterator[int]:
        """A descriptor of a container's mount namespace. One that does not run has a sandbox for as long."""
        container = self._records.find(ref)
        if (task := self._tasks.get(container.id)) is not None:
            async with _held_mounts(task) as mounts:
                yield mounts
            return
        if container.id in self._making or container.state == "restarting":
            raise ConflictError(f'container "{container.spec.name}" is just being started', hint="try again")
        directory = self._state.container_directory(container.id)
        self._records.check_stays(container)
        with self._making.hold(container.id):
            task = await tasks.start(container, directory, files_of(container), self._run_directory)
            try:
                async with _held_mounts(task) as mounts:
                    yield mounts
            finally:
                await task.destroy()
                await asyncio.to_thread(tasks.sweep, container.id, directory, self._run_directory)

    def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        """The log as the shim writes it (CRI lines), in pieces."""
        container = self._records.find(ref)
        return read_log(self._state.container_directory(container.id), request, self._records.ended(container.id))


@contextlib.asynccontextmanager
async def _held_mounts(task: tasks.Task) -> AsyncIterator[int]:
    mounts = await task.open_mounts()
    try:
        yield mounts
    finally:
        os.close(mounts)


def _updated(spec: ContainerSpec, request: ContainerUpdate) -> ContainerSpec:
    return replace(
        spec,
        restart=spec.restart if request.restart is None else request.restart,
        memory=spec.memory if request.memory is None else request.memory,
        cpus=spec.cpus if request.cpus is None else request.cpus,
        pids_limit=spec.pids_limit if request.pids_limit is None else request.pids_limit,
    )

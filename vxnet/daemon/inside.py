"""Into containers: their processes, their output, their files, commands beside the first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from vxnet.core.etc import etc_files
from vxnet.daemon.logs import read_log
from vxnet.daemon.records import Records
from vxnet.daemon.state import StateDirectory
from vxnet.host import tasks
from vxnet.host.processes import processes_beside
from vxnet.model.api import LogRequest, ProcessView
from vxnet.model.container import Container
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
        making: set[str],
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

    async def top(self, ref: str) -> tuple[ProcessView, ...]:
        """Raises :class:`ConflictError` if it does not run."""
        container = self._running(ref)
        return await asyncio.to_thread(processes_beside, container.pid)

    @contextlib.asynccontextmanager
    async def mounts(self, ref: str) -> AsyncIterator[int]:
        """A process (its pid) in the mounts of a container. One that does not run has a sandbox for as long."""
        container = self._records.find(ref)
        if (task := self._tasks.get(container.id)) is not None:
            yield task.pid
            return
        if container.id in self._making or container.state == "restarting":
            raise ConflictError(f'container "{container.spec.name}" is just being started', hint="try again")
        directory = self._state.container_directory(container.id)
        self._making.add(container.id)
        try:
            task = await tasks.start(container, directory, etc_files(container), self._run_directory)
            try:
                yield task.pid
            finally:
                await task.destroy()
                await asyncio.to_thread(tasks.sweep, container.id, directory, self._run_directory)
        finally:
            self._making.discard(container.id)

    def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        """The log as the shim writes it (CRI lines), in pieces."""
        container = self._records.find(ref)
        return read_log(self._state.container_directory(container.id), request, self._records.ended(container.id))

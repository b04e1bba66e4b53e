"""Into containers: their processes, their output, commands beside the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from vxnet.daemon.logs import read_log
from vxnet.daemon.records import Records
from vxnet.daemon.state import StateDirectory
from vxnet.host import tasks
from vxnet.host.processes import processes_beside
from vxnet.model.api import LogRequest, ProcessView
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError


class Inside:
    """``running`` are the tasks of the containers that have a sandbox, by id."""

    def __init__(
        self, state: StateDirectory, run_directory: Path, records: Records, running: Mapping[str, tasks.Task]
    ) -> None:
        self._state = state
        self._run_directory = run_directory
        self._records = records
        self._tasks = running

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

    def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        """The log as the shim writes it (CRI lines), in pieces."""
        container = self._records.find(ref)
        return read_log(self._state.container_directory(container.id), request, self._records.ended(container.id))

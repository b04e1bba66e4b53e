"""The records of this host's containers, in memory and on disk, and who waits for the end of one."""

from __future__ import annotations

import asyncio
import time

from msgspec.structs import replace

from vxnet.daemon.state import StateDirectory
from vxnet.host.tasks import Exit
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError, NotFoundError


class Records:
    """What is here is the truth about the containers; the disk follows."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._records: dict[str, Container] = {}
        self._ends: dict[str, asyncio.Future[Container]] = {}

    def all(self) -> tuple[Container, ...]:
        return tuple(self._records.values())

    def live(self) -> tuple[Container, ...]:
        """Those that hold a name, addresses and (once ``pid`` is set) a sandbox."""
        return tuple(
            container for container in self._records.values() if container.state in ("created", "running", "restarting")
        )

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

    def get(self, container_id: str) -> Container | None:
        return self._records.get(container_id)

    def now(self, container_id: str) -> Container:
        """As it is behind an ``await``. Raises :class:`NotFoundError` if it was removed meanwhile."""
        if (container := self._records.get(container_id)) is None:
            raise NotFoundError(f"container {container_id[:12]} has just been removed")
        return container

    def begin(self, container: Container) -> None:
        """One that is to live, new or again."""
        self._records[container.id] = container
        if container.id not in self._ends or self._ends[container.id].done():
            self._ends[container.id] = asyncio.get_running_loop().create_future()

    def put(self, container: Container) -> Container:
        """In memory alone."""
        self._records[container.id] = container
        return container

    def keep(self, container: Container) -> Container:
        """On disk too. Raises :class:`HostError`; then it is in memory all the same."""
        self.put(container)
        self._state.save_container(container)
        return container

    def end(self, container: Container) -> None:
        """Tell those who wait for it. Harmless twice."""
        if (end := self._ends.get(container.id)) is not None and not end.done():
            end.set_result(container)

    def ended(self, container_id: str) -> asyncio.Future[Container]:
        """Its result is the last record. To be had before what may remove the container."""
        return self._ends[container_id]

    def forget(self, container_id: str) -> bool:
        """False: somebody was faster."""
        container = self._records.pop(container_id, None)
        if container is None:
            return False
        self.end(container)
        del self._ends[container_id]
        return True


def ended(container: Container, end: Exit) -> Container:
    """One that waited for another start ends as it did before."""
    status = container.exit_status if container.state == "created" and end.status is None else end.status
    return replace(
        container,
        state="dead" if status is None else "exited",
        pid=0,
        exit_status=status,
        error=end.error,
        started_at=end.started_at or container.started_at,
        finished_at=end.finished_at or time.time(),
    )

"""The records of this host's containers, in memory and on disk, and who waits for the end of one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from vxnet.core.etc import HostTexts, etc_files
from vxnet.daemon.state import StateDirectory
from vxnet.host import tasks
from vxnet.host.facts import own_texts
from vxnet.host.tasks import Exit
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError, NotFoundError


def files_of(container: Container) -> dict[str, str]:
    """Of its /etc: their texts by name."""
    return etc_files(container, HostTexts(*own_texts()) if container.spec.shares_host_network else None)


class Making:
    """Who is on the way to a sandbox, by id. Nobody else touches them, but may wait until that is over."""

    def __init__(self) -> None:
        self._over: dict[str, asyncio.Event] = {}

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._over

    @contextlib.contextmanager
    def hold(self, container_id: str) -> Iterator[None]:
        over = self._over[container_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._over[container_id]
            over.set()

    async def wait_over(self, container_id: str) -> None:
        """Harmless where it is over."""
        while (over := self._over.get(container_id)) is not None:  # somebody may have begun anew at once
            await over.wait()


class Records:
    """What is here is the truth about the containers; the disk follows."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._records: dict[str, Container] = {}
        self._live: tuple[Container, ...] | None = None
        """None: to be looked for anew. Each change asks for them a dozen times."""
        self._ends: dict[str, asyncio.Future[Container]] = {}
        self._doomed: Counter[str] = Counter()
        """How many are at work to remove them: nothing is written there any more."""

    def all(self) -> tuple[Container, ...]:
        return tuple(self._records.values())

    def live(self) -> tuple[Container, ...]:
        """Those that hold a name, addresses and (once ``pid`` is set) a sandbox."""
        if self._live is None:
            living = ("created", "running", "restarting")
            self._live = tuple(container for container in self._records.values() if container.state in living)
        return self._live

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
        self.put(container)
        if container.id not in self._ends or self._ends[container.id].done():
            self._ends[container.id] = asyncio.get_running_loop().create_future()

    def put(self, container: Container) -> Container:
        """In memory alone."""
        self._records[container.id] = container
        self._live = None
        return container

    def keep(self, container: Container) -> Container:
        """On disk too. Raises :class:`HostError`; then it is in memory all the same."""
        self.put(container)
        if container.id not in self._doomed:
            self._state.save_container(container)
        return container

    def check_stays(self, container: Container) -> None:
        """Raises :class:`NotFoundError` if it is being removed."""
        if container.id in self._doomed:
            raise NotFoundError(f'container "{container.spec.name}" is just being removed')

    @contextlib.contextmanager
    def doom(self, container_id: str) -> Iterator[None]:
        """While it is removed."""
        self._doomed[container_id] += 1
        try:
            yield
        finally:
            self._doomed[container_id] -= 1
            if not self._doomed[container_id]:
                del self._doomed[container_id]

    def remove_files(self, container_id: str, run_directory: Path) -> None:
        """The record first: of what is left when this is cut short nobody starts anything. Blocks. Raises
        :class:`HostError`.
        """
        self._state.forget_container(container_id)
        tasks.remove(container_id, self._state.container_directory(container_id), run_directory)

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
        self._live = None
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
        published=(),
        exit_status=status,
        error=end.error,
        started_at=end.started_at or container.started_at,
        finished_at=end.finished_at or time.time(),
    )

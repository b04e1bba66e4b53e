"""Containers that wait for their next start, by policy: when it is due, they are started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

from vxnet.core.restarts import pause_s
from vxnet.model.container import Container


class Restarts:
    """``start`` is called with an id when its pause is over; it says itself what became of it."""

    def __init__(self, start: Callable[[str], Coroutine[None, None, None]]) -> None:
        self._start = start
        self._pauses: dict[str, float] = {}
        """Seconds, the last of each."""
        self._due: dict[str, float] = {}
        """By the event loop's clock."""
        self._moved = asyncio.Event()

    def put(self, container: Container, *, at_once: bool = False) -> None:
        """One that has just ended. ``at_once``: it did so while nobody looked."""
        ran_s = (container.finished_at or 0) - (container.started_at or 0)
        wait_s = self._pauses[container.id] = pause_s(self._pauses.get(container.id, 0), ran_s)
        self._due[container.id] = asyncio.get_running_loop().time() + (0 if at_once else wait_s)
        self._moved.set()

    def cancel(self, container_id: str) -> bool:
        """True: it was waiting."""
        return self._due.pop(container_id, None) is not None

    def forget(self, container_id: str) -> None:
        self._due.pop(container_id, None)
        self._pauses.pop(container_id, None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._moved.clear()
                now = asyncio.get_running_loop().time()
                for container_id in [id for id, due in self._due.items() if due <= now]:
                    del self._due[container_id]
                    group.create_task(self._start(container_id))
                next_s = min(self._due.values()) if self._due else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_s):
                        await self._moved.wait()

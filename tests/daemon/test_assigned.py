"""Tasks of this host: what a manager asks for, whenever it does."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vxnet.daemon.assigned import Assigned
from vxnet.daemon.state import StateDirectory
from vxnet.model.bench import BenchWish
from vxnet.model.errand import Errand


async def test_an_errand_that_comes_before_the_loop_runs_is_done_then(tmp_path: Path) -> None:
    """The place follows the managers before containers are adopted: it ended the daemon."""
    delivered: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    async def deliver(errand: Errand, pieces: AsyncIterator[bytes]) -> None:
        delivered.set_result([piece async for piece in pieces])

    async def measured(wish: BenchWish) -> AsyncGenerator[bytes, None]:
        yield b"said\n"

    place: Any = SimpleNamespace(assignment=SimpleNamespace(tasks=()), deliver=deliver)
    containers: Any = SimpleNamespace(all=lambda: ())

    async def settle() -> None:
        pass

    assigned = Assigned(containers, lambda: place, settle, StateDirectory(tmp_path))
    assigned.bench = measured
    here, there = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
    assigned.deliver(Errand(id="e", bench=BenchWish(number=1, local=here, peer=there, mtu=1500)))
    running = asyncio.create_task(assigned.run())
    try:
        async with asyncio.timeout(20):
            assert await delivered == [b"said\n"]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

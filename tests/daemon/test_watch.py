"""When the kernel is looked at: soon after an event, seldom under noise, late after what vxnet did itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from tests.daemon.test_reconcile import A, RecordingKernel
from vxnet.daemon import watch
from vxnet.daemon.reconcile import Plan, Reconciler
from vxnet.host.events import Look
from vxnet.model.errors import HostError
from vxnet.model.host import Change, HostState, Segment

ROWS = Look(rows=True)
MADE = Change(verb="add", object="link vx65537")


class PipedEvents:
    """A pipe with one octet for each event."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self.look: Look | None = ROWS
        self.drained = 0

    def fileno(self) -> int:
        return self._reading

    def happen(self) -> None:
        os.write(self._writing, b".")

    def drain(self) -> Look | None:
        self.drained += 1
        os.read(self._reading, 1 << 16)
        return self.look

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class WatchedKernel(RecordingKernel):
    def __init__(self, *answers: list[Change] | HostError) -> None:
        super().__init__(*answers)
        self.events = PipedEvents()
        self.intact: bool | HostError = True

    def is_intact(self, state: HostState) -> bool:
        if isinstance(self.intact, HostError):
            raise self.intact
        return self.intact


@contextlib.asynccontextmanager
async def watched(kernel: WatchedKernel, wish: list[HostState]) -> AsyncIterator[Reconciler[int]]:
    reconciler: Reconciler[int] = Reconciler(kernel, lambda: Plan(wish[0], 0), lambda _: None)
    tasks = [asyncio.create_task(loop) for loop in (reconciler.run(), *watch.loops(kernel, reconciler))]
    try:
        await reconciler.settle()
        yield reconciler
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        kernel.events.close()


async def looks(kernel: WatchedKernel, count: int) -> None:
    async with asyncio.timeout(3):
        while len(kernel.asked) < count:
            await asyncio.sleep(0.01)


async def test_an_event_makes_a_look_at_where_it_came_from() -> None:
    kernel = WatchedKernel()
    async with watched(kernel, [A]):
        kernel.events.happen()
        await looks(kernel, 2)
        assert kernel.rows == [False, True]
        kernel.events.look = Look(sandboxes=frozenset({"c1"}))
        kernel.events.happen()
        await looks(kernel, 3)
        assert kernel.asked[2] == (A, frozenset({"c1"}))


async def test_events_without_end_make_few_looks() -> None:
    kernel = WatchedKernel()
    async with watched(kernel, [A]):
        until = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < until:
            kernel.events.happen()
            await asyncio.sleep(0.002)
        assert 1 < len(kernel.asked) <= 5


async def test_what_concerns_nobody_makes_none() -> None:
    kernel = WatchedKernel()
    async with watched(kernel, [A]):
        kernel.events.look = None
        kernel.events.happen()
        async with asyncio.timeout(3):
            while not kernel.events.drained:
                await asyncio.sleep(0.01)
        assert len(kernel.asked) == 1


async def test_the_echo_of_own_work_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_PAUSE_S", 0.5)
    other = HostState(segments=(Segment(vni=65537, mtu=1450, local=ip_address("192.168.56.11")),))
    kernel, wish = WatchedKernel([], [MADE]), [A]
    async with watched(kernel, wish) as reconciler:
        wish[0] = other
        await reconciler.settle()
        kernel.events.happen()
        await asyncio.sleep(0.3)
        assert len(kernel.asked) == 2
        await looks(kernel, 3)
        assert reconciler.drift == 0


@pytest.mark.parametrize("found", [False, HostError("the kernel does not answer")])
async def test_what_raises_no_event_is_looked_at(found: bool | HostError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GLANCE_S", 0.02)
    kernel = WatchedKernel()
    async with watched(kernel, [A]):
        await asyncio.sleep(0.1)
        assert len(kernel.asked) == 1
        kernel.intact = found
        await looks(kernel, 2)
        assert kernel.asked[1] == (A, None)


async def test_a_look_that_fails_is_not_the_last() -> None:
    kernel = WatchedKernel([], HostError("the kernel does not answer"))
    async with watched(kernel, [A]):
        kernel.events.happen()
        await looks(kernel, 2)
        kernel.events.happen()
        await looks(kernel, 3)

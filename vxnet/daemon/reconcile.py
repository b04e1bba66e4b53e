"""The loop that makes this host's kernel what it should be.

    wake → plan (pure) → observe, diff, apply (a thread) → names follow → whoever waited is told

It is level-triggered: a wake-up says that something changed and where to look, never what to do. The plan is made
anew each time from the whole state, so that a lost or doubled wake-up costs at most the time to the next one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog

from vxnet.host.events import Look
from vxnet.model.errors import HostError, VxnetError
from vxnet.model.host import Change, HostState, Sandbox

log = structlog.get_logger()

FULL_INTERVAL_S = 30.0
"""How often everything is compared although nothing was heard (see :mod:`vxnet.daemon.watch`): 1.5 ms a container."""
LOGGED_CHANGES = 20
"""Of one repair; a namespace with all its rows has thousands."""

A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")


class Kernel(Protocol):
    def reconcile(
        self, state: HostState, sandboxes: Collection[str] | None = None, *, rows: bool = False
    ) -> list[Change]: ...


class Plan(NamedTuple, Generic[S]):
    state: HostState
    seen: S
    """What the plan was made from: given back once the kernel carries it."""


class Reconciler(Generic[S]):
    """``plan`` is called in the event loop, ``applied(seen)`` after the kernel has what it says, ``repaired`` after
    drift was mended."""

    def __init__(
        self,
        kernel: Kernel,
        plan: Callable[[], Plan[S]],
        applied: Callable[[S], None],
        repaired: Callable[[], None] = lambda: None,
    ) -> None:
        self._kernel = kernel
        self._plan = plan
        self._applied = applied
        self._on_repair = repaired
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._requests: list[asyncio.Future[Sequence[Change]]] = []
        """Who waits for a cycle that has not ended."""
        self._over = False
        self._dirty: set[str] = set()
        self._rows = False
        self._full = True
        self._last: HostState | None = None
        self._looked: dict[str, Sandbox] = {}
        """What each sandbox was to be when it was last looked at."""
        self._current: Plan[S] | None = None
        """None: something changed since it was made."""
        # One thread for good: netlink handles belong to the thread that made them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self.refused: tuple[Change, ...] = ()
        """What the kernel refused in the last cycle."""
        self.drift = 0
        """Repairs: how often the kernel was found different although the wish was the same."""
        self.worked_at = -math.inf
        """When a changed wish last changed the kernel; the event loop's time."""

    @property
    def settled(self) -> HostState | None:
        """What the kernel was last made to be; None: that failed, and is tried again."""
        return self._last

    def plan(self) -> HostState:
        """What the kernel shall be now."""
        return self._plan().state

    def wake(self, *, full: bool = False, within_s: float = 0.0) -> None:
        """``within_s``: so long at most, and less if somebody wakes it or asks for a cycle before."""
        self._full |= full
        self._current = None
        if not within_s:
            self._wake.set()
        elif self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(within_s, self._wake.set)

    async def settle(self, sandbox: str | None = None) -> Sequence[Change]:
        """Wait for a cycle that begins after this call, with ``sandbox`` looked at; what it changed or failed to. With
        :meth:`run` all who wait are cancelled: a kernel that is left alone is no answer to go on from.
        """
        if sandbox is not None:
            self._dirty.add(sandbox)
        self._current = None
        return await self._next_cycle()

    async def look(self, where: Look) -> None:
        """Have the kernel looked at there; the wish is the same. Raises what the cycle raised."""
        self._dirty |= where.sandboxes
        self._rows |= where.rows
        self._full |= where.everything
        await self._next_cycle()

    async def _next_cycle(self) -> Sequence[Change]:
        request: asyncio.Future[Sequence[Change]] = asyncio.get_running_loop().create_future()
        self._requests.append(request)
        if self._over:
            request.cancel()
        self._wake.set()
        return await request

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            due = loop.time() + FULL_INTERVAL_S
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                except TimeoutError:
                    self._full = True
                    self._current = None
                if self._full:
                    due = loop.time() + FULL_INTERVAL_S
                self._wake.clear()
                self._silence()
                await self._cycle()
        finally:
            self._over = True
            self._silence()
            for request in self._requests:
                request.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def call(self, function: Callable[[A], R], argument: A) -> R:
        """Run ``function`` in the kernel's thread, between two cycles."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    async def _cycle(self) -> None:
        requests = [*self._requests]
        sandboxes = None if self._full else frozenset(self._dirty)
        rows = self._rows
        self._full = self._rows = False
        self._dirty.clear()
        loop = asyncio.get_running_loop()
        try:
            known = self._current
            self._current = plan = known or self._plan()
            if not requests and sandboxes == frozenset() and plan.state == self._last:
                # What changed concerns names alone, which is what most wake-ups are about.
                self._applied(plan.seen)
                return
            wanted = {box.id: box for box in plan.state.sandboxes}
            if sandboxes is not None:
                sandboxes |= {id for id, box in wanted.items() if self._looked.get(id) != box}
            changes = await loop.run_in_executor(
                self._thread, lambda: self._kernel.reconcile(plan.state, sandboxes, rows=rows)
            )
        except VxnetError as error:
            log.error("reconcile failed", error=str(error))
            self._last = self._current = None
            self._looked = {}
            for request in self._answered(requests):
                request.set_exception(HostError(error.message, hint=error.hint))
            return
        self._looked = wanted
        self._count(plan.state, changes)
        if known is None:
            self._applied(plan.seen)
        for request in self._answered(requests):
            request.set_result(changes)

    def _answered(self, requests: Sequence[asyncio.Future[Sequence[Change]]]) -> list[asyncio.Future[Sequence[Change]]]:
        """Those who still wait; they do so no longer."""
        del self._requests[: len(requests)]
        return [request for request in requests if not request.done()]

    def _count(self, state: HostState, changes: Sequence[Change]) -> None:
        failed = [change for change in changes if change.error]
        self.refused = tuple(failed)
        for change in failed:
            log.error("kernel refused", verb=change.verb, object=change.object, error=change.error)
        if state == self._last:
            self._repaired([change for change in changes if not change.error])
        elif changes:
            self.worked_at = asyncio.get_running_loop().time()
        # After a failure the same changes are tried again, and that is no drift.
        self._last = None if failed else state

    def _repaired(self, mended: Sequence[Change]) -> None:
        """One look that mends is one repair: a lost tunnel takes its rows with it."""
        self.drift += bool(mended)
        for change in mended[:LOGGED_CHANGES]:
            log.warning("drift mended", verb=change.verb, object=change.object, repair=self.drift)
        if len(mended) > LOGGED_CHANGES:
            log.warning("drift mended", more=len(mended) - LOGGED_CHANGES, repair=self.drift)
        if mended:
            self._on_repair()

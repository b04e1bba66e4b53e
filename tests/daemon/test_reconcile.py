"""The reconcile loop: who waits is told, nothing is lost between wake-ups, drift is counted once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Collection
from ipaddress import ip_address

import pytest

from vxnet.daemon.reconcile import Plan, Reconciler
from vxnet.host.events import Look
from vxnet.model.errors import HostError
from vxnet.model.host import Change, HostState, Sandbox, Segment

A = HostState(segments=(Segment(vni=65536, mtu=1450, local=ip_address("192.168.56.11")),))
B = HostState()
MENDED = Change(verb="add", object="fdb 02:00:0a:00:00:01 dev vx65536")
REFUSED = Change(verb="add", object="vx65536", error="Operation not supported")


class RecordingKernel:
    """Answers from a list, and keeps what it was asked."""

    def __init__(self, *answers: list[Change] | HostError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[HostState, Collection[str] | None]] = []
        self.rows: list[bool] = []

    def reconcile(
        self, state: HostState, sandboxes: Collection[str] | None = None, *, rows: bool = False
    ) -> list[Change]:
        self.asked.append((state, sandboxes))
        self.rows.append(rows)
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, HostError):
            raise answer
        return answer


@contextlib.asynccontextmanager
async def running(kernel: RecordingKernel, wish: list[HostState]) -> AsyncIterator[tuple[Reconciler[int], list[int]]]:
    """A loop whose plan is ``wish[0]`` at any time; the second value collects what was applied."""
    applied: list[int] = []
    plans = iter(range(1_000_000))
    reconciler: Reconciler[int] = Reconciler(kernel, lambda: Plan(wish[0], next(plans)), applied.append)
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler, applied
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_settle_waits_for_a_cycle_that_began_after_the_call() -> None:
    kernel = RecordingKernel()
    async with running(kernel, [A]) as (reconciler, applied):
        await reconciler.settle("c1")
        assert applied
        before = len(kernel.asked)
        await reconciler.settle("c2")
    assert len(kernel.asked) > before
    assert kernel.asked[-1] == (A, frozenset({"c2"}))


async def test_the_first_cycle_and_a_full_wake_look_at_everything() -> None:
    kernel = RecordingKernel()
    async with running(kernel, [A]) as (reconciler, _):
        await reconciler.settle()
        reconciler.wake(full=True)
        await reconciler.settle()
    assert kernel.asked[0][1] is None
    assert kernel.asked[-1][1] is None


async def test_drift_counts_only_what_was_mended_under_the_same_wish() -> None:
    kernel = RecordingKernel([MENDED], [MENDED], [MENDED], [])
    wish = [A]
    async with running(kernel, wish) as (reconciler, _):
        await reconciler.settle()
        assert reconciler.drift == 0, "the first cycle builds"
        await reconciler.settle()
        assert reconciler.drift == 1
        wish[0] = B
        await reconciler.settle()
        assert reconciler.drift == 1, "a new wish is no drift"


TUNNEL = Change(verb="add", object="link vx65536")


@pytest.mark.parametrize(
    "looks, drift",
    [
        ([[TUNNEL, MENDED], []], 1),  # a tunnel and the rows that it took along
        ([[TUNNEL], [], [MENDED], []], 2),
        ([[MENDED], [MENDED], [MENDED]], 3),  # somebody takes it away again and again
    ],
)
async def test_one_damage_is_one_repair(looks: list[list[Change]], drift: int) -> None:
    async with running(RecordingKernel([], *looks), [A]) as (reconciler, _):
        for _look in range(1 + len(looks)):
            await reconciler.settle()
        assert reconciler.drift == drift


async def test_a_look_is_limited_to_where_it_is_wanted() -> None:
    kernel = RecordingKernel()
    async with running(kernel, [A]) as (reconciler, _):
        await reconciler.settle()
        await reconciler.look(Look(sandboxes=frozenset({"c1"})))
        await reconciler.look(Look(rows=True))
        await reconciler.look(Look(everything=True))
        assert [asked[1] for asked in kernel.asked] == [None, frozenset({"c1"}), frozenset(), None]
        assert kernel.rows == [False, False, True, False]


async def test_a_sandbox_that_is_to_be_otherwise_is_looked_at() -> None:
    """Nobody names it: its network has one subnet more, for one."""
    other = Sandbox(id="c2", netns="/proc/2/ns/net")
    kernel = RecordingKernel()
    wish = [HostState(sandboxes=(Sandbox(id="c1", netns="/proc/1/ns/net"), other))]
    async with running(kernel, wish) as (reconciler, _):
        await reconciler.settle()
        await reconciler.settle()
        wish[0] = HostState(sandboxes=(Sandbox(id="c1", netns="/proc/1/ns/net", dns_port=1), other))
        await reconciler.settle()
        await reconciler.settle()
    assert [asked[1] for asked in kernel.asked] == [None, frozenset(), frozenset({"c1"}), frozenset()]


async def test_a_look_needs_no_new_plan_and_a_wake_makes_one() -> None:
    async with running(RecordingKernel(), [A]) as (reconciler, applied):
        await reconciler.settle()
        await reconciler.look(Look(rows=True))
        assert applied == [0]
        reconciler.wake()
        await reconciler.look(Look(rows=True))
        assert applied == [0, 1]


async def test_a_refusal_is_tried_again_and_is_no_drift() -> None:
    kernel = RecordingKernel([REFUSED], [MENDED])
    async with running(kernel, [A]) as (reconciler, _):
        assert await reconciler.settle() == [REFUSED]
        assert await reconciler.settle() == [MENDED]
        assert reconciler.drift == 0


async def test_a_failed_cycle_tells_its_waiters_and_the_loop_lives_on() -> None:
    kernel = RecordingKernel(HostError("the namespace vxnet cannot be made"), [])
    async with running(kernel, [A]) as (reconciler, applied):
        with pytest.raises(HostError, match="namespace"):
            await reconciler.settle("c1")
        assert applied == []
        await reconciler.settle("c1")
        assert applied


async def test_waiters_of_a_stopped_loop_are_cancelled() -> None:
    async with running(RecordingKernel(), [A]) as (reconciler, _):
        await reconciler.settle()
        waiter = asyncio.ensure_future(reconciler.settle())
    await asyncio.wait([waiter], timeout=1)
    assert waiter.done()


async def test_a_wake_that_may_wait_is_met_by_the_next_cycle_or_makes_one() -> None:
    wish = [A]
    async with running(RecordingKernel(), wish) as (reconciler, applied), asyncio.timeout(10):
        await reconciler.settle()
        wish[0] = B
        reconciler.wake(within_s=3600.0)
        await reconciler.settle()
        assert applied == [0, 1]
        assert reconciler.settled == B
        wish[0] = A
        reconciler.wake(within_s=0.001)
        while reconciler.settled != A:
            await asyncio.sleep(0.001)
        assert applied == [0, 1, 2]


async def test_who_waits_when_it_ends_or_comes_later_is_let_go() -> None:
    """Whoever waited for the cycle that was under way waited for ever, and with it the daemon's end."""

    class SlowKernel(RecordingKernel):
        begun, go_on = threading.Event(), threading.Event()

        def reconcile(
            self, state: HostState, sandboxes: Collection[str] | None = None, *, rows: bool = False
        ) -> list[Change]:
            self.begun.set()
            self.go_on.wait(20)
            return super().reconcile(state, sandboxes, rows=rows)

    kernel = SlowKernel()
    try:
        async with running(kernel, [A]) as (reconciler, _):
            early = asyncio.create_task(reconciler.settle())
            await asyncio.to_thread(kernel.begun.wait, 20)
            late = asyncio.create_task(reconciler.settle())
            await asyncio.sleep(0)
        later = asyncio.create_task(reconciler.settle())
        done, _ = await asyncio.wait((early, late, later), timeout=20)
    finally:
        kernel.go_on.set()
    assert done == {early, late, later} and all(task.cancelled() for task in done)

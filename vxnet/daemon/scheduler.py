"""The manager's loop over services: what nodes report goes into the store, what core/schedule decides does too.

::

      nodes ── reports ──> statuses ──┐
      store (watch) ──> Wishes ───────┼──> core/schedule ──> commits of at most 100 records ──> store
      gossip ── who is lost ──────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from vxnet.cluster.store import MAX_OCTETS, MAX_RECORDS
from vxnet.core import lifecycle, schedule, services
from vxnet.core.schedule import Plan, State
from vxnet.core.wishes import Wishes
from vxnet.daemon.commits import Commits
from vxnet.model.api import TaskReport
from vxnet.model.codec import to_json
from vxnet.model.errors import ConflictError, UnavailableError, VxnetError
from vxnet.model.service import TaskStatus

LOOK_S = 5.0
"""Longest pause between two plans: nodes that were never met become lost by time alone."""
AGAIN_S = 1.0
"""After the store refused to be written."""
REST = 2.0
"""The pause before the next plan, in times of what this one took to think: every command waits meanwhile, and at 10,000
tasks that is 30 ms, after each command that a plan could follow from.
"""
ATTEMPTS = 5
ROOM = 1000
"""Octets of a commit left to keys and guards of the store's own."""

log = structlog.get_logger(__name__)


class Scheduler:
    """Works while :meth:`run` runs."""

    def __init__(
        self,
        wishes: Callable[[], Wishes],
        due: asyncio.Event,
        commits: Commits,
        ids: Iterator[str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.lost: Callable[[], Mapping[str, float]] = dict
        """Since when nodes are lost; the daemon sets it once gossip runs."""
        self._wishes = wishes
        self._due = due
        self._commits = commits
        self._ids = ids
        self._now = now
        self._batch: _Batch | None = None
        self._thought_s = 0.0

    async def run(self) -> None:
        while True:
            self._due.clear()
            try:
                plan = await self.step()
            except ConflictError:
                continue  # another manager's commit came in between, and is known by now
            except VxnetError as error:
                log.warning("services not looked after", error=str(error))
                await asyncio.sleep(AGAIN_S)
                continue
            await asyncio.sleep(REST * self._thought_s)
            if not plan.changes:
                wait_s = LOOK_S if plan.next_at is None else min(max(plan.next_at - self._now(), 0.0), LOOK_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._due.wait()

    def wake(self) -> None:
        """Somebody was lost, or is back."""
        self._due.set()

    async def step(self) -> Plan:
        """One plan, carried out. Raises what the store does; then it is carried out in part, and the next one goes on
        from there.
        """
        async with self._commits.turn:
            began = time.monotonic()
            plan = schedule.plan(self.known(), self._now(), self._ids)
            changes = services.with_places(self._wishes(), plan.changes)
            self._thought_s = time.monotonic() - began
            for part in pieces({key: None if one is None else to_json(one) for key, one in changes.items()}):
                await self._commits.write(part)
        return plan

    def known(self) -> State:
        wishes = self._wishes()
        return State(
            services=wishes.services,
            tasks={service: tasks.values() for service, tasks in wishes.tasks_of_service.items()},
            statuses=wishes.statuses,
            nodes=wishes.nodes,
            lost=self.lost(),
        )

    async def report(self, node_id: str, reports: Sequence[TaskReport]) -> None:
        """Returns when the store has them. What ``node_id`` says of tasks that are not its own is passed over.

        Whoever comes while a commit is under way waits for the next one, together with all the others.
        """
        batch = self._batch
        if batch is not None:
            batch.add(node_id, reports, self._now())
            await asyncio.shield(batch.written)
            return
        batch = self._batch = _Batch()
        batch.add(node_id, reports, self._now())
        try:
            async with self._commits.turn:
                self._batch = None
                await self._record_all(batch)
        except BaseException as error:
            self._batch = None if self._batch is batch else self._batch
            batch.fail(error)
            raise
        batch.written.set_result(None)

    async def _record_all(self, batch: _Batch) -> None:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ConflictError):
                for part in pieces(batch.changes(self._wishes())):
                    await self._commits.record(part)
                return
        raise UnavailableError("other managers write the same tasks all the time", hint="it is tried again")


class _Batch:
    def __init__(self) -> None:
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reports: list[tuple[str, TaskReport, float]] = []

    def add(self, node_id: str, reports: Sequence[TaskReport], now: float) -> None:
        self._reports += [(node_id, report, now) for report in reports]

    def fail(self, error: BaseException) -> None:
        """Whoever else waits was not cancelled himself, and asks again."""
        told = error if isinstance(error, VxnetError) else UnavailableError("the report was not written")
        self.written.set_exception(told)
        self.written.exception()  # somebody may wait for it, or nobody

    def changes(self, wishes: Wishes) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        statuses: dict[str, TaskStatus] = {}
        for node_id, report, at in self._reports:
            task = wishes.tasks.get(report.task)
            if task is None or task.node != node_id:
                continue
            status = lifecycle.advance(task, statuses.get(task.id) or wishes.statuses.get(task.id), report, at)
            if status is not None:
                statuses[task.id] = status
                found[f"status/{task.id}"] = to_json(status)
        return found


def pieces(changes: Mapping[str, bytes | None]) -> Iterator[dict[str, bytes | None]]:
    """In the same order, as few as the store's limits allow."""
    piece: dict[str, bytes | None] = {}
    octets = ROOM
    for key, value in changes.items():
        size = len(key) + len(value or b"")
        if piece and (len(piece) == MAX_RECORDS or octets + size > MAX_OCTETS):
            yield piece
            piece, octets = {}, ROOM
        piece[key] = value
        octets += size
    if piece:
        yield piece

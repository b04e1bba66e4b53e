"""The wishes in a manager's memory, as the store's watch tells them, and what each node is to hear of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from vxnet.cluster.store import Snapshot, Store
from vxnet.core import assignment
from vxnet.core.assignment import Item, Update
from vxnet.core.decisions import member
from vxnet.core.wishes import Delta, Wishes
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import Signed
from vxnet.model.errors import UnavailableError, VxnetError

LOG_LENGTH = 1000
"""Commits kept for streams that resume; who is further behind gets a snapshot."""
LATE_S = 1.0
REACH_S = 5.0
"""For the mirror to show what was committed."""


class Mirror:
    """``sign`` makes a node's signed set of leases from :attr:`wishes`. Moves while :meth:`run` runs."""

    def __init__(self, store: Store, wishes: Wishes, sign: Callable[[str], Signed]) -> None:
        self.wishes = wishes
        self.unsettled = asyncio.Event()
        """Set when nodes or networks came or went: somebody should look after the blocks."""
        self.schedule_due = asyncio.Event()
        """Set when services, tasks or nodes are others than before."""
        self.trust_changed = asyncio.Event()
        """Set when the cluster's roots are others than before."""
        self._store = store
        self._sign = sign
        self._moved = asyncio.Event()
        """Set, and replaced by a new one, whenever the mirror moves."""
        self._log: deque[tuple[int, Delta]] = deque()
        self._log_start = wishes.revision
        """All that came after this revision is in the log."""
        self._signed: dict[str, Signed] = {}
        self._followers: Counter[str] = Counter()
        self._said: dict[str, list[Item]] = {}
        """To nodes that follow, beside what the store holds."""
        self._stopped: VxnetError | None = None

    async def run(self) -> None:
        """Ends only with the error that stops it, or cancelled."""
        self.unsettled.set()
        self.schedule_due.set()
        try:
            async with aclosing(self._store.watch("", self.wishes.revision)) as events:
                async for event in events:
                    roots = self.wishes.roots
                    if isinstance(event, Snapshot):
                        self._restart(Wishes.of(event.revision, event.records))
                    else:
                        self._append(event.revision, self.wishes.apply(event.revision, event.changes))
                    if self.wishes.roots != roots:
                        self.trust_changed.set()
                    self._wake()
        except VxnetError as error:
            self._stopped = error
            raise
        finally:
            self._stopped = self._stopped or UnavailableError("the manager is stopping")
            self._wake()

    async def reach(self, revision: int, within_s: float = REACH_S) -> None:
        """Wait until the mirror shows ``revision``. Raises :class:`UnavailableError` if it does not in time."""
        try:
            async with asyncio.timeout(within_s):
                while self.wishes.revision < revision:
                    await self.wait_moved()
        except TimeoutError:
            raise UnavailableError("the store does not tell what was written to it", hint="see the log") from None

    async def wait_moved(self) -> None:
        """Raises what stopped :meth:`run`."""
        if self._stopped is not None:
            raise self._stopped
        await self._moved.wait()

    def leases_of(self, node: str) -> Signed:
        if node not in self._signed:
            self._signed[node] = self._sign(node)
        return self._signed[node]

    def assignment_of(self, node: str) -> Assignment:
        return assignment.apply(None, self._snapshot(node))

    async def updates(self, node: str, since: int | None) -> AsyncGenerator[Update, None]:
        """What ``node`` has to hear after revision ``since``; None: from a snapshot on. Ends, after telling so, when
        the node is removed. Raises :class:`ForbiddenError` if it is no node (any more), and what stops the mirror.
        """
        member(self.wishes, node)
        if since is not None and since > self.wishes.revision:
            # Another manager told it more than has come here yet; or there was more once, and a backup was restored.
            with contextlib.suppress(UnavailableError):
                await self.reach(since, LATE_S)
        self._followers[node] += 1
        try:
            async with aclosing(self._updates(node, since)) as updates:
                async for update in updates:
                    yield update
        finally:
            self._followers[node] -= 1
            self._said.pop(node, None)

    def say(self, node: str, item: Item) -> bool:
        """Once, to ``node`` if it follows now: with the revision that it has, so that whoever does not know the item
        passes over it. Whether it follows.
        """
        if not self._followers[node]:
            return False
        self._said.setdefault(node, []).append(item)
        self._wake()
        return True

    async def _updates(self, node: str, since: int | None) -> AsyncGenerator[Update, None]:
        while True:
            if since is None or not self._log_start <= since <= self.wishes.revision:
                update = self._snapshot(node)
                since = update.revision
                yield update
            for revision, delta in [entry for entry in self._log if entry[0] > since]:
                since = revision
                if items := self._items(node, delta):
                    yield Update(revision=revision, items=items)
            if node not in self.wishes.nodes:
                return
            if said := self._said.pop(node, None):
                yield Update(revision=since, items=tuple(said))
            if since == self.wishes.revision and node not in self._said:
                await self.wait_moved()

    # Parts

    def _snapshot(self, node: str) -> Update:
        tasks = (assignment.item("task", task.id, task) for task in self.wishes.tasks_of_node(node))
        place = assignment.item("addresses", "", self.wishes.nodes[node].addresses)
        items = (*self.wishes.all_items(), *tasks, place, assignment.item("leases", "", self.leases_of(node)))
        return Update(revision=self.wishes.revision, snapshot=True, items=items)

    def _items(self, node: str, delta: Delta) -> tuple[Item, ...]:
        items = (*delta.items, *delta.own.get(node, ()))
        if delta.all_leases or node in delta.nodes:
            items = (*items, assignment.item("leases", "", self.leases_of(node)))
        return items

    def _restart(self, wishes: Wishes) -> None:
        self.wishes = wishes
        self._log.clear()
        self._log_start = wishes.revision
        self._signed.clear()
        self.unsettled.set()
        self.schedule_due.set()

    def _append(self, revision: int, delta: Delta) -> None:
        if len(self._log) == LOG_LENGTH:
            self._log_start, _ = self._log.popleft()
        self._log.append((revision, delta))
        if delta.all_leases:
            self._signed.clear()
        for node in delta.nodes:
            self._signed.pop(node, None)
        if delta.sets_changed:
            self.unsettled.set()
        if delta.scheduled:
            self.schedule_due.set()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

"""How a manager writes: decisions over the mirror, made again when the store has moved on; and, if it leads, as leader.

Every commit is guarded by the versions of the records that it was decided over. What only the leader may do is guarded
by its leadership too, so that one that was deposed without knowing it changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from vxnet.cluster.store import LEAD_KEY, Leadership, LeadershipLostError, Store, refused_by
from vxnet.core.decisions import Decision
from vxnet.core.wishes import Wishes
from vxnet.daemon.mirror import Mirror
from vxnet.model.codec import to_json
from vxnet.model.errors import ConflictError, UnavailableError, VxnetError

ATTEMPTS = 5
"""At a decision that another manager's commits outrun."""
LEAD_AGAIN_S = 1.0

R = TypeVar("R")
log = structlog.get_logger(__name__)


class Commits:
    """``turn`` is held by whoever decides. ``leadership`` is there from the start where nobody else can lead."""

    def __init__(self, store: Store, mirror: Mirror, leadership: Leadership | None) -> None:
        self.turn = asyncio.Lock()
        self._store = store
        self._mirror = mirror
        self._leadership = leadership
        self._unanswered: tuple[float, UnavailableError] | None = None
        """When the store last did not answer, and what it is said to be."""

    async def keep_leading(
        self, holder: str, gone: Callable[[str], bool], loops: Callable[[], Sequence[Coroutine[Any, Any, None]]]
    ) -> None:
        """The ``loops`` run while this manager leads."""
        while True:
            try:
                if self._leadership is None:
                    self._leadership = await self._store.lead(holder, gone)
                    await self._mirror.reach(self._leadership.version)
                log.info("this manager leads")
                await self._lead(self._leadership, loops())
                log.warning("this manager leads no longer")
            except VxnetError as error:
                if not self._store.several_managers:
                    raise  # nobody else would: the manager begins anew
                log.warning("this manager does not lead", error=str(error))
                await asyncio.sleep(LEAD_AGAIN_S)
            if not self._store.several_managers:
                return
            self._leadership = None

    async def _lead(self, leadership: Leadership, loops: Sequence[Coroutine[Any, Any, None]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop) for loop in loops]
                await self._store.keep(leadership)
                for task in tasks:
                    task.cancel()
        except* VxnetError as errors:
            raise errors.exceptions[0] from None

    async def decide(self, decide: Callable[[Wishes], tuple[Decision, R]]) -> R:
        """Commit what ``decide`` makes of the mirror, and answer when the mirror shows it."""
        return await self._decide(decide, lambda: self._own_guard)

    async def decide_as_leader(self, decide: Callable[[Wishes], tuple[Decision, R]]) -> R:
        return await self._decide(decide, lambda: self._leader_guard)

    async def write(self, changes: dict[str, bytes | None]) -> None:
        """As the leader; for the scheduler, which holds the turn."""
        await self._commit(changes, self._leader_guard)

    async def record(self, changes: dict[str, bytes | None]) -> None:
        """What nodes report, to whichever manager; by who holds the turn."""
        await self._commit(changes, self._own_guard)

    # Parts

    async def _decide(self, decide: Callable[[Wishes], tuple[Decision, R]], guard: Callable[[], dict[str, int]]) -> R:
        began = asyncio.get_running_loop().time()
        async with self.turn:
            if self._unanswered is not None and self._unanswered[0] > began:
                # Who waited while the store did not answer is told so together with whom it waited for.
                raise UnavailableError(self._unanswered[1].message, hint=self._unanswered[1].hint)
            attempts = ATTEMPTS
            while True:
                attempts -= 1
                wishes = self._mirror.wishes
                seen = wishes.revision
                decision, answer = decide(wishes)
                if not decision.changes:
                    return answer
                guards = {key: wishes.version(key) for key in decision.guards} | guard()
                try:
                    revision = await self._store.commit(encoded(decision), guards)
                except ConflictError:
                    if not attempts:
                        raise
                    await self._mirror.reach(seen + 1)
                except UnavailableError as error:
                    self._note(error)
                    raise
                else:
                    await self._mirror.reach(revision)
                    return answer

    async def _commit(self, changes: dict[str, bytes | None], guard: dict[str, int]) -> None:
        wishes = self._mirror.wishes
        seen = wishes.revision
        guards = {key: wishes.version(key) for key in changes}
        try:
            revision = await self._store.commit(changes, guards | guard)
        except ConflictError:
            await self._mirror.reach(seen + 1)
            raise
        except UnavailableError as error:
            self._note(error)
            raise
        await self._mirror.reach(revision)

    def _note(self, error: UnavailableError) -> None:
        if not isinstance(error, LeadershipLostError):
            self._unanswered = asyncio.get_running_loop().time(), error

    @property
    def _leader_guard(self) -> dict[str, int]:
        if self._leadership is None and self._store.several_managers:
            raise refused_by(LEAD_KEY)
        return self._leadership.guard if self._leadership is not None else {}

    @property
    def _own_guard(self) -> dict[str, int]:
        """Where there can be only one manager, everything is the leader's."""
        return self._leader_guard if not self._store.several_managers else {}


def encoded(decision: Decision) -> dict[str, bytes | None]:
    return {key: None if record is None else to_json(record) for key, record in decision.changes.items()}

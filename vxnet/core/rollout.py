"""Rolling updates: heads of an old version give way, a few at a time, and what goes wrong is noticed.

::

     updating ──> completed                           rollback_started ──> rollback_completed
        │                                                 ^      │
        ├── too many new tasks fail, action pause ──> paused     └── … fail ──> rollback_paused
        └── … action rollback ────────────────────────────┘

A slot is *old* as long as its head is of another version than the service's, *under way* until its head runs. A new
task fails the update when it ends within ``monitor_s`` of its start, or never starts. After the last one has run for
that long, the update is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from vxnet.core.lifecycle import ENDED, FAILED
from vxnet.core.placement import Board, attribute
from vxnet.model.service import Service, Task, UpdateConfig, UpdateState, UpdateStatus

if TYPE_CHECKING:
    from vxnet.core.schedule import Planner, Slot

ROLLING_BACK: Final[dict[UpdateState, UpdateState]] = {
    "updating": "rollback_started",
    "paused": "rollback_paused",
    "completed": "rollback_completed",
}
"""What each state of an update is called in a rollback."""


def advance(planner: Planner, service: Service, slots: Sequence[Slot]) -> None:
    """One pass over a service's slots."""
    update = service.update
    if update is not None and update.state in ("updating", "rollback_started"):
        _Rollout(planner, service, update, [slot for slot in slots if slot.in_use]).advance()
    elif service.rebalance:
        _rebalance(planner, service, [slot for slot in slots if slot.in_use])


def back(service: Service, now: float, message: str, *, and_forth: bool) -> Service:
    """To the previous specification, and to its version: tasks that still are of it are kept. ``and_forth``: the
    present one is the previous one then; what has failed is not.
    """
    assert service.previous is not None
    return replace(
        service,
        spec=service.previous,
        version=service.previous_version,
        previous=service.spec if and_forth else None,
        previous_version=service.version if and_forth else 0,
        updated_at=now,
        update=UpdateStatus(state="rollback_started", started_at=now, message=message),
    )


class _Rollout:
    def __init__(self, planner: Planner, service: Service, update: UpdateStatus, slots: Sequence[Slot]) -> None:
        self._planner = planner
        self._service = service
        self._update = update
        self._slots = slots
        self._back = update.state == "rollback_started"
        self._config = service.spec.rollback if self._back else service.spec.update

    def advance(self) -> None:
        config = self._config
        failed = [task for slot in self._slots if (task := self._failed(slot)) is not None]
        if failed and len(failed) / len(self._slots) > config.max_failure_ratio and self._give_up(failed[-1]):
            return
        old = [slot for slot in self._slots if slot.head.version != self._service.version]
        under_way = [slot for slot in self._slots if self._under_way(slot, config)]
        runs_since = [since for slot in self._slots if (since := self._started(slot)) is not None]
        now = self._planner.now
        if not old and not under_way:
            settled = max((self._planner.due(since, config.monitor_s) for since in runs_since), default=now)
            if now >= settled:
                self._end("completed", "rollback completed" if self._back else "update completed")
            else:
                self._planner.look_again(settled)
            return
        free = (config.parallelism or len(self._slots)) - len(under_way)
        if config.delay_s and old and runs_since:
            due = max(self._planner.due(since, config.delay_s) for since in runs_since)
            if now < due:
                self._planner.look_again(due)
            if under_way or now < due:
                free = 0
        # Those that serve nobody give way first.
        old.sort(key=lambda slot: self._planner.state(slot.head) == "running")
        for slot in old[: max(free, 0)]:
            self._planner.replace_head(slot, self._service, config.order)

    def _new(self, task: Task) -> bool:
        """An update has a version of its own; a rollback has that of tasks which have been there all the time."""
        return task.version == self._service.version and (not self._back or task.created_at >= self._update.started_at)

    def _failed(self, slot: Slot) -> Task | None:
        """The latest of the slot's new tasks that failed soon."""
        for task in reversed(slot.tasks):
            status = self._planner.statuses.get(task.id)
            if not self._new(task) or status is None or status.state not in FAILED:
                continue
            if status.started_at is None or status.since - status.started_at <= self._config.monitor_s:
                return task
        return None

    def _under_way(self, slot: Slot, config: UpdateConfig) -> bool:
        if slot.head.version != self._service.version or self._planner.state(slot.head) == "running":
            return False
        if self._planner.ended(slot.head):
            return False  # no restart was wanted
        # One that fails again and again must not hold up those that may go on all the same.
        return not (config.failure_action == "continue" and self._failed(slot) is not None)

    def _started(self, slot: Slot) -> float | None:
        status = self._planner.statuses.get(slot.head.id)
        if not self._new(slot.head) or status is None or status.state != "running":
            return None
        return status.started_at or status.since

    def _give_up(self, task: Task) -> bool:
        """Whether the update ends, or turns, because ``task`` failed."""
        status = self._planner.statuses[task.id]
        why = f"task {task.name} failed: {status.message or f'exit status {status.exit_status}'}"
        match self._config.failure_action:
            case "continue":
                return False
            case "rollback" if not self._back and self._service.previous is not None:
                self._keep(back(self._service, self._planner.now, f"rolled back because {why}", and_forth=False))
            case _:
                self._end("paused", f"{'rollback' if self._back else 'update'} paused because {why}")
        return True

    def _end(self, state: UpdateState, message: str) -> None:
        update = replace(
            self._update,
            state=ROLLING_BACK[state] if self._back else state,
            completed_at=self._planner.now,
            # Why there was a rollback is still the news when it is done.
            message=self._update.message if self._back and state == "completed" and self._update.message else message,
        )
        self._keep(replace(self._service, update=update))

    def _keep(self, service: Service) -> None:
        self._planner.services[service.id] = service
        self._planner.look_again(self._planner.now)


def _rebalance(planner: Planner, service: Service, slots: Sequence[Slot]) -> None:
    """Move a task from where a fresh start would put fewer, one at a time, until they lie as after a fresh start."""
    if any(planner.state(slot.head) not in ENDED | {"running"} or _overlaps(planner, slot) for slot in slots):
        return
    running = [slot for slot in slots if planner.state(slot.head) == "running"]
    board = Board(planner.known.nodes.values(), planner.alive, {})
    ideal: dict[str, int] = {}
    for node in board.place(service.spec.task, len(running), {}, {}):
        ideal[node] = ideal.get(node, 0) + 1
    actual: dict[str, int] = {}
    for slot in running:
        actual[slot.head.node] = actual.get(slot.head.node, 0) + 1
    if len(ideal) == 0 or _shape(planner, service, actual) == _shape(planner, service, ideal):
        planner.services[service.id] = replace(service, rebalance=False)
        return
    crowded = max(running, key=lambda slot: (actual[slot.head.node] - ideal.get(slot.head.node, 0), str(slot.key)))
    planner.replace_head(crowded, service, service.spec.update.order)


def _overlaps(planner: Planner, slot: Slot) -> bool:
    return any(not planner.ended(task) for task in slot.tasks[:-1])


def _shape(planner: Planner, service: Service, counts: dict[str, int]) -> list[list[int]]:
    """How evenly tasks lie: sorted counts by node, and by the values of each preference. Which node has which is no
    matter.
    """
    shape = [sorted(count for count in counts.values() if count)]
    for key in service.spec.task.placement.preferences:
        by_value: dict[str, int] = {}
        for id, count in counts.items():
            value = attribute(planner.known.nodes[id], key) if id in planner.known.nodes else ""
            by_value[value] = by_value.get(value, 0) + count
        shape.append(sorted(by_value.values()))
    return shape

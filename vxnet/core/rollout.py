"""Rolling updates: heads of an old version give way, a few at a time, and what goes wrong is noticed.

::

     updating ──> completed                           rollback_started ──> rollback_completed
        │                                                 ^      │
        ├── too many new tasks fail, action pause ──> paused     └── … fail ──> rollback_paused
        └── … action rollback ────────────────────────────┘
                                    (what has paused goes on after `service update`, also one that changes nothing)

A slot is *old* as long as its head is of another version than the service's, *under way* until its head runs. A new
task fails the update when it ends within ``monitor_s`` of its start, or never starts. After the last one has run for
that long, the update is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from vxnet.core import rebalance
from vxnet.core.lifecycle import FAILED
from vxnet.core.placement import FAILURES_COUNT
from vxnet.model.service import Service, Task, UpdateState, UpdateStatus

if TYPE_CHECKING:
    from vxnet.core.schedule import Planner, Slot

GOES_ON: Final[dict[UpdateState, UpdateState]] = {"paused": "updating", "rollback_paused": "rollback_started"}
"""What each pause is followed by, once somebody asks for that."""
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
        rebalance.step(planner, service, [slot for slot in slots if slot.in_use])


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


def is_unfinished(service: Service) -> bool:
    """Whether it has tasks of two versions, or may soon."""
    return service.update is not None and service.update.state in {*GOES_ON, *GOES_ON.values()}


def resumed(service: Service, now: float) -> Service:
    """An update that has paused goes on; what has failed by now does not count."""
    state = GOES_ON.get(service.update.state) if service.update is not None else None
    if state is None:
        return service
    return replace(service, update=UpdateStatus(state=state, started_at=now, revisits=True))


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
        failed = [tasks[-1] for slot in self._slots if (tasks := self._failed(slot))]
        if failed and len(failed) / len(self._slots) > config.max_failure_ratio and self._give_up(failed[-1]):
            return
        old = [slot for slot in self._slots if slot.head.version != self._service.version]
        under_way = [slot for slot in self._slots if self._under_way(slot)]
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
        """An update has a version of its own; whoever goes back has that of tasks which were there before."""
        revisits = self._back or self._update.revisits
        return task.version == self._service.version and (not revisits or task.created_at >= self._update.started_at)

    def _failed(self, slot: Slot) -> list[Task]:
        """The slot's new tasks that failed soon."""
        return [task for task in slot.tasks if self._new(task) and self._failed_soon(task)]

    def _failed_soon(self, task: Task) -> bool:
        status = self._planner.statuses.get(task.id)
        if status is None or status.state not in FAILED:
            return False
        return status.started_at is None or status.since - status.started_at <= self._config.monitor_s

    def _under_way(self, slot: Slot) -> bool:
        if slot.head.version != self._service.version or self._planner.state(slot.head) == "running":
            return False
        if self._planner.ended(slot.head):
            return False  # no restart was wanted
        if any(self._new(task) and self._planner.state(task) == "complete" for task in slot.tasks):
            return False  # it does what it is for, again and again
        # One that fails again and again, and may, must not hold up the others; but it may do better on another node.
        enough = 1 if self._config.failure_action == "continue" else FAILURES_COUNT
        return len(self._failed(slot)) < enough

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

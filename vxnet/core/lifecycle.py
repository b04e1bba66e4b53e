"""The life of one task: its states as a table, and when another takes its place.

::

     pending ─> assigned ─> preparing ─> starting ─> running ─┬─> complete   by itself, status 0
        │          │            │           │           │     ├─> failed     by itself, another status, or unhealthy
        │          │            │           │           │     ├─> shutdown   as it was to
        └──────────┴────────────┴───────────┴───────────┴─────┴─> orphaned   its node was lost
                   │            └─> rejected: its node cannot even start it

A task goes forward only, and ends once. States may be skipped: a report that was late was overtaken by a later one.
"""

from __future__ import annotations

from typing import Final, get_args

from vxnet.model.api import TaskReport
from vxnet.model.codec import to_json
from vxnet.model.service import RestartPolicy, Task, TaskState, TaskStatus

ORDER: Final[tuple[TaskState, ...]] = get_args(TaskState)

NEXT: Final[dict[TaskState, tuple[TaskState, ...]]] = {
    "pending": ("assigned", "shutdown", "orphaned"),
    "assigned": ("preparing", "starting", "running", "complete", "shutdown", "failed", "rejected", "orphaned"),
    "preparing": ("starting", "running", "complete", "shutdown", "failed", "rejected", "orphaned"),
    "starting": ("running", "complete", "shutdown", "failed", "orphaned"),
    "running": ("complete", "shutdown", "failed", "orphaned"),
    "complete": (),
    "shutdown": (),
    "failed": (),
    "rejected": (),
    "orphaned": (),
}
"""Where a task may go from each state. The only place that says so."""
ENDED: Final = frozenset(state for state, after in NEXT.items() if not after)
FAILED: Final = frozenset[TaskState](("failed", "rejected"))

BACKOFF_FIRST_S: Final = 0.1
"""Before the second restart in a row, doubling; the policy's delay counts where it is longer."""
BACKOFF_LAST_S: Final = 60.0
SETTLED_S: Final = 10.0
"""A task that ran for so long was no failure in a row, if the policy has no window of its own (as Docker's
``--restart``)."""


MESSAGE_MAX: Final = 2000
"""Characters of what a node says about a task."""
STATUS_MAX: Final = 100_000
"""Octets in JSON: a service's whole specification, with its ports, takes less. A report goes into the store together
with those of other nodes, and what no commit takes (1 MB) would keep theirs out, too."""


def state_of(task: Task, status: TaskStatus | None) -> TaskState:
    if status is not None:
        return status.state
    return "assigned" if task.node else "pending"


def advance(task: Task, status: TaskStatus | None, report: TaskReport, now: float) -> TaskStatus | None:
    """The status after ``report``, which came in at ``now``; None if it tells nothing new, or something that cannot
    be: a report that was overtaken, or of a task that was given up, or one that is too long.
    """
    old = state_of(task, status)
    if report.state != old and report.state not in NEXT[old]:
        return None
    since = now - max(report.age_s, 0.0)
    # A task that has ended ran until then; the others still do.
    until = since if report.state in ENDED else now
    started_at = None if report.ran_s is None else until - max(report.ran_s, 0.0)
    new = TaskStatus(
        task=task.id,
        state=report.state,
        since=since,
        started_at=started_at,
        message=report.message[:MESSAGE_MAX],
        exit_status=report.exit_status,
        container=report.container,
        ports=report.ports,
    )
    if len(to_json(new)) > STATUS_MAX:
        return None
    if status is not None and report.state == old and (old in ENDED or _told(new) == _told(status)):
        return None
    return new


def _told(status: TaskStatus) -> tuple[object, ...]:
    return status.state, status.message, status.exit_status, status.container, status.ports


def orphaned(task: Task, status: TaskStatus | None, why: str, now: float) -> TaskStatus | None:
    """None if it has ended already."""
    if "orphaned" not in NEXT[state_of(task, status)]:
        return None
    return TaskStatus(
        task=task.id,
        state="orphaned",
        since=now,
        started_at=status.started_at if status is not None else None,
        message=why,
        container=status.container if status is not None else "",
    )


def next_attempt(task: Task, status: TaskStatus) -> int:
    """The number of the attempt that follows on ``task``, which has ended by itself."""
    policy = task.spec.restart
    settled_s = policy.window_s or (SETTLED_S if not policy.max_attempts else float("inf"))
    ran_s = status.since - status.started_at if status.started_at is not None else 0.0
    return 1 if ran_s >= settled_s else task.attempt + 1


def may_restart(policy: RestartPolicy, state: TaskState, attempt: int) -> bool:
    """Whether attempt number ``attempt`` follows on a task that has ended with ``state``."""
    if policy.condition == "none" or (policy.condition == "on-failure" and state not in FAILED):
        return False
    return not policy.max_attempts or attempt <= policy.max_attempts


def restart_delay(policy: RestartPolicy, attempt: int) -> float:
    """From the end of a task to the start of attempt number ``attempt`` (from 1), in seconds.

    max(the policy's delay, 0.1 s doubled with each attempt after the first, up to a minute).
    """
    if attempt < 2:
        return policy.delay_s
    return max(policy.delay_s, min(BACKOFF_FIRST_S * 2.0 ** min(attempt - 2, 30), BACKOFF_LAST_S))

"""The life of one task: every pair of states, and walks in random order."""

from __future__ import annotations

import random

import pytest

from vxnet.core.lifecycle import (
    BACKOFF_LAST_S,
    ENDED,
    MESSAGE_MAX,
    NEXT,
    ORDER,
    advance,
    may_restart,
    next_attempt,
    orphaned,
    restart_delay,
    state_of,
)
from vxnet.model.api import TaskReport
from vxnet.model.container import ContainerSpec
from vxnet.model.published import PublishedPort
from vxnet.model.service import RestartPolicy, Task, TaskSpec, TaskStatus

SPEC = TaskSpec(container=ContainerSpec(argv=("x",)))
TASK = Task(id="t", service="s", name="s.1.t", slot=1, node="n", version=1, spec=SPEC, created_at=0.0)


def status(state, **fields):
    return TaskStatus(task="t", state=state, since=10.0, **fields)


def test_the_table_goes_forward_only_and_names_every_state():
    assert tuple(NEXT) == ORDER
    for state, after in NEXT.items():
        assert all(ORDER.index(later) > ORDER.index(state) for later in after)
    assert frozenset(("complete", "shutdown", "failed", "rejected", "orphaned")) == ENDED


@pytest.mark.parametrize("old", ORDER)
@pytest.mark.parametrize("new", ORDER)
def test_each_report_in_each_state(old, new):
    before = None if old in ("pending", "assigned") else status(old)
    task = TASK if old != "pending" else Task(**{**_fields(TASK), "node": ""})
    assert state_of(task, before) == old
    after = advance(task, before, TaskReport(task="t", state=new, container="c"), 20.0)
    if new in NEXT[old]:
        assert after is not None and after.state == new and after.since == 20.0
    elif new == old and old not in ENDED:
        # The same state with something new in it, which is no other state.
        assert after is not None and after.state == old
    else:
        assert after is None


def _fields(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_a_report_that_says_nothing_new_is_none():
    first = advance(TASK, None, TaskReport(task="t", state="running", ran_s=1.0), 20.0)
    assert first is not None and first.started_at == 19.0
    assert advance(TASK, first, TaskReport(task="t", state="running", ran_s=31.0), 50.0) is None


def test_a_report_that_no_commit_takes_keeps_nobody_elses_out():
    long = advance(TASK, None, TaskReport(task="t", state="failed", message="x" * 1_000_000), 20.0)
    assert long is not None and len(long.message) == MESSAGE_MAX
    ports = tuple(PublishedPort(target=80, published=number, interface="x" * 500) for number in range(1, 1001))
    for odd in ({"container": "x" * 1_000_000}, {"ports": ports}):
        assert advance(TASK, None, TaskReport(task="t", state="running", **odd), 20.0) is None


def test_random_reports_never_take_a_task_back(rng: random.Random):
    for _ in range(300):
        now, current, seen = 100.0, None, [state_of(TASK, None)]
        for _ in range(30):
            now += rng.random()
            report = TaskReport(
                task="t", state=rng.choice(ORDER), age_s=rng.random(), ran_s=rng.choice((None, rng.random()))
            )
            after = advance(TASK, current, report, now)
            if rng.random() < 0.1:
                after = orphaned(TASK, current, "gone", now) or after
            current = after or current
            seen.append(state_of(TASK, current))
        places = [ORDER.index(state) for state in seen]
        assert places == sorted(places)
        assert sum(state in ENDED for state in set(seen)) <= 1


def test_times_are_by_the_managers_clock():
    report = TaskReport(task="t", state="failed", age_s=2.0, ran_s=5.0, exit_status=3, message="boom")
    after = advance(TASK, None, report, 1000.0)
    assert after is not None and (after.since, after.started_at) == (998.0, 993.0)
    assert (after.exit_status, after.message) == (3, "boom")


def test_orphaned_only_once():
    assert orphaned(TASK, status("failed"), "gone", 1.0) is None
    given_up = orphaned(TASK, status("running", started_at=4.0, container="c"), "node h3 is down", 11.0)
    assert given_up is not None and (given_up.started_at, given_up.container) == (4.0, "c")
    # It comes back and says that it runs: too late.
    assert advance(TASK, given_up, TaskReport(task="t", state="running"), 12.0) is None


@pytest.mark.parametrize(
    "condition, ended, again",
    [
        ("any", "complete", True),
        ("any", "failed", True),
        ("any", "shutdown", True),
        ("on-failure", "complete", False),
        ("on-failure", "failed", True),
        ("on-failure", "rejected", True),
        ("none", "failed", False),
    ],
)
def test_who_is_restarted(condition, ended, again):
    assert may_restart(RestartPolicy(condition=condition), ended, 1) is again


def test_attempts_and_their_end():
    policy = RestartPolicy(max_attempts=3)
    assert [may_restart(policy, "failed", attempt) for attempt in (1, 3, 4)] == [True, True, False]
    assert may_restart(RestartPolicy(), "failed", 10_000)


@pytest.mark.parametrize(
    "policy, ran_s, attempt",
    [
        (RestartPolicy(), 1.0, 5),
        (RestartPolicy(), 10.0, 1),
        (RestartPolicy(window_s=60.0), 10.0, 5),
        (RestartPolicy(window_s=60.0), 60.0, 1),
        (RestartPolicy(max_attempts=9), 1e6, 5),
        (RestartPolicy(max_attempts=9, window_s=1.0), 1.0, 1),
    ],
)
def test_a_task_that_ran_long_enough_was_no_failure_in_a_row(policy, ran_s, attempt):
    task = Task(**{**_fields(TASK), "attempt": 4, "spec": TaskSpec(container=SPEC.container, restart=policy)})
    assert next_attempt(task, status("failed", started_at=10.0 - ran_s)) == attempt


def test_restarts_back_off():
    at_once = RestartPolicy(delay_s=0.0)
    assert [restart_delay(at_once, attempt) for attempt in range(1, 6)] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert restart_delay(at_once, 1000) == BACKOFF_LAST_S
    assert [restart_delay(RestartPolicy(), attempt) for attempt in (1, 2, 7, 8)] == [5.0, 5.0, 5.0, 6.4]

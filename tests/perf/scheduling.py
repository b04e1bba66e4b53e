"""How long the scheduler thinks about ten thousand tasks on a thousand nodes."""

from __future__ import annotations

import ipaddress
import itertools
import time
from collections.abc import Iterator

from tests.perf.measure import ms, table
from vxnet.core.schedule import State, plan
from vxnet.model.cluster import Node
from vxnet.model.container import ContainerSpec
from vxnet.model.service import Service, ServiceSpec, Task, TaskSpec, TaskStatus

RUNS = 7
NODES = 1000
TASKS = 10_000
SERVICES = (1, 10, 100, 1000)


def cluster(services: int) -> State:
    address = ipaddress.ip_address("192.168.56.1")
    nodes = {
        f"n{number}": Node(
            id=f"n{number}",
            name=f"h{number}",
            role="worker",
            advertise_addr=address,
            data_path_addr=address,
            joined_at=0.0,
        )
        for number in range(NODES)
    }
    spec = TaskSpec(container=ContainerSpec(argv=("serve",)))
    made = {
        f"s{number}": Service(
            id=f"s{number}",
            spec=ServiceSpec(name=f"service-{number}", replicas=TASKS // services, task=spec),
            created_at=0.0,
            updated_at=0.0,
        )
        for number in range(services)
    }
    return State(made, {}, {}, nodes, {})


def carried_out(state: State, ids: Iterator[str]) -> State:
    """All that is planned for ``state`` has been done, and runs."""
    tasks: dict[str, list[Task]] = {}
    statuses = {}
    for change in plan(state, 1.0, ids).changes.values():
        if isinstance(change, Task):
            tasks.setdefault(change.service, []).append(change)
            statuses[change.id] = TaskStatus(task=change.id, state="running", since=1.0, started_at=1.0)
    return state._replace(tasks=tasks, statuses=statuses)


def timed(state: State, ids: Iterator[str]) -> tuple[float, int]:
    """In one thread that waits for nothing: processor time, so that a busy machine does not count."""
    begun = time.process_time()
    changes = plan(state, 1000.0, ids).changes
    return time.process_time() - begun, len(changes)


def main() -> None:
    ids = (f"{number:025d}" for number in itertools.count())
    rows = []
    for services in SERVICES:
        first = [timed(cluster(services), ids) for _ in range(RUNS)]
        assert {changes for _, changes in first} == {TASKS}
        settled = carried_out(cluster(services), ids)
        idle = [timed(settled, ids) for _ in range(RUNS)]
        assert {changes for _, changes in idle} == {0}
        lost = [timed(settled._replace(lost={"n1": 0.0}), ids) for _ in range(RUNS)]
        assert min(changes for _, changes in lost) >= 2 * TASKS // NODES
        rows.append(
            [f"{services} × {TASKS // services}", "100", *(ms([s for s, _ in one]) for one in (first, idle, lost))]
        )
    table(
        f"A plan for {TASKS} tasks on {NODES} nodes, in one process: processor time",
        ["services × replicas", "bound, ms", "all of them new, ms", "nothing to do, ms", "a node is lost, ms"],
        rows,
    )

"""A manager of 1,000 nodes, 500 services and 10,000 tasks on a real etcd: commits, a restart, memory, agents' streams.

::

    three members of etcd, mTLS, on loopback ── filled ──> a manager in a process of its own ──> 200 agents' streams

A commit is one command as an operator gives it (a label of a node): decided, written, and seen again in the mirror.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tests.cluster.etcd_cluster import EtcdCluster
from tests.perf.measure import ms, table
from tests.perf.scheduling import NODES, TASKS, carried_out, cluster
from vxnet.cluster.etcd_store import EtcdStore
from vxnet.core import trust
from vxnet.daemon.manager import Manager
from vxnet.daemon.scheduler import pieces
from vxnet.model.api import NodeUpdate
from vxnet.model.codec import from_json, to_json
from vxnet.model.service import Service
from vxnet.model.store import StoreAccess

SERVICES = 500
COMMITS = 200
AGENTS = 200
DEADLINE_S = 120.0
GROWN = "s0"


class Place(msgspec.Struct):
    """What a manager's process begins with."""

    access: StoreAccess
    node: str
    key: bytes
    certificate: bytes


class Found(msgspec.Struct):
    """Times in seconds."""

    opened: float
    decided: float
    rss: int
    commits: list[float]
    alone: float
    followed: float
    snapshot: int
    """Octets."""
    heard: int
    """Updates that the agents got of commits that were none of theirs."""
    own: int


async def fill(etcd: EtcdCluster) -> Place:
    address = ipaddress.ip_address(etcd.members[0].address)
    access, key = etcd.access(), trust.node_key(os.urandom(32))
    store = await EtcdStore.open(access)
    manager = await Manager.create(store, name="m0", advertise_addr=address, data_path_addr=address, key=key)
    state = carried_out(cluster(SERVICES), (f"{number:025d}" for number in itertools.count()))
    records: dict[str, bytes | None] = {f"node/{id}": to_json(node) for id, node in state.nodes.items()}
    records |= {f"service/{id}": to_json(service) for id, service in state.services.items()}
    records |= {f"task/{task.id}": to_json(task) for tasks in state.tasks.values() for task in tasks}
    records |= {f"status/{id}": to_json(status) for id, status in state.statuses.items()}
    for piece in pieces(records):
        await store.commit(piece)
    grown: Service = state.services[GROWN]
    spec = replace(grown.spec, replicas=grown.spec.replicas + 1)
    await store.commit({f"service/{GROWN}": to_json(replace(grown, spec=spec))})
    await store.close()
    return Place(access, manager.node_id, trust.key_to_pem(key), manager.certificate)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def manage(place: Place) -> Found:
    began = time.monotonic()
    store = await EtcdStore.open(place.access, place.node)
    manager = await Manager.open(
        store, node_id=place.node, key=trust.key_from_pem(place.key), certificate=place.certificate
    )
    opened = time.monotonic() - began
    running = asyncio.create_task(manager.run())
    await until(lambda: len(manager._wishes.tasks_of_service[GROWN]) > TASKS // SERVICES)
    decided = time.monotonic() - began
    commits, alone = await command(manager, 0)
    agents = [Agent(manager, f"n{number}") for number in range(AGENTS)]
    await until(lambda: all(agent.octets for agent in agents))
    before = [agent.updates for agent in agents]
    _, followed = await command(manager, AGENTS)
    heard = sum(agent.updates for agent in agents) - sum(before)
    # A task of one agent's: it hears of it.
    task = next(iter(manager._wishes.tasks_of_node("n0")))
    await store.commit({f"task/{task.id}": to_json(replace(task, slot=task.slot))})
    await until(lambda: agents[0].updates > before[0] + heard)
    own = sum(agent.updates for agent in agents) - sum(before) - heard
    found = Found(opened, decided, rss(), commits, alone, followed, agents[0].octets, heard, own)
    for task_ in (*(agent.task for agent in agents), running):
        task_.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task_
    await manager.close()
    return found


async def command(manager: Manager, base: int) -> tuple[list[float], float]:
    """The wall's time of each, and the processor's of this process a commit."""
    taken, spent = [], time.process_time()
    for number in range(COMMITS):
        began = time.monotonic()
        await manager.update_node(f"n{500 + number % 400}", NodeUpdate(labels_added={"x": f"{base + number}"}))
        taken.append(time.monotonic() - began)
    return taken, (time.process_time() - spent) / COMMITS


class Agent:
    """A stream as one node has it open, encoded as it would be sent."""

    def __init__(self, manager: Manager, node: str) -> None:
        self.updates = self.octets = 0
        self._stream = manager.assignments(node)
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for update in self._stream:
            self.updates += 1
            self.octets += len(to_json(update))


def rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        etcd = EtcdCluster(Path(directory))
        try:
            etcd.start()
            place = to_json(asyncio.run(fill(etcd)))
            done = subprocess.run([sys.executable, "-m", __name__], input=place, stdout=subprocess.PIPE, check=True)
        finally:
            etcd.close()
    found = from_json(done.stdout, Found)
    table(
        f"A manager of {NODES} nodes, {SERVICES} services and {TASKS} tasks on three members of etcd",
        ["", "bound", "found"],
        [
            ["a commit, ms", "≤ 20 (p50)", ms(found.commits)],
            ["restart: the store is read, s", "", f"{found.opened:.2f}"],
            ["restart: the first task is decided and written, s", "≤ 2", f"{found.decided:.2f}"],
            ["resident memory, with the streams, MB", "≤ 150", f"{found.rss / 1e6:.0f}"],
            ["processor a commit, nobody follows, ms", "", f"{found.alone * 1e3:.2f}"],
            [f"processor a commit, {AGENTS} agents follow, ms", "", f"{found.followed * 1e3:.2f}"],
            [f"updates that {AGENTS} agents got of {COMMITS} commits of others", "0", str(found.heard)],
            ["updates of one commit for one agent", "1", str(found.own)],
            ["a snapshot, kB", "", f"{found.snapshot / 1e3:.0f}"],
        ],
    )
    assert statistics.median(found.commits) > 0


if __name__ == "__main__":
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.stdout.buffer.write(to_json(asyncio.run(manage(from_json(sys.stdin.buffer.read(), Place)))))

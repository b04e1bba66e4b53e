"""What is to be done about the services' tasks: everything known in, the records to be changed out.

::

     services, tasks, statuses, nodes, who is lost ──> plan() ──> changes, and when to look again

A service has *slots* (of a global one, the nodes); a slot has tasks, one after the other. The one of the highest
generation is its *head*; the slot is in use unless that one is to stop. A pass goes through each slot (lost hosts,
restarts, hand-overs), counts the slots (scaling), replaces heads of an old version (core/rollout) and finds nodes for
those without one (core/placement).

Level-triggered: the same state gives the same plan, one that was carried out gives an empty one, and one that was
carried out in part is completed. New tasks stand before the end of old ones for that reason.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from vxnet.core import lifecycle, placement, rollout, stamps, templates
from vxnet.core.lifecycle import ENDED, FAILED
from vxnet.core.placement import Board, Rules, Used
from vxnet.model.cluster import Node
from vxnet.model.container import ContainerSpec
from vxnet.model.service import DesiredState, Service, Task, TaskState, TaskStatus, UpdateOrder

HISTORY: Final = 5
"""Tasks kept of a slot, as Docker's ``--task-history-limit``: for people, and to count failures."""
FAILURES_WINDOW_S: Final = 300.0
"""How long a failure speaks against a node (swarmkit's)."""
SHORT_ID: Final = 12
"""Digits of a task's id in its name."""

Change = Service | Task | TaskStatus | None


class State(NamedTuple):
    services: Mapping[str, Service]
    tasks: Mapping[str, Collection[Task]]
    """By service, also of services that are gone."""
    statuses: Mapping[str, TaskStatus]
    nodes: Mapping[str, Node]
    lost: Mapping[str, float]
    """Since when gossip calls a node dead. Who is not in it lives, as far as anybody knows: silence is no death."""


class Plan(NamedTuple):
    changes: dict[str, Change]
    """Records by their store's key, in the order in which they should be written; None: delete."""
    next_at: float | None
    """When to plan again although nothing has happened."""


def plan(known: State, now: float, ids: Iterator[str]) -> Plan:
    """``ids``: of new tasks, each another."""
    return Planner(known, now, ids).run()


def carried(known: State) -> tuple[dict[str, Used], dict[str, dict[str, int]]]:
    """What the tasks take of each node, and how many each service has there."""
    used: dict[str, Used] = {}
    counts: dict[str, dict[str, int]] = {}
    for service, tasks in known.tasks.items():
        of_service: dict[str, int] = {}
        for task in tasks:
            if task.node and lifecycle.state_of(task, known.statuses.get(task.id)) not in ENDED:
                if task.node not in used:
                    used[task.node] = Used()
                used[task.node].add(task.spec)
                if task.desired != "shutdown":
                    of_service[task.node] = of_service.get(task.node, 0) + 1
        counts[service] = of_service
    return used, counts


class Slot:
    """One slot's tasks, oldest first, and what the pass makes of them."""

    __slots__ = ("key", "tasks")

    def __init__(self, key: int | str, tasks: list[Task]) -> None:
        self.key = key
        self.tasks = tasks
        if len(tasks) > 1:
            tasks.sort(key=lambda task: task.generation)

    @property
    def head(self) -> Task:
        return self.tasks[-1]

    @property
    def in_use(self) -> bool:
        return self.tasks[-1].desired != "shutdown"


class Planner:
    def __init__(self, known: State, now: float, ids: Iterator[str]) -> None:
        self.known = known
        self.now = now
        self.ids = ids
        self.next_at: float | None = None
        self.statuses = dict(known.statuses)
        """With the changes of this pass, as everything below."""
        self.services: dict[str, Service] = {}
        self.new: dict[str, Task] = {}
        self.changed: dict[str, Task] = {}
        self.deleted: list[str] = []
        self._plain: ContainerSpec | None = None
        """The last that was looked at and has no templates in it: the tasks of a service share theirs."""
        self._used: dict[str, Used] | None = None
        self.alive = known.nodes.keys() - known.lost.keys()

    def run(self) -> Plan:
        slots: dict[str, list[Slot]] = {}
        for service_id, tasks in self.known.tasks.items():
            if service_id not in self.known.services:
                self._wind_up(tasks)
        for service in self.known.services.values():
            slots[service.id] = self._service(service)
        self._place(slots)
        changes: dict[str, Change] = {}
        old = self.known.statuses
        for id, status in self.statuses.items():
            if status is not old.get(id):
                changes[f"status/{id}"] = status
        changes |= {f"service/{id}": service for id, service in self.services.items()}
        changes |= {f"task/{id}": task for id, task in self.new.items()}
        changes |= {f"task/{id}": task for id, task in self.changed.items()}
        for id in self.deleted:
            changes[f"task/{id}"] = None
            if f"status/{id}" in changes or id in old:
                changes[f"status/{id}"] = None
        # What a plan that was written in part has left.
        known = {task.id for tasks in self.known.tasks.values() for task in tasks}
        changes |= {f"status/{id}": None for id in old.keys() - known}
        return Plan(changes, self.next_at)

    # Questions

    def state(self, task: Task) -> TaskState:
        status = self.statuses.get(task.id)
        if status is not None:
            return status.state
        return "assigned" if task.node else "pending"

    def ended(self, task: Task) -> bool:
        return self.state(task) in ENDED

    def look_again(self, at: float) -> None:
        self.next_at = at if self.next_at is None else min(self.next_at, at)

    def due(self, stamp: float, wait_s: float) -> float:
        return stamps.due(stamp, wait_s, self.now)

    def _fate(self, task: Task) -> str:
        """Why the node of ``task`` is lost for good; empty: it is not, or not yet."""
        if not task.node:
            return ""
        node = self.known.nodes.get(task.node)
        if node is None:
            return "its node was removed from the cluster"
        since = self.known.lost.get(task.node)
        if since is None:
            return ""
        due = since + task.spec.restart.host_grace_s
        if self.now < due:
            self.look_again(due)
            return ""
        return f"node {node.name} is down"

    # Changes

    def keep(self, slot: Slot, place: int, task: Task) -> None:
        slot.tasks[place] = task
        (self.new if task.id in self.new else self.changed)[task.id] = task

    def stop(self, slot: Slot, place: int) -> None:
        task = slot.tasks[place]
        if task.desired != "shutdown":
            self.keep(slot, place, replace(task, desired="shutdown"))
        if not task.node and not self.ended(task):
            # There is nobody who would report its end.
            self.statuses[task.id] = TaskStatus(task=task.id, state="shutdown", since=self.now)

    def make(
        self,
        service: Service,
        key: int | str,
        after: Task | None,
        desired: DesiredState = "running",
        not_before: float = 0.0,
        attempt: int = 0,
    ) -> Task:
        id = next(self.ids)
        slot = key if isinstance(key, int) else 0
        task = Task(
            id=id,
            service=service.id,
            name=f"{service.spec.name}.{key}.{id[:SHORT_ID]}",
            slot=slot,
            generation=after.generation + 1 if after is not None else 1,
            version=service.version,
            spec=service.spec.task,
            desired=desired,
            not_before=not_before,
            attempt=attempt,
            created_at=self.now,
        )
        if isinstance(key, str):
            task = self.settle(service, task, key)
        self.new[id] = task
        return task

    def settle(self, service: Service, task: Task, node_id: str) -> Task:
        """``task`` on its node, with the templates in its texts filled in."""
        container = task.spec.container
        if container is not self._plain:
            if templates.has_templates(container):
                return self._filled(service, task, node_id)
            self._plain = container
        return replace(task, node=node_id)

    def _filled(self, service: Service, task: Task, node_id: str) -> Task:
        container = templates.expand(
            task.spec.container,
            service_id=service.id,
            service_name=service.spec.name,
            labels=service.spec.labels,
            node=self.known.nodes[node_id],
            task_id=task.id,
            task_name=task.name,
            slot=task.slot,
        )
        return replace(task, node=node_id, spec=replace(task.spec, container=container))

    def replace_head(self, slot: Slot, service: Service, order: UpdateOrder) -> None:
        """By a task of the service's present version: made at once, started before or after the end of the old one."""
        head = slot.head
        waits = order == "stop-first" and head.desired == "running" and not self.ended(head)
        task = self.make(service, slot.key, head, "ready" if waits else "running")
        if waits or head.desired == "ready" or not head.node:
            self.stop(slot, len(slot.tasks) - 1)
        slot.tasks.append(task)

    # One service

    def _wind_up(self, tasks: Iterable[Task]) -> None:
        """Of a service that is gone: all end, and what has ended goes."""
        for task in tasks:
            if not task.node or self.ended(task) or self._fate(task):
                self.deleted.append(task.id)
            elif task.desired != "shutdown":
                self.changed[task.id] = replace(task, desired="shutdown")

    def _service(self, service: Service) -> list[Slot]:
        by_key: dict[int | str, list[Task]] = {}
        everywhere = service.spec.mode == "global"
        for task in self.known.tasks.get(service.id, ()):
            by_key.setdefault(task.node if everywhere else task.slot, []).append(task)
        slots = [Slot(key, tasks) for key, tasks in by_key.items()]
        rules = Rules(service.spec.task)
        for slot in slots:
            self._pass(service, rules, slot)
        if everywhere:
            self._global(service, rules, slots)
        else:
            self._scale(service, slots)
        rollout.advance(self, service, slots)
        for slot in slots:
            self._forget(slot)
        return slots

    def _pass(self, service: Service, rules: Rules, slot: Slot) -> None:
        for place, task in enumerate(slot.tasks):
            if task.node and (task.node in self.known.lost or task.node not in self.known.nodes):
                self._give_up(slot, place)
        if not slot.in_use:
            return
        head = slot.head
        state = self.state(head)
        if state in ENDED:
            self._follow_on(service, slot, state)
        elif head.node and (rules.bound or self.known.nodes[head.node].availability == "drain"):
            node = self.known.nodes[head.node]
            if node.availability == "drain" or rules.broken(node):
                self._move(service, slot)
        if len(slot.tasks) > 1:
            self._hand_over(slot)
        elif slot.head.desired == "ready":
            self._let_run(slot)

    def _give_up(self, slot: Slot, place: int) -> None:
        task = slot.tasks[place]
        if self.ended(task) or not (why := self._fate(task)):
            return
        status = lifecycle.orphaned(task, self.statuses.get(task.id), why, self.now)
        if status is not None:
            self.statuses[task.id] = status
        if place < len(slot.tasks) - 1:
            self.stop(slot, place)

    def _follow_on(self, service: Service, slot: Slot, state: TaskState) -> None:
        """The head has ended: is there to be another?"""
        head, place = slot.head, len(slot.tasks) - 1
        if isinstance(slot.key, str) and slot.key not in self.alive:
            self.stop(slot, place)  # a global service comes back with its node
            return
        if state == "orphaned":
            # Also a task that was to wait for its turn takes it over: whom it waited for is looked at again below.
            desired: DesiredState = "running" if head.desired == "running" else "ready"
            new = self.make(service, slot.key, head, desired, head.not_before, head.attempt)
            self.stop(slot, place)
        else:
            status = self.statuses[head.id]
            policy = service.spec.task.restart
            attempt = lifecycle.next_attempt(head, status)
            if not lifecycle.may_restart(policy, state, attempt):
                return
            due = self.due(status.since, lifecycle.restart_delay(policy, attempt))
            desired = "running" if self.now >= due else "ready"
            new = self.make(service, slot.key, head, desired, due, attempt)
            # Told to stop although it has ended: nobody starts it again, not even a node that has lost its records.
            self.stop(slot, place)
        slot.tasks.append(new)

    def _move(self, service: Service, slot: Slot) -> None:
        """The head's node is drained, or no longer one of those that it may be on."""
        if isinstance(slot.key, str):
            self.stop(slot, len(slot.tasks) - 1)
        else:
            self.replace_head(slot, service, service.spec.update.order)

    def _hand_over(self, slot: Slot) -> None:
        """From the predecessors to the head."""
        head = slot.head
        is_there = self.state(head) in ("running", "complete")
        waiting = False
        for place, task in enumerate(slot.tasks[:-1]):
            if self.ended(task):
                continue
            if task.desired != "shutdown":
                # Start-first; or the end of the old one was not written. A node that is drained empties also when no
                # other takes over.
                node = self.known.nodes.get(task.node)
                leaving = (
                    node is not None and node.availability == "drain" and not head.node and head.id not in self.new
                )
                if is_there or head.desired == "ready" or leaving:
                    self.stop(slot, place)
            waiting = True
        if head.desired == "ready" and not waiting:
            self._let_run(slot)

    def _let_run(self, slot: Slot) -> None:
        delay_s = lifecycle.restart_delay(slot.head.spec.restart, slot.head.attempt)
        due = self.due(slot.head.not_before - delay_s, delay_s)
        if self.now >= due:
            self.keep(slot, len(slot.tasks) - 1, replace(slot.head, desired="running"))
        else:
            self.look_again(due)

    def _global(self, service: Service, rules: Rules, slots: list[Slot]) -> None:
        """A slot in use for each node that may have one and has none."""
        last = {slot.key: slot for slot in slots}
        served = {slot.key for slot in slots if slot.in_use}
        for node in self.known.nodes.values():
            used = self._used_of(node.id) if rules.reserves else placement.NOTHING
            if node.id not in served and not rules.refusal(node, node.id in self.alive, 0, used):
                self._begin(service, slots, last, node.id)
                if rules.reserves:
                    used.add(service.spec.task)

    def _used_of(self, node_id: str) -> Used:
        """What is taken of it before this pass finds nodes, and by the global services that come before this one."""
        if self._used is None:
            self._used, _ = carried(self.known)
        return self._used.setdefault(node_id, Used())

    def _scale(self, service: Service, slots: list[Slot]) -> None:
        in_use = {slot.key for slot in slots if slot.in_use}
        if len(in_use) > service.spec.replicas:
            for slot in self._surplus(slots, len(in_use) - service.spec.replicas):
                for place in range(len(slot.tasks)):
                    if not self.ended(slot.tasks[place]) or place == len(slot.tasks) - 1:
                        self.stop(slot, place)
            return
        number = 0
        last = {slot.key: slot for slot in slots}
        for _ in range(service.spec.replicas - len(in_use)):
            number += 1
            while number in in_use:
                number += 1
            self._begin(service, slots, last, number)

    def _begin(self, service: Service, slots: list[Slot], last: Mapping[int | str, Slot], key: int | str) -> None:
        """A task in a slot that is not in use: a new one, or one of ``last`` whose tasks have not all ended yet."""
        old = last.get(key)
        task = self.make(service, key, old.head if old is not None else None)
        if old is not None:
            old.tasks.append(task)
        else:
            slots.append(Slot(key, [task]))

    def _surplus(self, slots: Iterable[Slot], number: int) -> list[Slot]:
        """Those without a node or not running first, then from the nodes with the most of them; of these the newest."""
        by_node: dict[str, list[tuple[bool, int, Slot]]] = {}
        for slot in slots:
            if slot.in_use and isinstance(slot.key, int):
                runs = self.state(slot.head) == "running"
                by_node.setdefault(slot.head.node if runs else "", []).append((runs, slot.key, slot))
        for some in by_node.values():
            some.sort(key=lambda one: one[1])
        chosen = [slot for _, _, slot in reversed(by_node.pop("", []))][:number]
        heap = [(-len(some), node) for node, some in by_node.items()]
        heapq.heapify(heap)
        while len(chosen) < number and heap:
            size, node = heap[0]
            chosen.append(by_node[node].pop()[2])
            if size < -1:
                heapq.heapreplace(heap, (size + 1, node))
            else:
                heapq.heappop(heap)
        return chosen

    def _forget(self, slot: Slot) -> None:
        """What has ended and is not wanted for the history."""
        keep = HISTORY if slot.in_use else 0
        if keep and len(slot.tasks) <= keep:
            return
        spare = len(slot.tasks) - keep
        rest = []
        for task in slot.tasks:
            if spare > 0 and self.ended(task):
                spare -= 1
                self._delete(task)
            else:
                rest.append(task)
        slot.tasks = rest

    def _delete(self, task: Task) -> None:
        if self.new.pop(task.id, None) is not None:
            self.statuses.pop(task.id, None)
        else:
            self.changed.pop(task.id, None)
            self.deleted.append(task.id)

    # All services

    def _place(self, slots: Mapping[str, list[Slot]]) -> None:
        homeless = {
            service: waiting
            for service, some in slots.items()
            if (waiting := [slot for slot in some if slot.tasks and not slot.head.node and slot.in_use])
        }
        if not homeless:
            return
        tasks = {service: [task for slot in some for task in slot.tasks] for service, some in slots.items()}
        gone = {id: some for id, some in self.known.tasks.items() if id not in slots}
        board, counts = self.board(tasks | gone)
        for service_id, waiting in homeless.items():
            service = self.services.get(service_id) or self.known.services[service_id]
            failures = self.failures(service, slots[service_id])
            # In the middle of an update they are of two versions, and fit to other nodes.
            for version in dict.fromkeys(slot.head.version for slot in waiting):
                some = [slot for slot in waiting if slot.head.version == version]
                here = counts[service_id]
                chosen = board.place(some[0].head.spec, len(some), here, failures)
                for slot, node in zip(some, chosen, strict=False):
                    self.keep(slot, len(slot.tasks) - 1, self.settle(service, slot.head, node))
                    here[node] = here.get(node, 0) + 1

    def board(self, tasks: Mapping[str, Collection[Task]]) -> tuple[Board, dict[str, dict[str, int]]]:
        """The nodes with what these ``tasks`` take of them, and how many each service has on each."""
        used, counts = carried(self.known._replace(tasks=tasks, statuses=self.statuses))
        return Board(self.known.nodes.values(), self.alive, used), counts

    def failures(self, service: Service, slots: Iterable[Slot]) -> dict[str, int]:
        """What of late speaks against nodes."""
        failures: Counter[str] = Counter()
        for slot in slots:
            for task in slot.tasks:
                if task.version != service.version or not task.node:
                    continue
                status = self.statuses.get(task.id)
                if status is None or status.state not in FAILED or status.since < self.now - FAILURES_WINDOW_S:
                    continue
                failures[task.node] += 1 if status.state == "failed" else placement.FAILURES_COUNT
        return dict(failures)

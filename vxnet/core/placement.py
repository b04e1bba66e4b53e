"""Where tasks go: which nodes may take one, and which of those does.

Filters in a fixed order, so that a refusal can say of each node the first reason; then the node with the fewest tasks
of the service, then the one with the fewest of all. A preference (``spread=node.labels.zone``) first evens out the
values of a label, and then the nodes within each.
"""

from __future__ import annotations

import heapq
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vxnet.model.cluster import Node
from vxnet.model.errors import CallerError, UnsupportedError
from vxnet.model.service import TaskSpec

FAILURES_COUNT: Final = 3
"""So many failures of a service on a node, and other nodes are preferred."""
_CONSTRAINT: Final = re.compile(r"\s*(node\.[a-zA-Z0-9_./-]+|engine\.[a-zA-Z0-9_./-]+)\s*(==|!=)\s*(\S(?:.*\S)?)\s*")
_FIELDS: Final[dict[str, Callable[[Node], str]]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.name,
    "node.role": lambda node: node.role,
    "node.ip": lambda node: str(node.advertise_addr),
    "node.platform.os": lambda node: node.os,
    "node.platform.arch": lambda node: node.arch,
}
_LABELS: Final = "node.labels."


class Constraint(NamedTuple):
    key: str
    equal: bool
    value: str

    def holds(self, node: Node) -> bool:
        if self.key == "node.ip":
            return (node.advertise_addr in ipaddress.ip_network(self.value, strict=False)) is self.equal
        return (attribute(node, self.key).lower() == self.value.lower()) is self.equal

    def __str__(self) -> str:
        return f"{self.key}{'==' if self.equal else '!='}{self.value}"


def parse_constraint(text: str) -> Constraint:
    """Raises :class:`CallerError`, or :class:`UnsupportedError` for Docker's engine labels."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise CallerError(
            f"{text!r} is no constraint", hint="write KEY==VALUE or KEY!=VALUE, such as node.labels.zone==a"
        )
    key, sign, value = match.groups()
    check_key(key)
    if key == "node.ip":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise CallerError(f"constraint {text!r}: {value!r} is neither an address nor a prefix") from None
    return Constraint(key, sign == "==", value)


def check_key(key: str) -> None:
    if key.startswith("engine."):
        raise UnsupportedError(f"{key}: there is no engine that has labels", hint="use `vxnet node update --label-add`")
    if key not in _FIELDS and (not key.startswith(_LABELS) or key == _LABELS):
        raise CallerError(
            f"nodes have no {key!r}", hint=f"there are {', '.join(_FIELDS)} and {_LABELS}KEY (node update --label-add)"
        )


def attribute(node: Node, key: str) -> str:
    """Empty if the node has no such label."""
    field = _FIELDS.get(key)
    return field(node) if field is not None else node.labels.get(key.removeprefix(_LABELS), "")


def _ports_of(spec: TaskSpec) -> set[tuple[int, str]]:
    """Of the node itself; whatever they are bound to there."""
    return {(port.published, port.protocol) for port in spec.container.ports if port.published}


@dataclass(slots=True)
class Used:
    """What the tasks on a node take of it. Counts up while a plan is made, ten thousand times and more."""

    tasks: int = 0
    cpus: float = 0.0
    memory: int = 0
    ports: set[tuple[int, str]] | None = None

    def add(self, spec: TaskSpec) -> None:
        self.tasks += 1
        if spec.container.ports:
            self.ports = (self.ports or set()) | _ports_of(spec)
        self.cpus += spec.reserve_cpus
        self.memory += spec.reserve_memory


NOTHING: Final = Used()
"""Never added to."""


class Rules:
    """What ``spec`` asks of a node, in the order in which a refusal names it."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._constraints = [parse_constraint(text) for text in spec.placement.constraints]
        self.max_per_node = spec.placement.max_per_node or None
        self._ports = _ports_of(spec)
        self.reserves = bool(spec.reserve_cpus or spec.reserve_memory or self._ports)

    @property
    def bound(self) -> bool:
        """Whether a node that has taken a task may be unfit for it later."""
        return bool(self._constraints)

    def broken(self, node: Node) -> str:
        """The constraint that does not hold; empty: all do."""
        for constraint in self._constraints:
            if not constraint.holds(node):
                return f"not {constraint}"
        return ""

    def unfit(self, node: Node, alive: bool) -> str:
        """Why no task is to begin on ``node``, whatever it carries; empty: one may."""
        if not alive:
            return "down"
        if node.availability != "active":
            return "paused" if node.availability == "pause" else "drained"
        return self.broken(node)

    def refusal(self, node: Node, alive: bool, of_service: int, used: Used) -> str:
        """Why ``node``, which has ``of_service`` tasks of the service, cannot take one more; empty: it can."""
        if unfit := self.unfit(node, alive):
            return unfit
        if self.max_per_node is not None and of_service >= self.max_per_node:
            return f"at --replicas-max-per-node {self.max_per_node}"
        return self.short_of(node, used) if self.reserves else ""

    def short_of(self, node: Node, used: Used) -> str:
        """A node that has not told yet what it has is short of everything that is asked for."""
        spec = self._spec
        # Sums of fractions: a millionth of a processor is nobody's.
        if spec.reserve_cpus and used.cpus + spec.reserve_cpus > node.cpus + 1e-6:
            return f"short of CPUs (of {spec.reserve_cpus:g} to be reserved)"
        if spec.reserve_memory and used.memory + spec.reserve_memory > node.memory:
            return f"short of memory (of {spec.reserve_memory >> 20} MiB to be reserved)"
        if self._ports:
            taken = {(one.number, one.protocol) for one in node.ports} | (used.ports or set())
            for number, protocol in sorted(self._ports & taken):
                return f"with port {number}/{protocol} taken"
        return ""


def explain(
    rules: Rules,
    nodes: Collection[Node],
    alive: Collection[str],
    of_service: Mapping[str, int],
    used: Mapping[str, Used],
) -> str:
    """``no suitable node (3 nodes: 1 drained, 2 not node.labels.zone==a)``: each node counts for its first reason."""
    reasons = Counter(
        rules.refusal(node, node.id in alive, of_service.get(node.id, 0), used.get(node.id, NOTHING)) for node in nodes
    )
    told = ", ".join(f"{count} {reason or 'free by now'}" for reason, count in reasons.most_common())
    return f"no suitable node ({len(nodes)} node{'s' if len(nodes) != 1 else ''}: {told})"


class Board:
    """All nodes with what they carry: the same one for all services of a plan, so that each sees the others' tasks.
    ``used`` is counted up.
    """

    def __init__(self, nodes: Iterable[Node], alive: Collection[str], used: Mapping[str, Used]) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.id)
        self.alive = alive
        self.used = {node.id: used.get(node.id) or Used() for node in self.nodes}
        self._least: list[tuple[int, int]] = []
        """Heap of (tasks, place in ``nodes``), for services that take each node once at most; an entry that is out of
        date is put right when it comes up."""

    def place(
        self, spec: TaskSpec, number: int, of_service: Mapping[str, int], failures: Mapping[str, int]
    ) -> list[str]:
        """Ids of the nodes that take the next ``number`` tasks; fewer if there is no room for more."""
        rules = Rules(spec)
        if spec.placement.preferences:
            chosen = _spread(self, rules, spec, number, of_service, failures)
        elif not failures and number + len(of_service) <= len(self.nodes):
            chosen = self._once_each(rules, spec, number, of_service)
        else:
            chosen = _first(_Queue(self, rules, spec, of_service, failures, self.nodes), number)
        return chosen

    def take(self, node: str, spec: TaskSpec) -> None:
        self.used[node].add(spec)

    def _once_each(self, rules: Rules, spec: TaskSpec, number: int, of_service: Mapping[str, int]) -> list[str]:
        """From the least loaded node on, those without a task of the service. Where they are too few, evenly."""
        if not self._least:
            self._least = [(self.used[node.id].tasks, place) for place, node in enumerate(self.nodes)]
            heapq.heapify(self._least)
        chosen: list[str] = []
        passed: list[tuple[int, int]] = []
        least = self._least
        while least and len(chosen) < number:
            tasks, place = least[0]
            node = self.nodes[place]
            used = self.used[node.id]
            if used.tasks != tasks:
                heapq.heapreplace(least, (used.tasks, place))
                continue
            if node.id in of_service or rules.refusal(node, node.id in self.alive, 0, used):
                passed.append(heapq.heappop(least))
                continue
            passed.append((tasks + 1, place))
            heapq.heappop(least)
            self.take(node.id, spec)
            chosen.append(node.id)
        for entry in passed:
            heapq.heappush(least, entry)
        if len(chosen) < number:
            counts = dict(of_service)
            for id in chosen:
                counts[id] = counts.get(id, 0) + 1
            chosen += _first(_Queue(self, rules, spec, counts, {}, self.nodes), number - len(chosen))
        return chosen


class _Queue:
    """Who of ``nodes`` takes the next task, and the next, and so on."""

    def __init__(
        self,
        board: Board,
        rules: Rules,
        spec: TaskSpec,
        of_service: Mapping[str, int],
        failures: Mapping[str, int],
        nodes: Sequence[Node],
    ) -> None:
        self._board, self._rules, self._spec, self._nodes = board, rules, spec, nodes
        self._heap: list[tuple[int, int, int, int]] = []
        for place, node in enumerate(nodes):
            count, used = of_service.get(node.id, 0), board.used[node.id]
            if not rules.refusal(node, node.id in board.alive, count, used):
                failed = failures.get(node.id, 0)
                self._heap.append((failed if failed >= FAILURES_COUNT else 0, count, used.tasks, place))
        heapq.heapify(self._heap)

    def next(self) -> str | None:
        """None: nobody has room any more."""
        if not self._heap:
            return None
        failed, count, tasks, place = self._heap[0]
        node, rules = self._nodes[place], self._rules
        self._board.take(node.id, self._spec)
        full = rules.max_per_node is not None and count + 1 >= rules.max_per_node
        if full or (rules.reserves and rules.short_of(node, self._board.used[node.id])):
            heapq.heappop(self._heap)
        else:
            heapq.heapreplace(self._heap, (failed, count + 1, tasks + 1, place))
        return node.id


class _Branch:
    """The nodes with one value of a preference's key: further branches, or at the last key a queue."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.branches: dict[str, _Branch] = {}
        self.queue: _Queue | None = None

    def next(self) -> str | None:
        """From the value with the fewest tasks. None: nothing here has room."""
        while self.branches:
            value = min(self.branches, key=lambda value: (self.branches[value].tasks, value))
            id = self.branches[value].next()
            if id is not None:
                self.tasks += 1
                return id
            del self.branches[value]
        id = self.queue.next() if self.queue is not None else None
        self.tasks += id is not None
        return id


def _spread(
    board: Board,
    rules: Rules,
    spec: TaskSpec,
    number: int,
    of_service: Mapping[str, int],
    failures: Mapping[str, int],
) -> list[str]:
    keys = spec.placement.preferences

    def branch(nodes: Sequence[Node], depth: int) -> _Branch:
        here = _Branch(sum(of_service.get(node.id, 0) for node in nodes))
        if depth == len(keys):
            here.queue = _Queue(board, rules, spec, of_service, failures, nodes)
            return here
        by_value: dict[str, list[Node]] = {}
        for node in nodes:
            by_value.setdefault(attribute(node, keys[depth]), []).append(node)
        here.branches = {value: branch(some, depth + 1) for value, some in by_value.items()}
        return here

    return _first(branch(board.nodes, 0), number)


def _first(source: _Queue | _Branch, number: int) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < number and (id := source.next()) is not None:
        chosen.append(id)
    return chosen

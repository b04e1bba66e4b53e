"""Tasks are moved until they lie evenly, where somebody has asked for that: ``vxnet service update --rebalance``.

One at a time, from where there are the most to where a new one would be placed now, for as long as they lie more evenly
then. Where others have filled the nodes, or tasks fail, an even spread may not be had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from vxnet.core.lifecycle import ENDED
from vxnet.core.placement import FAILURES_COUNT, attribute
from vxnet.model.cluster import Node
from vxnet.model.service import Service

if TYPE_CHECKING:
    from vxnet.core.schedule import Planner, Slot

CROWDS_LOOKED_AT: Final = 16
"""At each move: every look is one at all nodes."""

Place = tuple[str, ...]
"""A node's value of the first preference, of the second …, and its id; or only the beginning of that."""


def step(planner: Planner, service: Service, slots: Sequence[Slot]) -> None:
    """The next move, once the one before is over; or the end."""
    if any(planner.state(slot.head) not in ENDED | {"running"} or _overlaps(planner, slot) for slot in slots):
        return
    spread = _Spread(planner.known.nodes, service.spec.task.placement.preferences)
    # Those of a global service are where they belong.
    movable = slots if service.spec.mode == "replicated" else ()
    running = [slot for slot in movable if planner.state(slot.head) == "running"]
    actual = Counter(slot.head.node for slot in running)
    before = spread.unevenness(actual)
    # What moves to where one has failed comes back, and would be moved again.
    failures = dict.fromkeys(planner.failures(service, slots), FAILURES_COUNT)
    for slot in _crowded(spread, running, actual):
        left = actual - Counter([slot.head.node])
        board, _ = planner.board(planner.known.tasks)
        target = [node for node in board.place(service.spec.task, 1, left, failures) if node not in failures]
        if target and spread.unevenness(left + Counter(target)) < before:
            planner.replace_head(slot, service, service.spec.update.order)
            return
    planner.services[service.id] = replace(service, rebalance=False)


def _overlaps(planner: Planner, slot: Slot) -> bool:
    return any(not planner.ended(task) for task in slot.tasks[:-1])


def _crowded(spread: _Spread, running: Iterable[Slot], by_node: Mapping[str, int]) -> list[Slot]:
    """One of the fullest node with each value of the preferences, those of the fullest values first."""
    crowds = spread.crowds(by_node)
    found: dict[Place, tuple[list[int], str, Slot]] = {}
    for slot in running:
        *values, place = spread.places(slot.head.node)
        around = [crowd[one] for crowd, one in zip(crowds, (*values, place), strict=True)]
        here = (around, str(slot.key), slot)
        found[place[:-1]] = max(found.get(place[:-1], here), here, key=lambda one: one[:2])
    fullest_first = sorted(found.values(), key=lambda one: one[:2], reverse=True)
    return [slot for _, _, slot in fullest_first[:CROWDS_LOOKED_AT]]


class _Spread:
    """How tasks lie on the nodes, as a service's preferences see it."""

    def __init__(self, nodes: Mapping[str, Node], preferences: Sequence[str]) -> None:
        self._nodes = nodes
        self._keys = preferences

    def places(self, node_id: str) -> list[Place]:
        """The widest first."""
        node = self._nodes.get(node_id)
        whole = (*(attribute(node, key) if node is not None else "" for key in self._keys), node_id)
        return [whole[: depth + 1] for depth in range(len(whole))]

    def crowds(self, by_node: Mapping[str, int]) -> list[Counter[Place]]:
        """How many tasks there are in each place, the widest places first."""
        crowds: list[Counter[Place]] = [Counter() for _ in range(len(self._keys) + 1)]
        for node, count in by_node.items():
            for crowd, place in zip(crowds, self.places(node), strict=True):
                crowd[place] += count
        return crowds

    def unevenness(self, by_node: Mapping[str, int]) -> list[int]:
        """Less is more even; the first preference counts first. Every move makes it less, and so they come to an
        end."""
        return [sum(count**2 for count in crowd.values()) for crowd in self.crowds(by_node)]

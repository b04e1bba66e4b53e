"""Why tasks have no node, in words for people."""

from __future__ import annotations

from vxnet.core import placement
from vxnet.core.lifecycle import state_of
from vxnet.core.placement import Rules
from vxnet.core.schedule import State, carried
from vxnet.model.service import Service


def why(known: State, service: Service) -> str:
    """Empty if all tasks of ``service`` have one, and of a global service all nodes a task that may."""
    if service.spec.mode == "global":
        return _without_room(known, service)
    tasks = known.tasks.get(service.id, ())
    waiting = [task for task in tasks if state_of(task, known.statuses.get(task.id)) == "pending"]
    if not waiting:
        return ""
    used, of_service = carried(known)
    alive = known.nodes.keys() - known.lost.keys()
    return placement.explain(
        Rules(waiting[0].spec), tuple(known.nodes.values()), alive, of_service.get(service.id, {}), used
    )


def _without_room(known: State, service: Service) -> str:
    """``short of CPUs (of 2 to be reserved) on h1, h3``."""
    rules = Rules(service.spec.task)
    if not rules.reserves:
        return ""
    used, of_service = carried(known)
    served = of_service.get(service.id, {})
    by_reason: dict[str, list[str]] = {}
    for node in known.nodes.values():
        may = node.id not in served and not rules.unfit(node, node.id not in known.lost)
        if may and (reason := rules.short_of(node, used.get(node.id, placement.NOTHING))):
            by_reason.setdefault(reason, []).append(node.name)
    return "; ".join(f"{reason} on {', '.join(sorted(names))}" for reason, names in sorted(by_reason.items()))

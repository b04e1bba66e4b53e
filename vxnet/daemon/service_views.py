"""What people are shown of services and their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vxnet.core import unplaced
from vxnet.core.lifecycle import state_of
from vxnet.core.schedule import State
from vxnet.model.api import ServiceView, TaskView
from vxnet.model.cluster import Network
from vxnet.model.service import Service, Task


def services(known: State, networks: Mapping[str, Network]) -> tuple[ServiceView, ...]:
    return tuple(
        _service(known, service, networks) for service in sorted(known.services.values(), key=lambda one: one.name)
    )


def _service(known: State, service: Service, networks: Mapping[str, Network]) -> ServiceView:
    wanted = [task for task in known.tasks.get(service.id, ()) if task.desired != "shutdown"]
    states = [state_of(task, known.statuses.get(task.id)) for task in wanted if task.node not in known.lost]
    return ServiceView(
        service=service,
        running=states.count("running"),
        wanted=service.spec.replicas if service.spec.mode == "replicated" else len(wanted),
        networks={
            place.network: networks[place.network].name for place in service.networks if place.network in networks
        },
        pending=unplaced.why(known, service),
    )


def tasks(known: State, some: Iterable[Task]) -> tuple[TaskView, ...]:
    """By service and slot, the newest of a slot first."""
    newest: dict[tuple[str, int, str], int] = {}
    for task in some:
        slot = (task.service, task.slot, "" if task.slot else task.node)
        newest[slot] = max(task.generation, newest.get(slot, 0))
    views = []
    for task in some:
        service = known.services.get(task.service)
        node = known.nodes.get(task.node)
        status = known.statuses.get(task.id)
        slot = (task.service, task.slot, "" if task.slot else task.node)
        message = status.message if status is not None else ""
        if not task.node and service is not None:
            message = unplaced.why(known, service)
        view = TaskView(
            id=task.id,
            name=task.name,
            service=service.name if service is not None else task.service,
            node=node.name if node is not None else task.node,
            desired=task.desired,
            state=state_of(task, status),
            since=status.since if status is not None else task.created_at,
            started_at=status.started_at if status is not None else None,
            message=message,
            exit_status=status.exit_status if status is not None else None,
            container=status.container if status is not None else "",
            superseded=task.generation < newest[slot],
            version=task.version,
            argv=task.spec.container.argv,
            ports=(status.ports if status is not None else ()) or task.spec.container.ports,
        )
        views.append((view.service, task.slot, view.node if not task.slot else "", -task.generation, view))
    views.sort(key=lambda one: one[:4])
    return tuple(view for *_, view in views)

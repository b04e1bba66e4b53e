"""What happened, told from two looks at a host: nobody has to report a happening, so none is reported twice or wrongly.

The words are Docker's. What began and ended between two looks is told in the order in which it must have been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vxnet.model.api import Event, EventType
from vxnet.model.cluster import Network
from vxnet.model.container import Container
from vxnet.model.service import PublicService

UNKNOWN_NETWORK = "?"


class Look(NamedTuple):
    """At everything that events are about."""

    containers: Mapping[str, Container] = {}
    networks: Mapping[str, Network] = {}
    services: tuple[PublicService, ...] = ()
    nodes: Mapping[str, tuple[str, str]] = {}
    """Id → (name, status in the words of ``node ls``)."""
    repairs: int = 0
    """Of the kernel's state, since the daemon's start."""


def happened(before: Look, after: Look, now: float) -> list[Event]:
    """``now``: seconds since 1970."""
    found: list[Event] = []
    if before.nodes != after.nodes:
        found += _nodes(before.nodes, after.nodes, now)
    if before.networks is not after.networks:
        found += _networks(before.networks, after.networks, now)
    if before.services is not after.services:
        found += _services({one.id: one for one in before.services}, {one.id: one for one in after.services}, now)
    found += _containers(before, after, now)
    if after.repairs > before.repairs:
        found.append(_event("daemon", "repair", "", "", now, repairs=str(after.repairs)))
    return found


def _nodes(before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str]], now: float) -> Iterator[Event]:
    for node in before.keys() - after.keys():
        yield _event("node", "remove", node, before[node][0], now)
    for node, (name, status) in after.items():
        if node not in before:
            yield _event("node", "create", node, name, now, **{"state.new": status})
        elif before[node][1] != status:
            yield _event("node", "update", node, name, now, **{"state.old": before[node][1], "state.new": status})


def _networks(before: Mapping[str, Network], after: Mapping[str, Network], now: float) -> Iterator[Event]:
    for id in before.keys() - after.keys():
        yield _event("network", "remove", id, before[id].name, now)
    for id, network in after.items():
        if id not in before:
            yield _event("network", "create", id, network.name, now, driver=network.driver)
        elif before[id] != network:
            yield _event("network", "update", id, network.name, now, driver=network.driver)


def _services(before: Mapping[str, PublicService], after: Mapping[str, PublicService], now: float) -> Iterator[Event]:
    for id in before.keys() - after.keys():
        yield _event("service", "remove", id, before[id].name, now)
    for id, service in after.items():
        if id not in before:
            yield _event("service", "create", id, service.name, now)
        elif before[id] != service:
            yield _event("service", "update", id, service.name, now)


def _containers(before: Look, after: Look, now: float) -> Iterator[Event]:
    networks = {**before.networks, **after.networks}
    for id, was in before.containers.items():
        if id not in after.containers:
            if was.state == "running":
                yield _about(was, "die", now)
            yield from _moves(was, None, networks, now)
            yield _about(was, "destroy", now)
    for id, container in after.containers.items():
        known = before.containers.get(id)
        if known is container:
            continue
        if known is None:
            yield _about(container, "create", now)
        elif known.spec.name != container.spec.name:
            yield _about(container, "rename", now, oldName=known.spec.name)
        yield from _moves(known, container, networks, now)
        yield from _life(known, container, now)


def _life(known: Container | None, container: Container, now: float) -> Iterator[Event]:
    """Between two looks it may have run and ended, or ended and run again."""
    runs = container.state == "running"
    if known is not None and known.state == "running":
        if not runs:
            yield _about(container, "die", now, exitCode=_status(container))
        elif known.pid != container.pid and known.pid:
            yield _about(known, "die", now)
            yield _about(container, "start", now)
    elif runs:
        yield _about(container, "start", now)
    elif container.started_at is not None and (known is None or known.finished_at != container.finished_at):
        yield _about(container, "start", now)
        yield _about(container, "die", now, exitCode=_status(container))


def _status(container: Container) -> str:
    return "" if container.exit_status is None else str(container.exit_status)


def _moves(
    known: Container | None, container: Container | None, networks: Mapping[str, Network], now: float
) -> Iterator[Event]:
    """A container's comings to networks and goings from them."""
    one = container or known
    assert one is not None
    was = {attachment.network for attachment in known.attachments} if known is not None else set()
    now_on = {attachment.network for attachment in container.attachments} if container is not None else set()
    for action, ids in (("disconnect", was - now_on), ("connect", now_on - was)):
        for id in sorted(ids):
            name = networks[id].name if id in networks else UNKNOWN_NETWORK
            yield _event("network", action, id, name, now, container=one.id)


def _about(container: Container, action: str, now: float, **attributes: str) -> Event:
    labels = {**container.spec.labels, **{key: value for key, value in attributes.items() if value}}
    return _event("container", action, container.id, container.spec.name, now, **labels)


def _event(type: EventType, action: str, id: str, name: str, now: float, **attributes: str) -> Event:
    return Event(time=now, type=type, action=action, id=id, name=name, attributes=attributes)

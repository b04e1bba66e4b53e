"""A service as a page to be read: `service inspect --pretty`, in Docker's words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vxnet.cli import output
from vxnet.model.api import ServiceView
from vxnet.model.service import TaskSpec, UpdateConfig

Line = tuple[str, str]
"""Name, indented by one blank a level, and value; an empty value is left out, but for titles."""


def page(view: ServiceView) -> str:
    lines = [line for line in _lines(view) if line[1] or line[0].endswith(":")]
    # A title whose lines were all left out says nothing.
    kept = [
        (name, value)
        for (name, value), below in zip(lines, [*lines[1:], ("", "")], strict=True)
        if value or below[0].startswith(" ")
    ]
    width = max(len(name.rstrip(":")) for name, _ in kept) + 2
    return "".join(f"{name.rstrip(':') + ':':{width}}{output.printable(value)}".rstrip() + "\n" for name, value in kept)


def _lines(view: ServiceView) -> Iterator[Line]:
    service, spec = view.service, view.service.spec
    yield "ID", service.id
    yield "Name", spec.name
    yield "Labels:", ""
    yield from _pairs(spec.labels)
    yield "Service Mode", spec.mode.capitalize()
    yield " Replicas", f"{spec.replicas} ({view.running} running)" if spec.mode == "replicated" else ""
    yield "Pending", view.pending
    if service.update is not None:
        yield "UpdateStatus:", ""
        yield " State", service.update.state
        yield " Started", f"{output.since(service.update.started_at)} ago"
        if service.update.completed_at is not None:
            yield " Completed", f"{output.since(service.update.completed_at)} ago"
        yield " Message", service.update.message
    yield "Placement:", ""
    yield " Constraints", ", ".join(spec.task.placement.constraints)
    yield " Preferences", ", ".join(f"spread={key}" for key in spec.task.placement.preferences)
    yield " Max Replicas Per Node", _number(spec.task.placement.max_per_node)
    for title, config in (("UpdateConfig:", spec.update), ("RollbackConfig:", spec.rollback)):
        yield title, ""
        yield from _update(config)
    yield from _task(spec.task)
    yield "Networks:", ""
    for place in service.networks:
        words = [str(vip) for vip in place.vips]
        words += [f"aliases {', '.join(place.aliases)}"] if place.aliases else []
        yield f" {view.networks.get(place.network, place.network)}", "; ".join(words) or "-"
    yield "Endpoint Mode", spec.endpoint_mode
    yield "Affinity", spec.affinity
    yield "Ports", output.ports(spec.ports)
    yield "Mesh:", ""
    for one in view.mesh:
        yield f" {one.port.published}/{one.port.protocol}:", ""
        for choice in one.choices:
            tasks = ", ".join(each.task for each in choice.tasks) or "-"
            yield f"  {choice.node}", f"{tasks} ({choice.why})"


def _update(config: UpdateConfig) -> Iterator[Line]:
    yield " Parallelism", str(config.parallelism)
    yield " Delay", f"{config.delay_s:g}s" if config.delay_s else ""
    yield " On failure", config.failure_action
    yield " Monitoring Period", f"{config.monitor_s:g}s"
    yield " Max failure ratio", f"{config.max_failure_ratio:g}"
    yield " Update order", config.order


def _task(task: TaskSpec) -> Iterator[Line]:
    container = task.container
    yield "ContainerSpec:", ""
    yield " Args", " ".join(container.argv)
    yield " Env", " ".join(container.env)
    yield " Dir", container.workdir
    yield " User", container.user
    yield " Hostname", container.hostname
    yield " Mounts", ", ".join(f"{one.source}:{one.target}{':ro' * one.read_only}" for one in container.mounts)
    yield " Healthcheck", " ".join(task.health.argv) if task.health is not None else ""
    yield "Resources:", ""
    yield " Reservations", _resources(task.reserve_cpus, task.reserve_memory)
    yield " Limits", _resources(container.cpus, container.memory)
    yield "RestartPolicy:", ""
    yield " Condition", task.restart.condition
    yield " Delay", f"{task.restart.delay_s:g}s"
    yield " Max attempts", _number(task.restart.max_attempts)
    yield " Host grace", f"{task.restart.host_grace_s:g}s"


def _pairs(pairs: dict[str, str]) -> Iterable[Line]:
    return [(f" {key}", value or "-") for key, value in sorted(pairs.items())]


def _number(number: int) -> str:
    return str(number) if number else ""


def _resources(cpus: float, memory: int) -> str:
    words = [f"{cpus:g} CPU"] if cpus else []
    return ", ".join([*words, f"{memory / (1 << 20):g} MiB"] if memory else words)

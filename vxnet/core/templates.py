"""Swarm's templates in a service's texts: ``{{.Task.Slot}}``, ``{{.Node.Hostname}}`` …

They stand in host names, environment variables and mounts, and are filled in when a task is placed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from vxnet.model.cluster import Node
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError

_TEMPLATE: Final = re.compile(r"\{\{(.*?)\}\}")
_LABEL: Final = re.compile(r'index\s+\.Service\.Labels\s+"([^"]*)"|\.Service\.Labels\.(\S+)')
WORDS: Final = (
    ".Service.ID",
    ".Service.Name",
    ".Node.ID",
    ".Node.Hostname",
    ".Node.Platform.OS",
    ".Node.Platform.Architecture",
    ".Task.ID",
    ".Task.Name",
    ".Task.Slot",
)
"""And ``.Service.Labels.KEY`` (``index .Service.Labels "KEY"``)."""


def example(spec: ContainerSpec) -> ContainerSpec:
    """With ``x`` for each template. Raises :class:`CallerError` naming one that is none."""
    words = dict.fromkeys(WORDS, "x")
    return _filled(spec, lambda text: _fill(text, words, None))


def has_templates(spec: ContainerSpec) -> bool:
    texts = (spec.hostname, *spec.env, *(mount.source for mount in spec.mounts), *(m.target for m in spec.mounts))
    return any("{{" in text for text in texts)


def expand(
    spec: ContainerSpec,
    *,
    service_id: str,
    service_name: str,
    labels: Mapping[str, str],
    node: Node,
    task_id: str,
    task_name: str,
    slot: int,
) -> ContainerSpec:
    """``labels`` are the service's; one that it has not is empty. In a global service the node's id is the slot."""
    values = (
        service_id,
        service_name,
        node.id,
        node.name,
        node.os,
        node.arch,
        task_id,
        task_name,
        str(slot) if slot else node.id,
    )
    words = dict(zip(WORDS, values, strict=True))
    return _filled(spec, lambda text: _fill(text, words, labels))


def _filled(spec: ContainerSpec, fill: Callable[[str], str]) -> ContainerSpec:
    return replace(
        spec,
        hostname=fill(spec.hostname),
        env=tuple(map(fill, spec.env)),
        mounts=tuple(replace(mount, source=fill(mount.source), target=fill(mount.target)) for mount in spec.mounts),
    )


def _fill(text: str, words: Mapping[str, str], labels: Mapping[str, str] | None) -> str:
    """Without ``labels`` it is an example, and strict."""

    def value(match: re.Match[str]) -> str:
        word = match[1].strip()
        if word in words:
            return words[word]
        if label := _LABEL.fullmatch(word):
            return labels.get(label[1] or label[2], "") if labels is not None else "x"
        if labels is None:
            raise CallerError(
                f"there is no template {match[0]!r}",
                hint=f"there are {', '.join(WORDS)} and .Service.Labels.KEY, each in {{{{…}}}}",
            )
        return match[0]

    if "{{" not in text:
        return text
    filled = _TEMPLATE.sub(value, text)
    if labels is None and "{{" in filled:
        raise CallerError(f"in {text!r} a template has no end", hint="write }} behind it")
    return filled

"""Names for the shell's completion. A daemon that does not answer at once means no proposals, never an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from vxnet.cluster.client import Client
from vxnet.model.errors import VxnetError

_PATIENCE_S = 1.0

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _names(ask: Callable[[Client], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        # Completion parses the line without running the root command, which makes the client otherwise.
        socket = ctx.find_root().params.get("socket") or ""
        try:
            names = list(ask(Client(socket, timeout_s=_PATIENCE_S)))
        except (VxnetError, OSError):
            return []
        return [name for name in names if name.startswith(incomplete)]

    return complete


node_names = _names(lambda client: (view.node.name for view in client.nodes()))
network_names = _names(lambda client: (network.name for network in client.networks()))
service_names = _names(lambda client: (view.service.spec.name for view in client.services()))
container_names = _names(lambda client: (view.name for view in client.containers(all=True)))
connected_names = _names(
    lambda client: [view.name for view in client.containers()] + [view.name for view in client.guests()]
)
running_names = _names(lambda client: (view.name for view in client.containers()))


def words(*proposals: str) -> Complete:
    """Of a fixed list."""
    return lambda ctx, param, incomplete: [word for word in proposals if word.startswith(incomplete.upper())]

"""Which nodes are managers: who may become one, and who may cease to be one without taking the store along."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from vxnet.core import networks
from vxnet.core.decisions import Decision, remove_node
from vxnet.core.wishes import Counter, Wishes
from vxnet.model.cluster import Node
from vxnet.model.errors import ConflictError


def promote(wishes: Wishes, ref: str) -> tuple[Decision, Node]:
    """Raises :class:`NotFoundError`. The node does the rest by itself: it asks for a certificate and for the store."""
    node = networks.find(ref, wishes.nodes.values(), "node")
    if node.role == "manager":
        return Decision({}), node
    changed = replace(node, role="manager")
    return Decision({f"node/{node.id}": changed, "set/node": Counter()}, [f"node/{node.id}", "set/node"]), changed


def demote(wishes: Wishes, ref: str, alive: Callable[[str], bool], *, managed: bool) -> tuple[Decision, Node]:
    """``managed``: each manager has a member of the store. Raises :class:`NotFoundError`, :class:`ConflictError` if
    there would be no store, or no quorum of it.
    """
    node = networks.find(ref, wishes.nodes.values(), "node")
    if node.role == "worker":
        return Decision({}), node
    _check_spared(wishes, node, alive, managed=managed)
    changed = replace(node, role="worker")
    # The counter is what two demotions at once would both change.
    changes: dict[str, object | None] = {f"node/{node.id}": changed, f"signer/{node.id}": None, "set/node": Counter()}
    return Decision(changes, [f"node/{node.id}", "set/node"]), changed


def remove(
    wishes: Wishes, ref: str, force: bool, alive: Callable[[str], bool], now: float, *, managed: bool
) -> tuple[Decision, Node]:
    """As :func:`decisions.remove_node`, and as :func:`demote`. With ``force`` also if the quorum goes with it."""
    decision, node = remove_node(wishes, ref, force, alive, now)
    if node.role == "manager":
        _check_spared(wishes, node, alive, managed=managed and not force)
    return decision, node


def _check_spared(wishes: Wishes, node: Node, alive: Callable[[str], bool], *, managed: bool) -> None:
    """Raises :class:`ConflictError` if the cluster cannot go on without this manager."""
    others = [one for one in wishes.managers if one.id != node.id]
    if not others:
        raise ConflictError(
            f"node {node.name} is the cluster's last manager: without it there is no cluster",
            hint="promote another one first; `vxnet leave --force` on it ends the cluster",
        )
    silent = [one.name for one in others if not alive(one.id)]
    if managed and len(others) - len(silent) <= len(others) // 2:
        raise ConflictError(
            f"without node {node.name} the store would have no quorum: {', '.join(silent)} of the other "
            f"{len(others)} managers {'is' if len(silent) == 1 else 'are'} not there",
            hint=f"bring {'it' if len(silent) == 1 else 'them'} back, or demote {silent[0]} first",
        )

"""Who may become a node: names and addresses are unique, so that no two hosts answer to the same one."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec.structs import replace

from vxnet.core.trust import check_host_name
from vxnet.model.address import IPAddress
from vxnet.model.api import JoinClaim, NodeUpdate
from vxnet.model.cluster import Node
from vxnet.model.errors import CallerError, ConflictError


def check_claim(claim: JoinClaim, key: str, nodes: Collection[Node], alive: Callable[[str], bool]) -> Node | None:
    """The node that ``claim`` is a repetition of (the answer to its first join was lost), or None for a new one.

    ``key`` is the digest of the joiner's public key. Raises :class:`CallerError` or :class:`ConflictError`.
    """
    check_host_name(claim.name)
    _check_address("advertise address", claim.advertise_addr)
    _check_address("data-path address", claim.data_path_addr)
    _check_family(claim, nodes)
    again = next((node for node in nodes if node.key == key and node.name == claim.name), None)
    for node in nodes:
        if node is again:
            continue
        if node.name.lower() == claim.name.lower():
            if alive(node.id):
                raise ConflictError(
                    f"the cluster has a node {node.name!r} already (id {node.id}), and it is alive",
                    hint="give this host another name",
                )
            raise ConflictError(
                f"the cluster has a node {node.name!r} already (id {node.id}), which is down",
                hint=f"`vxnet node rm {node.name}` on a manager if it is gone, or give this host another name",
            )
        theirs = (node.advertise_addr, node.data_path_addr)
        for kind, address in (("advertise", claim.advertise_addr), ("data-path", claim.data_path_addr)):
            if address in theirs:
                raise ConflictError(
                    f"the {kind} address {address} is that of node {node.name!r}",
                    hint=f"choose another with --{'advertise' if kind == 'advertise' else 'data-path'}-addr"
                    + ("" if alive(node.id) else f", or `vxnet node rm {node.name}` on a manager if that node is gone"),
                )
    if again is not None and (again.advertise_addr, again.data_path_addr) != (
        claim.advertise_addr,
        claim.data_path_addr,
    ):
        raise ConflictError(
            f"this host is node {again.name!r} (id {again.id}) already, at {again.advertise_addr}",
            hint=f"`vxnet node rm {again.name}` on a manager, then join again",
        )
    return again


def moved(node: Node, update: NodeUpdate, nodes: Collection[Node], *, managed: bool) -> Node:
    """``node`` at the addresses that ``update`` names, if any. ``managed``: vxnet runs the managers' etcd. Raises
    :class:`CallerError`, :class:`ConflictError`.
    """
    advertise = update.advertise_addr or node.advertise_addr
    together = node.data_path_addr == node.advertise_addr
    path = update.data_path_addr or (advertise if together else node.data_path_addr)
    changed = replace(node, advertise_addr=advertise, data_path_addr=path)
    if changed == node:
        return node
    if managed and node.role == "manager" and advertise != node.advertise_addr:
        raise ConflictError(
            f"node {node.name} is a manager, whose member of etcd is known to the others by its address",
            hint=f"`vxnet node demote {node.name}`, change the address, and promote it again",
        )
    _check_address("advertise address", advertise)
    _check_address("data-path address", path)
    others = [other for other in nodes if other.id != node.id]
    _check_family(changed, others)
    for other in others:
        for address in (advertise, path):
            if address in (other.advertise_addr, other.data_path_addr):
                raise ConflictError(
                    f"address {address} is that of node {other.name}", hint="give one that this node alone has"
                )
    return changed


def _check_family(claim: JoinClaim | Node, nodes: Collection[Node]) -> None:
    """A tunnel's two ends are of one family, and so are the two ends of the gossip."""
    for node in nodes:
        for kind, own, theirs in (
            ("advertise", claim.advertise_addr, node.advertise_addr),
            ("data-path", claim.data_path_addr, node.data_path_addr),
        ):
            if own.version != theirs.version:
                raise CallerError(
                    f"the {kind} address {own} is not of the cluster's family: node {node.name!r} is at {theirs}",
                    hint=f"give an IPv{theirs.version} address of this host with --{kind}-addr",
                )


def _check_address(what: str, address: IPAddress) -> None:
    # A link-local one of IPv6 means another link on each host (RFC 4007).
    local = address.version == 6 and address.is_link_local
    if local or address.is_unspecified or address.is_loopback or address.is_multicast:
        raise CallerError(f"{what} {address} cannot be reached by other hosts", hint="give an address of this host")

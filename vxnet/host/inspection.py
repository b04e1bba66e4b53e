"""What a reconcile would do to this host's kernel, without doing any of it.

The same functions that mend are asked, with netlink sockets that keep to themselves what they are given to send. They
look at what is there, compare, and tell what they have "done".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from vxnet.host import datapath, elements, gateway, hosttable, links, mesh, neighbours, netns, nft, sandbox
from vxnet.host.datapath import bridge_name, bridge_wish, tunnel_name, tunnel_port, tunnel_wish
from vxnet.host.links import Link, Side
from vxnet.host.netlink import Failure, Netlink
from vxnet.host.nft import Ruleset
from vxnet.host.rows import to_carry
from vxnet.host.sandbox import Sides
from vxnet.host.steps import Step, mend, mend_port, present
from vxnet.host.tunnels import split
from vxnet.host.vips import Services
from vxnet.model.address import MAC
from vxnet.model.host import DATAPATH_NAMESPACE, INGRESS_LINK, Change, HostState, Sandbox, host_bridges


class Onlooker(Netlink):
    """Asks, and changes nothing: whatever it is told to do counts as done."""

    def batch(self, messages: Sequence[bytes]) -> dict[int, Failure]:
        return {}

    def batch_numbered(self, block: bytearray, stride: int, first: int) -> dict[int, Failure]:
        return {}

    def transaction(self, messages: Sequence[bytes]) -> Failure | None:
        return None


def differences(state: HostState) -> list[Change]:
    """What the host's kernel would have to be told to be as ``state`` says, in the calling thread's namespace. A state
    that is empty wants nothing of vxnet's to be there. Raises OSError, HostError."""
    with contextlib.ExitStack() as stack:
        own = netns.current()
        stack.callback(os.close, own)
        host = stack.enter_context(Onlooker(own))
        named = netns.adopt_named(DATAPATH_NAMESPACE)
        if named is None:
            wanted = bool(state.segments or state.sandboxes)
            missing = [Change(verb="add", object=f"network namespace {DATAPATH_NAMESPACE}")] if wanted else []
            return missing + _host(state, own, host, stack)[0]
        stack.callback(os.close, named)
        inner = stack.enter_context(Onlooker(named))
        changes, host_found = _host(state, own, host, stack)
        found = links.dump(inner)
        changes += _segments(state, found)
        bridges = {bridge.name: bridge for bridge in host_bridges(state)}
        sides = Sides(Side(inner, named, found), Side(host, own, host_found), bridges)
        services = Services(state.segments)
        gateways = state.ingress.gateways if state.ingress is not None else ()
        # Somebody else's namespace is held by the daemon: its path means nothing here.
        for one in (box for box in state.sandboxes if not box.foreign):
            changes += _sandbox(one, sides, services, gateways)
        changes += _foot(state, sides) + _rows(state, inner, found)
        return changes + _too_much(state, sides)


def _host(
    state: HostState, own: int, host: Netlink, stack: contextlib.ExitStack
) -> tuple[list[Change], dict[str, Link]]:
    changes, found = gateway.ensure(host, links.Reader(), host_bridges(state))
    if not gateway.forwards(own, host_bridges(state), mesh.versions(state.ingress)):
        changes.append(Change(verb="replace", object="sysctl net.ipv4.ip_forward 1"))
    packets = stack.enter_context(Onlooker(own, elements.NETLINK_NETFILTER))
    wanted = hosttable.ruleset(state) if state != HostState() else None
    return changes + _table(own, packets, wanted, "the host"), found


def _table(namespace: int, netlink: Netlink, wanted: Ruleset | None, where: str) -> list[Change]:
    found = nft.read(namespace, netlink)
    words = f"nft table {nft.TABLE} in {where}"
    if (found is None) != (wanted is None):
        return [Change(verb="add" if found is None else "delete", object=words)]
    if found is None or wanted is None:
        return []
    if found.body != wanted.body or found.elements.keys() != wanted.elements.keys():
        return [Change(verb="replace", object=words)]
    return [
        Change(verb="replace", object=f"{words}: set {name}")
        for name, members in wanted.elements.items()
        if elements.difference(name, members, found.elements[name])
    ]


def _segments(state: HostState, found: Mapping[str, Link]) -> list[Change]:
    steps: list[Step | None] = []
    for segment in state.segments:
        bridge = found.get(bridge_name(segment.vni))
        for wish in (bridge_wish(segment), tunnel_wish(segment, state.data_port)):
            link = found.get(wish.name)
            if link is None:
                steps.append(Step("add", f"link {wish.name}", []))
            elif reason := datapath.incompatible(wish, link):
                steps.append(Step("replace", f"link {wish.name}: {reason}", []))
            elif wish.kind == "bridge":
                steps.append(mend(wish, link))
            elif bridge is not None:
                steps.append(mend(wish, link, bridge.ifindex))
                steps.append(mend_port(wish.name, link, tunnel_port(segment)))
    return [Change(verb=step.verb, object=step.object) for step in present(steps)]


def _sandbox(one: Sandbox, sides: Sides, services: Services, gateways: tuple[MAC, ...]) -> list[Change]:
    namespace = netns.open_path(one.netns)
    if namespace is None:
        return []
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, namespace)
        entered = sandbox.Entered(one, namespace, whole=True, kind=Onlooker, settle=False)
        stack.callback(entered.netlink.close)
        stack.callback(entered.nft.close)
        changes = sandbox.ensure(entered, sides)
        return changes + _table(
            namespace, entered.nft, sandbox.ruleset(one, services, gateways), f"sandbox {one.id[:12]}"
        )


def _rows(state: HostState, netlink: Netlink, found: Mapping[str, Link]) -> list[Change]:
    """The kernel's: what a tunnel in user space knows it tells its daemon alone."""
    carried = to_carry(state, found)
    tunnels = {one.home.tunnel: one.home.bridge for one in carried.values()}
    learners = {carried[one.vni].home.tunnel for one in state.segments if one.foreign and one.vni in carried}
    taps = {carried[one.vni].home.tunnel for one in state.segments if one.kind == "userspace" and one.vni in carried}
    wanted = {key: value for one in carried.values() for key, value in one.rows().items()}
    there = neighbours.dump(netlink, tunnels, learners)
    names = {link.ifindex: link.name for link in found.values()}
    kernels, _forwarders = split(neighbours.difference(wanted, there), taps)
    return neighbours.apply(netlink, kernels, wanted, there, names)


def _foot(state: HostState, sides: Sides) -> list[Change]:
    if state.ingress is None:
        return []
    ends = {INGRESS_LINK: sides.host.found.get(INGRESS_LINK), mesh.PORT: sides.datapath.found.get(mesh.PORT)}
    return [
        Change(verb="add" if link is None else "replace", object=f"link {name}")
        for name, link in ends.items()
        if link is None or not link.up
    ]


def _too_much(state: HostState, sides: Sides) -> list[Change]:
    vnis = {segment.vni for segment in state.segments}
    wanted = {bridge_name(vni) for vni in vnis} | {tunnel_name(vni) for vni in vnis}
    wanted |= {one.port for box in state.sandboxes for one in box.interfaces}
    wanted |= {bridge.name for bridge in host_bridges(state)}
    wanted |= {INGRESS_LINK, mesh.PORT} if state.ingress is not None else set()
    return [
        Change(verb="delete", object=f"link {link.name}")
        for side in (sides.datapath, sides.host)
        for link in side.found.values()
        if link.alias.startswith(datapath.MARK) and link.name not in wanted
    ]

"""One container's namespace: its interfaces with addresses and routes, the way to its resolver, virtual IPs.

::

    container                                      vxnet, or the host for vxnet_gw
    lo     127.0.0.1   127.0.0.11:53 ─DNAT─> 127.0.0.11:dns_port        virtual IPs ─DNAT─> backends
    eth0   10.0.16.3/20 ──────────── veth ──────── port on br<VNI>
    eth1   172.19.0.3/16, default ── veth ──────── port on vxnet_gw (isolated), or on a network of the driver bridge
    eth2   192.168.56.30/24 ─────── macvlan ────── upon the host's eth1

A pair is born in place, the container's end with its final name and MAC. The namespace may vanish at any moment; what
fails because of that is not reported. No socket of it is kept: that would keep it alive, and its links with it.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vxnet.host import addresses, answers, conntrack, elements, links, netns, vips
from vxnet.host.addresses import Route
from vxnet.host.datapath import CONTAINER_PORT, MARK, bridge_name
from vxnet.host.elements import Elements
from vxnet.host.gateway import address_steps, port_flags
from vxnet.host.links import Link, Peer, Side, Upon, Wish
from vxnet.host.netlink import Closer, Netlink
from vxnet.host.nft import Pending, Ruleset, Tables
from vxnet.host.steps import Step, carry_out, mend, mend_port, present, unless_new
from vxnet.host.vips import Services
from vxnet.model.address import MAC, IPAddress
from vxnet.model.host import GATEWAY_BRIDGE, Change, HostBridge, Interface, Sandbox

SYSCTLS = {
    # Networks have no routers, and a neighbour on one shall not pose as such.
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    # Addresses are given out once in the cluster; link-local ones follow from the MAC.
    "ipv6/conf/default/dad_transmits": "0",
    # A first packet to a backend that has just died is sent again after 1, 3 and 7 s: by then it chooses anew, and so
    # does the next connection from that port. Within the kernel's 120 s a busy client has used all its ports.
    "netfilter/nf_conntrack_tcp_timeout_syn_sent": "3",
}


class Sides(NamedTuple):
    datapath: Side
    host: Side
    bridges: Mapping[str, HostBridge]
    """Of the host's namespace, by name."""

    def of(self, interface: Interface) -> Side:
        return self.host if interface.vni is None else self.datapath


def host_bridge(interface: Interface) -> str:
    """The bridge in the host's namespace that it joins; empty: it joins none there."""
    return "" if interface.vni is not None or interface.parent else interface.bridge or GATEWAY_BRIDGE


def port_alias(sandbox: Sandbox, interface: Interface) -> str:
    return f"{MARK}{sandbox.id[:12]} {interface.name}"


def alias_owner(alias: str) -> str:
    """The first 12 digits of the container's id, out of a port's alias; empty: it is none."""
    return alias.removeprefix(MARK).split(" ")[0] if alias.startswith(MARK) and " " in alias else ""


DNS_PORT = 53
RESOLVER = "resolver"
"""The map that says where the name server listens. Apart from the rules, so that all containers have the same."""


def ruleset(sandbox: Sandbox, services: Services, gateways: tuple[MAC, ...] = ()) -> Ruleset | None:
    """The resolver listens on a port of its own, so that a container may serve on :53 itself; conntrack turns the
    answers' source back. And the virtual IPs of the networks that it is on, and the way back of the routing mesh, whose
    nodes are ``gateways``."""
    vnis = [one.vni for one in sandbox.interfaces if one.vni is not None]
    if not vnis and not sandbox.dns_port:
        return None
    chains = 0
    filled: dict[str, Elements] = {}
    if vnis:
        made = services.on(vnis)
        chains = made.chains
        filled.update(made.elements)
    if sandbox.dns_port:
        filled[RESOLVER] = _listening(sandbox.dns_port)
    if sandbox.answers is not None:
        filled.update(answers.filled(sandbox, gateways))
    resolver = sandbox.resolver if sandbox.dns_port else None
    return Ruleset(body(resolver, sandbox.foreign, chains, answers.form(sandbox)), filled, answers.SHAPES)


class Rulesets:
    """Of all sandboxes, look after look: what follows from the very same records is the very same."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Sandbox, Ruleset | None]] = {}
        self._of: tuple[Services, tuple[MAC, ...]] | None = None

    def of(
        self, sandboxes: Sequence[Sandbox], services: Services, gateways: tuple[MAC, ...]
    ) -> dict[str, Ruleset | None]:
        """By id of the sandbox; see :func:`ruleset`."""
        same = self._of is not None and self._of[0] is services and self._of[1] == gateways
        before = self._made if same else {}
        self._of, self._made = (services, gateways), {}
        for one in sandboxes:
            held = before.get(one.id)
            if held is None or held[0] is not one:
                held = one, ruleset(one, services, gateways)
            self._made[one.id] = held
        return {id: held[1] for id, held in self._made.items()}


@functools.lru_cache(maxsize=4096)
def _listening(port: int) -> Elements:
    """The very same record for the same port: what is the same need not be compared."""
    return {struct.pack("!H", DNS_PORT): struct.pack("!H", port)}


@functools.lru_cache
def body(resolver: IPAddress | None, foreign: bool, chains: int, answering: answers.Form | None = None) -> str:
    """The rules. ``chains``: how many backends a service may have; 0: there are no services. ``answering``: to the
    routing mesh."""
    declared = f"\tmap {RESOLVER} {{\n\t\ttype inet_service : inet_service\n\t}}\n\n" if resolver else ""
    names = "".join(
        f"\t\tip daddr {resolver} {protocol} dport {DNS_PORT} dnat ip to {resolver}:{protocol} dport map @{RESOLVER}\n"
        for protocol in ("udp", "tcp")
        if resolver
    )
    sets = (vips.MAPS if chains else "") + declared + (answers.SETS if answering else "")
    rules = f"""\
{sets}{vips.chains(chains) if chains else ""}\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
{names}{vips.LOOKUP if chains else ""}\t}}
"""
    if foreign and resolver:
        # The daemon alone holds these sockets. While none runs, a question is to wait and be asked again, not to fail.
        rules += f"""
\tchain silence {{
\t\ttype filter hook output priority filter; policy accept;
\t\tip saddr {resolver} icmp type destination-unreachable drop
\t}}
"""
    return rules + (answers.chains(answering) if answering else "")


def _sysctls(sandbox: Sandbox) -> dict[str, str]:
    if not sandbox.foreign:
        return SYSCTLS | answers.sysctls(sandbox)
    return {f"ipv6/conf/{interface.name}/accept_ra": "0" for interface in sandbox.interfaces}


class Entered:
    """A sandbox that is there: its descriptor and netlink sockets in it, for the length of one reconcile."""

    def __init__(
        self, sandbox: Sandbox, namespace: int, *, whole: bool, kind: type[Netlink] = Netlink, settle: bool = True
    ) -> None:
        """``kind``: of its sockets; ``settle``: whether sysctls are set, too."""
        self.sandbox = sandbox
        self.namespace = namespace
        self.pending: Pending | None = None

        def prepare() -> tuple[Netlink | None, Netlink]:
            if whole and settle:
                netns.set_sysctls(_sysctls(sandbox))
            return kind() if whole else None, kind(protocol=elements.NETLINK_NETFILTER)

        self._links, self.nft = netns.inside(namespace, prepare)

    @property
    def netlink(self) -> Netlink:
        if self._links is None:
            raise ValueError("entered for its table alone")
        return self._links

    def close(self, closer: Closer) -> None:
        if self.pending is None:
            self.nft.close()
        else:
            closer.take(self.nft)
        if self._links is not None:
            self._links.close()
        os.close(self.namespace)

    def is_gone(self) -> bool:
        now = netns.open_path(self.sandbox.netns)
        if now is None:
            return True
        try:
            return netns.identity(now) != netns.identity(self.namespace)
        finally:
            os.close(now)


def enter(sandbox: Sandbox, foreign: frozenset[tuple[int, int]], *, whole: bool) -> Entered | Change | None:
    """Open a sandbox, or its nftables alone; None: it is gone. ``foreign``: namespaces that can be nobody's sandbox,
    lest a pid that was given anew, or a container in the host's namespace, makes vxnet rebuild the host."""
    try:
        namespace = netns.open_path(sandbox.netns)
        if namespace is None:
            return None
        if netns.identity(namespace) in foreign:
            os.close(namespace)
            return _refused(sandbox, f"{sandbox.netns} is the host's or vxnet's own network namespace")
        try:
            return Entered(sandbox, namespace, whole=whole)
        except OSError:
            os.close(namespace)
            raise
    except OSError as error:
        return _refused(sandbox, error.strerror or str(error))


def _refused(sandbox: Sandbox, error: str) -> Change:
    return Change(verb="add", object=f"sandbox {sandbox.id[:12]}", error=error, sandbox=sandbox.id)


def begin_table(entered: Entered, tables: Tables, wanted: Ruleset | None) -> None:
    """Start loading the sandbox's table, which takes as long as the links do."""
    sandbox = entered.sandbox
    entered.pending = tables.begin(sandbox.id, entered.namespace, entered.nft, wanted, f"sandbox {sandbox.id[:12]}")


def forget_stale_flows(sandbox: Sandbox, netlink: Netlink, services: Services) -> list[Change]:
    """UDP's to backends that are no more, where UDP was ever used: a connection that is being made gives up by itself.
    ``netlink``: of NETLINK_NETFILTER, in the sandbox. Raises OSError.
    """
    if not elements.counted(netlink, vips.UDP_COUNTER):
        return []
    inside = [one for one in sandbox.interfaces if one.vni is not None]
    backends = services.on(one.vni for one in inside if one.vni is not None).backends()
    versions = {address.version for one in inside for address in one.addresses}
    return [
        Change(verb="delete", object=f"{flow} in sandbox {sandbox.id[:12]}")
        for flow in conntrack.forget_stale(netlink, backends, versions)
    ]


def ensure(entered: Entered, sides: Sides) -> list[Change]:
    """Interfaces, addresses, routes. Raises OSError if the namespace cannot be read."""
    inner = entered.netlink
    found = links.dump(inner)
    changes = _sweep_macvlans(entered, found) + _ensure_pairs(entered, sides, found)
    before = found
    if changes:
        found = links.dump(inner)
    mends: list[Step] = []
    completions: list[Step] = []  # of links that were made just now: no changes of their own
    loopback = found.get("lo")
    if loopback is not None and not loopback.up:
        mends.append(Step("replace", "link lo up", [links.change(loopback.ifindex, up=True)]))
    is_new = {link.ifindex for link in found.values()} != {link.ifindex for link in before.values()}
    if is_new and (entered.sandbox.foreign or entered.sandbox.answers is not None):
        netns.inside(entered.namespace, lambda: netns.set_sysctls(_sysctls(entered.sandbox)))
    held = addresses.dump(inner)
    for interface in entered.sandbox.interfaces:
        link = found.get(interface.name)
        kind = "macvlan" if interface.parent else "veth"
        if link is None or link.kind != kind:
            continue
        parent = sides.host.found.get(interface.parent)
        mtu = interface.mtu or (link.mtu if parent is None else parent.mtu)
        wish = Wish(name=interface.name, kind=kind, mtu=mtu, mac=_own_mac(interface))
        old = before.get(interface.name)
        steps = mends if old is not None and old.ifindex == link.ifindex else completions
        steps += present((mend(wish, link),))
        steps += address_steps(held, link, interface.addresses)
    changes += [change for change in carry_out(inner, _inside(completions, entered.sandbox)) if change.error]
    mends += _route_steps(inner, entered.sandbox, found) + answers.steps(inner, entered.sandbox, found)
    return changes + carry_out(inner, _inside(mends, entered.sandbox))


def _sweep_macvlans(entered: Entered, found: dict[str, Link]) -> list[Change]:
    """Those that nobody wants; nothing of them is outside."""
    wanted = {one.name for one in entered.sandbox.interfaces if one.parent}
    doomed = [
        link
        for link in found.values()
        if link.kind == "macvlan" and link.alias.startswith(MARK) and link.name not in wanted
    ]
    for link in doomed:
        del found[link.name]
    gone = [Step("delete", f"link {link.name}", links.delete([link.ifindex])) for link in doomed]
    return carry_out(entered.netlink, _inside(gone, entered.sandbox))


def _inside(steps: list[Step], sandbox: Sandbox) -> list[Step]:
    return [step._replace(object=f"{step.object} in {sandbox.id[:12]}") for step in steps]


def _ensure_pairs(entered: Entered, sides: Sides, found: Mapping[str, Link]) -> list[Change]:
    changes: list[Change] = []
    for interface in entered.sandbox.interfaces:
        if interface.parent:
            changes += _ensure_macvlan(entered, interface, sides.host, found.get(interface.name))
            continue
        side = sides.of(interface)
        bridge = side.found.get(bridge_name(interface.vni) if interface.vni is not None else host_bridge(interface))
        if bridge is None:
            continue
        flags = CONTAINER_PORT if interface.vni is not None else port_flags(sides.bridges.get(bridge.name))
        changes += _ensure_pair(entered, interface, side, sides.datapath, bridge, flags, found.get(interface.name))
    return changes


def macvlan_wish(sandbox: Sandbox, interface: Interface, parent: Link) -> Wish:
    return Wish(
        name=interface.name,
        kind="macvlan",
        mtu=interface.mtu or parent.mtu,
        alias=port_alias(sandbox, interface),
        mac=_own_mac(interface),
        data={"IFLA_MACVLAN_MODE": _MODES[interface.mode]},
    )


def _own_mac(interface: Interface) -> MAC | None:
    """With ``passthru`` it has its parent's, and to set another would set the parent's."""
    return None if interface.parent and interface.mode == "passthru" else interface.mac


_MODES: Mapping[str, int] = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


def _ensure_macvlan(entered: Entered, interface: Interface, host: Side, there: Link | None) -> list[Change]:
    """It is asked for in the sandbox, upon a link of the host's: made in the host's namespace it could not be called
    eth0 where the host has a link of that name. One that its parent took along is made again when that is back."""
    words = f"link {interface.name} upon {interface.parent} in {entered.sandbox.id[:12]}"
    parent = host.found.get(interface.parent)
    if parent is None:
        return [Change(verb="add", object=words, error=f"this host has no link {interface.parent}")]
    wish = macvlan_wish(entered.sandbox, interface, parent)
    changes: list[Change] = []
    if there is not None and there.kind == wish.kind:
        if there.peer == parent.ifindex and not links.differing(wish.data, there.data, wish.kind):
            return changes
        gone = Step("delete", f"link {interface.name} in {entered.sandbox.id[:12]}", links.delete([there.ifindex]))
        changes += carry_out(entered.netlink, [gone])
    number = links.namespace_number(entered.netlink, host.namespace)
    if number is None:
        return [*changes, Change(verb="add", object=words, error="the host's namespace has no number there")]
    request = links.add(wish, upon=Upon(parent.ifindex, number), up=False)
    return changes + carry_out(entered.netlink, [Step("add", words, [request, links.set_alias(wish.name, wish.alias)])])


def _ensure_pair(
    entered: Entered,
    interface: Interface,
    side: Side,
    maker: Side,
    bridge: Link,
    flags: Mapping[str, int],
    inner: Link | None,
) -> list[Change]:
    """One pair. The request is always made in ``maker``, the data path's namespace, where no link is called eth0:
    Linux 6.1 refuses a peer's name that its maker's namespace has."""
    alias = port_alias(entered.sandbox, interface)
    wish = Wish(name=interface.port, kind="veth", mtu=interface.mtu, alias=alias)
    port = side.found.get(interface.port)
    changes: list[Change] = []
    if port is not None and inner is not None and port.peer == inner.ifindex and inner.peer == port.ifindex:
        seen = port if port.master == bridge.ifindex else port._replace(port={})
        return carry_out(side.netlink, present((mend(wish, port, bridge.ifindex), mend_port(wish.name, seen, flags))))
    if port is not None and port.alias.startswith(MARK):
        # Of a namespace that is dying, or of one that had this name before.
        changes += carry_out(side.netlink, [Step("delete", f"link {port.name}", links.delete([port.ifindex]))])
    words = f"link {interface.port} to {interface.name} in {entered.sandbox.id[:12]}"
    peer = Peer(interface.name, interface.mac, entered.namespace)
    target = None if side.namespace == maker.namespace else side.namespace
    # On the host's side it comes up when it has been told to get no address.
    request = links.add(wish, namespace=target, master=bridge.ifindex, peer=peer, up=interface.vni is not None)
    made = carry_out(maker.netlink, [Step("add", words, [request])])
    changes += made
    if any(change.error for change in made):
        return changes
    port = links.get(side.netlink, interface.port)
    if port is None:
        return changes
    side.found[port.name] = port
    if interface.vni is None:
        side.netlink.batch([links.no_link_local(port.name)])  # refused where there is no IPv6
    completed = present((mend(wish, port, bridge.ifindex), mend_port(wish.name, port, flags)))
    return changes + unless_new(carry_out(side.netlink, completed), [words])


def _route_steps(inner: Netlink, sandbox: Sandbox, found: Mapping[str, Link]) -> list[Step]:
    """Default routes, prefixes that are on an interface's link or unreachable; vxnet's own others go."""
    there = [route for route in addresses.dump_routes(inner) if route.ours]
    return _default_steps(there, sandbox, found) + _prefix_steps(there, sandbox, found)


def _default_steps(there: Sequence[Route], sandbox: Sandbox, found: Mapping[str, Link]) -> list[Step]:
    ours = answers.sources(sandbox)
    wanted = {
        addresses.default(via, found[one.name].ifindex, ours.get(via.version))
        for via in sandbox.default_via
        for one in sandbox.interfaces
        if one.vni is None and one.name in found and any(via in address.network for address in one.addresses)
    }
    wanted |= answers.last_resorts(sandbox, found, {route.destination.version for route in wanted})
    defaults = {route for route in there if route.destination.prefixlen == 0 and route.via is not None}
    # The kernel has a priority of its own for IPv6 routes that came without.
    held = {route._replace(priority=0) if route.priority == addresses.PRIORITY_IPV6 else route for route in defaults}
    # Delete first where the place is taken: two default routes of one metric exclude each other.
    steps = [
        Step("delete", f"route default via {route.via}", [addresses.delete_default(route)])
        for route in sorted(held - wanted, key=str)
    ]
    return steps + [
        Step("add", f"route default via {route.via}", [addresses.add_default(route)])
        for route in sorted(wanted - held, key=str)
    ]


def _prefix_steps(there: Sequence[Route], sandbox: Sandbox, found: Mapping[str, Link]) -> list[Step]:
    names = {link.ifindex: f"dev {link.name}" for link in found.values()} | {_NOWHERE: "unreachable"}
    wanted = {
        (prefix, found[one.name].ifindex) for one in sandbox.interfaces if one.name in found for prefix in one.links
    }
    wanted |= {(prefix, _NOWHERE) for one in sandbox.interfaces for prefix in one.unreachable}
    held = {(route.destination, route.ifindex) for route in there if route.via is None and route.destination.prefixlen}
    steps = [
        Step("delete", f"route {prefix} {names.get(index)}", [addresses.delete_prefix(prefix, index)])
        for prefix, index in sorted(held - wanted, key=str)
    ]
    return steps + [
        Step("add", f"route {prefix} {names.get(index)}", [addresses.add_prefix(prefix, index)])
        for prefix, index in sorted(wanted - held, key=str)
    ]


_NOWHERE = 0
"""The index of no link."""

"""The namespace ``vxnet``: a tunnel and a bridge for each segment, and what they know of remote endpoints.

::

    host namespace            namespace vxnet                  (in user space vx<VNI> is a TAP: host/tunnels)
    UDP socket <────────────  vx<VNI>  local VTEP, nolearning; FDB: MAC → VTEP
                                │  port: neigh_suppress, learning off, flood off
                              br<VNI>  stp off, no address; FDB: MAC → port; neighbours: address → MAC
                                │  port: learning off
                              veth ──> a container

The tunnel is made by a request in the host's namespace with this one as its target, so its socket stays with the host
and no device is moved (a move waits 20 ms for RCU). Nothing here is learnt: all rows follow from the state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from vxnet.host import links, netns
from vxnet.host.columns import split
from vxnet.host.links import Link, Wish
from vxnet.host.neighbours import BRIDGE, FLOOD, IFINDEX, NEIGHBOUR, TUNNEL, Rows, key_head
from vxnet.host.netlink import Netlink
from vxnet.host.steps import Step, carry_out, mend, mend_port, present, unless_new
from vxnet.host.tunnels import Tunnels
from vxnet.model.address import IPAddress
from vxnet.model.errors import HostError
from vxnet.model.host import DATAPATH_NAMESPACE, Change, Interface, Remote, Segment

MARK = "vxnet:"
"""At the front of the ifalias of every link of vxnet's."""
_LEARNING = "IFLA_VXLAN_LEARNING"
_SEGMENT_NAME = re.compile(r"(?:vx|br)\d+")

SYSCTLS = {
    # Bridged frames do not pass the firewall, whatever the host has set for itself.
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
    # No link-local addresses on bridges and tunnels. Not disable_ipv6: that refuses IPv6 neighbours, and with them
    # the local answers to neighbour discovery.
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv6/conf/default/accept_ra": "0",
}

TUNNEL_PORT = {
    "IFLA_BRPORT_LEARNING": 0,
    # A frame whose MAC is unknown goes to nobody, rather than to every VTEP.
    "IFLA_BRPORT_UNICAST_FLOOD": 0,
    "IFLA_BRPORT_MCAST_FLOOD": 1,
    "IFLA_BRPORT_BCAST_FLOOD": 1,
    "IFLA_BRPORT_NEIGH_SUPPRESS": 1,
    "IFLA_BRPORT_ISOLATED": 0,
}
CONTAINER_PORT = {
    # What lives there is in the state; a container cannot draw another's frames to itself by using its MAC.
    "IFLA_BRPORT_LEARNING": 0,
    "IFLA_BRPORT_UNICAST_FLOOD": 1,
    "IFLA_BRPORT_MCAST_FLOOD": 1,
    "IFLA_BRPORT_BCAST_FLOOD": 1,
    "IFLA_BRPORT_NEIGH_SUPPRESS": 0,
    "IFLA_BRPORT_ISOLATED": 0,
}


ROOTS_PORTS = 512, 1023
"""From these the ingress network's tunnel sends. A packet of this host's own keeps its socket through veth and tunnel,
so it cannot be told by having none from what a user sends to the VXLAN port; but no user can bind these."""


def tunnel_port(segment: Segment) -> dict[str, int]:
    """Flags of the tunnel's port. Who is behind a VTEP without vxnet is nobody's row: what a container sends to such a
    MAC is unknown to the bridge, and goes to the tunnel, which learns (see :func:`tunnel_wish`). The bridge itself does
    not: a frame's source cannot take a container's place.
    """
    return TUNNEL_PORT | {"IFLA_BRPORT_UNICAST_FLOOD": 1} if segment.foreign else TUNNEL_PORT


def bridge_name(vni: int) -> str:
    return f"br{vni}"


def tunnel_name(vni: int) -> str:
    return f"vx{vni}"


def bridge_wish(segment: Segment) -> Wish:
    # A bridge without an address of its own takes the lowest of its ports', and at each change of it the kernel
    # throws all its neighbours away, permanent ones too (neigh_changeaddr).
    mac = (b"\x06vx" + segment.vni.to_bytes(3)).hex(":")
    return Wish(
        name=bridge_name(segment.vni),
        kind="bridge",
        mtu=segment.mtu,
        alias=f"{MARK}{segment.vni}",
        mac=mac,
        data={"IFLA_BR_STP_STATE": 0, "IFLA_BR_FORWARD_DELAY": 0, "IFLA_BR_MCAST_SNOOPING": 0},
    )


def tunnel_wish(segment: Segment, port: int) -> Wish:
    if segment.kind == "userspace":
        return Wish(name=tunnel_name(segment.vni), kind="tun", mtu=segment.mtu, alias=f"{MARK}{segment.vni}")
    local = "IFLA_VXLAN_LOCAL" if segment.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    return Wish(
        name=tunnel_name(segment.vni),
        kind="vxlan",
        mtu=segment.mtu,
        alias=f"{MARK}{segment.vni}",
        data={
            "IFLA_VXLAN_ID": segment.vni,
            local: segment.local,
            "IFLA_VXLAN_PORT": port,
            # A learnt row never replaces a written one: the kernel drops what would (vxlan_snoop).
            _LEARNING: 1 if segment.foreign else 0,
            **({"IFLA_VXLAN_PORT_RANGE": ROOTS_PORTS[0] << 16 | ROOTS_PORTS[1] + 1} if segment.ingress else {}),
        },
    )


def incompatible(wish: Wish, link: Link) -> str:
    """Why an existing link cannot become what is wished; empty: it can."""
    if link.kind != wish.kind:
        return f"is a {link.kind or 'physical link'}"
    if wish.kind == "vxlan":
        if link.peer_namespace is None:
            return "has its socket in the wrong namespace"
        # Learning alone can be switched while the tunnel is in use.
        return ", ".join(name for name in links.differing(wish.data, link.data, "vxlan") if name != _LEARNING)
    if wish.kind == "tun" and link.alias != wish.alias:
        # Nothing else tells the forwarder's TAP from one that somebody made in its place, which leads nowhere.
        return "is somebody else's"
    return ""


class Home(NamedTuple):
    """Where the rows of a segment go."""

    bridge: int
    tunnel: int


class Resident(NamedTuple):
    """A container's interface on a segment of this host."""

    interface: Interface
    port: int
    """Index."""


class Datapath:
    """The namespace, held by a descriptor and a netlink socket. ``host``: netlink of the host's namespace."""

    def __init__(self, host: Netlink, tunnels: Tunnels) -> None:
        self._host = host
        self.tunnels = tunnels
        self._reader = links.Reader()
        self._good: dict[int, tuple[object, ...]] = {}
        """By VNI: the segment's devices as they were found to need nothing."""
        self._namespace: int | None = None
        self._netlink: Netlink | None = None

    @property
    def namespace(self) -> int:
        assert self._namespace is not None, "ensure() comes first"
        return self._namespace

    @property
    def netlink(self) -> Netlink:
        assert self._netlink is not None, "ensure() comes first"
        return self._netlink

    def close(self) -> None:
        """Let go of the namespace; it lives on by its name."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None

    def ensure(self) -> list[Change]:
        """Have the namespace under its name: adopt, give it its name back, or make it. Raises HostError."""
        named = netns.adopt_named(DATAPATH_NAMESPACE)
        words = f"network namespace {DATAPATH_NAMESPACE}"
        if named is not None and self._namespace is not None:
            if netns.identity(named) == netns.identity(self._namespace):
                os.close(named)
                return []
            # Another one has the name. Ours would hold the host's VNIs and the containers' interfaces' names.
            clear(self.netlink)
            self.close()
        if named is not None:
            self._enter(named)
            return [Change(verb="replace", object=f"sysctl {name}") for name in self._settle()]
        netns.remove_name(DATAPATH_NAMESPACE)
        if self._namespace is not None:
            # Only the name was taken; everything in it goes on, and no packet is lost.
            netns.bind_name(self._namespace, DATAPATH_NAMESPACE)
            return [Change(verb="replace", object=f"{words}: its name")]
        try:
            namespace = netns.create()
        except OSError as error:
            raise HostError(f"cannot make a network namespace: {error.strerror}", hint="vxnetd needs root") from error
        self._enter(namespace)
        self._settle()
        netns.bind_name(namespace, DATAPATH_NAMESPACE)
        return [Change(verb="add", object=words)]

    def is_named(self) -> bool:
        """Whether the namespace is held and has its name."""
        named = netns.adopt_named(DATAPATH_NAMESPACE)
        if named is None:
            return False
        try:
            return self._namespace is not None and netns.identity(named) == netns.identity(self._namespace)
        finally:
            os.close(named)

    def _enter(self, namespace: int) -> None:
        """Takes over the descriptor; with both or with none of them. Raises OSError."""
        try:
            self._netlink = Netlink(namespace)
        except OSError:
            os.close(namespace)
            raise
        self._namespace = namespace

    def _settle(self) -> list[str]:
        return netns.inside(self.namespace, lambda: netns.set_sysctls(SYSCTLS))

    def ensure_segments(
        self, segments: Sequence[Segment], port: int
    ) -> tuple[list[Change], dict[str, Link], frozenset[str]]:
        """Bridges and tunnels with all their attributes: changes, the links there are now, names of the new ones."""
        found = self._reader.dump(self.netlink)
        clear: list[Step] = []
        bridges: list[Step] = []
        tunnels: list[Step] = []
        taps: list[Segment] = []
        marks: list[bytes] = []
        changes, held = self._ensure_forwarder(segments, port, found)
        for segment in segments:
            lost = segment.kind == "userspace" and segment.vni not in held
            if not lost and self._is_good(segment, port, found):
                continue
            for wish in (bridge_wish(segment), tunnel_wish(segment, port)):
                link = found.get(wish.name)
                reason = "" if link is None else incompatible(wish, link)
                if wish.kind == "tun" and lost and not reason:
                    reason = "its forwarder does not hold it"
                if link is not None and reason:
                    clear.append(Step("delete", f"link {wish.name}: {reason}", links.delete([link.ifindex])))
                    link = None
                if link is not None:
                    continue
                marks.append(links.set_alias(wish.name, wish.alias))
                if wish.kind == "tun":
                    taps.append(segment)
                elif wish.kind == "vxlan":
                    tunnels.append(Step("add", f"link {wish.name}", [links.add(wish, namespace=self.namespace)]))
                else:
                    bridges.append(Step("add", f"link {wish.name}", [links.add(wish)]))
        changes += carry_out(self.netlink, clear)
        changes += carry_out(self.netlink, bridges)
        changes += carry_out(self._host, tunnels)
        changes += [self.tunnels.add(segment, tunnel_name(segment.vni), self.namespace) for segment in taps]
        made = frozenset(change.object.split()[1] for change in changes if change.verb == "add" and not change.error)
        if made:
            self.netlink.batch(marks)
        if made or clear:
            found = self._reader.dump(self.netlink)
        mended = carry_out(self.netlink, self._mends(segments, port, found))
        changes += unless_new(mended, [change.object for change in changes])
        return changes, found, made

    def _ensure_forwarder(
        self, segments: Sequence[Segment], port: int, found: dict[str, Link]
    ) -> tuple[list[Change], Collection[int]]:
        """What is in user space needs one, what is not must not have one; the VNIs that it holds. The port is one
        tunnel's or the other's: the kernel's are deleted first, and taken out of ``found``. So are TAPs that are not
        wanted: all at once they go a hundred times faster than one after the other as the forwarder closes them.
        """
        ours = [segment for segment in segments if segment.kind == "userspace"]
        wanted = {tunnel_name(segment.vni) for segment in ours}
        doomed = [
            link
            for link in found.values()
            if link.alias.startswith(MARK)
            and ((link.kind == "vxlan" and ours) or (link.kind == "tun" and link.name not in wanted))
        ]
        changes = delete_links(self.netlink, doomed) if doomed else []
        for link in doomed:
            del found[link.name]
        if not ours:
            return changes + self.tunnels.stop(), ()
        held = self.tunnels.ensure(ours, port)
        self.tunnels.keep_only([segment.vni for segment in ours])
        return changes, held

    def _mends(self, segments: Sequence[Segment], port: int, found: Mapping[str, Link]) -> list[Step]:
        steps: list[Step] = []
        before, self._good = self._good, {}
        for segment in segments:
            seen = self._devices(segment, port, found)
            if before.get(segment.vni) == seen:
                self._good[segment.vni] = seen
                continue
            wish = bridge_wish(segment)
            bridge, tunnel = found.get(wish.name), found.get(tunnel_name(segment.vni))
            if bridge is None or tunnel is None:
                continue
            enslaved = mend(tunnel_wish(segment, port), tunnel, bridge.ifindex)
            # The flags of a port that has just joined are the kernel's defaults, not what was seen before.
            flags = tunnel if tunnel.master == bridge.ifindex else tunnel._replace(port={})
            needed = present((mend(wish, bridge), enslaved, mend_port(tunnel.name, flags, tunnel_port(segment))))
            if not needed:
                self._good[segment.vni] = seen
            steps += needed
        return steps

    def _is_good(self, segment: Segment, port: int, found: Mapping[str, Link]) -> bool:
        return self._good.get(segment.vni) == self._devices(segment, port, found)

    @staticmethod
    def _devices(segment: Segment, port: int, found: Mapping[str, Link]) -> tuple[object, ...]:
        """What is wished and what there is; links that are as they were are the same objects, and quickly compared."""
        there = found.get(bridge_name(segment.vni)), found.get(tunnel_name(segment.vni))
        return *there, segment.kind, segment.mtu, segment.local, bool(segment.foreign), port

    def sweep(self, found: Mapping[str, Link], wanted: frozenset[int]) -> list[Change]:
        """Delete bridges and tunnels of VNIs that are not wanted."""
        names = {bridge_name(vni) for vni in wanted} | {tunnel_name(vni) for vni in wanted}
        doomed = [
            link
            for link in found.values()
            if link.alias.startswith(MARK) and _SEGMENT_NAME.fullmatch(link.name) and link.name not in names
        ]
        return delete_links(self.netlink, doomed)


def clear(netlink: Netlink) -> list[Change]:
    """Delete whatever is vxnet's in a namespace."""
    return delete_links(netlink, [link for link in links.dump(netlink).values() if link.alias.startswith(MARK)])


def delete_links(netlink: Netlink, doomed: Sequence[Link]) -> list[Change]:
    """Delete links, all in one go."""
    failures = netlink.batch(links.delete(link.ifindex for link in doomed))
    error = next((failure[1] for at, failure in failures.items() if at == len(doomed)), "")
    return [Change(verb="delete", object=f"link {link.name}", error=error) for link in doomed]


# Rows

STRIDE = 128
"""Remotes that are compared in one go."""


def octets(mac: str) -> bytes:
    """Of one MAC, or of several behind one another."""
    return bytes.fromhex(mac.replace(":", ""))


def remote_rows(home: Home, remotes: Sequence[Remote]) -> Rows:
    tunnel, bridge = key_head(TUNNEL, home.tunnel), key_head(BRIDGE, home.bridge)
    neighbour = key_head(NEIGHBOUR, home.bridge)
    macs = split(octets("".join([remote.mac for remote in remotes])), 6)
    rows = dict(zip([tunnel + mac for mac in macs], [remote.vtep.packed for remote in remotes], strict=True))
    rows.update(dict.fromkeys([bridge + mac for mac in macs], IFINDEX.pack(home.tunnel)))
    rows.update(
        (neighbour + address.packed, mac)
        for remote, mac in zip(remotes, macs, strict=True)
        for address in remote.addresses
    )
    return rows


def flood_rows(home: Home, vteps: Iterable[IPAddress]) -> Rows:
    head = key_head(TUNNEL, home.tunnel) + FLOOD
    return {head + vtep.packed: vtep.packed for vtep in vteps}


def resident_rows(home: Home, residents: Iterable[Resident]) -> Rows:
    """Of containers here. Their neighbours too: a request for one that is known stays on this host."""
    rows: Rows = {}
    bridge, neighbour = key_head(BRIDGE, home.bridge), key_head(NEIGHBOUR, home.bridge)
    for interface, port in residents:
        mac = octets(interface.mac)
        rows[bridge + mac] = IFINDEX.pack(port)
        for address in interface.addresses:
            rows[neighbour + address.packed] = mac
    return rows


def changed_remotes(before: Sequence[Remote], after: Sequence[Remote]) -> tuple[list[Remote], list[Remote]]:
    """Those that are no more, and those that are new; one that differs is in both."""
    if before is after:
        return [], []
    # Nearly all are the very same objects in the same order, as plans are made of what earlier ones were made of. What
    # is before and behind the change is passed over by the hundred.
    begin, end = 0, 0
    while before[begin : begin + STRIDE] == after[begin : begin + STRIDE] and begin < len(before):
        begin += STRIDE
    shorter = min(len(before), len(after)) - begin
    while end + STRIDE <= shorter and before[-end - STRIDE : -end or None] == after[-end - STRIDE : -end or None]:
        end += STRIDE
    old = {remote.mac: remote for remote in before[begin : len(before) - end]}
    new = {remote.mac: remote for remote in after[begin : len(after) - end]}
    gone = [remote for mac, remote in old.items() if new.get(mac) != remote]
    come = [remote for mac, remote in new.items() if old.get(mac) != remote]
    return gone, come


def changed_residents(before: Sequence[Resident], after: Sequence[Resident]) -> tuple[list[Resident], list[Resident]]:
    """Likewise."""
    if before == after:
        return [], []
    old = {one.interface.port: one for one in before}
    new = {one.interface.port: one for one in after}
    gone = [one for port, one in old.items() if new.get(port) != one]
    come = [one for port, one in new.items() if old.get(port) != one]
    return gone, come

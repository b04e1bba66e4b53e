"""Bridges in the host's namespace: ``vxnet_gw``, the containers' way out, and networks of the driver bridge.

::

    container ── veth ── vxnet_gw ─────────┐
                 isolated port: no container hears another
                                           ├── routing, masquerade ── the world       (filters: host/hosttable)
    container ── veth ── vxnet_1a2b3c4d5 ──┘
                 the containers of one network hear each other

net.ipv4.ip_forward (and, with IPv6 addresses on the bridge, net.ipv6.conf.all.forwarding) is switched on and stays on
when vxnet leaves: nobody can know who else came to rely on it meanwhile, and switching it off would cut them off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from vxnet.host import addresses, links, netns
from vxnet.host.addresses import Address
from vxnet.host.datapath import CONTAINER_PORT, MARK, delete_links
from vxnet.host.links import Link, Reader, Wish
from vxnet.host.netlink import Netlink
from vxnet.host.steps import Step, carry_out, mend, present, unless_new
from vxnet.model.address import IPInterface
from vxnet.model.host import BRIDGE_PREFIX, Change, HostBridge

ALIAS = f"{MARK}gateway"
"""Of each of these bridges."""
GATEWAY_PORT = {
    "IFLA_BRPORT_ISOLATED": 1,
    # A frame whose source is not the port's row in the FDB is dropped (Linux 5.18; before that nothing looks).
    "IFLA_BRPORT_LEARNING": 0,
    "IFLA_BRPORT_LOCKED": 1,
}


def port_flags(bridge: HostBridge | None) -> dict[str, int]:
    """Of a container's port; None: of a bridge that is none of these."""
    return GATEWAY_PORT if bridge is not None and bridge.isolated else CONTAINER_PORT


def bridge_wish(bridge: HostBridge) -> Wish:
    # A bridge without an address of its own takes the lowest of its ports', which come and go: containers would send
    # to the old one for as long as their ARP entry lives.
    digest = hashlib.blake2s(str(bridge.addresses[0]).encode() if bridge.addresses else b"", digest_size=5).digest()
    return Wish(
        name=bridge.name,
        kind="bridge",
        mtu=bridge.mtu,
        alias=ALIAS,
        mac=(b"\x02" + digest).hex(":"),
        data={"IFLA_BR_STP_STATE": 0, "IFLA_BR_FORWARD_DELAY": 0},
    )


def ensure(netlink: Netlink, reader: Reader, bridges: Sequence[HostBridge]) -> tuple[list[Change], dict[str, Link]]:
    """The bridges with their addresses, and no others of vxnet's: changes, and the host's links as they are now."""
    found = reader.dump(netlink)
    names = {bridge.name for bridge in bridges}
    doomed = [link for link in found.values() if link.alias == ALIAS and link.name not in names]
    changes = delete_links(netlink, doomed) if doomed else []
    for one in doomed:
        del found[one.name]
    made: list[str] = []
    for bridge in bridges:
        wish, link = bridge_wish(bridge), found.get(bridge.name)
        if link is not None and link.kind != wish.kind:
            reason = f"is a {link.kind or 'physical link'}, not a bridge"
            changes.append(Change(verb="replace", object=f"link {wish.name}", error=reason))
        elif link is None:
            steps = [links.add(wish, up=False), links.set_alias(wish.name, wish.alias)]
            changes += carry_out(netlink, [Step("add", f"link {wish.name}", steps)])
            netlink.batch([links.no_link_local(wish.name)])  # refused where there is no IPv6
            made.append(f"link {wish.name}")
    if made:
        found = reader.dump(netlink)
    for bridge in bridges:
        link = found.get(bridge.name)
        if link is None or link.kind != "bridge":
            continue
        changes += unless_new(carry_out(netlink, present((mend(bridge_wish(bridge), link),))), made)
        changes += carry_out(netlink, address_steps(addresses.dump(netlink, link.ifindex), link, bridge.addresses))
    return changes, found


def address_steps(found: Sequence[Address], link: Link, wanted: Sequence[IPInterface]) -> list[Step]:
    """Add those that lack, then delete what vxnet set earlier. Other people's addresses stay."""
    there = [address for address in found if address.ifindex == link.ifindex]
    held = {address.interface for address in there}
    steps = [
        Step("add", f"address {one} dev {link.name}", [addresses.add(link.ifindex, one)])
        for one in wanted
        if one not in held
    ]
    return steps + [
        Step("delete", f"address {one.interface} dev {link.name}", [addresses.delete(link.ifindex, one.interface)])
        for one in there
        if one.ours and one.interface not in wanted
    ]


def _sysctls(bridges: Sequence[HostBridge], routed: Collection[int]) -> dict[str, str]:
    wanted = {_FORWARDING[version]: "1" for version in sorted(routed)}
    for bridge in bridges:
        versions = {one.version for one in bridge.addresses if not bridge.internal}
        if 4 in versions:
            wanted[_FORWARDING[4]] = "1"
            # A port of the host is one of 127.0.0.1, too; what containers send there is dropped (host/hosttable).
            wanted[f"ipv4/conf/{bridge.name}/route_localnet"] = "1"
        if 6 in versions:
            wanted[_FORWARDING[6]] = "1"
            wanted[f"ipv6/conf/{bridge.name}/accept_ra"] = "0"
    return wanted


def forward(namespace: int, bridges: Sequence[HostBridge], routed: Collection[int] = ()) -> list[Change]:
    """Switch routing on in the host's namespace for the families that the bridges have, and for those of ``routed``."""
    wanted = _sysctls(bridges, routed)
    written = netns.inside(namespace, lambda: _switch_on(wanted))
    return [Change(verb="replace", object=f"sysctl net.{name.replace('/', '.')} {wanted[name]}") for name in written]


def forwards(namespace: int, bridges: Sequence[HostBridge], routed: Collection[int] = ()) -> bool:
    """Whether routing is on as :func:`forward` leaves it."""
    names = [name for name in _sysctls(bridges, routed) if name in _FORWARDING.values()]

    def look() -> bool:
        return all(_setting(Path("/proc/sys/net", name)) != "0" for name in names)

    return netns.inside(namespace, look)


def _setting(path: Path) -> str:
    """Empty: an interface has just gone, or the kernel has no such thing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def _switch_on(wanted: dict[str, str]) -> list[str]:
    """A host that gets its own default route by router advertisements would lose it when it becomes a router itself,
    unless its interfaces are told to go on listening (accept_ra 2)."""
    conf = Path("/proc/sys/net/ipv6/conf")
    if "ipv6/conf/all/forwarding" in wanted and _setting(conf / "all/forwarding") == "0":
        listening = [
            path.parent.name
            for path in conf.glob("*/accept_ra")
            if _setting(path) == "1" and not path.parent.name.startswith(BRIDGE_PREFIX)
        ]
        wanted |= {f"ipv6/conf/{name}/accept_ra": "2" for name in listening}
        # First the interfaces, then the switch.
        wanted["ipv6/conf/all/forwarding"] = wanted.pop("ipv6/conf/all/forwarding")
    return netns.set_sysctls(wanted)

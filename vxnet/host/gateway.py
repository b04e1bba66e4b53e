"""``vxnet_gw`` in the host's namespace: the containers' way out; and what guards the VXLAN port.

::

    container ── veth ── vxnet_gw ── routing, masquerade ── the world
                 isolated port: no container hears another

net.ipv4.ip_forward (and, with IPv6 addresses on the bridge, net.ipv6.conf.all.forwarding) is switched on and stays on
when vxnet leaves: nobody can know who else came to rely on it meanwhile, and switching it off would cut them off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vxnet.host import addresses, links, netns, uvxlan
from vxnet.host.addresses import Address
from vxnet.host.datapath import MARK, delete_links
from vxnet.host.links import Link, Wish
from vxnet.host.netlink import Netlink
from vxnet.host.nft import Ruleset
from vxnet.host.steps import Step, carry_out, mend, present, unless_new
from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.host import GATEWAY_BRIDGE, Change, GatewayBridge, HostState

_EQUAL_PAIRS = ", ".join(f"{octet:#x} . {octet:#x}" for octet in range(256))

GATEWAY_PORT = {
    "IFLA_BRPORT_ISOLATED": 1,
    # A frame whose source is not the port's row in the FDB is dropped (Linux 5.18; before that nothing looks).
    "IFLA_BRPORT_LEARNING": 0,
    "IFLA_BRPORT_LOCKED": 1,
}


def bridge_wish(gateway: GatewayBridge) -> Wish:
    # A bridge without an address of its own takes the lowest of its ports', which come and go: containers would send
    # to the old one for as long as their ARP entry lives.
    digest = hashlib.blake2s(str(gateway.addresses[0]).encode() if gateway.addresses else b"", digest_size=5).digest()
    return Wish(
        name=GATEWAY_BRIDGE,
        kind="bridge",
        mtu=gateway.mtu,
        alias=f"{MARK}gateway",
        mac=(b"\x02" + digest).hex(":"),
        data={"IFLA_BR_STP_STATE": 0, "IFLA_BR_FORWARD_DELAY": 0},
    )


def ensure(netlink: Netlink, gateway: GatewayBridge | None) -> tuple[list[Change], dict[str, Link]]:
    """The bridge with its addresses: changes, and the host's links as they are now."""
    found = links.dump(netlink)
    bridge = found.get(GATEWAY_BRIDGE)
    if gateway is None:
        changes = []
        if bridge is not None and bridge.alias.startswith(MARK):
            changes = delete_links(netlink, [bridge])
            del found[GATEWAY_BRIDGE]
        return changes, found
    wish = bridge_wish(gateway)
    changes = []
    if bridge is not None and bridge.kind != wish.kind:
        reason = f"is a {bridge.kind or 'physical link'}, not a bridge"
        return [Change(verb="replace", object=f"link {wish.name}", error=reason)], found
    if bridge is None:
        made = [links.add(wish, up=False), links.set_alias(wish.name, wish.alias)]
        changes = carry_out(netlink, [Step("add", f"link {wish.name}", made)])
        netlink.batch([links.no_link_local(wish.name)])  # refused where there is no IPv6
        found = links.dump(netlink)
        bridge = found.get(wish.name)
    if bridge is not None:
        changes += unless_new(carry_out(netlink, present((mend(wish, bridge),))), [one.object for one in changes])
        changes += carry_out(netlink, address_steps(addresses.dump(netlink, bridge.ifindex), bridge, gateway.addresses))
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


def forward(namespace: int, gateway: GatewayBridge) -> list[Change]:
    """Switch routing on in the host's namespace for the families that the bridge has."""
    wanted = {}
    if any(one.version == 4 for one in gateway.addresses):
        wanted["ipv4/ip_forward"] = "1"
    if any(one.version == 6 for one in gateway.addresses):
        wanted["ipv6/conf/all/forwarding"] = "1"
    written = netns.inside(namespace, lambda: _switch_on(wanted))
    return [Change(verb="replace", object=f"sysctl net.{name.replace('/', '.')} {wanted[name]}") for name in written]


def forwards(namespace: int, gateway: GatewayBridge) -> bool:
    """Whether routing is on as :func:`forward` leaves it."""
    names = {"ipv4/ip_forward" if one.version == 4 else "ipv6/conf/all/forwarding" for one in gateway.addresses}

    def look() -> bool:
        return all(Path("/proc/sys/net", name).read_text().strip() != "0" for name in names)

    return netns.inside(namespace, look)


def _switch_on(wanted: dict[str, str]) -> list[str]:
    """A host that gets its own default route by router advertisements would lose it when it becomes a router itself,
    unless its interfaces are told to go on listening (accept_ra 2)."""
    conf = Path("/proc/sys/net/ipv6/conf")
    if "ipv6/conf/all/forwarding" in wanted and (conf / "all/forwarding").read_text().strip() == "0":
        listening = [path.parent.name for path in conf.glob("*/accept_ra") if path.read_text().strip() == "1"]
        wanted |= {f"ipv6/conf/{name}/accept_ra": "2" for name in listening}
        # First the interfaces, then the switch.
        wanted["ipv6/conf/all/forwarding"] = wanted.pop("ipv6/conf/all/forwarding")
    return netns.set_sysctls(wanted)


def _guard(gateway: GatewayBridge) -> str:
    """Rules that drop what a container sends in the name of another one.

    The bridge lets each send from its own MAC alone, and that follows from its address (core/allocate, mac_of): its
    last four octets are the address. nft compares no two fields, so those octets that differ among the containers are
    looked up in the set of all equal pairs.
    """
    rules = ""
    for one in gateway.addresses:
        if one.version == 6:
            continue
        for octet in range(one.network.prefixlen // 8, 4):
            mac, address = 64 + 8 * octet, 96 + 8 * octet
            rules += (
                f'\t\tiifname "{GATEWAY_BRIDGE}" ip saddr {one.network} @ll,{mac},8 . @nh,{address},8 != '
                f"{{ {_EQUAL_PAIRS} }} drop\n"
            )
    if all(one.version == 4 for one in gateway.addresses):
        rules += f'\t\tiifname "{GATEWAY_BRIDGE}" meta nfproto ipv6 drop\n'
    return rules


def _from(address: IPAddress) -> str:
    return f"{'ip' if address.version == 4 else 'ip6'} saddr {address}"


def _sorted(found: set[IPAddress]) -> list[IPAddress]:
    return sorted(found, key=lambda address: (address.version, address.packed))


def ruleset(state: HostState) -> Ruleset:
    """The host's table. Elements of its sets change alone; the rest depends on the data port and on the gateway."""
    port = state.data_port
    masquerade = "".join(
        f"\t\t{'ip' if one.version == 4 else 'ip6'} saddr {one.network}"
        f' oifname != "{GATEWAY_BRIDGE}" masquerade fully-random\n'
        for one in (state.gateway.addresses if state.gateway else ())
    )
    guard = ""
    strangers = [(segment.vni, vtep) for segment in state.segments for vtep in segment.foreign]
    untracked = "".join(f"\t\t{_from(vtep)} udp dport {port} notrack\n" for vtep in _sorted({v for _, v in strangers}))
    # Behind the UDP header and the first word of VXLAN's stand the 24 bits of the identifier.
    let_in = "".join(f"\t\t{_from(vtep)} udp dport {port} @th,96,24 {vni:#x} accept\n" for vni, vtep in strangers)
    # prerouting: a container that sends to the port would pass the list by the address that masquerading gives it.
    # Tunnel packets are not tracked: each flow has a source port of its own, and would fill the table.
    # output: a socket of a user has an owner, the kernel's own tunnels have none, and one in user space its own user.
    # input: a VTEP without vxnet may send into the networks that it is a peer of.
    # forward: what others send to containers by way of this host's routing is not for them.
    if state.gateway is not None:
        guard = _guard(state.gateway)
    body = f"""\
\tset vteps4 {{
\t\ttype ipv4_addr
\t}}

\tset vteps6 {{
\t\ttype ipv6_addr
\t}}

\tchain prerouting {{
\t\ttype filter hook prerouting priority raw; policy accept;
{guard}\t\tiifname "{GATEWAY_BRIDGE}" udp dport {port} drop
\t\tip saddr @vteps4 udp dport {port} notrack
\t\tip6 saddr @vteps6 udp dport {port} notrack
{untracked}\t}}

\tchain input {{
\t\ttype filter hook input priority raw; policy accept;
\t\tip saddr @vteps4 udp dport {port} accept
\t\tip6 saddr @vteps6 udp dport {port} accept
{let_in}\t\tudp dport {port} drop
\t}}

\tchain output {{
\t\ttype filter hook output priority raw; policy accept;
\t\tudp dport {port} meta skuid != {uvxlan.UID} drop
\t\tudp dport {port} notrack
\t}}

\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\toifname "{GATEWAY_BRIDGE}" ct state established,related accept
\t\toifname "{GATEWAY_BRIDGE}" drop
\t}}

\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
{masquerade}\t}}
"""
    vteps = state.vteps
    return Ruleset(
        body,
        {
            "vteps4": {one.packed: b"" for one in vteps if one.version == 4},
            "vteps6": {one.packed: b"" for one in vteps if one.version == 6},
        },
    )

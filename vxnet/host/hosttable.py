"""The host's own nftables table: what guards the VXLAN port, the bridges of the host's namespace, NAT and ports.

::

    raw          who may send to the VXLAN port: member VTEPs, the kernel's tunnels; no local user, no container
    dstnat       ports of this host that lead to one container
    filter       nothing into a bridge but answers and what was led there on purpose
    srcnat       the way out: masquerade

A drop in any table is final, so nothing here overrules what somebody else drops.

Every packet of this host comes by, and most are not for vxnet: so a rule begins with what is cheapest to compare and
seldom true, and what concerns one link stands in a chain of its own.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator, Mapping

from vxnet.host import mesh, uvxlan
from vxnet.host.datapath import ROOTS_PORTS
from vxnet.host.elements import Elements, Shape
from vxnet.host.nft import Ruleset
from vxnet.model.address import IPAddress, IPInterface, IPNetwork
from vxnet.model.host import BRIDGE_PREFIX, GatewayBridge, HostBridge, HostPort, HostState, host_bridges

_LOOPBACK = "ip daddr 127.0.0.0/8"
"""Of IPv6 the kernel drops what comes to ::1 from elsewhere before any hook."""
_LOOPBACK6 = ipaddress.IPv6Address(1)
_EQUAL_PAIRS = ", ".join(f"{octet:#x} . {octet:#x}" for octet in range(256))


def ruleset(state: HostState, filled: mesh.Filled | None = None) -> Ruleset:
    """The host's table. Elements of its sets change alone; the rest depends on the data port, bridges and ports.
    ``filled``: with what earlier calls made of the mesh, for speed.
    """
    of_mesh = (filled or mesh.Filled()).part(state.ingress)
    sets = _SETS + of_mesh.sets
    chains = _prerouting, _input, _output, _borrowed, _forward, _nat
    body = "\n".join((sets, *(chain(state) for chain in chains)))
    vteps = state.vteps
    return Ruleset(
        body + of_mesh.chains,
        {
            "vteps4": {one.packed: b"" for one in vteps if one.version == 4},
            "vteps6": {one.packed: b"" for one in vteps if one.version == 6},
            **_ports(state),
            **of_mesh.elements,
        },
        SHAPES,
    )


SHAPES = {
    "ports4": Shape(("protocol", "port"), ("address4", "port")),
    "ports6": Shape(("protocol", "port"), ("address6", "port")),
    **mesh.SHAPES,
}
_SETS = """\
\tset vteps4 {
\t\ttype ipv4_addr
\t}

\tset vteps6 {
\t\ttype ipv6_addr
\t}

\tmap ports4 {
\t\ttypeof meta l4proto . th dport : ip daddr . th dport
\t}

\tmap ports6 {
\t\ttypeof meta l4proto . th dport : ip6 daddr . th dport
\t}
"""


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    return _part(name, (f"type {hook}; policy accept;", *rules))


def _part(name: str, rules: Iterable[str]) -> str:
    """A chain that others jump to."""
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n{lines}\t}}\n"


def _family(address: IPAddress | IPInterface | IPNetwork) -> str:
    return "ip" if address.version == 4 else "ip6"


# Who may send to the VXLAN port


def _prerouting(state: HostState) -> str:
    """A container that sends to the port would pass the list by the address that masquerading gives it, or by one that
    it forges. Tunnel packets are not tracked: each flow has a source port of its own, and would fill the table."""
    port = state.data_port
    ours, guard = [f"udp dport {port} drop", f"{_LOOPBACK} drop"], ""
    if state.gateway is not None:
        guard = _part("guard", _guard(state.gateway)) + "\n"
        ours.append(f'iifname "{state.gateway.name}" jump guard')
    strangers = sorted({v for one in state.segments for v in one.foreign}, key=lambda one: (one.version, one.packed))
    rules = [
        f'iifname "{BRIDGE_PREFIX}*" jump ours',
        f"udp dport {port} ip saddr @vteps4 notrack",
        f"udp dport {port} ip6 saddr @vteps6 notrack",
        *(f"udp dport {port} {_family(vtep)} saddr {vtep} notrack" for vtep in strangers),
    ]
    chain = _chain("prerouting", "filter hook prerouting priority raw", rules)
    return f"{guard}{_part('ours', ours)}\n{chain}"


def _input(state: HostState) -> str:
    port = state.data_port
    # A VTEP without vxnet may send into the networks that it is a peer of: behind the UDP header and the first word of
    # VXLAN's stand the 24 bits of the identifier.
    rules = [
        f"udp dport {port} ip saddr @vteps4 accept",
        f"udp dport {port} ip6 saddr @vteps6 accept",
        *(
            f"udp dport {port} {_family(vtep)} saddr {vtep} @th,96,24 {segment.vni:#x} accept"
            for segment in state.segments
            for vtep in segment.foreign
        ),
        f"udp dport {port} drop",
    ]
    return _chain("input", "filter hook input priority raw", rules)


def _output(state: HostState) -> str:
    """A socket of a user has an owner, the kernel's own tunnels have none, and one in user space its own user. In the
    ingress network's tunnel are packets of users of this host."""
    port = state.data_port
    mesh = "udp sport != {}-{} ".format(*ROOTS_PORTS) if any(one.ingress for one in state.segments) else ""
    rules = [f"udp dport {port} {mesh}meta skuid != {uvxlan.UID} drop", f"udp dport {port} notrack"]
    return _chain("output", "filter hook output priority raw", rules)


def _borrowed(state: HostState) -> str:
    """What somebody else's NAT (of Docker's networks, of virtual machines) has lent this host's address is not from a
    tunnel: those are not tracked, and so not translated."""
    rules = [f"ct status snat {family} daddr @{vteps} udp dport {state.data_port} drop" for family, vteps in _VTEPS]
    return _chain("borrowed", "filter hook postrouting priority srcnat + 10", rules)


_VTEPS = (("ip", "vteps4"), ("ip6", "vteps6"))


def _guard(gateway: GatewayBridge) -> Iterator[str]:
    """Rules that drop what a container sends in the name of another one.

    The bridge lets each send from its own MAC alone, whose last four octets are those of its addresses
    (:class:`GatewayBridge`). nft compares no two fields, so those octets that differ among the containers are looked up
    in the set of all equal pairs.
    """
    for one in gateway.addresses:
        source, width = (96, 4) if one.version == 4 else (64, 16)
        for octet in range(4):
            at = width - 4 + octet
            if at < one.network.prefixlen // 8:
                continue
            pair = f"@ll,{64 + 8 * octet},8 . @nh,{source + 8 * at},8"
            yield f"{_family(one)} saddr {one.network} {pair} != {{ {_EQUAL_PAIRS} }} drop"
    prefix = next((one.network for one in gateway.addresses if one.version == 6), None)
    if prefix is not None:
        # Who asks for the bridge's own MAC: from an address that follows from the MAC, which others' entries are not
        # taken from (they are permanent). Nobody there is a router.
        asks = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
        yield f"ip6 saddr {{ ::, fe80::/10 }} {asks} accept"
        yield f"ip6 saddr != {prefix.network_address}/{_V4_IN_V6} drop"
        yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    else:
        yield "meta nfproto ipv6 drop"


_V4_IN_V6 = 96
"""What containers' IPv6 addresses on vxnet_gw have in common; the rest is the IPv4 address."""


# What is forwarded


def _forward(state: HostState) -> str:
    """What others send to containers by way of this host's routing is not for them. ``ct status dnat``: somebody has
    led it there on purpose."""
    rules: list[str] = []
    for bridge in host_bridges(state):
        into, out = f'oifname "{bridge.name}"', f'iifname "{bridge.name}"'
        if not bridge.isolated:
            rules.append(f"{out} {into} accept")  # only where br_netfilter hands bridged frames to the firewall
            rules += _own_sources(bridge, out)
        if bridge.internal:
            rules.append(f"{out} drop")
        else:
            rules += [f"{into} ct state established,related accept", f"{into} ct status dnat accept"]
        rules.append(f"{into} drop")
    return _chain("forward", "filter hook forward priority filter", rules)


def _own_sources(bridge: HostBridge, out: str) -> Iterator[str]:
    prefixes = [one.network for one in bridge.addresses]
    for version, family in ((4, "ipv4"), (6, "ipv6")):
        own = next((prefix for prefix in prefixes if prefix.version == version), None)
        yield f"{out} meta nfproto {family} drop" if own is None else f"{out} {_family(own)} saddr != {own} drop"


# NAT


def _nat(state: HostState) -> str:
    out: list[str] = []
    for bridge in host_bridges(state):
        for one in bridge.addresses if not bridge.internal else ():
            source = f"{_family(one)} saddr {one.network}"
            out.append(f'{source} oifname != "{bridge.name}" masquerade fully-random')
            # By a port of this host to a neighbour on the same bridge: answers must come back by the host.
            out.append(f'{source} oifname "{bridge.name}" ct status dnat masquerade')
    if state.ports:
        out.append(f'ip saddr 127.0.0.0/8 oifname "{BRIDGE_PREFIX}*" masquerade')
    chains = [_chain("postrouting", "nat hook postrouting priority srcnat", out)]
    if state.ports:
        # Also of ports that are bound to 127.0.0.1: a neighbour may send to that address by hand, and once translated
        # it would pass for a packet from the host itself. Those of the host come by the hook output.
        chains.append(
            _chain("ports", "nat hook prerouting priority dstnat", [f"{_LOOPBACK} accept", *_leads(state, _EVERYWHERE)])
        )
        chains.append(_chain("ports_local", "nat hook output priority -100", _leads(state, _HERE)))
    return "\n".join(chains)


_LOCAL = "fib daddr type local"
_EVERYWHERE = {4: f"meta nfproto ipv4 {_LOCAL}", 6: f"meta nfproto ipv6 {_LOCAL}"}
_HERE = {**_EVERYWHERE, 6: f"ip6 daddr != ::1 {_LOCAL}"}
"""From this host. From ::1 nothing is sent on. A route as the mesh has it (host/addresses, add_loopback) brings its
answers home only while br_netfilter is off: else conntrack turns them back to ::1 at the bridge, and the kernel drops
what comes in with that address. Refused at once is better than never answered."""


def _leads(state: HostState, everywhere: Mapping[int, str]) -> list[str]:
    """Rules: first of ports that not everybody has everywhere."""
    rules = [rule for port in state.ports for rule in _lead(port, everywhere)]
    to = "to meta l4proto . th dport map @ports"
    return [*rules, f"{everywhere[4]} dnat ip {to}4", f"{everywhere[6]} dnat ip6 {to}6"]


def _is_everybodys(port: HostPort, version: int) -> bool:
    """On all addresses of this family, and from everywhere."""
    places = [one for one in port.addresses if one.version == version]
    return not port.sources and (not port.addresses or any(one.is_unspecified for one in places))


def _ports(state: HostState) -> dict[str, Elements]:
    """Ports as elements: hosts have thousands, and another one changes no rule."""
    maps: dict[int, dict[bytes, bytes | str]] = {4: {}, 6: {}}
    for port in state.ports:
        key = bytes((mesh.PROTOCOLS[port.protocol], 0, 0, 0)) + struct.pack("!HH", port.published, 0)
        for to in port.to:
            if _is_everybodys(port, to.version):
                maps[to.version][key] = to.packed + struct.pack("!HH", port.target, 0)
    return {f"ports{version}": elements for version, elements in maps.items()}


def _lead(port: HostPort, everywhere: Mapping[int, str]) -> Iterator[str]:
    """Of those that are bound to addresses, or for some sources only."""
    for to in port.to:
        family = _family(to)
        places = [one for one in port.addresses if one.version == to.version and one != _LOOPBACK6]
        sources = [one for one in port.sources if one.version == to.version]
        if _is_everybodys(port, to.version) or (port.addresses and not places) or (port.sources and not sources):
            continue
        target = f"[{to}]:{port.target}" if to.version == 6 else f"{to}:{port.target}"
        whole = not places or any(one.is_unspecified for one in places)
        there = [everywhere[to.version]] if whole else [f"{family} daddr {one}" for one in places]
        lead = f"{port.protocol} dport {port.published} dnat {family} to {target}"
        for source in [f"{family} saddr {one} " for one in sources] or [""]:
            yield from (f"{source}{place} {lead}" for place in there)

"""The routing mesh on a node: ``vxnet_in``, and where connections to published ports go.

::

    client ──> eth1 ──prerouting: DNAT──> vxnet_in ── veth ── br<VNI> ──> the task, here or behind the tunnel
    client <── eth1 <──conntrack: back─── vxnet_in <────────────────────── its answer (vxnet.host.answers)

    port ──mesh_to4──> mesh_lb3: a number of 0, 1, 2 ──mesh_end4──> DNAT to 10.0.0.7:8080
                    mesh_sticky: a hash of the client's address
                    mesh_none: refused at once

Nothing is done to the source, so the server sees its client; but the loopback addresses of this host itself, which mean
somebody else in a task, get that of ``vxnet_in``. As with virtual IPs only a connection's first packet comes by, chains
go by the number of backends, and the rest is elements. Ports that are bound to addresses have maps of their own, which
are asked first (``mesh_at…``).

What may pass ``vxnet_in``: towards the tasks what was translated here, from them the answers. Nobody but this host
reaches the network itself.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vxnet.host import addresses, elements, links, netns
from vxnet.host.datapath import CONTAINER_PORT, MARK, bridge_name, delete_links
from vxnet.host.elements import Elements, Range, Shape
from vxnet.host.gateway import address_steps
from vxnet.host.links import Link, Peer, Side, Wish
from vxnet.host.steps import Step, carry_out, mend, mend_port, present, unless_new
from vxnet.model.address import IPInterface
from vxnet.model.host import INGRESS_LINK, STICKY_BUCKETS, VIP_MARK, Change, Ingress, Interface, MeshPort

PORT = "ingress"
"""The other end of ``vxnet_in``, on the bridge."""
CHAINS_MIN = 16
BACKENDS_MAX = 4096
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_PORT: tuple[elements.Field, ...] = ("protocol", "port")
SHAPES: dict[str, Shape] = {
    "mesh_to4": Shape(_PORT),
    "mesh_to6": Shape(_PORT),
    "mesh_at_to4": Shape(("address4", *_PORT)),
    "mesh_at_to6": Shape(("address6", *_PORT)),
    "mesh_end4": Shape((*_PORT, "number"), ("address4", "port")),
    "mesh_end6": Shape((*_PORT, "number"), ("address6", "port")),
    "mesh_at_end4": Shape(("address4", *_PORT, "number"), ("address4", "port")),
    "mesh_at_end6": Shape(("address6", *_PORT, "number"), ("address6", "port")),
    "mesh_guarded4": Shape(_PORT),
    "mesh_guarded6": Shape(_PORT),
    "mesh_at_guarded4": Shape(("address4", *_PORT)),
    "mesh_at_guarded6": Shape(("address6", *_PORT)),
    "mesh_from4": Shape((*_PORT, "address4")),
    "mesh_from6": Shape((*_PORT, "address6")),
    "mesh_at_from4": Shape(("address4", *_PORT, "address4")),
    "mesh_at_from6": Shape(("address6", *_PORT, "address6")),
    "mesh_new": Shape(_PORT),
    "mesh_refused": Shape(_PORT),
    "mesh_in": Shape(_PORT),
    "mesh_out": Shape(_PORT),
}
COUNTERS = ("mesh_new", "mesh_refused", "mesh_in", "mesh_out")
_TYPES: dict[elements.Field, str] = {
    "address4": "ipv4_addr",
    "address6": "ipv6_addr",
    "protocol": "inet_proto",
    "port": "inet_service",
}
_WAYS = [(at, version) for at in ("at_", "") for version in (4, 6)]
"""Of looking a port up, in this order: bound to an address or not, in each family."""


class Part(NamedTuple):
    """The mesh's in the host's table."""

    sets: str
    chains: str
    elements: Mapping[str, Elements]


NOTHING = Part("", "", {})


class Filled:
    """The elements of all ports. Remembers them: what stays the same object among ports costs nothing, and a set that
    does not change stays the same object."""

    def __init__(self) -> None:
        self._ports: dict[int, MeshPort] = {}
        """By identity."""
        self._sets: dict[str, Elements] = {name: {} for name in SHAPES}

    def part(self, ingress: Ingress | None) -> Part:
        """Of the host's table."""
        if ingress is None:
            return NOTHING
        self._fill(ingress.ports)
        most = max((len(one.backends) for one in ingress.ports if not one.sticky), default=0)
        chains = max(CHAINS_MIN, 1 << (min(most, BACKENDS_MAX) - 1).bit_length() if most else 0)
        return Part(_sets(), _chains(chains, ingress.addresses), dict(self._sets))

    def _fill(self, ports: Iterable[MeshPort]) -> None:
        wanted = {id(port): port for port in ports}
        less = [_packed(port) for key, port in self._ports.items() if key not in wanted]
        more = [_packed(port) for key, port in wanted.items() if key not in self._ports]
        self._ports = wanted
        changed: dict[str, dict[bytes, bytes | str]] = {}
        for packed in (*less, *more):
            for name in packed:
                if name not in changed:
                    changed[name] = dict(self._sets[name])
        for packed in less:
            for name, members in packed.items():
                for key in members:
                    changed[name].pop(key, None)
        for packed in more:
            for name, members in packed.items():
                changed[name].update(members)
        for name, members in changed.items():
            if members != self._sets[name]:
                self._sets[name] = members


# Text


@functools.lru_cache
def _sets() -> str:
    """Sets and maps, as ``nft list table`` prints them."""
    text = ""
    for name, shape in SHAPES.items():
        version = name[-1]
        family = "ip" if version == "4" else "ip6"
        kind, more = "set", ""
        if shape.data:
            at = f"{family} daddr . " if "_at_" in name else ""
            kind = "map"
            declared = f"typeof {at}meta l4proto . th dport . numgen random mod 65536 : {family} daddr . th dport"
        else:
            declared = f"type {' . '.join(_TYPES[field] for field in shape.key)}"
        if "_to" in name:
            kind, declared = "map", f"{declared} : verdict"
        if "_from" in name:
            more = "\t\tflags interval\n"
        if name in COUNTERS:
            more = "\t\tcounter\n"
        text += f"\n\t{kind} {name} {{\n\t\t{declared}\n{more}\t}}\n"
    return text


@functools.lru_cache
def _chains(chains: int, feet: tuple[IPInterface, ...]) -> str:
    balance = "".join(
        _chain(f"mesh_{at}lb{number}", at, f"numgen random mod {number}", f"numgen random mod {number}")
        for at in ("at_", "")
        for number in range(1, chains + 1)
    )
    balance += "".join(
        _chain(f"mesh_{at}sticky", at, f"jhash ip saddr mod {STICKY_BUCKETS}", f"jhash ip6 saddr mod {STICKY_BUCKETS}")
        for at in ("at_", "")
    )
    guards = {way: _guard(*way) for way in _WAYS}
    look = {way: _look_up(*way) for way in _WAYS}
    own = "".join(
        f'\t\t{family} {side} {foot.network} iifname != {{ "lo", "{INGRESS_LINK}" }} drop\n'
        for foot in feet
        for family in ("ip" if foot.version == 4 else "ip6",)
        for side in ("daddr", "saddr")
    )
    ours = f"ct mark >= {VIP_MARK:#010x}"
    # mesh_prerouting: nobody else is led to a port of 127.0.0.1; what the host itself sends there comes by mesh_output.
    # mesh_raw: before conntrack turns answers back to loopback addresses, none of those is for real.
    # mesh_forward, mesh_received: neighbour discovery is not tracked, and passes.
    return f"""
\tchain mesh_none {{
\t\tmeta l4proto . th dport @mesh_refused
\t\tmeta l4proto tcp reject with tcp reset
\t\treject
\t}}

{balance}\tchain mesh_prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tip daddr 127.0.0.0/8 accept
\t\tfib daddr type != local accept
{"".join(guards[way] + look[way] for way in _WAYS)}\t}}

\tchain mesh_output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type != local accept
{"".join(look.values())}\t}}

\tchain mesh_postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname "{INGRESS_LINK}" ip saddr 127.0.0.0/8 masquerade fully-random
\t\toifname "{INGRESS_LINK}" ip6 saddr ::1 masquerade fully-random
\t}}

\tchain mesh_raw {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tip daddr 127.0.0.0/8 iifname "{INGRESS_LINK}" drop
{own}\t}}

\tchain mesh_received {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname "{INGRESS_LINK}" ct state invalid,new drop
\t\t{ours} ct direction original meta l4proto . th dport @mesh_in
\t}}

\tchain mesh_forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\toifname "{INGRESS_LINK}" ct status dnat accept
\t\toifname "{INGRESS_LINK}" drop
\t}}

\tchain mesh_sent {{
\t\ttype filter hook output priority mangle; policy accept;
\t\t{ours} ct direction original meta l4proto . th dport @mesh_in
\t}}

\tchain mesh_answered {{
\t\ttype filter hook postrouting priority srcnat + 10; policy accept;
\t\t{ours} ct direction reply meta l4proto . th sport @mesh_out
\t}}

\tchain mesh_heard {{
\t\ttype filter hook input priority 110; policy accept;
\t\t{ours} ct direction reply meta l4proto . th sport @mesh_out
\t}}
"""


def _chain(name: str, at: str, number4: str, number6: str) -> str:
    mark = f"ct mark set ct mark | {VIP_MARK:#010x}"
    address4, address6 = ("ip daddr . ", "ip6 daddr . ") if at else ("", "")
    return f"""\
\tchain {name} {{
\t\tmeta l4proto . th dport @mesh_new
\t\t{mark} dnat ip to {address4}meta l4proto . th dport . {number4} map @mesh_{at}end4
\t\t{mark} dnat ip6 to {address6}meta l4proto . th dport . {number6} map @mesh_{at}end6
\t}}

"""


def _key(at: str, version: int) -> str:
    if at:
        return f"{'ip' if version == 4 else 'ip6'} daddr . meta l4proto . th dport"
    return "meta l4proto . th dport"


def _look_up(at: str, version: int) -> str:
    family = "" if at else f"meta nfproto ipv{version} "
    return f"\t\t{family}{_key(at, version)} vmap @mesh_{at}to{version}\n"


def _guard(at: str, version: int) -> str:
    """Drops what has no leave to use a guarded port."""
    key, family = _key(at, version), "ip" if version == 4 else "ip6"
    return f"\t\t{key} @mesh_{at}guarded{version} {key} . {family} saddr != @mesh_{at}from{version} drop\n"


# Elements

_NUMBERS = [struct.pack("=I", number) for number in range(BACKENDS_MAX)]


@functools.lru_cache(8192)
def _packed(port: MeshPort) -> dict[str, dict[bytes, bytes | str]]:
    version = port.version
    number = bytes((PROTOCOLS[port.protocol], 0, 0, 0)) + struct.pack("!HH", port.published, 0)
    at = "at_" if port.addresses else ""
    backends = port.backends[:BACKENDS_MAX]
    verdict = "none" if not backends else f"{at}sticky" if port.sticky else f"{at}lb{len(backends)}"
    target = struct.pack("!HH", port.target, 0)
    ends = [backend.packed + target for backend in backends]
    found: dict[str, dict[bytes, bytes | str]] = {name: {number: b""} for name in COUNTERS}
    way, end, guarded, sources = (f"mesh_{at}{name}{version}" for name in ("to", "end", "guarded", "from"))
    for key in [address.packed + number for address in port.addresses] or [number]:
        found.setdefault(way, {})[key] = f"mesh_{verdict}"
        found.setdefault(end, {}).update(zip((key + index for index in _NUMBERS), ends, strict=False))
        if port.guarded:
            found.setdefault(guarded, {})[key] = b""
            found.setdefault(sources, {}).update(
                (Range(key + one.network_address.packed + key + one.broadcast_address.packed), b"")
                for one in port.sources
            )
    return found


# The link


def versions(ingress: Ingress | None) -> set[int]:
    """IP versions that this host routes for it."""
    return {one.version for one in ingress.addresses} if ingress is not None else set()


def foot(ingress: Ingress) -> Interface:
    """As one of the segment's interfaces."""
    return Interface(
        name=INGRESS_LINK,
        port=PORT,
        vni=ingress.vni,
        mac=ingress.mac,
        mtu=ingress.mtu,
        addresses=ingress.addresses,
    )


SYSCTLS = {
    # 127.0.0.1 is a client, too; mesh_raw sees to it that nobody else comes by that name.
    f"ipv4/conf/{INGRESS_LINK}/route_localnet": "1",
    f"ipv4/conf/{INGRESS_LINK}/arp_ignore": "1",
    f"ipv4/conf/{INGRESS_LINK}/arp_announce": "2",
    f"ipv6/conf/{INGRESS_LINK}/accept_ra": "0",
}


def ensure(host: Side, datapath: Side, ingress: Ingress | None, *, look: bool) -> list[Change]:
    """``vxnet_in`` with its addresses. ``look``: at what costs reading files, too."""
    outer, inner = host.found.get(INGRESS_LINK), datapath.found.get(PORT)
    if ingress is None:
        changes = []
        if outer is not None and outer.alias.startswith(MARK):
            changes = delete_links(host.netlink, [outer])
        elif inner is not None and inner.alias.startswith(MARK):
            changes = delete_links(datapath.netlink, [inner])
        for ends, name in ((host, INGRESS_LINK), (datapath, PORT)):
            if changes:
                ends.found.pop(name, None)
        return changes
    bridge = datapath.found.get(bridge_name(ingress.vni))
    if bridge is None:
        return []
    words = f"link {INGRESS_LINK}"
    changes = []
    if outer is None or inner is None or outer.peer != inner.ifindex or inner.peer != outer.ifindex:
        if outer is not None and not outer.alias.startswith(MARK):
            return [Change(verb="replace", object=words, error="somebody else's link has its name")]
        changes = _make(host, datapath, ingress, bridge)
        look = True
        if any(change.error for change in changes):
            return changes
        outer, inner = host.found[INGRESS_LINK], datapath.found[PORT]
    wish = Wish(name=INGRESS_LINK, kind="veth", mtu=ingress.mtu, alias=f"{MARK}ingress", mac=ingress.mac)
    there = Wish(name=PORT, kind="veth", mtu=ingress.mtu, alias=f"{MARK}ingress")
    seen = inner if inner.master == bridge.ifindex else inner._replace(port={})
    steps = present((mend(there, inner, bridge.ifindex), mend_port(PORT, seen, CONTAINER_PORT)))
    mended = carry_out(datapath.netlink, steps) + carry_out(host.netlink, present((mend(wish, outer),)))
    changes += unless_new(mended, [f"link {PORT}", words] if changes else [])
    held = addresses.dump(host.netlink, outer.ifindex)
    changes += carry_out(host.netlink, address_steps(held, outer, _all_addresses(ingress)))
    if any(one.version == 6 for one in ingress.addresses):
        route = Step("add", f"route local ::1 dev {INGRESS_LINK}", [addresses.add_loopback(outer.ifindex)])
        added = carry_out(host.netlink, [route])
        changes += [change for change in added if not change.error]  # refused: it is there
    if look:
        changes += _settle(host.namespace, ingress)
    return changes


def _make(host: Side, datapath: Side, ingress: Ingress, bridge: Link) -> list[Change]:
    doomed = [(ends, ends.found.pop(name, None)) for ends, name in ((host, INGRESS_LINK), (datapath, PORT))]
    for ends, link in doomed:
        if link is not None:
            delete_links(ends.netlink, [link])
    wish = Wish(name=PORT, kind="veth", mtu=ingress.mtu, alias=f"{MARK}ingress")
    request = links.add(wish, master=bridge.ifindex, peer=Peer(INGRESS_LINK, ingress.mac, host.namespace))
    changes = carry_out(datapath.netlink, [Step("add", f"link {INGRESS_LINK}", [request])])
    if any(change.error for change in changes):
        return changes
    host.netlink.batch([links.no_link_local(INGRESS_LINK)])  # refused where there is no IPv6
    for ends, name in ((host, INGRESS_LINK), (datapath, PORT)):
        link = links.get(ends.netlink, name)
        if link is None:
            return [Change(verb="add", object=f"link {name}", error="it vanished at once")]
        ends.found[name] = link
    return changes


def _all_addresses(ingress: Ingress) -> list[IPInterface]:
    """With a link-local one, which neighbour discovery asks from; the kernel's own would be tested for a second."""
    found = list(ingress.addresses)
    if any(one.version == 6 for one in found):
        octets = bytes.fromhex(ingress.mac.replace(":", ""))
        host = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
        found.append(ipaddress.ip_interface((b"\xfe\x80" + bytes(6) + host, 64)))
    return found


def _settle(namespace: int, ingress: Ingress) -> list[Change]:
    written = netns.inside(namespace, lambda: netns.set_sysctls(SYSCTLS))
    return [Change(verb="replace", object=f"sysctl net.{name.replace('/', '.')}") for name in written]

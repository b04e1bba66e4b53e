"""How a task answers what the routing mesh brought: back to the node that it came from, which knows the client.

::

    node h2 (02:00:0a:00:00:03) ──> ingress0: the mark of connection and packet = the last four octets of that MAC
    node h2 <────────────────────── ingress0: those octets of the frame's destination = the packet's mark
                                        └─ table 118: default by way of any node's foot

A MAC follows from its address (core/allocate, mac_of): all feet's begin alike, and their last four octets are their
IPv4 addresses. So what a connection's mark remembers is enough to find the way back, whatever the number of nodes,
without a rule or a route for each. The first octet, the same for all, is what marks of the mesh are known by; no other
mark of vxnet's has it. That octet is the lowest of the mark on x86 and ARM, as registers hold the others behind it.

TCP's sockets take the mark from the SYN (tcp_fwmark_accept), and are routed by it at once. A UDP server that is bound
to no address lets its route choose one, before a mark is known: so where one is published, the default route names the
address in the ingress network as source, and what else leaves by it is translated. Where there is no default route, one
of last resort leads to the ingress network; whatever is no answer is refused there.

A client may use one port of its own towards two nodes at once, and both connections may come to one task. So what comes
from each node is tracked in a zone of its own, as far as questions go; answers are in one zone, where the second of two
that are alike is given another port (mesh_input: a chain without a rule suffices for that).
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Collection, Mapping
from typing import NamedTuple

from vxnet.host import addresses, elements, mesh, nf_tables, nft
from vxnet.host.addresses import Route, Rule
from vxnet.host.elements import Elements, Shape
from vxnet.host.links import Link
from vxnet.host.netlink import NLA_F_NESTED, NLM_F_CREATE, Failure, Netlink, attribute, attributes, message
from vxnet.host.steps import Step
from vxnet.model.address import MAC, IPAddress
from vxnet.model.host import NFT_TABLE, Change, Sandbox
from vxnet.model.published import PortProtocol

TABLE = 118
"""Of routes; the ``v`` of vxnet. Also the priority of the rules that lead there."""
LAST_RESORT = 1 << 20
"""Metric."""
SHAPES = {
    "mesh_gateways": Shape(("mac",)),
    "mesh_answers4": Shape(("address4", "protocol", "port")),
    "mesh_answers6": Shape(("address6", "protocol", "port")),
}


def own(sandbox: Sandbox) -> tuple[IPAddress, ...]:
    """Its addresses in the ingress network."""
    name = sandbox.answers.interface if sandbox.answers is not None else ""
    return tuple(one.ip for interface in sandbox.interfaces if interface.name == name for one in interface.addresses)


def sources(sandbox: Sandbox) -> dict[int, IPAddress]:
    """What the default routes name as source, by IP version."""
    if sandbox.answers is None or all(protocol != "udp" for protocol, _port in sandbox.answers.ports):
        return {}
    return {one.version: one for one in own(sandbox)}


def last_resorts(sandbox: Sandbox, found: Mapping[str, Link], versions: Collection[int]) -> set[Route]:
    """Default routes of those families that have no other. ``versions``: that have."""
    link = found.get(sandbox.answers.interface) if sandbox.answers is not None else None
    if sandbox.answers is None or link is None:
        return set()
    ours = sources(sandbox)
    return {
        addresses.default(via, link.ifindex, ours[via.version], LAST_RESORT)
        for via in sandbox.answers.via
        if via.version in ours and via.version not in versions
    }


def sysctls(sandbox: Sandbox) -> dict[str, str]:
    if sandbox.answers is None:
        return {}
    name = sandbox.answers.interface
    return {
        "ipv4/tcp_fwmark_accept": "1",
        "ipv4/fwmark_reflect": "1",
        "ipv6/fwmark_reflect": "1",
        # The way back to a client is not the way that the main table knows.
        f"ipv4/conf/{name}/rp_filter": "2",
        f"ipv4/conf/{name}/src_valid_mark": "1",
    }


# The table inet vxnet

SETS = """\
\tset mesh_gateways {
\t\ttype ether_addr
\t}

\tset mesh_own4 {
\t\ttype ipv4_addr
\t}

\tset mesh_own6 {
\t\ttype ipv6_addr
\t}

\tset mesh_answers4 {
\t\ttype ipv4_addr . inet_proto . inet_service
\t}

\tset mesh_answers6 {
\t\ttype ipv6_addr . inet_proto . inet_service
\t}

"""
"""As ``nft list table`` prints them."""


class Form(NamedTuple):
    """Of what the rules are made: the same for all tasks, which differ in what their sets hold."""

    interface: str
    octet: int
    """By which the marks of the mesh are known."""
    udp: bool

    @property
    def mark(self) -> tuple[int, int]:
        """And its mask."""
        mark, mask = bytes((self.octet, 0, 0, 0)), bytes((0xFF, 0, 0, 0))
        return int.from_bytes(mark, sys.byteorder), int.from_bytes(mask, sys.byteorder)


def form(sandbox: Sandbox) -> Form | None:
    answering = sandbox.answers
    if answering is None:
        return None
    octet = next((one.packed[0] for one in own(sandbox) if one.version == 4), 0)
    return Form(answering.interface, octet, any(protocol == "udp" for protocol, _port in answering.ports))


@functools.lru_cache
def chains(form: Form) -> str:
    name = form.interface
    mark, mask = form.mark
    # mesh_arrived: neighbour discovery is not tracked, and passes.
    text = f"""
\tchain mesh_raw {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname "{name}" ct original zone set @ll,80,16
\t}}

\tchain mesh_input {{
\t\ttype nat hook input priority 100; policy accept;
\t}}

\tchain mesh_arrived {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname != "{name}" accept
\t\tether saddr != @mesh_gateways drop
\t\tct state new ip daddr . meta l4proto . th dport != @mesh_answers4 drop
\t\tct state new ip6 daddr . meta l4proto . th dport != @mesh_answers6 drop
\t\tct direction original meta mark set @ll,64,32 ct mark set meta mark
\t}}

\tchain mesh_answered {{
\t\ttype route hook output priority mangle; policy accept;
\t\tct direction reply ct mark & {mask:#010x} == {mark:#010x} meta mark set ct mark
\t}}

\tchain mesh_sealed {{
\t\ttype filter hook output priority filter; policy accept;
\t\toifname "{name}" ct state new reject
\t}}
"""
    if form.udp:
        text += f"""
\tchain mesh_postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname != "{name}" ip saddr @mesh_own4 masquerade fully-random
\t\toifname != "{name}" ip6 saddr @mesh_own6 masquerade fully-random
\t}}
"""
    return text


def filled(sandbox: Sandbox, gateways: tuple[MAC, ...]) -> dict[str, Elements]:
    """The sets. What is the same as before is the same object."""
    assert sandbox.answers is not None
    four, six = (tuple(one for one in own(sandbox) if one.version == version) for version in (4, 6))
    return {
        "mesh_gateways": _gateways(gateways),
        "mesh_own4": _addresses(four),
        "mesh_own6": _addresses(six),
        "mesh_answers4": _answers(four, sandbox.answers.ports),
        "mesh_answers6": _answers(six, sandbox.answers.ports),
    }


@functools.lru_cache(4)
def _gateways(macs: tuple[MAC, ...]) -> Elements:
    return {bytes.fromhex(mac.replace(":", "")): b"" for mac in macs}


@functools.lru_cache(8192)
def _addresses(own: tuple[IPAddress, ...]) -> Elements:
    return {one.packed: b"" for one in own}


@functools.lru_cache(8192)
def _answers(own: tuple[IPAddress, ...], ports: tuple[tuple[PortProtocol, int], ...]) -> Elements:
    return {
        one.packed + bytes((mesh.PROTOCOLS[protocol], 0, 0, 0)) + struct.pack("!HH", port, 0): b""
        for one in own
        for protocol, port in ports
    }


# Routes


def steps(netlink: Netlink, sandbox: Sandbox, found: Mapping[str, Link]) -> list[Step]:
    """Rules, and the table that they lead to."""
    answering = sandbox.answers
    link = found.get(answering.interface) if answering is not None else None
    if answering is None or link is None:
        return []
    wanted = {addresses.default(via, link.ifindex) for via in answering.via}
    shape = form(sandbox)
    rules = {Rule(via.version, *shape.mark, TABLE, TABLE) for via in answering.via} if shape is not None else set()
    held_rules = set(addresses.dump_rules(netlink))
    held = {
        route._replace(priority=0)
        for route in addresses.dump_routes(netlink, TABLE)
        if route.ours and route.via is not None
    }
    words = f"table {TABLE}"
    return [
        *(
            Step("delete", f"route default via {one.via} {words}", [addresses.delete_default(one, TABLE)])
            for one in sorted(held - wanted, key=str)
        ),
        *(
            Step("add", f"route default via {one.via} {words}", [addresses.add_default(one, TABLE)])
            for one in sorted(wanted - held, key=str)
        ),
        *(Step("add", f"rule to {words}", [addresses.add_rule(one)]) for one in sorted(rules - held_rules)),
        *(Step("delete", f"rule to {words}", [addresses.delete_rule(one)]) for one in sorted(held_rules - rules)),
    ]


# The table netdev vxnet: one rule where frames leave. nft's grammar has no word for what it does.

_HOOK_EGRESS = 1
_CHAIN = "mesh_back"
_REGISTER = 1
_META_MARK = 3
_LAST_OCTETS, _LENGTH = 2, 4
"""Of the frame's destination, from its front."""


def ensure_egress(netlink: Netlink, sandbox: Sandbox, generation: int) -> Change | None:
    """``netlink``: of NETLINK_NETFILTER, in the sandbox; ``generation``: of its rule set, which one more commit moves
    on. None: it is so already. Raises OSError."""
    shape = form(sandbox)
    if shape is None:
        return None
    wanted = f"vxnet 1 {shape.interface} {shape.octet}".encode()
    found = _egress(netlink)
    if found == wanted:
        return None
    failure = _commit_egress(netlink, shape, wanted, generation)
    words = f"nft table netdev {NFT_TABLE}"
    return Change(verb="add" if found is None else "replace", object=words, error="" if failure is None else failure[1])


def refusal() -> str:
    """Why the kernel cannot do that, tried in the calling thread's namespace; empty: it can. Raises OSError."""
    with Netlink(protocol=elements.NETLINK_NETFILTER) as netlink:
        failure = _commit_egress(netlink, Form("lo", octet=10, udp=False), b"", nft.generation_now(netlink))
    return "" if failure is None else failure[1]


def _commit_egress(netlink: Netlink, form: Form, comment: bytes, generation: int) -> Failure | None:
    table = attribute(1, NFT_TABLE.encode() + b"\0")
    messages = [
        message(nf_tables.NEWTABLE, NLM_F_CREATE, _HEAD + table),
        # So that there is one to delete: with its interface the chain went, and what is left is an empty table.
        message(nf_tables.DELTABLE, 0, _HEAD + table),
        message(nf_tables.NEWTABLE, NLM_F_CREATE, _HEAD + table),
        message(nf_tables.NEWCHAIN, NLM_F_CREATE, _HEAD + _chain(form.interface)),
        message(nf_tables.NEWRULE, NLM_F_CREATE, _HEAD + _rule(form, comment)),
    ]
    return elements.commit(netlink, messages, generation)


_HEAD = nf_tables.head(nf_tables.NETDEV)


def _egress(netlink: Netlink) -> bytes | None:
    """What the rule there says of itself; None: there is none."""
    table = attribute(1, NFT_TABLE.encode() + b"\0") + attribute(2, _CHAIN.encode() + b"\0")
    try:
        rules = netlink.dump(nf_tables.GETRULE, _HEAD + table)
    except OSError:
        return None
    for body in rules:
        comment = attributes(body, 4).get(7, b"")
        return comment[2:].rstrip(b"\0")
    return None


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, value)


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _chain(device: str) -> bytes:
    hook = _be32(1, _HOOK_EGRESS) + _be32(2, 0) + attribute(3, device.encode() + b"\0")
    return (
        attribute(1, NFT_TABLE.encode() + b"\0")
        + attribute(3, _CHAIN.encode() + b"\0")
        + _nested(4, hook)
        + attribute(7, b"filter\0")
    )


def _rule(form: Form, comment: bytes) -> bytes:
    """mark & 0xff == octet: write mark to the last octets of the destination."""
    mark, mask = (struct.pack("=I", number) for number in form.mark)
    masked = _REGISTER + 1
    written = _be32(2, 0) + _be32(3, _LAST_OCTETS) + _be32(4, _LENGTH) + _be32(5, _REGISTER)
    bits = (
        _be32(1, _REGISTER) + _be32(2, masked) + _be32(3, 4) + _nested(4, _value(mask)) + _nested(5, _value(bytes(4)))
    )
    expressions = [
        _expression("meta", _be32(1, _REGISTER) + _be32(2, _META_MARK)),
        _expression("bitwise", bits),
        _expression("cmp", _be32(1, masked) + _be32(2, 0) + _nested(3, _value(mark))),
        _expression("payload", written + _be32(6, 0) + _be32(7, 0)),
    ]
    packed = b"".join(expressions)
    note = bytes((0, len(comment) + 1)) + comment + b"\0"
    return (
        attribute(1, NFT_TABLE.encode() + b"\0")
        + attribute(2, _CHAIN.encode() + b"\0")
        + _nested(4, packed)
        + attribute(7, note)
    )


def _value(data: bytes) -> bytes:
    return attribute(1, data)


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, attribute(1, name.encode() + b"\0") + _nested(2, data))

"""Links: what is wished of one, what the kernel has, and the messages that turn the second into the first.

Attributes go by the names of include/uapi/linux/if_link.h; the tables here hold those that vxnet sets or looks at.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from vxnet.host.netlink import (
    ATTRIBUTE,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    attribute,
    attribute_u32,
    attributes,
    message,
)
from vxnet.model.address import MAC, IPAddress

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWNSID = 88
RTM_GETNSID = 90
NETNSA_NSID = 1
NETNSA_FD = 3
ANY_NSID = 0xFFFFFFFF

IFF_UP = 1
RTEXT_FILTER_SKIP_STATS = 1 << 3

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_STATS = 7
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_STATS64 = 23
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_EXT_MASK = 29
IFLA_NET_NS_FD = 28
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_DATA = 5
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
VETH_INFO_PEER = 1

DOOMED = 0x76786E64
"""The link group of what is about to be deleted: one request then deletes all of it, which costs the kernel one grace
period (17 ms) and not one each."""

_IFINFO = struct.Struct("=BxHiII")
"""family, type, ifindex, flags, change"""

Value = int | IPAddress


class Link(NamedTuple):
    """A link as the kernel has it."""

    ifindex: int
    name: str
    kind: str
    """Of ``ip link add type``; empty: none."""
    up: bool
    mtu: int
    mac: MAC
    master: int
    """Index of the bridge; 0: none."""
    peer: int
    """Index of what it lies upon or, of a veth, the other end's; 0: none."""
    peer_namespace: int | None
    """The number by which this namespace knows the one of ``peer`` (of a vxlan, of its socket); None: this one."""
    alias: str
    data: Mapping[int, bytes]
    """IFLA_INFO_DATA, of what the tables below know."""
    port: Mapping[int, bytes]
    """IFLA_BRPORT_*, likewise; empty: not in a bridge."""


class Side(NamedTuple):
    """A namespace in which links are made."""

    netlink: Netlink
    namespace: int
    found: dict[str, Link]
    """Links by name; those that are made are put in."""


class Wish(NamedTuple):
    """A link as it shall be. What is left None or empty is not looked at."""

    name: str
    kind: str
    mtu: int
    alias: str = ""
    mac: MAC | None = None
    data: Mapping[str, Value] = {}
    """By IFLA_VXLAN_* or IFLA_BR_* names."""


class Peer(NamedTuple):
    """The other end of a veth pair, born in the namespace where it will live, with its final name and address."""

    name: str
    mac: MAC
    namespace: int
    """Descriptor."""


class Upon(NamedTuple):
    """What a macvlan lies upon: a link of another namespace, by that one's number in the one of the request."""

    ifindex: int
    namespace: int


class _Form(NamedTuple):
    """How a value stands in an attribute."""

    read: Callable[[bytes], Value]
    write: Callable[[Value], bytes]


def _number(form: str) -> _Form:
    packing = struct.Struct(form)
    return _Form(lambda raw: int(packing.unpack(raw)[0]), packing.pack)


def _packed(value: Value) -> bytes:
    assert not isinstance(value, int)
    return value.packed


_U8, _U32, _BE16, _BE32 = _number("=B"), _number("=I"), _number("!H"), _number("!I")
_ADDRESS4, _ADDRESS6 = _Form(ipaddress.IPv4Address, _packed), _Form(ipaddress.IPv6Address, _packed)

_DATA: dict[str, dict[str, tuple[int, _Form]]] = {
    "vxlan": {
        "IFLA_VXLAN_ID": (1, _U32),
        "IFLA_VXLAN_LOCAL": (4, _ADDRESS4),
        "IFLA_VXLAN_LEARNING": (7, _U8),
        "IFLA_VXLAN_PORT_RANGE": (10, _BE32),
        "IFLA_VXLAN_PORT": (15, _BE16),
        "IFLA_VXLAN_LOCAL6": (17, _ADDRESS6),
    },
    "macvlan": {"IFLA_MACVLAN_MODE": (1, _U32)},
    "bridge": {
        "IFLA_BR_FORWARD_DELAY": (1, _U32),
        "IFLA_BR_STP_STATE": (5, _U32),
        "IFLA_BR_MCAST_SNOOPING": (23, _U8),
    },
}
_PORT: dict[str, tuple[int, _Form]] = {
    "IFLA_BRPORT_LEARNING": (8, _U8),
    "IFLA_BRPORT_UNICAST_FLOOD": (9, _U8),
    "IFLA_BRPORT_MCAST_FLOOD": (27, _U8),
    "IFLA_BRPORT_BCAST_FLOOD": (30, _U8),
    "IFLA_BRPORT_NEIGH_SUPPRESS": (32, _U8),
    "IFLA_BRPORT_ISOLATED": (33, _U8),
    "IFLA_BRPORT_LOCKED": (39, _U8),
}


def differing(wanted: Mapping[str, Value], found: Mapping[int, bytes], kind: str) -> list[str]:
    """Names of the attributes that the kernel has otherwise; ``kind``: of link, or ``port``. KeyError: no such name."""
    table = _PORT if kind == "port" else _DATA[kind]
    names = []
    for name, value in wanted.items():
        number, form = table[name]
        raw = found.get(number)
        if raw is None or form.read(raw) != value:
            names.append(name)
    return names


def has_flag(name: str, port: Mapping[int, bytes]) -> bool:
    """Whether this kernel knows a flag of ports, going by what it tells of one; yes if it tells nothing."""
    return not port or _PORT[name][0] in port


def dump(netlink: Netlink) -> dict[str, Link]:
    """All links of the namespace by name. Raises OSError."""
    return Reader().dump(netlink)


class Reader:
    """Reads all links again and again. One that is as it was costs a comparison, and is the same object."""

    def __init__(self) -> None:
        self._bodies: dict[bytes, Link] = {}
        self._links: dict[str, Link] = {}
        self._counters: dict[int, _Counters] = {}
        """By the length of an answer."""

    def dump(self, netlink: Netlink) -> dict[str, Link]:
        """All links of the namespace by name. Raises OSError."""
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        bodies: dict[bytes, Link] = {}
        found: dict[str, Link] = {}
        for answer in netlink.dump(RTM_GETLINK, body):
            calm = self._without_counters(answer)
            link = self._bodies.get(calm)
            if link is None:
                link = _parse(answer)
                before = self._links.get(link.name)
                if before == link:  # but for timers
                    link = before
            if link.kind != "bridge":  # whose timers run: it never comes twice
                bodies[calm] = link
            found[link.name] = link
        self._bodies, self._links = bodies, found
        return dict(found)

    def _without_counters(self, answer: bytes) -> bytes:
        """They are others each time, in two parts behind one another, and mostly in the same place."""
        known = self._counters.get(len(answer))
        if known is None or not (
            answer.startswith(known.head, known.first) and answer.startswith(known.next, known.second)
        ):
            known = self._counters[len(answer)] = _find_counters(answer)
        return answer[: known.first] + answer[known.end :]


class _Counters(NamedTuple):
    """Where IFLA_STATS64 and IFLA_STATS stand in an answer, and how they begin."""

    first: int
    second: int
    end: int
    head: bytes
    next: bytes


def _find_counters(answer: bytes) -> _Counters:
    """An empty place at the end if they are not where they are looked for."""
    offset, first, end = _IFINFO.size, 0, len(answer)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(answer, offset)
        if kind == IFLA_STATS and first:
            return _Counters(first, offset, offset + length, answer[first : first + 4], answer[offset : offset + 4])
        first = offset if kind == IFLA_STATS64 else 0
        offset += max(4, (length + 3) & ~3)
    return _Counters(end, end, end, b"", b"")


def get(netlink: Netlink, name: str) -> Link | None:
    """One link by its name."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    answer = netlink.ask([message(RTM_GETLINK, 0, body + attribute(IFLA_IFNAME, name.encode() + b"\0"))])[0]
    return None if answer is None else _parse(answer)


def _parse(body: bytes) -> Link:
    _family, _type, ifindex, flags, _change = _IFINFO.unpack_from(body)
    found = attributes(body, _IFINFO.size)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    namespace = found.get(IFLA_LINK_NETNSID)
    kind = _text(info.get(IFLA_INFO_KIND))
    return Link(
        ifindex=ifindex,
        name=_text(found.get(IFLA_IFNAME)),
        kind=kind,
        up=bool(flags & IFF_UP),
        mtu=_u32(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        master=_u32(found.get(IFLA_MASTER)),
        peer=_u32(found.get(IFLA_LINK)),
        peer_namespace=None if namespace is None else int(struct.unpack("=i", namespace)[0]),
        alias=_text(found.get(IFLA_IFALIAS)),
        data=_known(info.get(IFLA_INFO_DATA), _DATA.get(kind)),
        port=_known(info.get(IFLA_INFO_SLAVE_DATA), _PORT),
    )


def _known(nested: bytes | None, table: Mapping[str, tuple[int, _Form]] | None) -> dict[int, bytes]:
    """Of nested attributes those in a table."""
    if not nested or not table:
        return {}
    found = attributes(nested)
    return {number: found[number] for number, _ in table.values() if number in found}


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.rstrip(b"\0").decode(errors="replace")


def _u32(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=I", raw)[0])


def add(
    wish: Wish,
    *,
    namespace: int | None = None,
    master: int = 0,
    peer: Peer | None = None,
    upon: Upon | None = None,
    up: bool = True,
) -> bytes:
    """Make a link. ``namespace``: descriptor of where it shall live, with what the kind opens (a vxlan's socket)
    staying where the request is made."""
    parts = _head(wish.name, wish.mtu, wish.mac, namespace)
    if upon is not None:
        parts += attribute_u32(IFLA_LINK, upon.ifindex) + attribute_u32(IFLA_LINK_NETNSID, upon.namespace)
    if master:
        parts += attribute_u32(IFLA_MASTER, master)
    if peer is not None:
        other = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _head(peer.name, wish.mtu, peer.mac, peer.namespace)
        data = attribute(VETH_INFO_PEER, other)
    else:
        data = b"".join(_datum(wish.kind, name, value) for name, value in wish.data.items())
    parts += _info(wish.kind, data)
    flags = IFF_UP if up else 0
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, flags, flags) + parts
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _head(name: str, mtu: int, mac: MAC | None, namespace: int | None) -> bytes:
    parts = attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute_u32(IFLA_MTU, mtu)
    if mac is not None:
        parts += attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    if namespace is not None:
        parts += attribute_u32(IFLA_NET_NS_FD, namespace)
    return parts


def _datum(kind: str, name: str, value: Value) -> bytes:
    number, form = _DATA[kind][name]
    return attribute(number, form.write(value))


def _info(kind: str, data: bytes) -> bytes:
    info = attribute(IFLA_INFO_KIND, kind.encode() + b"\0")
    if data:
        info += attribute(IFLA_INFO_DATA | NLA_F_NESTED, data)
    return attribute(IFLA_LINKINFO | NLA_F_NESTED, info)


def change_data(ifindex: int, wish: Wish, names: Iterable[str]) -> list[bytes]:
    """Set some of the kind's own attributes of a link that is there, one after the other in the wish's order: a bridge
    refuses a forward delay of 0 while it still speaks STP."""
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    chosen = set(names)
    return [
        message(RTM_NEWLINK, 0, head + _info(wish.kind, _datum(wish.kind, name, value)))
        for name, value in wish.data.items()
        if name in chosen
    ]


def change(
    ifindex: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: MAC | None = None,
    master: int | None = None,
    alias: str | None = None,
) -> bytes:
    parts = b""
    if mtu is not None:
        parts += attribute_u32(IFLA_MTU, mtu)
    if mac is not None:
        parts += attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    if master is not None:
        parts += attribute_u32(IFLA_MASTER, master)
    if alias is not None:
        parts += attribute(IFLA_IFALIAS, alias.encode() + b"\0")
    flags = IFF_UP if up else 0
    mask = 0 if up is None else IFF_UP
    return message(RTM_SETLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, flags, mask) + parts)


def set_alias(name: str, alias: str) -> bytes:
    """Mark a link by its name: what :func:`add` cannot do in the same message."""
    parts = attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_IFALIAS, alias.encode() + b"\0")
    return message(RTM_SETLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + parts)


def no_link_local(name: str) -> bytes:
    """Have a link get no IPv6 address by itself when it comes up."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,)))
    family = attribute(socket.AF_INET6 | NLA_F_NESTED, mode)
    parts = attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_AF_SPEC | NLA_F_NESTED, family)
    return message(RTM_SETLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + parts)


def change_port(ifindex: int, flags: Mapping[str, int]) -> bytes:
    """Set IFLA_BRPORT_* flags of a bridge's port; all of them are of one octet."""
    nested = b"".join(attribute(_PORT[name][0], bytes((value,))) for name, value in flags.items())
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, ifindex, 0, 0) + attribute(IFLA_PROTINFO | NLA_F_NESTED, nested)
    return message(RTM_SETLINK, 0, body)


def namespace_number(netlink: Netlink, namespace: int) -> int | None:
    """The number of a namespace in the one of ``netlink``, given now if it has none."""
    of_it = struct.pack("=Bxxx", socket.AF_UNSPEC) + attribute_u32(NETNSA_FD, namespace)
    given = of_it + attribute(NETNSA_NSID, struct.pack("=I", ANY_NSID))
    netlink.batch([message(RTM_NEWNSID, 0, given)])  # refused if it has one already
    answer = netlink.ask([message(RTM_GETNSID, 0, of_it)])[0]
    if answer is None:
        return None
    number = int(struct.unpack("=i", attributes(answer, 4)[NETNSA_NSID])[0])
    return number if number >= 0 else None


def delete(ifindexes: Iterable[int]) -> list[bytes]:
    """Delete all of them at once."""
    doomed = [
        message(RTM_SETLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + attribute_u32(IFLA_GROUP, DOOMED))
        for ifindex in ifindexes
    ]
    if not doomed:
        return []
    everything = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute_u32(IFLA_GROUP, DOOMED)
    return [*doomed, message(RTM_DELLINK, 0, everything)]

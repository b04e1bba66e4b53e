"""Links: what is wished of one, what the kernel has, and the messages that turn the second into the first.

pyroute2's classes write the messages that make a link and name its attributes; reading is packed, as a host with a
thousand networks has thousands of links and looks at them again and again.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, protinfo_bridge

from vxnet.host.netlink import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
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

IFF_UP = 1
RTEXT_FILTER_SKIP_STATS = 1 << 3

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_GROUP = 27
IFLA_EXT_MASK = 29
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_DATA = 5

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
    """IFLA_INFO_DATA."""
    port: Mapping[int, bytes]
    """IFLA_BRPORT_*; empty: not in a bridge."""


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


_Read = Callable[[bytes], Value]
_READ: dict[str, _Read] = {
    "uint8": lambda raw: raw[0],
    "uint16": lambda raw: int(struct.unpack("=H", raw)[0]),
    "uint32": lambda raw: int(struct.unpack("=I", raw)[0]),
    "be16": lambda raw: int(struct.unpack("!H", raw)[0]),
    "ip4addr": ipaddress.IPv4Address,
    "ip6addr": ipaddress.IPv6Address,
}


def _attribute_table(nla: type) -> dict[str, tuple[int, _Read]]:
    """Name → number and decoder, out of pyroute2's description of an attribute set."""
    return {
        entry[0]: (number, _READ[entry[1]])
        for number, entry in enumerate(nla.nla_map)  # type: ignore[attr-defined]
        if entry[1] in _READ
    }


_DATA = {kind: _attribute_table(ifinfmsg.ifinfo.data_map[kind]) for kind in ("vxlan", "bridge")}
_PORT = _attribute_table(protinfo_bridge)


def differing(wanted: Mapping[str, Value], found: Mapping[int, bytes], kind: str) -> list[str]:
    """Names of the attributes that the kernel has otherwise; ``kind``: of link, or ``port``. KeyError: no such name."""
    table = _PORT if kind == "port" else _DATA[kind]
    names = []
    for name, value in wanted.items():
        number, read = table[name]
        raw = found.get(number)
        if raw is None or read(raw) != value:
            names.append(name)
    return names


def dump(netlink: Netlink) -> dict[str, Link]:
    """All links of the namespace by name. Raises OSError."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    links = (_parse(answer) for answer in netlink.dump(RTM_GETLINK, body))
    return {link.name: link for link in links}


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
    return Link(
        ifindex=ifindex,
        name=_text(found.get(IFLA_IFNAME)),
        kind=_text(info.get(IFLA_INFO_KIND)),
        up=bool(flags & IFF_UP),
        mtu=_u32(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        master=_u32(found.get(IFLA_MASTER)),
        peer=_u32(found.get(IFLA_LINK)),
        peer_namespace=None if namespace is None else int(struct.unpack("=i", namespace)[0]),
        alias=_text(found.get(IFLA_IFALIAS)),
        data=attributes(info.get(IFLA_INFO_DATA, b"")),
        port=attributes(info.get(IFLA_INFO_SLAVE_DATA, b"")),
    )


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.rstrip(b"\0").decode(errors="replace")


def _u32(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=I", raw)[0])


def _plain(value: Value) -> int | str:
    return value if isinstance(value, int) else str(value)


def add(wish: Wish, *, namespace: int | None = None, master: int = 0, peer: Peer | None = None) -> bytes:
    """Make a link that is up. ``namespace``: descriptor of where it shall live, with what the kind opens (a vxlan's
    socket) staying where the request is made."""
    data = [(name, _plain(value)) for name, value in wish.data.items()]
    if peer is not None:
        ends = [("IFLA_IFNAME", peer.name), ("IFLA_ADDRESS", peer.mac), ("IFLA_MTU", wish.mtu)]
        data = [("VETH_INFO_PEER", {"attrs": [*ends, ("IFLA_NET_NS_FD", peer.namespace)]})]  # type: ignore[list-item]
    parts: list[tuple[str, object]] = [("IFLA_IFNAME", wish.name), ("IFLA_MTU", wish.mtu)]
    if wish.mac is not None:
        parts.append(("IFLA_ADDRESS", wish.mac))
    if namespace is not None:
        parts.append(("IFLA_NET_NS_FD", namespace))
    if master:
        parts.append(("IFLA_MASTER", master))
    parts.append(
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", wish.kind), ("IFLA_INFO_DATA", {"attrs": data})]}),
    )
    body = ifinfmsg()
    body["flags"] = body["change"] = IFF_UP
    body["attrs"] = parts
    return _packed(body, NLM_F_CREATE | NLM_F_EXCL)


def change_data(ifindex: int, wish: Wish, names: Iterable[str]) -> list[bytes]:
    """Set some of the kind's own attributes of a link that is there, one after the other in the wish's order: a bridge
    refuses a forward delay of 0 while it still speaks STP."""
    return [_change_datum(ifindex, wish.kind, name, value) for name, value in wish.data.items() if name in set(names)]


def _change_datum(ifindex: int, kind: str, name: str, value: Value) -> bytes:
    body = ifinfmsg()
    body["index"] = ifindex
    data = {"attrs": [(name, _plain(value))]}
    body["attrs"] = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]})]
    return _packed(body, 0)


def _packed(body: ifinfmsg, flags: int) -> bytes:
    body["header"]["type"] = RTM_NEWLINK
    body["header"]["flags"] = NLM_F_REQUEST | flags
    body.encode()
    return bytes(body.data)


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


def change_port(ifindex: int, flags: Mapping[str, int]) -> bytes:
    """Set IFLA_BRPORT_* flags of a bridge's port; all of them are of one octet."""
    nested = b"".join(attribute(_PORT[name][0], bytes((value,))) for name, value in flags.items())
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, ifindex, 0, 0) + attribute(IFLA_PROTINFO | NLA_F_NESTED, nested)
    return message(RTM_SETLINK, 0, body)


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

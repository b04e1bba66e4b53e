"""FDB rows and neighbours: where a remote endpoint is, in the three tables that ask.

::

    ARP request of a container ──> br: neighbour  address → MAC      answered here, never on the wire
    frame to that MAC          ──> br: FDB        MAC → port         the tunnel's, or a container's
                               ──> vx: FDB        MAC → VTEP         and it leaves
    broadcast, multicast       ──> vx: FDB        00:… → each VTEP   head-end replication

A table is a dict from :class:`Key` to what stands behind it, as packed octets on both sides, so that ten thousand
rows are compared by two set operations. Rows go out in large sends (:meth:`vxnet.host.netlink.Netlink.batch`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from vxnet.host.netlink import (
    GONE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Netlink,
    attribute,
    message,
)
from vxnet.model.host import Change

RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

NDA_DST = 1
NDA_LLADDR = 2
NDA_MASTER = 9

NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
NTF_MASTER = 0x04

_NDMSG = struct.Struct("=BxxxiHBB")
"""family, index, state, flags, type"""
_ATTRIBUTE = struct.Struct("=HH")

TUNNEL = 0
"""vx: (index, MAC) → VTEP; MAC all-zero: (index, MAC + VTEP) → VTEP, as there are several."""
BRIDGE = 1
"""br: (index, MAC) → index of the port, packed."""
NEIGHBOUR = 2
"""br: (index, address) → MAC."""

FLOOD = bytes(6)

Key = tuple[int, int, bytes]
"""Table, index of the device, MAC or address."""
Rows = dict[Key, bytes]

INDEX = struct.Struct("=i")


class Difference(NamedTuple):
    puts: list[Key]
    replaces: frozenset[Key]
    """Those of ``puts`` that stand for something else now."""
    deletes: list[Key]


def dump(netlink: Netlink, tunnels: Mapping[int, int], index: int = 0) -> Rows:
    """The rows of vxnet's devices. ``tunnels``: index of each vx → of its br; ``index``: of one tunnel only."""
    bridges = set(tunnels.values())
    rows: Rows = {}
    for body in netlink.dump(RTM_GETNEIGH, _fdb_filter(index)):
        _family, link, state, flags, _type = _NDMSG.unpack_from(body)
        mac, destination, master = _walk(body)
        if mac is None:
            continue
        if master is None:
            if flags & NTF_SELF and link in tunnels and destination is not None:
                rows[TUNNEL, link, mac if mac != FLOOD else mac + destination] = destination
        elif master in bridges and state & NUD_NOARP and not state & NUD_PERMANENT:
            rows[BRIDGE, master, mac] = INDEX.pack(link)
    for kind in (socket.AF_INET, socket.AF_INET6):
        for body in netlink.dump(RTM_GETNEIGH, _NDMSG.pack(kind, 0, 0, 0, 0)):
            _family, link, state, _flags, _type = _NDMSG.unpack_from(body)
            if link in bridges and state & NUD_PERMANENT:
                mac, destination, _master = _walk(body)
                if mac is not None and destination is not None:
                    rows[NEIGHBOUR, link, destination] = mac
    return rows


def _fdb_filter(index: int) -> bytes:
    return _NDMSG.pack(socket.AF_BRIDGE, index, 0, 0, 0)


def _walk(body: memoryview) -> tuple[bytes | None, bytes | None, int | None]:
    """lladdr, dst, master. Written out: it runs for every row of every dump."""
    mac = destination = master = None
    offset = 12
    end = len(body) - 3
    unpack = _ATTRIBUTE.unpack_from
    while offset < end:
        length, kind = unpack(body, offset)
        if kind == 2:
            mac = bytes(body[offset + 4 : offset + length])
        elif kind == 1:
            destination = bytes(body[offset + 4 : offset + length])
        elif kind == 9:
            master = INDEX.unpack_from(body, offset + 4)[0]
        if length < 4:
            break
        offset += (length + 3) & ~3
    return mac, destination, master


def difference(wanted: Rows, found: Rows) -> Difference:
    puts = [key for key, value in wanted.items() if found.get(key) != value]
    replaces = frozenset(key for key in puts if key in found)
    deletes = [key for key in found if key not in wanted]
    return Difference(puts, replaces, deletes)


def apply(
    netlink: Netlink, change: Difference, wanted: Rows, found: Rows, describe: Callable[[Key, bytes], str]
) -> list[Change]:
    """Put, then delete. ``describe``: a row in words."""
    puts = [_put(key, wanted[key]) for key in change.puts]
    failures = netlink.batch(puts)
    changes = []
    for position, key in enumerate(change.puts):
        failure = failures.get(position)
        changes.append(
            Change(
                verb="replace" if key in change.replaces else "add",
                object=describe(key, wanted[key]),
                error="" if failure is None else failure[1],
            )
        )
    failures = netlink.batch([_delete(key, found[key]) for key in change.deletes])
    for position, key in enumerate(change.deletes):
        failure = failures.get(position)
        if failure is None or failure[0] not in GONE:
            changes.append(
                Change(verb="delete", object=describe(key, found[key]), error="" if failure is None else failure[1])
            )
    return changes


_FDB_ROW = struct.Struct("=IHHII BxxxiHBB HH6sxx")
"""Header, ndmsg and NDA_LLADDR: 40 octets."""
_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_APPEND = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND


def _put(key: Key, value: bytes) -> bytes:
    table, index, name = key
    if table == TUNNEL:
        # A MAC has one VTEP: replaced in one step. The all-zero one has many: appended.
        mac = name[:6]
        flags = _PUT if mac != FLOOD else _APPEND
        return _tunnel_row(RTM_NEWNEIGH, flags, index, mac, value)
    if table == BRIDGE:
        port = INDEX.unpack(value)[0]
        return _FDB_ROW.pack(
            40, RTM_NEWNEIGH, _PUT, 0, 0, socket.AF_BRIDGE, port, NUD_NOARP, NTF_MASTER, 0, 10, NDA_LLADDR, name
        )
    return _neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, name, value)


def _delete(key: Key, value: bytes) -> bytes:
    table, index, name = key
    if table == TUNNEL:
        return _tunnel_row(RTM_DELNEIGH, NLM_F_REQUEST, index, name[:6], value)
    if table == BRIDGE:
        port = INDEX.unpack(value)[0]
        return _FDB_ROW.pack(
            40, RTM_DELNEIGH, NLM_F_REQUEST, 0, 0, socket.AF_BRIDGE, port, 0, NTF_MASTER, 0, 10, NDA_LLADDR, name
        )
    return _neighbour(RTM_DELNEIGH, 0, index, name, value)


def _tunnel_row(kind: int, flags: int, index: int, mac: bytes, vtep: bytes) -> bytes:
    length = 44 + len(vtep)
    row = _FDB_ROW.pack(
        length, kind, flags, 0, 0, socket.AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0, 10, NDA_LLADDR, mac
    )
    return row + _ATTRIBUTE.pack(4 + len(vtep), NDA_DST) + vtep


def _neighbour(kind: int, flags: int, index: int, address: bytes, mac: bytes) -> bytes:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = _NDMSG.pack(family, index, NUD_PERMANENT, 0, 0) + attribute(NDA_DST, address) + attribute(NDA_LLADDR, mac)
    return message(kind, flags, body)


def address_text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def describer(names: Mapping[int, str]) -> Callable[[Key, bytes], str]:
    """Rows in the words of ``bridge fdb`` and ``ip neigh``; ``names``: of the links by index."""

    def describe(key: Key, value: bytes) -> str:
        table, index, name = key
        device = names.get(index, str(index))
        if table == TUNNEL:
            return f"fdb {name[:6].hex(':')} dev {device} dst {address_text(value)}"
        if table == BRIDGE:
            port = INDEX.unpack(value)[0]
            return f"fdb {name.hex(':')} dev {names.get(port, port)} master {device}"
        return f"neigh {address_text(name)} lladdr {value.hex(':')} dev {device}"

    return describe


def only(rows: Rows, indexes: Iterable[int]) -> Rows:
    """The rows of these devices."""
    wanted = frozenset(indexes)
    return {key: value for key, value in rows.items() if key[1] in wanted}

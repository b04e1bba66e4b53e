"""FDB rows and neighbours: where a remote endpoint is, in the three tables that ask.

::

    ARP request of a container ──> br: neighbour  address → MAC      answered here, never on the wire
    frame to that MAC          ──> br: FDB        MAC → port         the tunnel's, or a container's
                               ──> vx: FDB        MAC → VTEP         and it leaves
    broadcast, multicast       ──> vx: FDB        00:… → each VTEP   head-end replication

Ten thousand endpoints are thirty thousand rows, dumped, compared and written whole. So a row is two byte strings, a
key and what stands behind it: they compare as they are, go into messages as they are, and cost the garbage collector
nothing. Messages are written and read by columns (:mod:`vxnet.host.columns`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Mapping
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from vxnet.host.columns import Block, Same, same
from vxnet.host.netlink import (
    GONE,
    HEADER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Failure,
    Netlink,
    attribute_u32,
)
from vxnet.model.host import Change

RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

NDA_DST = 1
NDA_LLADDR = 2
NDA_IFINDEX = 8
NDA_MASTER = 9

NUD_FAILED = 0x20
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
NTF_MASTER = 0x04

TUNNEL = 0
"""vx: MAC → VTEP; the all-zero MAC is followed by the VTEP, as there are several."""
BRIDGE = 1
"""br: MAC → ifindex of the port."""
NEIGHBOUR = 2
"""br: address → MAC."""

FLOOD = bytes(6)

SPOKEN = 1000
"""Of so many changes of one table each row is told of; of more, the number."""

Rows = dict[bytes, bytes]
"""Keys: table (1 octet), ifindex of the device (4), MAC or address. Values: VTEP, ifindex (4) or MAC."""

_KEY = struct.Struct("=Bi")
IFINDEX = struct.Struct("=i")
_NDMSG = struct.Struct("=BxxxiHBB")
"""family, ifindex, state, flags, type"""
_ATTRIBUTE = struct.Struct("=HH")
_HEAD = itemgetter(slice(_KEY.size))
_LINK_LAYER = (10, NDA_LLADDR)
_NOTHING = (0, 0)


def key_head(table: int, ifindex: int) -> bytes:
    return _KEY.pack(table, ifindex)


def dump(netlink: Netlink, tunnels: Mapping[int, int], learning: Collection[int] = ()) -> Rows:
    """The rows of vxnet's devices. ``tunnels``: ifindex of each vx → of its br; ``learning``: of those that learn,
    whose own rows are left out. Raises OSError.
    """
    rows: Rows = {}
    bridges = frozenset(tunnels.values())
    alike, others = netlink.dump_whole(RTM_GETNEIGH, _NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0), _alike)
    for datagram in alike:
        others += _read_alike_fdb(datagram, frozenset(tunnels), bridges, learning, rows)
    _read_fdb(others, frozenset(tunnels), bridges, learning, rows)
    for kind in (socket.AF_INET, socket.AF_INET6):
        alike, others = netlink.dump_whole(RTM_GETNEIGH, _NDMSG.pack(kind, 0, 0, 0, 0), _alike)
        for datagram in alike:
            others += _read_alike_neighbours(datagram, bridges, rows)
        _read_neighbours(others, bridges, rows)
    return rows


def _alike(data: bytes) -> Same | None:
    return same(data, _NDMSG.size)


def _read_alike_fdb(
    datagram: Same, tunnels: frozenset[int], bridges: frozenset[int], learning: Collection[int], rows: Rows
) -> list[bytes]:
    """Of a datagram of FDB rows that are of one device; else the bodies, to be read one by one."""
    mac, vtep, master = (datagram.attributes.get(kind, _NOTHING) for kind in (NDA_LLADDR, NDA_DST, NDA_MASTER))
    if not datagram.is_constant(HEADER.size, _NDMSG.size) or not datagram.is_constant(*master) or mac[1] != 6:
        return datagram.bodies()
    _family, ifindex, state, flags, _type = _NDMSG.unpack_from(datagram.data, HEADER.size)
    if flags & NTF_SELF:
        macs = datagram.values(*mac)
        if FLOOD in macs or ifindex in learning:
            return datagram.bodies()
        if ifindex in tunnels and vtep[1]:
            head = key_head(TUNNEL, ifindex)
            rows.update(zip([head + one for one in macs], datagram.values(*vtep), strict=True))
    elif state & NUD_NOARP and not state & NUD_PERMANENT and master[1]:
        bridge = IFINDEX.unpack_from(datagram.data, master[0])[0]
        if bridge in bridges:
            head, port = key_head(BRIDGE, bridge), IFINDEX.pack(ifindex)
            rows.update(dict.fromkeys([head + one for one in datagram.values(*mac)], port))
    return []


def _read_alike_neighbours(datagram: Same, bridges: frozenset[int], rows: Rows) -> list[bytes]:
    mac, address = (datagram.attributes.get(kind, _NOTHING) for kind in (NDA_LLADDR, NDA_DST))
    if not datagram.is_constant(HEADER.size, _NDMSG.size) or mac[1] != 6:
        return datagram.bodies()
    _family, ifindex, state, _flags, _type = _NDMSG.unpack_from(datagram.data, HEADER.size)
    if state & NUD_PERMANENT and ifindex in bridges:
        head = key_head(NEIGHBOUR, ifindex)
        rows.update(zip([head + one for one in datagram.values(*address)], datagram.values(*mac), strict=True))
    return []


def dump_bridge(netlink: Netlink, bridge: int) -> Rows:
    """The rows of one bridge among others. Raises OSError."""
    rows: Rows = {}
    ours = frozenset((bridge,))
    ports = _NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0) + attribute_u32(NDA_MASTER, bridge)
    _read_fdb(netlink.dump(RTM_GETNEIGH, ports), frozenset(), ours, (), rows)
    for kind in (socket.AF_INET, socket.AF_INET6):
        its_own = _NDMSG.pack(kind, 0, 0, 0, 0) + attribute_u32(NDA_IFINDEX, bridge)
        _read_neighbours(netlink.dump(RTM_GETNEIGH, its_own), ours, rows)
    return rows


def _read_fdb(
    bodies: list[bytes], tunnels: frozenset[int], bridges: frozenset[int], learning: Collection[int], rows: Rows
) -> None:
    tunnel_heads = {tunnel: key_head(TUNNEL, tunnel) for tunnel in tunnels}
    bridge_heads = {IFINDEX.pack(bridge): key_head(BRIDGE, bridge) for bridge in bridges}
    for body in bodies:
        _family, ifindex, state, flags, _type = _NDMSG.unpack_from(body)
        if flags & NTF_SELF:
            if ifindex not in tunnel_heads or (ifindex in learning and not state & NUD_PERMANENT):
                continue
            mac, vtep = _values(body, NDA_LLADDR, NDA_DST)
            if mac and vtep:
                rows[tunnel_heads[ifindex] + (mac if mac != FLOOD else mac + vtep)] = vtep
        elif state & NUD_NOARP and not state & NUD_PERMANENT:
            mac, master = _values(body, NDA_LLADDR, NDA_MASTER)
            if master in bridge_heads:
                rows[bridge_heads[master] + mac] = body[4:8]


def _read_neighbours(bodies: list[bytes], bridges: frozenset[int], rows: Rows) -> None:
    heads = {bridge: key_head(NEIGHBOUR, bridge) for bridge in bridges}
    for body in bodies:
        _family, ifindex, state, _flags, _type = _NDMSG.unpack_from(body)
        if state & NUD_PERMANENT and ifindex in heads:
            address, mac = _values(body, NDA_DST, NDA_LLADDR)
            rows[heads[ifindex] + address] = mac


def _values(body: bytes, first: int, second: int) -> tuple[bytes, bytes]:
    """Two attributes, empty if absent. The loop ends early, as the kernel writes them at the front."""
    one = other = b""
    offset = 12
    end = len(body)
    unpack = _ATTRIBUTE.unpack_from
    while offset < end:
        length, kind = unpack(body, offset)
        if kind == first:
            one = body[offset + 4 : offset + length]
            if other:
                break
        elif kind == second:
            other = body[offset + 4 : offset + length]
            if one:
                break
        offset += (length + 3) & ~3
    return one, other


def is_kernels_own(body: bytes) -> bool:
    """Whether an RTM_*NEIGH is about the address of a bridge's port itself, which comes and goes with it."""
    family, _ifindex, state, flags, _type = _NDMSG.unpack_from(body)
    return bool(family == socket.AF_BRIDGE and not flags & NTF_SELF and state & NUD_PERMANENT)


def is_failed(kind: int, body: bytes) -> bool:
    """Whether an RTM_NEWNEIGH says that a neighbour is about to go."""
    _family, _ifindex, state, _flags, _type = _NDMSG.unpack_from(body)
    return kind == RTM_NEWNEIGH and bool(state & NUD_FAILED)


class Difference(NamedTuple):
    puts: list[bytes]
    replaces: frozenset[bytes]
    """Those of ``puts`` that stand for something else now."""
    deletes: list[bytes]


def difference(wanted: Rows, found: Rows) -> Difference:
    if wanted == found:
        return Difference([], frozenset(), [])
    puts = [key for key, value in wanted.items() if found.get(key) != value]
    replaces = frozenset(key for key in puts if key in found)
    deletes = [key for key in found if key not in wanted]
    return Difference(puts, replaces, deletes)


def apply(
    netlink: Netlink,
    change: Difference,
    wanted: Rows,
    found: Rows,
    names: Mapping[int, str],
    tell: Callable[[list[bytes]], None] = lambda _: None,
) -> list[Change]:
    """Put, then delete. ``names``: of the links by ifindex, for the words; ``tell``: is shown what is sent."""
    changes: list[Change] = []
    for keys, rows, pack in ((change.puts, wanted, _put), (change.deletes, found, _delete)):
        for part in _parts(keys, rows):
            block = _block(part, rows, pack)
            if len(part) <= SPOKEN:
                tell([block[at] for at in range(len(part))])
            failures = _send(netlink, block)
            changes += _changes(part, rows, change.replaces, failures, names, deleted=pack is _delete)
    return changes


def _parts(keys: list[bytes], rows: Rows) -> list[list[bytes]]:
    """Keys of one table, device and address family each."""
    parts: list[list[bytes]] = []
    for _head, together in groupby(keys, _HEAD):  # they were put together device by device
        part = list(together)
        sizes = set(zip(map(len, part), map(len, map(rows.__getitem__, part)), strict=True))
        if len(sizes) == 1:
            parts.append(part)
        else:
            parts += [[key for key in part if (len(key), len(rows[key])) == size] for size in sorted(sizes)]
    return parts


def _block(keys: list[bytes], rows: Rows, pack: Callable[[bytes, bytes], bytes]) -> Block:
    block = Block(pack(keys[0], rows[keys[0]]), len(keys))
    if len(keys) == 1:
        return block
    values = [rows[key] for key in keys]
    table = keys[0][0]
    if table == NEIGHBOUR:
        block.fill(_MAC_AT, values)
        block.fill(_DESTINATION_AT, [key[5:] for key in keys])
    else:
        block.fill(_MAC_AT, [key[5:11] for key in keys])
        block.fill(_DESTINATION_AT if table == TUNNEL else _INDEX_AT, values)
    return block


def _send(netlink: Netlink, block: Block) -> dict[int, Failure]:
    first = netlink.reserve(block.count)
    block.number(first)
    return netlink.batch_numbered(block.data, block.stride, first)


def _changes(
    keys: list[bytes],
    rows: Rows,
    replaces: frozenset[bytes],
    failures: Mapping[int, Failure],
    names: Mapping[int, str],
    *,
    deleted: bool,
) -> list[Change]:
    """Each row in words; of very many those that failed, and how many did not."""
    # The deletion of what is gone is no event.
    gone = {at for at, failure in failures.items() if deleted and failure[0] in GONE}
    shown = [at for at in (range(len(keys)) if len(keys) <= SPOKEN else sorted(failures)) if at not in gone]
    changes = [
        Change(
            verb="delete" if deleted else "replace" if keys[at] in replaces else "add",
            object=describe(keys[at], rows[keys[at]], names),
            error=failures[at][1] if at in failures else "",
        )
        for at in shown
    ]
    if len(keys) > SPOKEN and len(failures) < len(keys):
        table, ifindex = _KEY.unpack_from(keys[0])
        what = "neighbours" if table == NEIGHBOUR else "fdb rows"
        words = f"{len(keys) - len(failures)} {what} of {names.get(ifindex, ifindex)}"
        changes.append(Change(verb="delete" if deleted else "add", object=words))
    return changes


_FDB = struct.Struct("=IHHII BxxxiHBB HH6sxx")
"""Header, ndmsg and NDA_LLADDR: 40 octets."""
_FDB4 = struct.Struct("=IHHII BxxxiHBB HH6sxx HH4s")
_FDB6 = struct.Struct("=IHHII BxxxiHBB HH6sxx HH16s")
"""… and NDA_DST."""
_INDEX_AT, _MAC_AT, _DESTINATION_AT = 20, 32, 44
_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_APPEND = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND


def _put(key: bytes, value: bytes) -> bytes:
    table, ifindex = _KEY.unpack_from(key)
    if table == TUNNEL:
        # A MAC has one VTEP: replaced in one step. The all-zero one has many: appended.
        mac = key[5:11]
        flags = _PUT if mac != FLOOD else _APPEND
        return _row(RTM_NEWNEIGH, flags, socket.AF_BRIDGE, ifindex, NUD_PERMANENT, NTF_SELF, mac, value)
    if table == BRIDGE:
        return _row(RTM_NEWNEIGH, _PUT, socket.AF_BRIDGE, IFINDEX.unpack(value)[0], NUD_NOARP, NTF_MASTER, key[5:])
    address = key[5:]
    return _row(RTM_NEWNEIGH, _PUT, _family(address), ifindex, NUD_PERMANENT, 0, value, address)


def _delete(key: bytes, value: bytes) -> bytes:
    table, ifindex = _KEY.unpack_from(key)
    if table == TUNNEL:
        return _row(RTM_DELNEIGH, NLM_F_REQUEST, socket.AF_BRIDGE, ifindex, 0, NTF_SELF, key[5:11], value)
    if table == BRIDGE:
        port = IFINDEX.unpack(value)[0]
        return _row(RTM_DELNEIGH, NLM_F_REQUEST, socket.AF_BRIDGE, port, 0, NTF_MASTER, key[5:])
    address = key[5:]
    return _row(RTM_DELNEIGH, NLM_F_REQUEST, _family(address), ifindex, 0, 0, value, address)


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _row(
    kind: int, request: int, family: int, ifindex: int, state: int, flags: int, mac: bytes, destination: bytes = b""
) -> bytes:
    """One RTM_*NEIGH message."""
    if not destination:
        return _FDB.pack(40, kind, request, 0, 0, family, ifindex, state, flags, 0, *_LINK_LAYER, mac)
    size = len(destination)
    form = _FDB4 if size == 4 else _FDB6
    return form.pack(
        44 + size,
        kind,
        request,
        0,
        0,
        family,
        ifindex,
        state,
        flags,
        0,
        *_LINK_LAYER,
        mac,
        4 + size,
        NDA_DST,
        destination,
    )


def address_text(packed: bytes) -> str:
    return socket.inet_ntop(_family(packed), packed)


def describe(key: bytes, value: bytes, names: Mapping[int, str]) -> str:
    """A row in the words of ``bridge fdb`` and ``ip neigh``."""
    table, ifindex = _KEY.unpack_from(key)
    device = names.get(ifindex, ifindex)
    if table == TUNNEL:
        return f"fdb {key[5:11].hex(':')} dev {device} dst {address_text(value)}"
    if table == BRIDGE:
        port = IFINDEX.unpack(value)[0]
        return f"fdb {key[5:].hex(':')} dev {names.get(port, port)} master {device}"
    return f"neigh {address_text(key[5:])} lladdr {value.hex(':')} dev {device}"

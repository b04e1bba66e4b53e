"""What the kernel says of changes, so that damage is seen when it is done and not at the next timer.

::

    namespace vxnet                                       hears
      all namespaces that have a number here   links, addresses, default routes, nftables
      this one                                 FDB rows and neighbours

One socket of each kind hears the host's namespace and all sandboxes too (NETLINK_LISTEN_ALL_NSID), as each of them is
given a number (nsid) in ``vxnet``. So no sandbox is held open: a socket of its own would keep it alive after its last
process. An event says where to look, never what to do; vxnet's own changes raise them too, and the look that follows
finds nothing and ends it. What a busy host says of itself is dropped by the kernel (routes) or here (links, tables).

No events come of a name under /run/netns and of sysctls: :meth:`vxnet.host.kernel.Kernel.is_intact` looks at those.
Format: rtnetlink(7), include/uapi/linux/net_namespace.h, net/netlink/af_netlink.c (do_one_broadcast).
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from vxnet.host import addresses, bpf, elements, links, neighbours, netns, nft
from vxnet.host.datapath import MARK
from vxnet.host.netlink import (
    HEADER,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    Netlink,
    attributes,
    split,
)
from vxnet.model.host import BRIDGE_PREFIX, NFT_TABLE

NETLINK_ADD_MEMBERSHIP = 1
NETLINK_LISTEN_ALL_NSID = 8

RTNLGRP_LINK = 1
RTNLGRP_NEIGH = 3
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11
NFNLGRP_NFTABLES = 7


BUFFER_OCTETS = 4 << 20
"""About two thousand events; more than that between two drains, and everything is looked at."""
AT_ONCE = 5_000
"""Datagrams of a socket that one drain takes, 10 µs each: more than the buffer holds, but somebody may send as fast as
they are read, and the rest of the daemon would wait."""
DATAGRAM_OCTETS = 65536
EXPECTED_ROWS = 1000
"""Of larger batches the echo is not sorted out: one look at all rows costs less."""

_LINK = frozenset((links.RTM_NEWLINK, links.RTM_DELLINK))
_NEIGH = frozenset((neighbours.RTM_NEWNEIGH, neighbours.RTM_DELNEIGH))
_ADDRESS = frozenset((addresses.RTM_NEWADDR, addresses.RTM_DELADDR))
_KIND = struct.Struct("=H")
_DELNEIGH = _KIND.pack(neighbours.RTM_DELNEIGH)
_INDEX = struct.Struct("=4xi")
"""ifindex in ifinfomsg, ifaddrmsg and ndmsg alike."""
_TABLE = NFT_TABLE.encode() + b"\0"
_MARK = MARK.encode()
_BRIDGE = BRIDGE_PREFIX.encode()

HERE = -1
"""Stands for namespace ``vxnet`` itself, whose events carry no number."""


class Look(NamedTuple):
    """Where something may be different; the shared part is looked at in any case."""

    sandboxes: frozenset[str] = frozenset()
    rows: bool = False
    everything: bool = False


class Events:
    """Followed in one thread, drained in another: each call is short and takes a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._sockets: list[socket.socket] = []
        self._followed: tuple[int, int] | None = None
        self._host = HERE
        self._sandboxes: dict[int, str] = {}
        """By nsid."""
        self._owners: Mapping[bytes, str] = {}
        """Ids of sandboxes by the names of their ports."""
        self._bridges: Collection[int] = frozenset()
        self._echoes: set[bytes] = set()
        self._generations: dict[str, int] = {}
        """Of sandboxes' rule sets, as vxnet's own last change made them."""

    def fileno(self) -> int:
        """Readable when there is something to drain; the same for good."""
        return self._epoll.fileno()

    def close(self) -> None:
        self.unfollow()
        self._epoll.close()

    def unfollow(self) -> None:
        """Close the sockets, which hold namespace ``vxnet``."""
        with self._lock:
            for one in self._sockets:
                self._epoll.unregister(one)
                one.close()
            self._sockets.clear()
            self._sandboxes.clear()
            self._followed = None

    def follow(self, netlink: Netlink, namespace: int, host: int) -> bool:
        """Listen in ``namespace`` (of ``netlink``) from now on; whether that is another than before. Raises OSError."""
        identity = netns.identity(namespace)
        if identity == self._followed:
            return False
        self.unfollow()
        number = links.namespace_number(netlink, host)
        with self._lock:
            for listen in (_listen_everywhere, _listen_to_rows, _listen_to_tables):
                self._sockets.append(listen(namespace))
                self._epoll.register(self._sockets[-1], select.EPOLLIN)
            self._followed = identity
            self._host = HERE if number is None else number
        return True

    # What is known of the places

    def introduce(self, netlink: Netlink, sandbox: str, namespace: int) -> None:
        """Hear a sandbox, too. ``netlink``: of ``vxnet``. Raises OSError."""
        number = links.namespace_number(netlink, namespace)
        if number is not None:
            with self._lock:
                self._sandboxes[number] = sandbox

    def know(self, owners: Mapping[bytes, str], living: Collection[str], bridges: Collection[int]) -> None:
        """``owners``: of ports by name; ``living``: ids of the sandboxes; ``bridges``: ifindexes, in the host."""
        with self._lock:
            self._owners = owners
            self._bridges = bridges
            if len(self._sandboxes) > len(living):
                self._sandboxes = {number: one for number, one in self._sandboxes.items() if one in living}
            if len(self._generations) > len(living):
                self._generations = {one: made for one, made in self._generations.items() if one in living}

    def expect(self, messages: Iterable[bytes]) -> None:
        """Rows that vxnet itself writes now: their echo, once, is no reason to look."""
        told = list(messages)
        if len(told) > EXPECTED_ROWS:
            return
        with self._lock:
            if len(self._echoes) > EXPECTED_ROWS:  # refused ones raise no echo and would stay
                self._echoes.clear()
            self._echoes.update(_signature(one[4:6], one[HEADER.size :]) for one in told)

    def expect_table(self, sandbox: str, generation: int) -> None:
        """vxnet itself has just made this generation of a sandbox's rule set."""
        with self._lock:
            self._generations[sandbox] = generation

    # Events

    def drain(self) -> Look | None:
        """What the events since the last call come to; None: nothing of vxnet's is concerned. Of very many some are
        left for the next one.
        """
        with self._lock:
            heard = _Heard(self)
            for one in self._sockets:
                self._drain(one, heard)
            return heard.look()

    def _drain(self, one: socket.socket, heard: _Heard) -> None:
        for _ in range(AT_ONCE):
            try:
                data, ancillary, _flags, _sender = one.recvmsg(DATAGRAM_OCTETS, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                heard.everything = True
                continue
            where = HERE
            for level, kind, value in ancillary:
                if level == SOL_NETLINK and kind == NETLINK_LISTEN_ALL_NSID:
                    (where,) = struct.unpack("=i", value)
            if one.proto == elements.NETLINK_NETFILTER:
                heard.table(where, data)
            else:
                for sort, _flags, _sequence, body in split(data):
                    heard.event(where, sort, body)


class _Heard:
    """Adds up what one drain hears."""

    def __init__(self, events: Events) -> None:
        self._known = events
        self._sandboxes: set[str] = set()
        self._shared = False
        self._rows = False
        self._tables: set[int] = set()
        """Where a transaction has been heard of, and not its end."""
        self.everything = False

    def look(self) -> Look | None:
        for where in self._tables:
            self._changed_table(where)
        if not (self.everything or self._rows or self._shared or self._sandboxes):
            return None
        return Look(frozenset(self._sandboxes), self._rows, self.everything)

    def table(self, where: int, data: bytes) -> None:
        """Of a transaction come first the parts, then its generation, each in a datagram. Others than of vxnet's table
        are nobody's business, and those of vxnet's own are no reason to look."""
        generation = nft.generation_of(data)
        if where == HERE:
            return
        if generation < 0:
            if _TABLE in data:
                self._tables.add(where)
        elif where in self._tables:
            self._tables.discard(where)
            sandbox = self._known._sandboxes.get(where, "")
            if generation != self._known._generations.get(sandbox):
                self._changed_table(where)

    def _changed_table(self, where: int) -> None:
        self._shared |= where == self._known._host
        self._sandbox(where)

    def event(self, where: int, kind: int, body: bytes) -> None:
        if where == HERE and kind in _NEIGH:
            self._rows = self._rows or self._is_foreign(kind, body)
        elif where in (HERE, self._known._host):
            if kind in _LINK:
                self._link(body, own=where == HERE)
            elif kind in _ADDRESS:
                self._shared |= _INDEX.unpack_from(body)[0] in self._known._bridges
        else:
            self._sandbox(where)

    def _link(self, body: bytes, *, own: bool) -> None:
        """Of the host's or of ``vxnet``. A port's owner looks after it."""
        name = attributes(body, 16).get(links.IFLA_IFNAME, b"").rstrip(b"\0")
        owner = self._known._owners.get(name)
        if owner is not None:
            self._sandboxes.add(owner)
        self._shared |= own or _MARK in body or name.startswith(_BRIDGE)

    def _is_foreign(self, kind: int, body: bytes) -> bool:
        if neighbours.is_kernels_own(body):
            return False
        signature = _signature(_KIND.pack(kind), body)
        if signature in self._known._echoes:
            self._known._echoes.discard(signature)
            return False
        # A neighbour that is deleted is told twice: first as failed.
        return not neighbours.is_failed(kind, body)

    def _sandbox(self, where: int) -> None:
        sandbox = self._known._sandboxes.get(where)
        if sandbox is not None:
            self._sandboxes.add(sandbox)


def _signature(kind: bytes, body: bytes) -> bytes:
    """The same for a request about a row and for the event that it raises."""
    parts = attributes(body, 12)
    head = kind + body[:1] + body[4:8] + parts.get(neighbours.NDA_DST, b"")
    if kind == _DELNEIGH and body[0] != socket.AF_BRIDGE:
        return head  # a neighbour that has gone has no MAC any more
    return head + parts.get(neighbours.NDA_LLADDR, b"")


# Sockets


def _listen_everywhere(namespace: int) -> socket.socket:
    groups = (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE)
    return _listener(namespace, socket.NETLINK_ROUTE, groups, everywhere=True)


def _listen_to_rows(namespace: int) -> socket.socket:
    # Apart from the others: the host and every container talk of their ARP caches all the time.
    return _listener(namespace, socket.NETLINK_ROUTE, (RTNLGRP_NEIGH,), everywhere=False)


def _listen_to_tables(namespace: int) -> socket.socket:
    return _listener(namespace, elements.NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), everywhere=True)


def _listener(namespace: int, protocol: int, groups: Iterable[int], *, everywhere: bool) -> socket.socket:
    one = netns.netlink_socket(namespace, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_OCTETS)
        if everywhere:
            one.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
        if protocol == socket.NETLINK_ROUTE:
            _drop_foreign_routes(one)
        one.bind((0, 0))
        for group in groups:
            one.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        one.close()
        raise
    return one


def _drop_foreign_routes(one: socket.socket) -> None:
    """As a router's thousands of route changes a second shall cost nothing here: of NEWROUTE and
    DELROUTE pass default routes (rtm_dst_len is 0) and vxnet's own (by rtm_protocol)."""

    def as_loaded(kind: int) -> int:  # a half-word is loaded as of network order
        return int.from_bytes(struct.pack("=H", kind), "big")

    program = (
        (0x28, 0, 0, 4),  # ldh [nlmsg_type]
        (0x15, 1, 0, as_loaded(addresses.RTM_NEWROUTE)),  # jeq → 3
        (0x15, 0, 4, as_loaded(addresses.RTM_DELROUTE)),  # jeq → 3, else → 7
        (0x30, 0, 0, HEADER.size + 1),  # ldb [rtm_dst_len]
        (0x15, 2, 0, 0),  # jeq 0 → 7
        (0x30, 0, 0, HEADER.size + 5),  # ldb [rtm_protocol]
        (0x15, 0, 1, addresses.PROTOCOL),  # jeq → 7, else → 8
        bpf.PASS,
        bpf.DROP,
    )
    bpf.attach(one, program)

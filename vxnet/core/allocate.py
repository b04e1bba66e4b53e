"""Numbers that must not be given twice: VNIs, subnets, blocks of addresses, addresses.

A manager leases *blocks* of a network's subnets to nodes (the only step that needs a manager); an agent picks
addresses from its own blocks::

    pool 10.0.0.0/8 ── /20 per network ── blocks of one node each ── addresses
                                          /29 at first, doubling with use; /32 for a chosen address

Everything is decided over the whole state; who commits the decision guards it by the state's version.
"""

from __future__ import annotations

import hashlib
import ipaddress
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from vxnet.model.address import MAC, IPAddress, IPInterface, IPNetwork
from vxnet.model.cluster import FIRST_VNI, LAST_VNI, Cluster, Lease, Network, Subnet
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError

FIRST_BLOCK = {4: 8, 6: 1 << 16}
"""Addresses of a node's first block of a network, by IP version: /29 and /112."""
LARGEST_BLOCK = {4: 1024, 6: 1 << 16}
"""Where doubling ends."""

DEFAULT_POOL = ipaddress.ip_network("10.0.0.0/8")
IPV6_PREFIXLEN = 64
"""Of a network's subnet out of a pool of IPv6: what every tool expects of a link (RFC 7421)."""

GATEWAY_CANDIDATES = tuple(
    ipaddress.ip_network(prefix)
    for prefix in [f"172.{second}.0.0/16" for second in range(19, 32)]
    + [f"192.168.{third}.0/20" for third in range(0, 256, 16)]
    + [f"100.{second}.0.0/16" for second in range(64, 128)]
)
"""For ``vxnet_gw``: Docker's first choice for its own such bridge is 172.18.0.0/16; the last are RFC 6598's."""


def mac_of(vni: int, address: IPAddress) -> MAC:
    """Follows from both, so that an address that is given anew is no black hole in a neighbour's cache."""
    return mac_of_packed(vni, address.packed)


def mac_of_packed(vni: int, address: bytes) -> MAC:
    """Of an address as its 4 or 16 octets."""
    if len(address) == 4:
        octets = bytes((0x02, vni & 0xFF)) + address
    else:
        octets = b"\x02" + hashlib.blake2s(vni.to_bytes(4, "big") + address, digest_size=5).digest()
    return octets.hex(":")


def next_vni(taken: Collection[int], last: int = 0) -> int:
    """The one after ``last`` (the last that was ever given) that is free: a removed network's is not reused at once."""
    start = last + 1 if FIRST_VNI <= last < LAST_VNI else FIRST_VNI
    for vni in chain(range(start, LAST_VNI + 1), range(FIRST_VNI, start)):
        if vni not in taken:
            return vni
    raise ExhaustedError(f"all VXLAN network identifiers from {FIRST_VNI} to {LAST_VNI} are in use")


def overlap(prefix: IPNetwork, others: Iterable[IPNetwork]) -> IPNetwork | None:
    """The first of ``others`` that shares an address with ``prefix``."""
    for other in others:
        if other.version == prefix.version and _first(other) <= _last(prefix) and _first(prefix) <= _last(other):
            return other
    return None


def pick_subnet(
    pools: Sequence[IPNetwork], prefixlen: int, taken: Collection[IPNetwork], routes: Collection[IPNetwork]
) -> IPNetwork:
    """The lowest subnet of the pools that overlaps neither a network (``taken``) nor a host's route. Raises
    :class:`ExhaustedError` naming the pools and the routes that fill them.
    """
    for pool in pools:
        if prefixlen < pool.prefixlen:
            continue
        size = 1 << (pool.max_prefixlen - prefixlen)
        start = _first(pool)
        # A look at each, in their order: a look at all for each subnet in use took 0.3 s beside 900 networks.
        for first, last in sorted(
            (_first(one), _last(one)) for one in (*taken, *routes) if one.version == pool.version
        ):
            if first >= start + size:
                break
            if last >= start:
                start = _align_up(last + 1, size)
        if start < _last(pool):
            return _prefix(pool, start, size)
    blocking = sorted({str(route) for pool in pools if (route := overlap(pool, routes)) is not None})
    raise ExhaustedError(
        f"no free /{prefixlen} is left in the address pools ({', '.join(map(str, pools))}): "
        f"{sum(overlap(one, pools) is not None for one in taken)} of their subnets are in use"
        + (f", and hosts have routes to {', '.join(blocking)}" if blocking else ""),
        hint="name a free one with --subnet, or remove networks that nobody uses",
    )


def ula_pool(cluster_id: str) -> IPNetwork:
    """The cluster's own IPv6 prefix, a /48 of fd00::/8 (RFC 4193) whose 40 bits follow from the cluster's id: two
    clusters that are joined one day most likely do not meet.
    """
    digest = hashlib.blake2s(cluster_id.encode(), digest_size=5).digest()
    return ipaddress.ip_network((b"\xfd" + digest + bytes(10), 48))


def pool_of(cluster: Cluster, version: int) -> tuple[Sequence[IPNetwork], int]:
    """(pools, length of a subnet's prefix) of an IP version."""
    pools = [pool for pool in cluster.pools if pool.version == version]
    if version == 4:
        return pools or (DEFAULT_POOL,), cluster.pool_prefixlen
    return pools or (ula_pool(cluster.id),), IPV6_PREFIXLEN


def given_from(subnet: Subnet) -> IPNetwork:
    """Where addresses that nobody chose come from."""
    return subnet.range or subnet.prefix


def gateway_subnet(routes: Collection[IPNetwork]) -> IPNetwork:
    """For ``vxnet_gw`` of a host with these routes (give the cluster's pools and networks too)."""
    for candidate in GATEWAY_CANDIDATES:
        if overlap(candidate, routes) is None:
            return candidate
    raise ExhaustedError(
        "no private prefix is left for vxnet_gw: this host has routes to all of 172.16.0.0/12, 192.168.0.0/16 "
        "and 100.64.0.0/10",
        hint="remove a route that is wider than it has to be",
    )


def gateway_subnet6(seed: str, routes: Collection[IPNetwork]) -> IPNetwork:
    """Of IPv6 for ``vxnet_gw``, as above: a /64 of a prefix that follows from ``seed`` (RFC 4193)."""
    return pick_subnet((ula_pool(seed),), IPV6_PREFIXLEN, routes, ())


def beside(address: IPAddress, other: IPInterface) -> IPInterface:
    """The IPv6 address on ``vxnet_gw`` of who has this one of IPv4: it ends in it, as the MAC does, so that one guard
    holds for both."""
    return ipaddress.ip_interface((int(other.network.network_address) + int(address), other.network.prefixlen))


# Blocks: the manager's part


def lease_blocks(
    network: Network,
    leases: Collection[Lease],
    node: str,
    addresses: int,
    nodes: int,
    family: int = 0,
    *,
    early: bool = False,
) -> tuple[IPNetwork, ...]:
    """A further block for ``node`` in each address family of ``network`` (or only in IP version ``family``).

    ``leases`` are all of this network, ``nodes`` counts the cluster's. Size, in addresses:
    min(max(first block, what the node already has, ``addresses``), fair share of what is free), where the share leaves
    something for every node that has none yet; at least 1. ``early``, before there is need, only where the share is a
    first block: in a small network the one that asks again and again would have everything. Raises
    :class:`ExhaustedError`.
    """
    versions = sorted({subnet.prefix.version for subnet in network.subnets})
    return tuple(
        _lease_block(network, leases, node, addresses, nodes, version, early=early)
        for version in versions
        if family in (0, version)
    )


def _lease_block(
    network: Network, leases: Collection[Lease], node: str, addresses: int, nodes: int, version: int, *, early: bool
) -> IPNetwork:
    leases = [lease for lease in leases if lease.prefix.version == version]
    free = [FreeSpace(subnet, leases) for subnet in network.subnets if subnet.prefix.version == version]
    held = sum(lease.prefix.num_addresses for lease in leases if lease.node == node)
    with_some = {lease.node for lease in leases if lease.node} - {node}
    waiting = max(nodes - 1 - len(with_some), 1)
    wanted = min(max(FIRST_BLOCK[version], held, addresses), LARGEST_BLOCK[version])
    left = sum(space.size for space in free)
    share = left // (waiting + 1)
    if early and left and share < FIRST_BLOCK[version]:
        raise ExhaustedError(
            f"network {network.name} has few addresses left: they are given when a container needs one",
            hint=f"give it one more subnet: `vxnet network update --subnet-add CIDR {network.name}`",
        )
    size = min(_power_at_least(wanted), _power_at_most(max(share, 1)))
    while size:
        for space in free:
            if (block := space.find(size)) is not None:
                return block
        size //= 2
    raise _exhausted(network, version, leases)


def first_blocks(network: Network, leases: Collection[Lease], nodes: Collection[str]) -> list[tuple[str, IPNetwork]]:
    """(node, block) for those of ``nodes`` (all of the cluster) that have none of ``network`` yet, so that a container
    can start there without a manager; as long as at most half of each subnet is leased.
    """
    given: list[tuple[str, IPNetwork]] = []
    for version in sorted({subnet.prefix.version for subnet in network.subnets}):
        served = {lease.node for lease in leases if lease.prefix.version == version}
        waiting = sorted(set(nodes) - served)
        if not waiting:
            continue
        spaces = [FreeSpace(subnet, leases) for subnet in network.subnets if subnet.prefix.version == version]
        for node in waiting:
            for space in spaces:
                total = given_from(space.subnet).num_addresses
                size = min(FIRST_BLOCK[version], _power_at_most(max(total // (2 * len(nodes)), 1)))
                if space.leased + size > total // 2:
                    continue
                if (block := space.find(size)) is not None:
                    space.take(block)
                    given.append((node, block))
                    break
    return given


def lease_address(network: Network, leases: Collection[Lease], node: str, address: IPAddress) -> IPNetwork | None:
    """The block of one for a chosen address; None if it lies in a block that ``node`` already has. Raises
    :class:`CallerError` or :class:`ConflictError` saying why not (the conflict names the other node's id).
    """
    subnet = next((subnet for subnet in network.subnets if address in subnet.prefix), None)
    if subnet is None:
        sizes = ", ".join(str(subnet.prefix) for subnet in network.subnets)
        raise CallerError(f"address {address} is outside network {network.name} ({sizes})")
    if address in reserved_addresses(subnet):
        kept = [name for name, one in subnet.auxiliary.items() if one == address]
        which = "gateway" if address == subnet.gateway else f"auxiliary ({kept[0]})" if kept else "network or broadcast"
        raise CallerError(f"address {address} is the {which} address of network {network.name}")
    for lease in leases:
        if address in lease.prefix:
            if lease.node == node:
                return None
            if lease.service:
                raise ConflictError(
                    f"address {address} of network {network.name} is the virtual IP of a service",
                    hint="choose another address",
                )
            raise ConflictError(
                f"address {address} of network {network.name} lies in block {lease.prefix}, leased to node "
                f"{lease.node}",
                hint="choose another address, or start the container there",
            )
    return ipaddress.ip_network(address)


def pick_vips(network: Network, leases: Collection[Lease]) -> tuple[IPAddress, ...]:
    """A virtual IP in each address family of ``network``, outside all of its ``leases``: to be leased itself. Raises
    :class:`ExhaustedError`.
    """
    vips: list[IPAddress] = []
    for version in sorted({subnet.prefix.version for subnet in network.subnets}):
        mine = [lease for lease in leases if lease.prefix.version == version]
        spaces = [FreeSpace(subnet, mine) for subnet in network.subnets if subnet.prefix.version == version]
        block = next((block for space in spaces if (block := space.find(1)) is not None), None)
        if block is None:
            raise _exhausted(network, version, mine)
        vips.append(block.network_address)
    return tuple(vips)


def reserved_addresses(subnet: Subnet) -> frozenset[IPAddress]:
    """Never handed out, nor part of a block: the first (network, or subnet-router anycast), the last, the gateway,
    and those kept for others.
    """
    ends = (subnet.prefix.network_address, subnet.prefix.broadcast_address)
    return frozenset((*ends, subnet.gateway, *subnet.auxiliary.values()))


class _Span(NamedTuple):
    first: int
    last: int


class FreeSpace:
    """What of one subnet's range is neither leased nor reserved."""

    def __init__(self, subnet: Subnet, leases: Iterable[Lease]) -> None:
        self.subnet = subnet
        self.leased = 0
        """Addresses."""
        prefix = given_from(subnet)
        blocks = [lease.prefix for lease in leases if overlap(prefix, (lease.prefix,)) is not None]
        taken = sorted(
            [_Span(int(address), int(address)) for address in reserved_addresses(subnet)]
            + [_Span(_first(block), _last(block)) for block in blocks]
        )
        self.leased = sum(block.num_addresses for block in blocks)
        self._gaps: list[_Span] = []
        start = _first(prefix)
        for span in taken:
            if span.first > start:
                self._gaps.append(_Span(start, min(span.first - 1, _last(prefix))))
            start = max(start, span.last + 1)
            if start > _last(prefix):
                break
        if start <= _last(prefix):
            self._gaps.append(_Span(start, _last(prefix)))

    @property
    def size(self) -> int:
        return sum(last - first + 1 for first, last in self._gaps)

    def find(self, size: int) -> IPNetwork | None:
        """An aligned block of ``size`` (a power of two) addresses, from the smallest gap that has one."""
        best: tuple[int, int] | None = None
        for first, last in self._gaps:
            start = _align_up(first, size)
            if start + size - 1 <= last and (best is None or last - first < best[0]):
                best = (last - first, start)
        return None if best is None else _prefix(self.subnet.prefix, best[1], size)

    def take(self, block: IPNetwork) -> None:
        """``block`` must come from :meth:`find`."""
        first, last = _first(block), _last(block)
        at = bisect_left(self._gaps, (first + 1,)) - 1
        gap = self._gaps[at]
        pieces = [_Span(gap.first, first - 1), _Span(last + 1, gap.last)]
        self._gaps[at : at + 1] = [piece for piece in pieces if piece.first <= piece.last]
        self.leased += block.num_addresses


def _exhausted(network: Network, version: int, leases: Collection[Lease]) -> ExhaustedError:
    subnets = [subnet for subnet in network.subnets if subnet.prefix.version == version]
    ranges = [given_from(subnet) for subnet in subnets]
    usable = sum(
        prefix.num_addresses - sum(address in prefix for address in reserved_addresses(subnet))
        for subnet, prefix in zip(subnets, ranges, strict=True)
    )
    holders = len({lease.node for lease in leases if lease.node})
    return ExhaustedError(
        f"network {network.name} has no address left: {', '.join(map(str, ranges))} has "
        f"{usable} usable addresses, and all are leased to {holders} node{'s' if holders != 1 else ''}",
        hint=f"give it one more subnet: `vxnet network update --subnet-add CIDR {network.name}`",
    )


# Addresses: the agent's part


def pick_address(
    blocks: Collection[IPNetwork],
    taken: Collection[IPAddress],
    gateways: Collection[IPAddress] = (),
    last: IPAddress | None = None,
) -> IPAddress | None:
    """The next free address of the node's own ``blocks`` (of one family) behind ``last``, the one given before, and
    round; None: ask a manager for a further block. A freed address thus rests as long as there are others.
    """
    occupied = {int(address) for address in (*taken, *gateways)}
    after = -1 if last is None else int(last)
    ordered = sorted(blocks, key=_first)
    for low, high in ((after + 1, None), (0, after)):
        for block in ordered:
            for number in _numbers(block, low, high):
                if number not in occupied:
                    return block.network_address + (number - _first(block))
    return None


def idle_blocks(blocks: Collection[IPNetwork], taken: Collection[IPAddress]) -> tuple[IPNetwork, ...]:
    """Those of a node's blocks (of one family) that may go back: without an address in use, and not needed so that
    half a first block's worth of addresses stays free. Largest first.

    Who returns a lease remembers it *before* the request goes out, over a crash too, and does not use it until the
    manager's next set of leases is without it or has it with another epoch: the request may be delivered late.
    """
    used = {block: sum(address in block for address in taken) for block in blocks}
    spare = sum(block.num_addresses - count for block, count in used.items())
    idle = []
    for block in sorted((block for block in blocks if not used[block]), key=lambda block: -block.num_addresses):
        if spare - block.num_addresses >= FIRST_BLOCK[block.version] // 2:
            spare -= block.num_addresses
            idle.append(block)
    return tuple(idle)


def _numbers(block: IPNetwork, low: int, high: int | None) -> Iterator[int]:
    last = _last(block) if high is None else min(_last(block), high)
    return iter(range(max(_first(block), low), last + 1))


# Prefixes as numbers


def _first(prefix: IPNetwork) -> int:
    return int(prefix.network_address)


def _last(prefix: IPNetwork) -> int:
    return int(prefix.broadcast_address)


def _prefix(like: IPNetwork, first: int, size: int) -> IPNetwork:
    """``size`` addresses from number ``first`` on, in the family of ``like``."""
    address = like.network_address + (first - _first(like))
    return ipaddress.ip_network(f"{address}/{like.max_prefixlen - size.bit_length() + 1}")


def _align_up(number: int, size: int) -> int:
    return -(-number // size) * size


def _power_at_least(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _power_at_most(number: int) -> int:
    return 1 << (number.bit_length() - 1)

"""What a network may be: name, subnets, options. A refusal says what was wanted, what is in the way, what to do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from vxnet.core import allocate
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import NetworkCreate
from vxnet.model.cluster import Cluster, Network, Node, Subnet
from vxnet.model.errors import CallerError, ConflictError, NotFoundError, UnsupportedError

DEFAULT_POOL = ipaddress.ip_network("10.0.0.0/8")
RESERVED_NAMES = ("bridge", "host", "none", "vxnet_gw", "ingress")
SMALLEST_SUBNET = 8
"""Addresses: a /29 has five to give."""
MTU_RANGE = (576, 65535)
"""RFC 791: what every host must take. The upper end is a device's."""
MTU_RANGE_IPV6 = (1280, 65535)
"""RFC 8200, section 5."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MTU_OPTIONS = ("mtu", "com.docker.network.driver.mtu")

R = TypeVar("R", Network, Node)


def decide_network(
    request: NetworkCreate,
    *,
    id: str,
    vni: int,
    cluster: Cluster,
    networks: Collection[Network],
    nodes: Collection[Node],
    now: float,
) -> Network:
    """The network that ``request`` asks for, beside those there are.

    Raises :class:`CallerError`, :class:`ConflictError` (a name or address that is taken), :class:`UnsupportedError`,
    :class:`ExhaustedError` (pools).
    """
    _check_name(request.name, networks)
    if request.driver != "overlay":
        raise UnsupportedError(
            f"networks with driver {request.driver} cannot be created: not built yet",
            hint="`--driver overlay`; every container has a way out through vxnet_gw anyhow",
        )
    subnets = _subnets(request, cluster, networks, nodes)
    return Network(
        id=id,
        name=request.name,
        driver=request.driver,
        vni=vni,
        subnets=subnets,
        attachable=request.attachable,
        internal=request.internal,
        mtu=_mtu(request.options, any(subnet.prefix.version == 6 for subnet in subnets)),
        options=request.options,
        labels=request.labels,
        created_at=now,
    )


def check_pools(pools: Sequence[IPNetwork], prefixlen: int) -> None:
    """Of a new cluster. Raises :class:`CallerError`."""
    for number, pool in enumerate(pools):
        if pool.version != 4:
            raise CallerError(f"address pool {pool} is not an IPv4 prefix", hint="give IPv6 subnets with --subnet")
        if not pool.prefixlen <= prefixlen <= pool.max_prefixlen - 3:
            raise CallerError(f"no /{prefixlen} subnet fits into address pool {pool}", hint="give a larger pool")
        _check_prefix(pool)
        if (other := allocate.overlap(pool, pools[:number])) is not None:
            raise CallerError(f"the address pools {other} and {pool} overlap")


def find(ref: str, records: Collection[R], what: str) -> R:
    """By name, id, or the beginning of an id that only one has. Raises :class:`NotFoundError` or
    :class:`CallerError`.
    """
    for exact in ([one for one in records if one.name == ref], [one for one in records if one.id == ref]):
        if exact:
            return exact[0]
    begun = [one for one in records if ref and one.id.startswith(ref)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise CallerError(
            f"{what} {ref!r} is ambiguous: {', '.join(sorted(f'{one.name} ({one.id})' for one in begun))}",
            hint="give its name or more of its id",
        )
    known = ", ".join(sorted(one.name for one in records)[:20])
    raise NotFoundError(f"there is no {what} {ref!r}", hint=f"there are: {known}" if known else "")


def _check_name(name: str, networks: Collection[Network]) -> None:
    if not _NAME.fullmatch(name):
        raise CallerError(
            f"{name!r} cannot be a network's name",
            hint="letters, digits, underscores, dots and hyphens, the first a letter or digit",
        )
    if len(name) > 64:
        raise CallerError(f"a network's name has at most 64 characters, this one {len(name)}")
    if name in RESERVED_NAMES:
        raise ConflictError(f"the name {name!r} is taken by a network that vxnet makes itself", hint="choose another")
    taken = next((network for network in networks if network.name == name), None)
    if taken is not None:
        raise ConflictError(f"there is a network {name!r} already (id {taken.id})", hint="choose another name")


def _subnets(
    request: NetworkCreate, cluster: Cluster, networks: Collection[Network], nodes: Collection[Node]
) -> tuple[Subnet, ...]:
    taken = [subnet.prefix for network in networks for subnet in network.subnets]
    prefixes = list(request.subnets)
    if not prefixes:
        routes = {route for node in nodes for route in node.routes if route.prefixlen} | {
            ipaddress.ip_network(address) for node in nodes for address in (node.advertise_addr, node.data_path_addr)
        }
        prefixes = [allocate.pick_subnet(cluster.pools, cluster.pool_prefixlen, taken, routes)]
    for number, prefix in enumerate(prefixes):
        _check_prefix(prefix)
        if (other := allocate.overlap(prefix, prefixes[:number])) is not None:
            raise CallerError(f"the subnets {other} and {prefix} overlap")
        _check_free(prefix, networks, nodes)
    gateways = _gateways(prefixes, request.gateways)
    return tuple(Subnet(prefix=prefix, gateway=gateways[prefix]) for prefix in prefixes)


def _check_prefix(prefix: IPNetwork) -> None:
    if prefix.num_addresses < SMALLEST_SUBNET:
        longest = prefix.max_prefixlen - SMALLEST_SUBNET.bit_length() + 1
        raise CallerError(
            f"subnet {prefix} is too small: {prefix.num_addresses} addresses", hint=f"at least a /{longest} is needed"
        )
    if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local or prefix.prefixlen == 0:
        raise CallerError(f"subnet {prefix} holds addresses that cannot be given to containers")


def _check_free(prefix: IPNetwork, networks: Collection[Network], nodes: Collection[Node]) -> None:
    for network in networks:
        if (other := allocate.overlap(prefix, [subnet.prefix for subnet in network.subnets])) is not None:
            raise ConflictError(
                f"subnet {prefix} overlaps {other} of network {network.name}", hint="choose another --subnet"
            )
    for node in nodes:
        for address in (node.advertise_addr, node.data_path_addr):
            if address in prefix:
                raise ConflictError(
                    f"subnet {prefix} contains {address}, an address of node {node.name}",
                    hint="choose another --subnet",
                )
        if (route := allocate.overlap(prefix, [route for route in node.routes if route.prefixlen])) is not None:
            raise ConflictError(
                f"subnet {prefix} overlaps {route}, to which node {node.name} has a route",
                hint="choose another --subnet, or none: vxnet then picks one that no host has a route to",
            )


def _gateways(prefixes: Collection[IPNetwork], wanted: Collection[IPAddress]) -> Mapping[IPNetwork, IPAddress]:
    gateways: dict[IPNetwork, IPAddress] = {}
    for gateway in wanted:
        prefix = next((prefix for prefix in prefixes if gateway in prefix), None)
        if prefix is None:
            raise CallerError(
                f"gateway {gateway} lies outside the subnet{'s' if len(prefixes) != 1 else ''} "
                f"{', '.join(map(str, prefixes))}"
            )
        if prefix in gateways:
            raise CallerError(f"subnet {prefix} is given two gateways: {gateways[prefix]} and {gateway}")
        if gateway in (prefix.network_address, prefix.broadcast_address):
            raise CallerError(f"gateway {gateway} is the network or broadcast address of {prefix}")
        gateways[prefix] = gateway
    return {prefix: gateways.get(prefix, prefix.network_address + 1) for prefix in prefixes}


def _mtu(options: Mapping[str, str], ipv6: bool) -> int | None:
    if "encrypted" in options:
        raise UnsupportedError(
            "encrypted networks are not built yet",
            hint="no network is made, so that nothing travels in clear by mistake",
        )
    if unknown := sorted(set(options) - set(_MTU_OPTIONS)):
        raise CallerError(f"unknown option {', '.join(map(repr, unknown))}", hint="overlay networks know `--opt mtu=N`")
    for name in _MTU_OPTIONS:
        if name in options:
            text = options[name]
            low, high = MTU_RANGE_IPV6 if ipv6 else MTU_RANGE
            if not (re.fullmatch(r"[0-9]{1,6}", text) and low <= int(text) <= high):
                family = " with an IPv6 subnet" if ipv6 else ""
                raise CallerError(f"mtu {text!r} is not a number from {low} to {high}, as a network{family} takes")
            return int(text)
    return None

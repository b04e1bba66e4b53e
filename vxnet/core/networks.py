"""What a network may be: name, subnets, options. A refusal says what was wanted, what is in the way, what to do."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from vxnet.core import allocate
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import NetworkCreate, NetworkUpdate, SubnetWish
from vxnet.model.cluster import Cluster, ForeignPeer, Network, Node, Subnet
from vxnet.model.errors import CallerError, ConflictError, NotFoundError, UnsupportedError
from vxnet.model.service import Service

LOCAL_NETWORKS = (
    Network(id="bridge", name="bridge", driver="bridge", scope="local"),
    Network(id="host", name="host", driver="host", scope="local"),
    Network(id="none", name="none", driver="null", scope="local"),
    Network(id="vxnet_gw", name="vxnet_gw", driver="bridge", scope="local"),
)
"""Every host has them, in a cluster or not."""
RESERVED_NAMES = tuple(network.name for network in LOCAL_NETWORKS)
"""As ``--network`` they mean the way out alone, the host's own namespace, or nothing: no place on a network."""
INGRESS = "ingress"
"""What the routing mesh's network is called, unless somebody makes another."""
SMALLEST_SUBNET = 8
"""Addresses: a /29 has five to give."""
MTU_RANGE = (576, 65535)
"""RFC 791: what every host must take. The upper end is a device's."""
MTU_RANGE_IPV6 = (1280, 65535)
"""RFC 8200, section 5."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MTU_OPTIONS = ("mtu", "com.docker.network.driver.mtu")
_PEERS_OPTION = "peers"

R = TypeVar("R", Network, Node, Service)


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
    if request.ingress:
        _check_ingress(request, networks)
    elif request.name == INGRESS:
        raise ConflictError(
            f"the name {INGRESS!r} is kept for the routing mesh's network", hint="choose another, or add --ingress"
        )
    check_network_name(request.name, networks)
    if request.driver != "overlay":
        raise CallerError(
            f"a network of driver {request.driver} is one host's own",
            hint="make it on the host that is to have it, with a vxnet that knows such networks",
        )
    check_options(request.options, (_PEERS_OPTION,), "overlay networks")
    prefixes = list(request.subnets)
    blockers = _blockers(networks, nodes)
    for version in families_without_subnet(request):
        pools, prefixlen = allocate.pool_of(cluster, version)
        prefixes.append(allocate.pick_subnet(pools, prefixlen, *blockers))
    subnets = _subnets(request, prefixes, (), networks, nodes)
    return Network(
        id=id,
        name=request.name,
        driver=request.driver,
        vni=vni,
        subnets=subnets,
        attachable=request.attachable,
        internal=request.internal,
        ingress=request.ingress,
        mtu=mtu_option(request.options, any(subnet.prefix.version == 6 for subnet in subnets)),
        options=request.options,
        labels=request.labels,
        peers=_peers_option(request.options, nodes),
        created_at=now,
    )


def families_without_subnet(request: NetworkCreate) -> list[int]:
    """IP versions that are wanted, and for which a subnet is to be found. Raises :class:`CallerError`."""
    versions = {prefix.version for prefix in request.subnets}
    # A published port answers on all addresses of a node: the mesh has both families, unless somebody chooses.
    ipv6 = request.ipv6 or (request.ingress and not request.subnets)
    wanted = {4: request.ipv4 or (request.ipv4 is None and (ipv6 or 6 not in versions)), 6: ipv6}
    if not any(wanted.values()) and not versions:
        raise CallerError("a network without IPv4 and IPv6 has no addresses", hint="`--no-ipv4` needs `--ipv6`")
    if request.ipv4 is False and 4 in versions:
        raise CallerError("an IPv4 subnet is given, and `--no-ipv4`")
    return [version for version, is_wanted in wanted.items() if is_wanted and version not in versions]


def _check_ingress(request: NetworkCreate, networks: Collection[Network]) -> None:
    if _PEERS_OPTION in request.options:
        raise _no_peers_in_mesh()
    if (there := ingress_of(networks)) is not None:
        raise ConflictError(
            f"there is an ingress network already: {there.name} (id {there.id})",
            hint=f"remove it first: `vxnet network rm {there.name}`",
        )
    if request.attachable or request.internal:
        raise CallerError("an ingress network is neither --attachable nor --internal: it is the routing mesh's alone")
    given = [prefix.version for prefix in request.subnets]
    if 4 not in {*given, *families_without_subnet(request)}:
        # host/answers: what tasks know a host by are the octets of its IPv4 address there.
        raise CallerError(
            "an ingress network needs IPv4: by it tasks know the host that an answer goes back to",
            hint="leave --no-ipv4 out, or give an IPv4 --subnet as well",
        )
    if len({*given}) < len(given):
        raise CallerError("an ingress network has one subnet of each family", hint="give one that is large enough")


def ingress_of(networks: Collection[Network]) -> Network | None:
    """The routing mesh's."""
    return next((network for network in networks if network.ingress), None)


def first_ingress(cluster: Cluster, nodes: Collection[Node], networks: Collection[Network], vni: int) -> Network:
    """What every cluster is given once, with both address families: a port answers on all addresses of a node. Its id
    follows from the cluster's, so that managers who make it at the same time make the same. Raises
    :class:`ExhaustedError` (pools), :class:`ConflictError` (the name, by a network that was made before there were
    ingress networks).
    """
    request = NetworkCreate(name=INGRESS, ingress=True)
    id = hashlib.blake2s(f"{cluster.id}/{INGRESS}".encode(), digest_size=16).hexdigest()[:25]
    return decide_network(
        request, id=id, vni=vni, cluster=cluster, networks=networks, nodes=nodes, now=cluster.created_at
    )


def grow_network(
    network: Network, request: NetworkUpdate, *, networks: Collection[Network], nodes: Collection[Node]
) -> Network:
    """``network`` with what ``request`` adds to it. Raises :class:`CallerError`, :class:`ConflictError`."""
    if network.ingress and request.subnets:
        raise ConflictError(
            f"network {network.name} is the routing mesh's, which has one subnet of each family",
            hint=f"remove it and make it anew: `vxnet network create --ingress --subnet … {network.name}`",
        )
    for prefix in request.subnets:
        if prefix.version == 6 and network.mtu is not None and network.mtu < MTU_RANGE_IPV6[0]:
            raise ConflictError(
                f"network {network.name} has an MTU of {network.mtu}, and IPv6 needs {MTU_RANGE_IPV6[0]}",
                hint="create another network for it",
            )
    for key in request.labels_removed:
        if key not in network.labels:
            raise CallerError(f"network {network.name} has no label {key!r}")
    more = _subnets(request, list(request.subnets), network.subnets, networks, nodes)
    labels = {key: value for key, value in network.labels.items() if key not in request.labels_removed}
    return replace(network, subnets=(*network.subnets, *more), labels=labels | request.labels)


# Peers without vxnet


def add_peer(network: Network, peer: ForeignPeer, nodes: Collection[Node]) -> Network:
    """Raises :class:`CallerError`, :class:`ConflictError`."""
    _check_peer(peer.vtep, nodes)
    if network.ingress:
        raise _no_peers_in_mesh()
    if any(one.vtep == peer.vtep for one in network.peers):
        raise ConflictError(f"{peer.vtep} is a peer of network {network.name} already")
    if peer.name and any(one.name == peer.name for one in network.peers):
        raise ConflictError(f"network {network.name} has a peer {peer.name!r} already", hint="choose another name")
    return replace(network, peers=(*network.peers, peer))


def _no_peers_in_mesh() -> CallerError:
    return CallerError(
        "a peer without vxnet cannot be in the routing mesh's network: it would reach all tasks with published ports",
        hint="let it be a peer of the network that its partners are on",
    )


def remove_peer(network: Network, ref: str) -> Network:
    """``ref``: its address or its name. Raises :class:`NotFoundError`."""
    rest = tuple(one for one in network.peers if ref not in (str(one.vtep), one.name))
    if not ref or len(rest) == len(network.peers):
        known = ", ".join(str(one.vtep) for one in network.peers) or "none"
        raise NotFoundError(f"network {network.name} has no peer {ref!r}", hint=f"there are: {known}")
    return replace(network, peers=rest)


def _peers_option(options: Mapping[str, str], nodes: Collection[Node]) -> tuple[ForeignPeer, ...]:
    """``--opt peers=ADDRESS,ADDRESS``."""
    found: list[ForeignPeer] = []
    for text in options.get(_PEERS_OPTION, "").split(",") if _PEERS_OPTION in options else ():
        try:
            vtep = ipaddress.ip_address(text.strip())
        except ValueError:
            raise CallerError(f"peers= takes addresses with commas between them, found {text!r}") from None
        _check_peer(vtep, nodes)
        found.append(ForeignPeer(vtep=vtep))
    return tuple(dict.fromkeys(found))


def _check_peer(vtep: IPAddress, nodes: Collection[Node]) -> None:
    if vtep.is_multicast or vtep.is_loopback or vtep.is_unspecified or vtep.is_link_local:
        raise CallerError(f"{vtep} cannot be the address of a VXLAN endpoint")
    for node in nodes:
        if vtep in (node.data_path_addr, node.advertise_addr):
            raise ConflictError(f"{vtep} is an address of node {node.name}, which needs no leave to take part")
        if vtep.version != node.data_path_addr.version:
            raise CallerError(
                f"{vtep} is of another IP version than the data path of node {node.name} ({node.data_path_addr})",
                hint="a tunnel's ends are of one version: give the peer's address of that",
            )


def check_pools(pools: Sequence[IPNetwork], prefixlen: int) -> None:
    """Of a new cluster. Raises :class:`CallerError`."""
    for number, pool in enumerate(pools):
        length = prefixlen if pool.version == 4 else allocate.IPV6_PREFIXLEN
        if not pool.prefixlen <= length <= pool.max_prefixlen - 3:
            raise CallerError(f"no /{length} subnet fits into address pool {pool}", hint="give a larger pool")
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


def check_network_name(name: str, networks: Collection[Network]) -> None:
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


def _blockers(networks: Collection[Network], nodes: Collection[Node]) -> tuple[list[IPNetwork], set[IPNetwork]]:
    """What a subnet out of a pool must not meet: other networks', and what hosts have or have routes to."""
    taken = [subnet.prefix for network in networks for subnet in network.subnets]
    routes = {route for node in nodes for route in node.routes if route.prefixlen}
    addresses = {ipaddress.ip_network(one) for node in nodes for one in (node.advertise_addr, node.data_path_addr)}
    return taken, routes | addresses


def _subnets(
    wish: SubnetWish,
    prefixes: list[IPNetwork],
    own: Collection[Subnet],
    networks: Collection[Network],
    nodes: Collection[Node],
) -> tuple[Subnet, ...]:
    """``prefixes`` as subnets beside a network's ``own``."""
    for number, prefix in enumerate(prefixes):
        _check_prefix(prefix)
        if (other := allocate.overlap(prefix, [*(subnet.prefix for subnet in own), *prefixes[:number]])) is not None:
            raise CallerError(f"the subnets {other} and {prefix} overlap")
        check_free(prefix, networks, nodes)
    gateways = _gateways(prefixes, wish.gateways)
    ranges = _ranges(prefixes, wish.ranges)
    auxiliary = _auxiliary(prefixes, wish.auxiliary)
    return tuple(
        Subnet(prefix=prefix, gateway=gateways[prefix], range=ranges.get(prefix), auxiliary=auxiliary.get(prefix, {}))
        for prefix in prefixes
    )


def subnets_of(wish: SubnetWish, prefixes: list[IPNetwork]) -> tuple[Subnet, ...]:
    """``prefixes`` as subnets of a network; what else there is, is not looked at. Raises :class:`CallerError`."""
    return _subnets(wish, prefixes, (), (), ())


def _check_prefix(prefix: IPNetwork) -> None:
    if prefix.num_addresses < SMALLEST_SUBNET:
        longest = prefix.max_prefixlen - SMALLEST_SUBNET.bit_length() + 1
        raise CallerError(
            f"subnet {prefix} is too small: {prefix.num_addresses} addresses", hint=f"at least a /{longest} is needed"
        )
    if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local or prefix.prefixlen == 0:
        raise CallerError(f"subnet {prefix} holds addresses that cannot be given to containers")


def check_free(prefix: IPNetwork, networks: Collection[Network], nodes: Collection[Node]) -> None:
    """Raises :class:`ConflictError` naming the network, host or route that is in the way."""
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


def _ranges(prefixes: Collection[IPNetwork], wanted: Collection[IPNetwork]) -> Mapping[IPNetwork, IPNetwork]:
    ranges: dict[IPNetwork, IPNetwork] = {}
    for span in wanted:
        prefix = allocate.overlap(span, prefixes)
        if prefix is None or span.prefixlen < prefix.prefixlen:
            raise CallerError(
                f"range {span} lies outside the subnet{'s' if len(prefixes) != 1 else ''} "
                f"{', '.join(map(str, prefixes))}"
            )
        if prefix in ranges:
            raise CallerError(f"subnet {prefix} is given two ranges: {ranges[prefix]} and {span}")
        ranges[prefix] = span
    return ranges


def _auxiliary(
    prefixes: Collection[IPNetwork], wanted: Mapping[str, IPAddress]
) -> Mapping[IPNetwork, dict[str, IPAddress]]:
    found: dict[IPNetwork, dict[str, IPAddress]] = {}
    for name, address in wanted.items():
        prefix = next((prefix for prefix in prefixes if address in prefix), None)
        if prefix is None:
            raise CallerError(f"auxiliary address {name}={address} lies outside {', '.join(map(str, prefixes))}")
        found.setdefault(prefix, {})[name] = address
    return found


def check_options(options: Collection[str], known: Collection[str], whose: str) -> None:
    """``known``: beside the MTU. Raises :class:`CallerError`, :class:`UnsupportedError`."""
    if "encrypted" in options:
        raise UnsupportedError(
            "encrypted networks are not built yet",
            hint="no network is made, so that nothing travels in clear by mistake",
        )
    if unknown := sorted(set(options) - {*_MTU_OPTIONS, *known}):
        words = ", ".join(f"`--opt {name}=…`" for name in ("mtu", *known))
        raise CallerError(f"unknown option {', '.join(map(repr, unknown))}", hint=f"{whose} know {words}")


def mtu_option(options: Mapping[str, str], ipv6: bool) -> int | None:
    """Raises :class:`CallerError`."""
    for name in _MTU_OPTIONS:
        if name in options:
            text = options[name]
            low, high = MTU_RANGE_IPV6 if ipv6 else MTU_RANGE
            if not (re.fullmatch(r"[0-9]{1,6}", text) and low <= int(text) <= high):
                family = " with an IPv6 subnet" if ipv6 else ""
                raise CallerError(f"mtu {text!r} is not a number from {low} to {high}, as a network{family} takes")
            return int(text)
    return None

"""Networks of one host alone, of drivers bridge and macvlan: what they may be."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, cast, get_args

from vxnet.core import allocate, networks
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import NetworkCreate
from vxnet.model.cluster import Network
from vxnet.model.container import Container
from vxnet.model.errors import CallerError, ConflictError, UnsupportedError
from vxnet.model.host import BRIDGE_PREFIX, HostAddress, HostBridge, HostPort, MacvlanMode
from vxnet.model.published import PublishedPort

PARENT: Final = "parent"
MODE: Final = "macvlan_mode"
ICC: Final = "com.docker.network.bridge.enable_icc"
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {"bridge": (ICC,), "macvlan": (PARENT, MODE)}
MODES: Final[tuple[str, ...]] = get_args(MacvlanMode)
_OF_CONTAINERS: Final = re.compile(rf"{BRIDGE_PREFIX}|veth|v[0-9a-f]{{8,}}\.")
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


def decide_local_network(
    request: NetworkCreate,
    *,
    id: str,
    seed: str,
    networks_here: Collection[Network],
    taken: Collection[IPNetwork],
    links: Collection[str],
    now: float,
) -> Network:
    """The network that ``request`` asks for, on this host.

    ``seed``: of the host's own IPv6 prefix. ``networks_here``: all that this host knows, whoever made them. ``taken``:
    prefixes that containers must not have: the host's routes, vxnet_gw's. ``links``: names of the host's.
    """
    networks.check_network_name(request.name, networks_here)
    if request.driver not in _OPTIONS:
        raise ConflictError(
            f"there is one network of driver {request.driver}, and every host has it",
            hint=f"`vxnet run --network {'none' if request.driver == 'null' else request.driver}`",
        )
    if request.ingress:
        raise CallerError(f"the routing mesh's network cannot be of driver {request.driver}", hint="`--driver overlay`")
    networks.check_options(request.options, _OPTIONS[request.driver], f"{request.driver} networks")
    blockers = [*taken, *(subnet.prefix for network in networks_here for subnet in network.subnets)]
    if request.driver == "macvlan":
        _check_macvlan(request, networks_here, links)
        blockers = [subnet.prefix for network in networks_here for subnet in network.subnets]
    elif ICC in request.options and request.options[ICC].lower() not in _TRUTH:
        raise CallerError(f"{ICC}={request.options[ICC]} is neither true nor false")
    subnets = networks.subnets_of(request, _prefixes(request, seed, blockers))
    for subnet in subnets:
        _check_free(subnet.prefix, networks_here, () if request.driver == "macvlan" else taken)
    versions = [subnet.prefix.version for subnet in subnets]
    if len(set(versions)) < len(versions):
        raise UnsupportedError(
            f"a {request.driver} network has one subnet of each family",
            hint="make two networks, or an overlay network, which takes several",
        )
    return Network(
        id=id,
        name=request.name,
        driver=request.driver,
        scope="local",
        subnets=subnets,
        attachable=request.attachable,
        internal=request.internal,
        mtu=networks.mtu_option(request.options, 6 in versions),
        options=request.options,
        labels=request.labels,
        created_at=now,
    )


def _prefixes(request: NetworkCreate, seed: str, blockers: Collection[IPNetwork]) -> list[IPNetwork]:
    prefixes = list(request.subnets)
    for version in networks.families_without_subnet(request):
        if version == 4:
            prefixes.append(allocate.gateway_subnet(blockers))
        else:
            pool = allocate.ula_pool(seed)
            prefixes.append(allocate.pick_subnet((pool,), allocate.IPV6_PREFIXLEN, blockers, ()))
    return prefixes


def _check_free(prefix: IPNetwork, networks_here: Collection[Network], taken: Collection[IPNetwork]) -> None:
    networks.check_free(prefix, networks_here, ())
    if (route := allocate.overlap(prefix, taken)) is not None:
        raise ConflictError(
            f"subnet {prefix} overlaps {route}, which this host has or has a route to",
            hint="choose another --subnet, or none: vxnet then picks one",
        )


def _check_macvlan(request: NetworkCreate, networks_here: Collection[Network], links: Collection[str]) -> None:
    parent = request.options.get(PARENT, "")
    physical = ", ".join(sorted(name for name in links if name != "lo" and not _OF_CONTAINERS.match(name)))
    if not parent:
        raise CallerError("a macvlan network needs a parent", hint=f"`--opt parent=LINK`; this host has {physical}")
    if parent not in links:
        stem, dot, tag = parent.rpartition(".")
        hint = f"this host has {physical}"
        if dot and stem in links and tag.isdigit():
            hint = f"make it: ip link add link {stem} name {parent} type vlan id {tag}; ip link set {parent} up"
        raise CallerError(f"this host has no link {parent!r}", hint=hint)
    if parent == "lo" or parent.startswith(BRIDGE_PREFIX):
        raise CallerError(f"{parent} cannot be the parent of a macvlan network", hint=f"this host has {physical}")
    if (mode := request.options.get(MODE, "bridge")) not in MODES:
        raise CallerError(f"{MODE}={mode} is none of {', '.join(MODES)}")
    for other in networks_here:
        if other.driver == "macvlan" and other.options.get(PARENT) == parent:
            modes = mode, other.options.get(MODE, "bridge")
            if "passthru" in modes:
                raise ConflictError(
                    f"network {other.name} has the parent {parent}, and with passthru a link is of one container alone"
                )
    if not request.subnets:
        raise CallerError(
            "a macvlan network needs --subnet",
            hint="that of the network that the parent is on, and --ip-range for what vxnet may give of it",
        )


def is_isolated(network: Network) -> bool:
    """``enable_icc=false``: its containers do not hear each other."""
    return not _TRUTH.get(network.options.get(ICC, "true").lower(), True)


def link_name(network: Network) -> str:
    """Of a bridge network's bridge in the host's namespace; 15 characters."""
    return f"{BRIDGE_PREFIX}{network.id[:9]}"


def macvlan_mode(network: Network) -> MacvlanMode:
    return cast("MacvlanMode", network.options.get(MODE, "bridge"))


# What of them the host's kernel has


class LocalPart(NamedTuple):
    """What a host has that is nobody else's."""

    networks: Mapping[str, Network]
    """By id."""
    bridges: tuple[HostBridge, ...]
    ports: tuple[HostPort, ...]


NOTHING_LOCAL: Final = LocalPart({}, (), ())


def local_part(
    local: Mapping[str, Network], mtu: int, containers: Iterable[Container], addresses: Sequence[HostAddress]
) -> LocalPart:
    """``mtu``: of bridges for which nobody chose one; ``addresses``: the host's."""
    bridges = tuple(
        HostBridge(
            name=link_name(network),
            addresses=tuple(
                ipaddress.ip_interface((subnet.gateway, subnet.prefix.prefixlen)) for subnet in network.subnets
            ),
            mtu=network.mtu or mtu,
            isolated=is_isolated(network),
            internal=network.internal,
        )
        for network in sorted(local.values(), key=lambda network: network.id)
        if network.driver == "bridge"
    )
    ports = tuple(
        _host_port(port, addresses, to)
        for container in sorted((one for one in containers if one.published), key=lambda container: container.id)
        if (to := reached_at(container, local))
        for port in container.published
        if port.mode == "host"
    )
    return LocalPart(local, bridges, ports)


def reached_at(container: Container, local: Mapping[str, Network]) -> tuple[IPAddress, ...]:
    """Where this host reaches a container, one address a family: on vxnet_gw, or else on a network of driver bridge.
    Empty: nowhere."""
    if container.gateway is not None:
        return tuple(interface.ip for interface in container.gateway.addresses)
    for attachment in container.attachments:
        network = local.get(attachment.network)
        if network is not None and network.driver == "bridge" and not network.internal:
            return tuple(interface.ip for interface in attachment.addresses)
    return ()


def _host_port(port: PublishedPort, addresses: Sequence[HostAddress], to: tuple[IPAddress, ...]) -> HostPort:
    bound = port.addresses
    if port.interface:
        # Without an address the link has, nobody reaches the port; not everybody.
        bound = tuple(one.address.ip for one in addresses if one.interface == port.interface)
        to = to if bound else ()
    return HostPort(
        protocol=port.protocol,
        published=port.published,
        target=port.target,
        to=to,
        addresses=bound,
        sources=port.sources,
    )

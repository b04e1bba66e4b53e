"""Places on networks for the containers of this host: interface name, addresses, MAC.

Addresses come from blocks leased to this host, with no round trip; a manager is asked only when no block fits (the
first container of a burst, a chosen ``--ip`` elsewhere). What is taken is computed from the containers that live.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from vxnet.core import allocate
from vxnet.core.local_networks import MODE, link_name, reached_at
from vxnet.core.networks import RESERVED_NAMES, find
from vxnet.core.remembered import Remembered
from vxnet.model.address import IPAddress, IPInterface, IPNetwork
from vxnet.model.api import LeaseRequest
from vxnet.model.cluster import Lease, Network
from vxnet.model.container import Attachment, Container, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError, NotFoundError, VxnetError
from vxnet.model.host import GATEWAY_BRIDGE, INGRESS_LINK

INGRESS_INTERFACE = "ingress0"
"""In a task."""
SPARE_ADDRESSES = 4
"""With fewer free ones than this a further block is asked for, before it is needed."""


class Cluster(Protocol):
    """What is needed of :class:`vxnet.daemon.membership.Membership`, joined or not."""

    @property
    def networks(self) -> Mapping[str, Network]: ...

    @property
    def data_path_addr(self) -> IPAddress | None: ...

    @property
    def data_port(self) -> int: ...

    def blocks(self, network: str) -> tuple[Lease, ...]: ...

    async def heard(self) -> None: ...

    async def lease(self, request: LeaseRequest) -> None: ...


@dataclasses.dataclass(slots=True)
class _Line:
    lock: asyncio.Lock
    waiting: int = 0


class Attachments:
    """``gateway``: addresses of ``vxnet_gw``, the one of IPv4 first; ``live``: the containers that hold addresses now;
    ``local``: networks of this host alone, by id.
    """

    def __init__(
        self,
        cluster: Cluster,
        gateway: Callable[[], tuple[IPInterface, ...]],
        live: Callable[[], Iterable[Container]],
        node: Callable[[], Attachment | None] = lambda: None,
        local: Callable[[], Mapping[str, Network]] = dict,
    ) -> None:
        """``node``: this node's own place in the ingress network."""
        self._node = node
        self._cluster = cluster
        self._local = local
        self._gateway = gateway
        self._live = live
        self._lines: dict[str, _Line] = {}
        """Before the managers, by network."""
        self._last: dict[tuple[str, int], IPAddress] = {}
        self._places: Remembered[tuple[tuple[str, IPAddress], ...]] = Remembered()
        """By container: networks and addresses there."""

    def network(self, ref: str) -> Network:
        """A network of the cluster or of this host, by name, id or the beginning of an id. Raises
        :class:`NotFoundError`, and :class:`ConflictError` for those that every host has: nobody is put on them, or
        taken off.
        """
        if ref in RESERVED_NAMES:
            raise ConflictError(
                f'"{ref}" is a network that vxnet itself puts containers on', hint="name one that somebody made"
            )
        return find(ref, self.known().values(), "network")

    def known(self) -> Mapping[str, Network]:
        """All networks, by id. The cluster's first: where a name is this host's, too, it is theirs."""
        return {**self._cluster.networks, **self._local()}

    def _blocks(self, network: Network) -> list[IPNetwork]:
        """From where this host gives addresses; a network of its own is all its."""
        if network.scope == "local":
            return [subnet.prefix for subnet in network.subnets]
        return [lease.prefix for lease in self._cluster.blocks(network.id)]

    async def join(self, container: Container, wish: NetworkWish) -> Network:
        """Check ``wish`` and make sure that there is an address for it: after this, :meth:`attach` cannot fail."""
        try:
            network = self.network(wish.network)
        except NotFoundError:
            await self._cluster.heard()  # it may have been made just now
            network = self.network(wish.network)
        if network.ingress and container.task is None:
            raise CallerError(
                f'network "{network.name}" is the routing mesh\'s: tasks of services with published ports are on it',
                hint="publish a port of this host with `vxnet run -p`, or make a service",
            )
        if network.options.get(MODE) == "passthru" and (holders := self._holders(network)):
            raise ConflictError(f'network "{network.name}" is of one container alone: "{holders[0][0]}" has it')
        if network.scope == "swarm" and not network.attachable and container.task is None:
            raise CallerError(
                f'network "{network.name}" is not attachable: only services may use it',
                hint="create it with --attachable to start containers on it",
            )
        if any(attachment.network == network.id for attachment in container.attachments):
            raise ConflictError(f'container "{container.spec.name}" is already on network "{network.name}"')
        for chosen in (wish.ip, wish.ip6):
            if chosen is not None and chosen.version not in _versions(network):
                subnets = ", ".join(str(subnet.prefix) for subnet in network.subnets)
                raise CallerError(f"address {chosen} is outside network {network.name} ({subnets})")
        if wish.ip is not None and wish.ip6 is not None and wish.ip.version == wish.ip6.version:
            raise CallerError(f"{wish.ip} and {wish.ip6} are both of IPv{wish.ip.version}: one of each is given")
        await self._make_room(network, wish)
        return network

    async def foot(self, network: Network) -> Attachment:
        """A place for this node itself in the ingress network. Keep it before the next ``await``."""
        wish = NetworkWish(network=network.id)
        await self._make_room(network, wish)
        return self._place(network, wish, INGRESS_LINK)

    async def _make_room(self, network: Network, wish: NetworkWish) -> None:
        # From the start each time: while one family's is asked for, the other's may be given back as unused.
        while lacking := [one for one in _versions(network) if self._pick(network, one, wish.address(one)) is None]:
            wanted = wish.address(lacking[0])
            if network.scope == "local":
                raise _no_address(network, wanted)
            await self._lease(network, lacking[0], wanted)

    async def _lease(self, network: Network, version: int, wanted: IPAddress | None) -> None:
        """Until :meth:`_pick` finds one. A hundred at once ask one after the other, for all: each block is as large as
        what there was before, and a hundred of them would take the whole network.
        """
        line = self._lines.setdefault(network.id, _Line(asyncio.Lock()))
        line.waiting += 1
        try:
            async with line.lock:
                while self._pick(network, version, wanted) is None:
                    had = self._cluster.blocks(network.id)
                    several = 1 if wanted is not None else line.waiting
                    request = LeaseRequest(network=network.id, addresses=several, address=wanted, family=version)
                    await self._cluster.lease(request)
                    if self._cluster.blocks(network.id) == had:
                        raise ExhaustedError(f'the managers gave no address of network "{network.name}" to this host')
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(network.id, None)

    def attach(
        self,
        container: Container,
        network: Network,
        wish: NetworkWish,
        *,
        ifname: str = "",
        there: Collection[str] = (),
    ) -> Attachment:
        """Call it right after :meth:`join`, and keep what it returns before the next ``await``. ``ifname``: empty: the
        first ethN that is not ``there``, or, of a network that a task's processes need not know, INGRESS_INTERFACE.
        """
        if network.ingress:
            ifname = ifname or INGRESS_INTERFACE
        return self._place(network, wish, ifname or free_ifname(container, there))

    def _place(self, network: Network, wish: NetworkWish, ifname: str) -> Attachment:
        addresses = []
        for version in _versions(network):
            wanted = wish.address(version)
            address = self._pick(network, version, wanted)
            if address is None:
                raise ExhaustedError(f'network "{network.name}" has no free address on this host')
            self._last[network.id, version] = address
            prefix = next(subnet.prefix for subnet in network.subnets if address in subnet.prefix)
            addresses.append(ipaddress.ip_interface((address, prefix.prefixlen)))
        return Attachment(
            network=network.id,
            ifname=ifname,
            mac=allocate.mac_of(_number(network), addresses[0].ip),
            addresses=tuple(addresses),
            aliases=wish.aliases,
            way_out=()
            if network.scope == "swarm" or network.internal
            else tuple(subnet.gateway for subnet in network.subnets),
        )

    def network_of(self, attachment: Attachment) -> Network:
        """Raises :class:`NotFoundError` if it is no more."""
        return find(attachment.network, self.known().values(), "network")

    def reached(self, container: Container) -> tuple[IPAddress, ...]:
        """At which addresses the host itself reaches it."""
        return reached_at(container, self._local())

    def bridges_of(self, container: Container) -> list[str]:
        """Names of the bridges in the host's namespace that it is on."""
        local = self._local()
        places = [local[one.network] for one in container.attachments if one.network in local]
        names = [link_name(network) for network in places if network.driver == "bridge"]
        return [*names, *((GATEWAY_BRIDGE,) if container.gateway is not None else ())]

    def is_free(self, container: Container, attachment: Attachment | None) -> bool:
        """May a container that has ended have its place again?"""
        if attachment is None:
            return True
        if not attachment.network:
            subnets = {address.network for address in self._gateway()}
            taken = self._taken_on_gateway(but=container.id)
            return all(one.network in subnets and one.ip not in taken for one in attachment.addresses)
        network = self.network_of(attachment)
        holders = {address for holder, address in self._holders(network) if holder != container.spec.name}
        blocks = self._blocks(network)
        return all(
            interface.ip not in holders and any(interface.ip in block for block in blocks)
            for interface in attachment.addresses
        )

    def again(self, before: Container) -> tuple[Container, list[NetworkWish]]:
        """One that has ended, on the places that it can have again; wishes for the others. Raises
        :class:`NotFoundError` if a network is no more.
        """
        networks = [self.network_of(attachment) for attachment in before.attachments]
        wishes = [
            self._wish_for(before, attachment, network)
            for attachment, network in zip(before.attachments, networks, strict=True)
            if not self.is_free(before, attachment)
        ]
        lost = {wish.network for wish in wishes}
        kept = tuple(one for one in before.attachments if one.network not in lost)
        gateway = before.gateway if self.is_free(before, before.gateway) else None
        return replace(before, attachments=kept, gateway=gateway), wishes

    def _wish_for(self, container: Container, attachment: Attachment, network: Network) -> NetworkWish:
        """Another place instead of ``attachment``, at the same address if that was chosen."""
        chosen = next((wish for wish in container.spec.networks if wish.network in (network.name, network.id)), None)
        return NetworkWish(
            network=network.id,
            ip=chosen.ip if chosen is not None else None,
            ip6=chosen.ip6 if chosen is not None else None,
            aliases=attachment.aliases,
        )

    def way_out(self, container: Container) -> Attachment | None:
        """The place on ``vxnet_gw``; None if it wants none, has another way out, or is on internal networks alone."""
        known = self.known()
        networks = [known[one.network] for one in container.attachments if one.network in known]
        if any(wish.network in ("none", "host") for wish in container.spec.networks):
            return None
        theirs = [network for network in networks if not network.ingress]
        if theirs and all(network.internal for network in theirs):
            return None
        if container.gateway is not None:
            return container.gateway
        if any(one.way_out for one in container.attachments):
            return None
        gateway, *others = self._gateway()
        taken = {gateway.ip} | self._taken_on_gateway(but=container.id)
        address = allocate.pick_address(
            (gateway.network,), taken | _ends(gateway.network), last=self._last.get(("", 0))
        )
        if address is None:
            raise ExhaustedError(f"vxnet_gw's subnet {gateway.network} has no free address on this host")
        self._last["", 0] = address
        return Attachment(
            network="",
            ifname=free_ifname(container),
            mac=allocate.mac_of(0, address),
            addresses=(
                ipaddress.ip_interface((address, gateway.network.prefixlen)),
                *(allocate.beside(address, other) for other in others),
            ),
            way_out=(gateway.ip, *(other.ip for other in others)),
        )

    def running_short(self) -> list[LeaseRequest]:
        """Further blocks to ask for now, so that the next container does not wait for a manager."""
        requests = []
        for network in self._cluster.networks.values():
            leases, taken = self._cluster.blocks(network.id), self._taken(network)
            for version in _versions(network):
                blocks = _of_version(leases, version)
                used = sum(address.version == version for address in taken)
                if used and sum(block.num_addresses for block in blocks) - used < SPARE_ADDRESSES:
                    requests.append(LeaseRequest(network=network.id, addresses=used, family=version, early=True))
        return requests

    def idle(self) -> list[Lease]:
        """Blocks that may go back to the managers."""
        found = []
        for network in self._cluster.networks.values():
            leases = self._cluster.blocks(network.id)
            for version in _versions(network):
                taken = [address for address in self._taken(network) if address.version == version]
                idle = allocate.idle_blocks(_of_version(leases, version), taken)
                found += [lease for lease in leases if lease.prefix in idle]
        return found

    def idle_chosen(self) -> set[Lease]:
        """Addresses that were asked for by ``--ip`` and that nobody here has (any more)."""
        found = set()
        for network in self._cluster.networks.values():
            leases = [lease for lease in self._cluster.blocks(network.id) if lease.chosen]
            taken = self._taken(network) if leases else ()
            found |= {lease for lease in leases if lease.prefix.network_address not in taken}
        return found

    def _pick(self, network: Network, version: int, wanted: IPAddress | None) -> IPAddress | None:
        """None: only a manager can give one. Raises :class:`ConflictError` if ``wanted`` is in use here."""
        blocks = [block for block in self._blocks(network) if block.version == version]
        taken = self._taken(network)
        if wanted is None:
            reserved = [address for subnet in network.subnets for address in allocate.reserved_addresses(subnet)]
            ranges = [allocate.given_from(subnet) for subnet in network.subnets]
            # Beside them are blocks of one: addresses that somebody chose here, and that go back.
            if network.scope == "local":
                blocks = [span for span in ranges if span.version == version]
            blocks = [block for block in blocks if allocate.overlap(block, ranges) is not None]
            return allocate.pick_address(blocks, taken, reserved, self._last.get((network.id, version)))
        if wanted in taken:
            holder = next(name for name, address in self._holders(network) if address == wanted)
            raise ConflictError(f'address {wanted} of network "{network.name}" is taken by container "{holder}"')
        if network.scope == "local" and any(
            wanted in allocate.reserved_addresses(subnet) for subnet in network.subnets
        ):
            return None
        return wanted if any(wanted in block for block in blocks) else None

    def _taken(self, network: Network) -> set[IPAddress]:
        return {address for _, address in self._holders(network)}

    def _taken_on_gateway(self, *, but: str) -> set[IPAddress]:
        return {
            other.gateway.addresses[0].ip for other in self._live() if other.gateway is not None and other.id != but
        }

    def _holders(self, network: Network) -> list[tuple[str, IPAddress]]:
        foot = self._node()
        own = foot.addresses if foot is not None and foot.network == network.id else ()
        self._places.look()
        return [("this node", interface.ip) for interface in own] + [
            (container.spec.name, address)
            for container in self._live()
            for place, address in self._places.of(container.id, container.attachments, partial(_places_of, container))
            if place == network.id
        ]


def _places_of(container: Container) -> tuple[tuple[str, IPAddress], ...]:
    return tuple((one.network, interface.ip) for one in container.attachments for interface in one.addresses)


def free_ifname(container: Container, there: Collection[str] = ()) -> str:
    """``eth0``, ``eth1`` …: the first that the container does not use."""
    places = (*container.attachments, container.gateway)
    used = {*there, *(attachment.ifname for attachment in places if attachment is not None)}
    return next(name for number in range(len(used) + 1) if (name := f"eth{number}") not in used)


def _number(network: Network) -> int:
    """For the MAC: of a network of one host it follows from its id, so that two hosts on one wire differ."""
    return network.vni if network.scope == "swarm" else int(network.id[:2], 16)


def _no_address(network: Network, wanted: IPAddress | None) -> VxnetError:
    subnets = ", ".join(str(subnet.range or subnet.prefix) for subnet in network.subnets)
    if wanted is None:
        return ExhaustedError(f'network "{network.name}" has no free address ({subnets})')
    reserved = any(wanted in allocate.reserved_addresses(subnet) for subnet in network.subnets)
    where = f'is kept by network "{network.name}"' if reserved else f'is outside network "{network.name}" ({subnets})'
    return CallerError(f"address {wanted} {where}", hint="choose another, or none")


def _versions(network: Network) -> list[int]:
    return sorted({subnet.prefix.version for subnet in network.subnets})


def _of_version(leases: Iterable[Lease], version: int) -> list[IPNetwork]:
    return [lease.prefix for lease in leases if lease.prefix.version == version]


def _ends(prefix: IPNetwork) -> set[IPAddress]:
    return {prefix.network_address, prefix.broadcast_address}

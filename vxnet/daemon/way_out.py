"""The addresses of ``vxnet_gw`` on this host: chosen once, so that containers keep their way out over restarts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

import structlog

from vxnet.core import allocate
from vxnet.daemon.config import GatewayConfig
from vxnet.daemon.state import GatewayChoice, StateDirectory
from vxnet.model.address import IPInterface, IPNetwork
from vxnet.model.container import Container
from vxnet.model.errors import CallerError
from vxnet.model.host import GatewayBridge, HostFacts

log = structlog.get_logger()

IPV6_MTU_MIN = 1280
"""RFC 8200, section 5: with less the kernel takes IPv6 off a link."""


class WayOut:
    """``occupied``: prefixes that it must not meet; ``containers``: those that may have a place on it."""

    def __init__(
        self,
        config: GatewayConfig,
        state: StateDirectory,
        facts: Callable[[], HostFacts],
        occupied: Callable[[], list[IPNetwork]],
        containers: Callable[[], Iterable[Container]],
    ) -> None:
        self._config = config
        self._state = state
        self._facts = facts
        self._occupied = occupied
        self._containers = containers

    def addresses(self) -> tuple[IPInterface, ...]:
        """The one of IPv4 first; then of IPv6, where the host has that."""
        return tuple(one for one in self._chosen() if one.version == 4 or self._speaks_ipv6())

    def bridge(self, mtu: int) -> GatewayBridge:
        """``mtu``: unless the configuration says another."""
        return GatewayBridge(addresses=self.addresses(), mtu=self._config.mtu or mtu)

    def warnings(self) -> tuple[str, ...]:
        """What the configuration says and is not so. Chooses nothing: a full disk is no reason not to be told of it."""
        choice = self._state.gateway()
        chosen = {one.network for one in choice.addresses} if choice is not None else None
        return tuple(
            f"vxnet_gw is not {wanted} yet, as vxnet.toml says: containers are on it; remove them, restart vxnetd"
            for wanted in (self._config.subnet, self._config.subnet6 if self._config.ipv6 else None)
            if wanted is not None and chosen is not None and wanted not in chosen
        )

    def check(self) -> None:
        """At the start. Raises :class:`CallerError` if the configuration wants what this host has routes to."""
        choice = self._state.gateway()
        chosen = {one.network for one in choice.addresses} if choice is not None else set()
        for name, wanted in (("subnet", self._config.subnet), ("subnet6", self._config.subnet6)):
            if wanted is None or wanted in chosen:
                continue
            if (other := allocate.overlap(wanted, self._occupied())) is not None:
                raise CallerError(
                    f"vxnet.toml: gateway.{name} {wanted} overlaps {other}, which this host or the cluster has",
                    hint="choose another, or leave it out: vxnet then picks one",
                )
        self._choose_anew()

    def _speaks_ipv6(self) -> bool:
        return self._config.ipv6 and self._facts().ipv6 and (self._config.mtu or IPV6_MTU_MIN) >= IPV6_MTU_MIN

    def _chosen(self) -> tuple[IPInterface, ...]:
        choice = self._state.gateway()
        if choice is None:
            prefix = self._config.subnet or allocate.gateway_subnet(self._occupied())
            return self._keep((ipaddress.ip_interface((prefix[1], prefix.prefixlen)),))
        if len(choice.addresses) == 1 and self._speaks_ipv6():
            return self._keep(choice.addresses)
        return choice.addresses

    def _keep(self, addresses: tuple[IPInterface, ...]) -> tuple[IPInterface, ...]:
        """``addresses``: without IPv6, which is put beside where the host has it."""
        if self._speaks_ipv6():
            facts = self._facts()
            seed = facts.machine_id or facts.hostname
            prefix = self._config.subnet6 or allocate.gateway_subnet6(seed, self._occupied())
            other = ipaddress.ip_interface((prefix.network_address, prefix.prefixlen))
            addresses = (*addresses, allocate.beside(addresses[0].ip, other))
        self._state.save_gateway(GatewayChoice(addresses=addresses))
        return addresses

    def _choose_anew(self) -> None:
        """Where the configuration has been changed, and nobody would lose what he has."""
        chosen = {one.network for one in self._chosen()}
        wanted = [one for one in (self._config.subnet, self._config.subnet6) if one is not None]
        if any(one not in chosen for one in wanted) and not self._users():
            log.info("vxnet_gw moves, as the configuration says", to=[str(one) for one in wanted])
            prefix = self._config.subnet or next(iter(one for one in chosen if one.version == 4))
            self._keep((ipaddress.ip_interface((prefix[1], prefix.prefixlen)),))

    def _users(self) -> list[str]:
        return [one.spec.name for one in self._containers() if one.gateway is not None and one.state != "exited"]

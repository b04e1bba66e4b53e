"""Networks of this host alone: made and removed here, whoever the managers are and whether or not there is a cluster.

They are kept in ``networks/ID.json``; what the kernel has of them is planned from that, and names of the containers on
them are rows that never leave the host.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from vxnet.core.decisions import is_prunable
from vxnet.core.facts import Fact
from vxnet.core.local_networks import decide_local_network
from vxnet.core.networks import find
from vxnet.daemon.state import StateDirectory
from vxnet.host.facts import link_names
from vxnet.model.address import IPNetwork
from vxnet.model.api import NetworkCreate, NetworkPrune
from vxnet.model.cluster import Network
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError, NotFoundError
from vxnet.model.row import Endpoint, RowKey, Version

OWNER = ""
"""Of the rows: no node has this id."""


class LocalNetworks:
    """``others``: the cluster's networks; ``occupied``: prefixes that no container here may have; ``containers``: all
    that could want their places again; ``changed``: there is one more, or one less."""

    def __init__(
        self,
        state: StateDirectory,
        seed: str,
        others: Callable[[], Collection[Network]],
        occupied: Callable[[], list[IPNetwork]],
        containers: Callable[[], Iterable[Container]],
        changed: Callable[[], None],
    ) -> None:
        self._state = state
        self._seed = seed
        self._others = others
        self._occupied = occupied
        self._containers = containers
        self._changed = changed
        self._networks = {network.id: network for network in state.networks()}
        self._rows: dict[str, tuple[Version, Endpoint]] = {}
        self._facts: tuple[Fact, ...] = ()
        self._turn = 0

    @property
    def networks(self) -> Mapping[str, Network]:
        """By id; another mapping after each change."""
        return self._networks

    def find(self, ref: str) -> Network | None:
        """One of these that ``ref`` means. The cluster's have their names first. Raises :class:`CallerError`."""
        others = self._others()
        if any(ref in (other.name, other.id) for other in others):
            return None
        try:
            found = find(ref, [*self._networks.values(), *others], "network")
        except NotFoundError:
            return None
        return found if found.id in self._networks else None

    async def create(self, request: NetworkCreate) -> Network:
        links = await asyncio.to_thread(link_names)
        network = decide_local_network(
            request,
            id=secrets.token_hex(13)[:25],
            seed=self._seed,
            networks_here=[*self._networks.values(), *self._others()],
            taken=self._occupied(),
            links=links,
            now=time.time(),
        )
        self._state.save_network(network)
        self._networks = {**self._networks, network.id: network}
        self._changed()
        return network

    def remove(self, network: Network) -> None:
        """Raises :class:`ConflictError` while it is used."""
        if users := self._users(network):
            raise ConflictError(
                f'network "{network.name}" is used by containers: {", ".join(users)}',
                hint="remove or disconnect them first",
            )
        self._state.forget_network(network.id)
        self._networks = {id: one for id, one in self._networks.items() if id != network.id}
        self._changed()

    def prune(self, request: NetworkPrune) -> list[Network]:
        doomed = [one for one in self._networks.values() if not self._users(one) and is_prunable(one, request)]
        for network in doomed:
            self.remove(network)
        return doomed

    def _users(self, network: Network) -> list[str]:
        return sorted(
            container.spec.name
            for container in self._containers()
            if any(attachment.network == network.id for attachment in container.attachments)
        )

    # Names

    def rows(self, endpoints: Mapping[str, Endpoint]) -> tuple[Fact, ...]:
        """What the name servers take for an owner's rows: the same tuple as long as nothing of it is another."""
        if {key: endpoint for key, (_, endpoint) in self._rows.items()} != endpoints:
            self._turn += 1
            known = self._rows
            self._rows = {
                key: known[key] if key in known and known[key][1] == endpoint else (Version(0, self._turn), endpoint)
                for key, endpoint in endpoints.items()
            }
            self._facts = tuple(
                (RowKey(OWNER, "endpoint", key), version, endpoint) for key, (version, endpoint) in self._rows.items()
            )
        return self._facts

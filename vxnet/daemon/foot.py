"""This node's foot in the ingress network: the address from which it hands the mesh's connections to tasks.

It is chosen when the first port is published in the cluster, and kept over restarts: tasks answer to it. While nothing
is published, nothing of the mesh is on the host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from vxnet.core.networks import ingress_of
from vxnet.core.ports import in_mesh
from vxnet.daemon.attachments import Attachments
from vxnet.daemon.keeping import in_thread, or_later
from vxnet.daemon.membership import Membership
from vxnet.daemon.state import StateDirectory
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment
from vxnet.model.errors import VxnetError
from vxnet.model.row import Gateway

log = structlog.get_logger()

RETRY_S = 5.0
"""After there was no address to be had."""


class Foot:
    """:meth:`look` is called when networks, blocks or services may be others than before; it does not wait.
    ``changed`` is called when there is another foot.
    """

    def __init__(self, state: StateDirectory, membership: Membership, changed: Callable[[], None]) -> None:
        self._state = state
        self._membership = membership
        self._changed = changed
        self._held = state.foot()
        self._due = asyncio.Event()

    def look(self) -> None:
        self._due.set()

    def held(self) -> Attachment | None:
        """The one that is kept, in use or not: its addresses are nobody else's."""
        network = self._network()
        return (
            self._held if network is not None and self._held is not None and self._held.network == network.id else None
        )

    def attachment(self) -> Attachment | None:
        """None as long as no port is published, or there is no address."""
        held = self.held()
        return held if held is not None and self._is_wanted() and self._is_leased(held) else None

    def rows(self) -> dict[tuple[str, str], Gateway]:
        """What this host is to publish of it, by kind and id."""
        foot, vtep = self.attachment(), self._membership.data_path_addr
        network = self._network()
        if foot is None or network is None or vtep is None:
            return {}
        addresses = tuple(interface.ip for interface in foot.addresses)
        row = Gateway(network=network.id, vni=network.vni, addresses=addresses, mac=foot.mac, vtep=vtep)
        return {("gateway", network.id): row}

    async def run(self, attachments: Attachments) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            network = self._network()
            if network is None or not self._is_wanted() or self.attachment() is not None:
                continue
            self._held = None
            try:
                self._held = await attachments.foot(network)
            except VxnetError as error:
                log.warning(
                    "no address in the ingress network: published ports are not answered here", error=str(error)
                )
                await asyncio.sleep(RETRY_S)
                self._due.set()
                continue
            log.info("foot in the ingress network", addresses=[str(one) for one in self._held.addresses])
            with or_later("the address in the ingress network"):
                await in_thread(self._state.save_foot, self._held)
            self._changed()

    def _network(self) -> Network | None:
        return ingress_of(self._membership.networks.values())

    def _is_wanted(self) -> bool:
        return any(in_mesh(service.ports) for service in self._membership.services)

    def _is_leased(self, foot: Attachment) -> bool:
        blocks = [lease.prefix for lease in self._membership.blocks(foot.network)]
        return all(any(interface.ip in block for block in blocks) for interface in foot.addresses)

"""What a node asks of the managers: over 2377 (:class:`vxnet.cluster.control.ManagerClient`), or in its own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from vxnet import __version__
from vxnet.core.assignment import Update
from vxnet.daemon.manager import Manager
from vxnet.daemon.state import GatewayChoice
from vxnet.model.api import LeaseRequest, NodeReport, TaskReport
from vxnet.model.cluster import GossipKey, Lease, Signed
from vxnet.model.errand import Errand
from vxnet.model.host import HostFacts


class Managers(Protocol):
    """What a node asks of the managers, wherever they are."""

    def follow(self, since: int | None) -> AsyncIterator[Update]: ...
    async def lease(self, request: LeaseRequest) -> Signed: ...
    async def release(self, leases: Sequence[Lease]) -> Signed: ...
    async def report(self, report: NodeReport) -> None: ...
    async def report_tasks(self, reports: Sequence[TaskReport]) -> None: ...
    async def deliver(self, errand: Errand, pieces: AsyncIterator[bytes]) -> None: ...
    async def renew(self, csr: bytes) -> bytes: ...
    async def leave(self) -> None: ...


class Here:
    """The managers, on a manager: this process."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def follow(self, since: int | None) -> AsyncIterator[Update]:
        return self._manager.assignments(self._manager.node_id, since)

    async def lease(self, request: LeaseRequest) -> Signed:
        return await self._manager.lease(self._manager.node_id, request)

    async def release(self, leases: Sequence[Lease]) -> Signed:
        return await self._manager.release(self._manager.node_id, leases)

    async def report(self, report: NodeReport) -> None:
        await self._manager.report(self._manager.node_id, report)

    async def report_tasks(self, reports: Sequence[TaskReport]) -> None:
        await self._manager.report_tasks(self._manager.node_id, reports)

    async def deliver(self, errand: Errand, pieces: AsyncIterator[bytes]) -> None:
        await self._manager.errands.deliver(self._manager.node_id, errand.id, pieces)

    async def renew(self, csr: bytes) -> bytes:
        return self._manager.renew(self._manager.node_id, csr)

    async def leave(self) -> None:
        """The last manager takes the cluster with it: there is nobody to tell."""
        if len([node for node in self._manager.nodes() if node.role == "manager"]) > 1:
            await self._manager.leave(self._manager.node_id)


def node_report(
    facts: HostFacts, gateway: GatewayChoice | None, keys: Iterable[GossipKey], authorities: tuple[str, ...]
) -> NodeReport:
    """What the managers should know of this host."""
    own = tuple(address.network for address in gateway.addresses) if gateway is not None else ()
    return NodeReport(
        routes=(*facts.routes, *own),
        version=__version__,
        key_epochs=tuple(key.epoch for key in keys),
        authorities=authorities,
        cpus=facts.cpus,
        memory=facts.memory,
        os=facts.os,
        arch=facts.arch,
        ports=facts.ports,
    )

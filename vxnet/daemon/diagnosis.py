"""What `doctor` asks this daemon: what it plans and what it knows, and to examine the ways to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web
from msgspec.structs import replace

from vxnet.cluster.api import json_response
from vxnet.core import trust
from vxnet.daemon.checkups import Checkups
from vxnet.daemon.membership import Membership
from vxnet.daemon.paths import Paths
from vxnet.daemon.place import Place
from vxnet.daemon.reconcile import Reconciler
from vxnet.daemon.state import StateDirectory
from vxnet.model.checkup import Diagnosis, Exam
from vxnet.model.container import Container
from vxnet.model.host import HostFacts
from vxnet.model.service import PublicService


class Doctor:
    def __init__(
        self,
        state: StateDirectory,
        run_directory: Path,
        membership: Membership,
        reconciler: Reconciler[Any],
        paths: Paths,
        containers: Callable[[], Iterable[Container]],
        facts: Callable[[], HostFacts],
    ) -> None:
        self._state = state
        self._run_directory = run_directory
        self._membership = membership
        self._reconciler = reconciler
        self._containers = containers
        self._checkups = Checkups(membership, facts, lambda: paths.mtu)

    def look(self) -> None:
        self._checkups.look()

    async def run(self) -> None:
        await self._checkups.run()

    async def examine(self) -> Exam:
        return await self._checkups.examine()

    def diagnosis(self) -> Diagnosis:
        place = self._membership.place
        found = Diagnosis(
            plan=self._reconciler.plan(),
            refused=self._reconciler.refused,
            containers={container.id: container.spec.name for container in self._containers()},
            state_directory=str(self._state.path),
            run_directory=str(self._run_directory),
        )
        return found if place is None else _of_member(found, place)


def _of_member(found: Diagnosis, place: Place) -> Diagnosis:
    assignment = place.assignment
    begins, ends = trust.validity(place.certificate)
    prefixes = [subnet.prefix for network in assignment.networks for subnet in network.subnets]
    return replace(
        found,
        removed=place.removed,
        manager_here=place.manager is not None,
        etcd_here=place.manager is not None and place.manager.electors.is_managed,
        certificate_from=begins,
        certificate_until=ends,
        authority_until=max((trust.validity(root)[1] for root in assignment.roots), default=None),
        subnets=tuple(prefixes),
        data_port=assignment.cluster.data_port,
        published={service.name: ports for service in assignment.services if (ports := _open_to_all(service))},
    )


def _open_to_all(service: PublicService) -> tuple[int, ...]:
    return tuple(
        port.published
        for port in service.ports
        if (port.mode, port.protocol) == ("ingress", "tcp")
        and not (port.addresses or port.interface or port.sources)
        and port.policy != "local"
    )


def routes(doctor: Doctor) -> list[web.RouteDef]:
    async def diagnosis(request: web.Request) -> web.Response:
        return json_response(doctor.diagnosis())

    async def examine(request: web.Request) -> web.Response:
        return json_response(await doctor.examine())

    return [web.get("/v1/diagnosis", diagnosis), web.post("/v1/examination", examine)]

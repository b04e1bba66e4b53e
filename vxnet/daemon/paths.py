"""The paths to the other hosts: what the routes promise, and what is really carried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog

from vxnet.core.pathmtu import Path, Probe, Survey
from vxnet.core.plan import overhead
from vxnet.daemon.membership import Membership
from vxnet.daemon.reconcile import Reconciler
from vxnet.host.echo import echo
from vxnet.host.kernel import Kernel
from vxnet.model.address import IPAddress
from vxnet.model.api import PathView

log = structlog.get_logger()

FALLBACK_MTU = 1500
"""Where no route tells another: Ethernet's (RFC 894)."""
ROUTES_INTERVAL_S = 30.0
SURVEY_S = 10.0
SURVEY_OF_EACH_S = 0.2
"""Between two surveys ``max(SURVEY_S, SURVEY_OF_EACH_S * paths)``: at most five paths a second."""
SETTLE_S = 1.0
"""From news of a node to the survey of the path to it."""


class Paths:
    """:meth:`look` is called when the nodes may be others; it does not wait."""

    def __init__(self, membership: Membership, reconciler: Reconciler[Any], kernel: Kernel) -> None:
        self.mtu = FALLBACK_MTU
        """The smallest of the routes' MTUs."""
        self._membership = membership
        self._reconciler = reconciler
        self._kernel = kernel
        self._measured: frozenset[IPAddress] = frozenset()
        """To which the routes were looked at."""
        self._promised: Mapping[IPAddress, int] = {}
        self._found: Mapping[IPAddress, Path] = {}
        self._nodes_changed = asyncio.Event()
        self._survey_due = asyncio.Event()

    def loops(self) -> tuple[Coroutine[None, None, None], ...]:
        return self._watch_routes(), self._keep_surveying()

    def look(self) -> None:
        if self._vteps() != self._measured:
            self._nodes_changed.set()

    def _vteps(self) -> frozenset[IPAddress]:
        place = self._membership.place
        return frozenset(place.vteps().values()) if place is not None else frozenset()

    # Promised

    async def _watch_routes(self) -> None:
        """Nodes come and go, and so do the routes to them."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUTES_INTERVAL_S):
                    await self._nodes_changed.wait()
            self._nodes_changed.clear()
            await self.measure()

    async def measure(self) -> None:
        """What the routes to the other nodes promise."""
        before, self._measured = self._measured, self._vteps()
        self._promised = await self._reconciler.call(self._kernel.route_mtus, self._measured)
        if self._measured - before:
            self._survey_due.set()
        mtu = min(self._promised.values(), default=FALLBACK_MTU)
        if mtu != self.mtu:
            log.info("underlay mtu", was=self.mtu, now=mtu)
            self.mtu = mtu
            self._reconciler.wake(full=True)

    # Carried

    async def _keep_surveying(self) -> None:
        while True:
            pause_s = max(SURVEY_S, SURVEY_OF_EACH_S * len(self._promised))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._survey_due.wait()
                    await asyncio.sleep(SETTLE_S)
            self._survey_due.clear()
            try:
                await self._survey()
            except OSError as error:
                log.warning("paths not surveyed", error=str(error))

    async def _survey(self) -> None:
        source = self._membership.data_path_addr
        if source is None:
            self._found = {}
            return
        wanted = {
            vtep: mtu for vtep, mtu in self._promised.items() if vtep.version == source.version and vtep != source
        }
        survey = Survey(wanted)
        while probes := survey.probes():
            back = await asyncio.to_thread(echo, source, probes)
            survey.take({Probe(destination, size) for destination, size in back})
        found = survey.paths()
        for vtep, path in found.items():
            before = self._found.get(vtep)
            if path.is_short and (before is None or before.carried != path.carried):
                log.warning("path carries less", vtep=str(vtep), promised=path.promised, carried=path.carried)
            elif before is not None and before.is_short and path.carried == path.promised:
                log.info("path carries all", vtep=str(vtep), promised=path.promised)
        self._found = found

    # Told

    def views(self) -> tuple[PathView, ...]:
        """Of the nodes that are members, by name."""
        place = self._membership.place
        if place is None:
            return ()
        names = place.names()
        views = [
            PathView(name=names.get(node, node), vtep=vtep, promised=path.promised, carried=path.carried)
            for node, vtep in place.vteps().items()
            if (path := self._found.get(vtep)) is not None
        ]
        return tuple(sorted(views, key=lambda view: view.name))

    def warnings(self) -> tuple[str, ...]:
        """A line for each path that is narrower than the route to it says."""
        return tuple(
            f"the path to {view.name} ({view.vtep}) carries packets of {view.carried} octets, and the route to it "
            f"promises {view.promised}: what containers send in packets of more than {room} octets is lost; mend the "
            f"path, or make networks with `--opt mtu={room}`"
            for view, room in self._rooms()
            if view.carried is not None and view.carried < view.promised
        )

    def warnings_of(self, mtu: int, vteps: frozenset[IPAddress]) -> tuple[str, ...]:
        """Of a network whose interfaces have this MTU here, about the paths to these."""
        return tuple(
            f"the path to {view.name} ({view.vtep}) carries packets of {room} octets of this network, whose MTU is "
            f"{mtu}: larger ones to containers there are lost"
            for view, room in self._rooms()
            if view.vtep in vteps and room < mtu
        )

    def _rooms(self) -> list[tuple[PathView, int]]:
        """What a path that answers carries of a network's packets."""
        return [(view, view.carried - overhead(view.vtep)) for view in self.views() if view.carried is not None]

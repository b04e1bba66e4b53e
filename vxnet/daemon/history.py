"""The last events of this host, kept for who asks later and told at once to who listens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

from aiohttp import web

from vxnet.cluster.api import ndjson_response, query_number, until_disconnect
from vxnet.core.history import Look, happened
from vxnet.daemon.place import Place
from vxnet.daemon.views import STATUS
from vxnet.model.api import Event
from vxnet.model.cluster import Network
from vxnet.model.container import Container

KEPT = 1000
"""Events; Docker keeps 256."""


class History:
    """``observe`` after everything that may have changed; the first look is where it begins."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._told = 0
        """Events ever."""
        self._look: Look | None = None
        self._more = asyncio.Event()
        """Set, and replaced, with each event."""

    def observe(self, look: Look) -> None:
        before, self._look = self._look, look
        events = happened(before, look, self._clock()) if before is not None else []
        if events:
            self._events += events
            self._told += len(events)
            self._more.set()
            self._more = asyncio.Event()

    async def events(self, since: float | None, until: float | None) -> AsyncGenerator[Event, None]:
        """From ``since`` (seconds since 1970; None: none of the past) to ``until`` (None: without end). A reader that
        is too slow is told how many it missed."""
        at = self._told
        if since is not None:
            kept = list(self._events)
            for event in kept:
                if since <= event.time and (until is None or event.time <= until):
                    yield event
        while until is None or self._clock() < until:
            first = self._told - len(self._events)
            if at < first:
                yield Event(time=self._clock(), type="daemon", action="missed", attributes={"events": str(first - at)})
                at = first
            for event in list(self._events)[at - first :]:
                at += 1
                yield event
            if at == self._told:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if until is None else until - self._clock()):
                        await self._more.wait()


def look_at(place: Place | None, containers: Iterable[Container], repairs: int, local: Mapping[str, Network]) -> Look:
    """``local``: networks of this host alone, by id."""
    found = {container.id: container for container in containers}
    if place is None:
        return Look(found, local, repairs=repairs)
    nodes = {member.id: (member.name, STATUS[member.status]) for member in place.members()}
    networks = {**place.networks, **local} if local else place.networks
    return Look(found, networks, place.assignment.services, nodes, repairs)


def routes(history: History) -> list[web.RouteDef]:
    @until_disconnect
    async def events(request: web.Request) -> web.StreamResponse:
        since, until = (query_number(request, name, -1.0) for name in ("since", "until"))
        told = history.events(since if since >= 0 else None, until if until >= 0 else None)
        return await ndjson_response(request, told)

    return [web.get("/v1/events", events)]

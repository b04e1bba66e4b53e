"""The local API's part for services: what a manager offers, and its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from aiohttp import web

from vxnet.cluster.api import (
    empty_response,
    json_response,
    query_flag,
    query_number,
    read_record,
    stream_response,
    until_disconnect,
)
from vxnet.core.services import REPLICAS_MAX
from vxnet.model.api import LogRequest, ServiceProgress, ServiceUpdate, ServiceView, TaskView
from vxnet.model.codec import to_json
from vxnet.model.errors import CallerError
from vxnet.model.service import Service, ServiceSpec


class ServicesApi(Protocol):
    """What a manager offers: :class:`vxnet.daemon.services.Services`."""

    def all(self) -> tuple[ServiceView, ...]: ...
    def service(self, ref: str, /) -> ServiceView: ...
    def tasks(self, ref: str, /) -> tuple[TaskView, ...]: ...
    def tasks_of_node(self, ref: str, /) -> tuple[TaskView, ...]: ...

    def logs(self, ref: str, request: LogRequest, /) -> AsyncIterator[bytes]:
        """Lines, each behind ``task node ``; closed when the reader goes."""
        ...

    async def create(self, spec: ServiceSpec, /) -> Service: ...
    async def update(self, ref: str, update: ServiceUpdate, /) -> Service: ...
    async def scale(self, ref: str, replicas: int, /) -> Service: ...
    async def roll_back(self, ref: str, /) -> Service: ...
    async def remove(self, ref: str, /) -> Service: ...

    def progress(self, ref: str, /) -> AsyncIterator[ServiceProgress]:
        """Now, and whenever it is another; an async generator, closed when the reader goes."""
        ...


class Agent(Protocol):
    def services(self, command: str, /) -> ServicesApi: ...


def log_request(request: web.Request) -> LogRequest:
    """Of ``?follow=1&tail=9&since=TIME``."""
    return LogRequest(
        follow=query_flag(request, "follow"),
        tail=int(query_number(request, "tail", -1)),
        since=request.query.get("since", ""),
    )


class ServiceRoutes:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/services", self.services),
            web.post("/v1/services", self.create),
            web.get("/v1/services/{ref}", self.service),
            web.delete("/v1/services/{ref}", self.remove),
            web.post("/v1/services/{ref}/update", self.update),
            web.post("/v1/services/{ref}/scale/{replicas}", self.scale),
            web.post("/v1/services/{ref}/rollback", self.roll_back),
            web.get("/v1/services/{ref}/tasks", self.tasks),
            web.get("/v1/services/{ref}/progress", self.progress),
            web.get("/v1/services/{ref}/logs", self.logs),
        ]

    async def services(self, request: web.Request) -> web.Response:
        return json_response(self._agent.services("service ls").all())

    async def create(self, request: web.Request) -> web.Response:
        return json_response(
            await self._agent.services("service create").create(await read_record(request, ServiceSpec)), status=201
        )

    async def service(self, request: web.Request) -> web.Response:
        return json_response(self._agent.services("service inspect").service(request.match_info["ref"]))

    async def remove(self, request: web.Request) -> web.Response:
        await self._agent.services("service rm").remove(request.match_info["ref"])
        return empty_response()

    async def update(self, request: web.Request) -> web.Response:
        wish = await read_record(request, ServiceUpdate)
        return json_response(await self._agent.services("service update").update(request.match_info["ref"], wish))

    async def scale(self, request: web.Request) -> web.Response:
        text = request.match_info["replicas"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise CallerError(f"a service has from 0 to {REPLICAS_MAX} replicas, not {text}")
        return json_response(await self._agent.services("service scale").scale(request.match_info["ref"], int(text)))

    async def roll_back(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.services("service rollback").roll_back(request.match_info["ref"]))

    async def tasks(self, request: web.Request) -> web.Response:
        return json_response(self._agent.services("service ps").tasks(request.match_info["ref"]))

    @until_disconnect
    async def progress(self, request: web.Request) -> web.StreamResponse:
        lines = _lines(self._agent.services("service ps").progress(request.match_info["ref"]))
        return await stream_response(request, lines, "application/x-ndjson")

    @until_disconnect
    async def logs(self, request: web.Request) -> web.StreamResponse:
        chunks = self._agent.services("service logs").logs(request.match_info["ref"], log_request(request))
        return await stream_response(request, chunks, "text/plain")


async def _lines(records: AsyncIterator[object]) -> AsyncIterator[bytes]:
    async for record in records:
        yield to_json(record) + b"\n"

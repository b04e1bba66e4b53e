"""The local API's part about this host's containers: see :mod:`vxnet.daemon.local_api`."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterable, AsyncIterator
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
from vxnet.cluster.client import ShimAnswer
from vxnet.daemon.service_api import log_request
from vxnet.model.api import ContainerUpdate, ContainerView, LogRequest, ProcessView, UsageView
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import CallerError


class ContainersApi(Protocol):
    """All raise :class:`VxnetError`; a ref without its container is a :class:`NotFoundError`."""

    async def containers(self, all: bool, /) -> tuple[ContainerView, ...]: ...
    async def container(self, ref: str, /) -> Container: ...
    async def create_container(self, spec: ContainerSpec, /) -> Container: ...
    async def prepare(self, ref: str, /) -> Container: ...
    async def start(self, ref: str, /) -> Container: ...
    async def restart(self, ref: str, timeout_s: float | None, /) -> Container: ...
    async def rename(self, ref: str, name: str, /) -> None: ...
    async def stop(self, ref: str, timeout_s: float | None, /) -> None: ...
    async def kill(self, ref: str, signal: int, /) -> None: ...
    async def wait(self, ref: str, /) -> Container: ...
    async def remove(self, ref: str, force: bool, /) -> None: ...
    async def usage(self, refs: tuple[str, ...], /) -> tuple[UsageView, ...]: ...
    async def update(self, ref: str, request: ContainerUpdate, /) -> None: ...
    async def top(self, ref: str, /) -> tuple[ProcessView, ...]: ...

    async def write_files(self, ref: str, path: str, pieces: AsyncIterable[bytes], owners: bool, /) -> None: ...

    def read_files(self, ref: str, path: str, follow: bool, /) -> AsyncIterator[bytes]:
        """A tar of them in pieces of any size; an async generator, closed when the reader goes."""
        ...

    def logs(self, ref: str, request: LogRequest, /) -> AsyncIterator[bytes]:
        """CRI lines in pieces of any size; an async generator, closed when the reader goes."""
        ...

    async def shim(self, ref: str, /) -> str:
        """Path of the control socket of the shim of a container that has not ended."""
        ...


def signal_number(text: str) -> int:
    """``KILL``, ``SIGKILL`` and ``9`` alike. Raises :class:`CallerError` on anything else."""
    if text.isascii() and text.isdecimal() and 1 <= int(text) < signal.NSIG:
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise CallerError(f"no such signal: {text!r}", hint="`kill -l` lists them") from None


def _timeout(request: web.Request) -> float | None:
    """None: the container's own."""
    return query_number(request, "timeout", 0) if "timeout" in request.query else None


def _ref(request: web.Request) -> str:
    return request.match_info["ref"]


class ContainerRoutes:
    def __init__(self, agent: ContainersApi) -> None:
        self._agent = agent

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/containers", self.containers),
            web.post("/v1/containers", self.create),
            web.get("/v1/containers/{ref}", self.container),
            web.delete("/v1/containers/{ref}", self.remove),
            web.post("/v1/containers/{ref}/prepare", self.prepare),
            web.post("/v1/containers/{ref}/start", self.start),
            web.post("/v1/containers/{ref}/restart", self.restart),
            web.post("/v1/containers/{ref}/rename", self.rename),
            web.post("/v1/containers/{ref}/stop", self.stop),
            web.post("/v1/containers/{ref}/kill", self.kill),
            web.post("/v1/containers/{ref}/wait", self.wait),
            web.get("/v1/usage", self.usage),
            web.post("/v1/containers/{ref}/update", self.update),
            web.get("/v1/containers/{ref}/top", self.top),
            web.get("/v1/containers/{ref}/logs", self.logs),
            web.get("/v1/containers/{ref}/files", self.read_files),
            web.put("/v1/containers/{ref}/files", self.write_files),
            web.get("/v1/containers/{ref}/shim", self.shim),
        ]

    async def containers(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.containers(query_flag(request, "all")))

    async def create(self, request: web.Request) -> web.Response:
        start = query_flag(request, "start")
        spec = await read_record(request, ContainerSpec)
        container = await self._agent.create_container(spec)
        if start:
            try:
                container = await self._agent.start(container.id)
            except BaseException:
                # Without --rm it stays, as Docker's does: `inspect` tells why it would not start.
                if spec.remove:
                    await self._agent.remove(container.id, True)
                raise
        return json_response(container, status=201)

    async def container(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.container(_ref(request)))

    async def remove(self, request: web.Request) -> web.Response:
        await self._agent.remove(_ref(request), query_flag(request, "force"))
        return empty_response()

    async def prepare(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.prepare(_ref(request)))

    async def start(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.start(_ref(request)))

    async def restart(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.restart(_ref(request), _timeout(request)))

    async def rename(self, request: web.Request) -> web.Response:
        await self._agent.rename(_ref(request), request.query.get("name", ""))
        return empty_response()

    async def stop(self, request: web.Request) -> web.Response:
        await self._agent.stop(_ref(request), _timeout(request))
        return empty_response()

    async def kill(self, request: web.Request) -> web.Response:
        await self._agent.kill(_ref(request), signal_number(request.query.get("signal", "KILL")))
        return empty_response()

    async def usage(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.usage(tuple(request.query.getall("container", []))))

    async def update(self, request: web.Request) -> web.Response:
        await self._agent.update(_ref(request), await read_record(request, ContainerUpdate))
        return empty_response()

    async def top(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.top(_ref(request)))

    @until_disconnect
    async def wait(self, request: web.Request) -> web.Response:
        return json_response(await self._agent.wait(_ref(request)))

    @until_disconnect
    async def logs(self, request: web.Request) -> web.StreamResponse:
        chunks = self._agent.logs(_ref(request), log_request(request))
        return await stream_response(request, chunks, "text/plain")

    @until_disconnect
    async def read_files(self, request: web.Request) -> web.StreamResponse:
        path, follow = request.query.get("path", ""), query_flag(request, "follow")
        return await stream_response(request, self._agent.read_files(_ref(request), path, follow), "application/x-tar")

    @until_disconnect
    async def write_files(self, request: web.Request) -> web.Response:
        pieces, owners = request.content.iter_any(), query_flag(request, "owners")
        await self._agent.write_files(_ref(request), request.query.get("path", ""), pieces, owners)
        return empty_response()

    async def shim(self, request: web.Request) -> web.Response:
        return json_response(ShimAnswer(socket=await self._agent.shim(_ref(request))))

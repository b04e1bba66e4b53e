"""What managers offer to nodes: HTTP over TLS 1.3 on 2377.

====== ================================== ======= ================================================================
method path                               who     what
====== ================================== ======= ================================================================
GET    /v1/ca                             anyone  the cluster's CA certificates, for a joiner whose token pins one
POST   /v1/join                           anyone  a :class:`JoinClaim`, whose secret is checked, for a grant
GET    /v1/nodes/{node}/assignment        self    ``?since=REVISION``: stream of updates, see core/assignment
POST   /v1/nodes/{node}/leases            self    a :class:`LeaseRequest` for the node's set of leases
POST   /v1/nodes/{node}/returned-leases   self    :class:`ReturnedLeases` for the set without them
POST   /v1/nodes/{node}/report            self    a :class:`NodeReport`
POST   /v1/nodes/{node}/tasks             self    :class:`TaskReports` of its own tasks
POST   /v1/nodes/{node}/errands           manager an :class:`Errand` that the node, which follows here, is to be told of
POST   /v1/nodes/{node}/errands/{errand}  self    octets that a manager asked for, as they come
POST   /v1/nodes/{node}/certificate       self    a :class:`Renewal` for a new certificate
POST   /v1/nodes/{node}/store             self    how the store is reached, if it is a manager now
DELETE /v1/nodes/{node}                   self    leave
====== ================================== ======= ================================================================

``self`` is the node named in the path: it shows a certificate of the cluster's CA with that id, and was not removed.
``manager`` is any that is one of the managers.
Commands that change the cluster are not here: they come from the local socket of a manager.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from aiohttp import web

from vxnet.cluster.api import (
    empty_response,
    json_response,
    make_app,
    read_record,
    serving,
    stream_response,
    until_disconnect,
)
from vxnet.cluster.tls import Credentials, server_context, trust_roots, use_credentials
from vxnet.core.assignment import Update
from vxnet.core.trust import Identity, verify_certificate
from vxnet.model.address import IPAddress
from vxnet.model.api import JoinClaim, JoinGrant, LeaseRequest, NodeReport, TaskReport, TaskReports
from vxnet.model.cluster import CONTROL_PORT, Lease, Record, Role, Signed
from vxnet.model.codec import to_json
from vxnet.model.errand import Errand
from vxnet.model.errors import CallerError, ForbiddenError, HostError, NotFoundError, VxnetError
from vxnet.model.store import StoreAccess

KEEPALIVE_S = 3.0
"""An empty line on a stream that has nothing else to say."""
LISTEN_AGAIN_S = 2.0

_STOPPING: Final = web.AppKey("stopping", asyncio.Event)

log = logging.getLogger(__name__)


class Roots(Record, frozen=True, kw_only=True):
    roots: tuple[bytes, ...]
    """DER."""
    endorsements: tuple[bytes, ...] = ()
    """By which one of them vouches for another: :func:`vxnet.core.trust.endorse`."""


class ReturnedLeases(Record, frozen=True, kw_only=True):
    leases: tuple[Lease, ...]


class Renewal(Record, frozen=True, kw_only=True):
    csr: bytes


class Renewed(Record, frozen=True, kw_only=True):
    certificate: bytes
    """DER."""


class Endorsing(Protocol):
    @property
    def endorsements(self) -> tuple[bytes, ...]: ...


class Errands(Protocol):
    def say(self, node: str, errand: Errand) -> bool: ...
    async def deliver(self, node: str, id: str, pieces: AsyncIterator[bytes]) -> None: ...


class ManagerService(Protocol):
    """What is served: :class:`vxnet.daemon.manager.Manager`."""

    trust_changed: asyncio.Event

    @property
    def ca(self) -> Endorsing: ...
    @property
    def roots(self) -> tuple[bytes, ...]: ...
    @property
    def errands(self) -> Errands: ...
    def role_of(self, node_id: str) -> Role: ...
    async def join(self, claim: JoinClaim, peer: str = "") -> JoinGrant: ...
    def assignments(self, node_id: str, since: int | None = None) -> AsyncGenerator[Update, None]: ...
    async def lease(self, node_id: str, request: LeaseRequest) -> Signed: ...
    async def release(self, node_id: str, leases: Sequence[Lease]) -> Signed: ...
    async def report(self, node_id: str, report: NodeReport) -> None: ...
    async def report_tasks(self, node_id: str, reports: Sequence[TaskReport]) -> None: ...
    def renew(self, node_id: str, csr: bytes) -> bytes: ...
    async def grant_store(self, node_id: str, csr: bytes) -> StoreAccess: ...
    async def leave(self, node_id: str) -> None: ...


class CredentialSource(Protocol):
    """Where the server's certificate and key are kept: the state directory."""

    def credentials(self) -> tuple[bytes, bytes]:
        """(certificate, key), PEM."""


Who = Literal["anyone", "self", "manager"]


class Route(NamedTuple):
    method: str
    path: str
    who: Who
    handler: Callable[[ManagerService, web.Request], Awaitable[web.StreamResponse]]


async def serve_manager(
    service: ManagerService, source: CredentialSource, address: IPAddress, port: int = CONTROL_PORT
) -> None:
    """Until cancelled. A port that is taken is tried again and again: whoever has it may go."""
    context = server_context(Credentials(*source.credentials()), service.roots)
    complained = False
    while True:
        try:
            listener = listen(address, port)
        except HostError as error:
            if not complained:
                log.error("%s", error)
                complained = True
            await asyncio.sleep(LISTEN_AGAIN_S)
            continue
        async with serving(make_manager_app(service), listener, tls=context):
            while True:
                await service.trust_changed.wait()
                service.trust_changed.clear()
                use_credentials(context, Credentials(*source.credentials()))
                trust_roots(context, service.roots)


def listen(address: IPAddress, port: int, purpose: str = "managers serve") -> socket.socket:
    """Raises :class:`HostError`; ``purpose`` is for people."""
    listener = socket.socket(
        socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC
    )
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.setblocking(False)
        listener.listen(512)
    except OSError as error:
        listener.close()
        what = "in use by another program" if error.errno == errno.EADDRINUSE else f"unusable: {error.strerror}"
        raise HostError(
            f"port {port}/tcp of {address}, on which {purpose}, is {what}",
            hint=f"`ss -ltnp 'sport = {port}'` shows who has it",
        ) from error
    return listener


def make_manager_app(service: ManagerService) -> web.Application:
    app = make_app()
    app[_STOPPING] = asyncio.Event()
    app.on_shutdown.append(_stop_streams)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _checked(service, route))
    return app


async def _stop_streams(app: web.Application) -> None:
    """Streams end by themselves only when the reader goes: a stopping server would wait for them."""
    app[_STOPPING].set()


def _checked(service: ManagerService, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        if route.who == "self":
            caller = _caller(service, request)
            if caller.node != request.match_info["node"]:
                raise ForbiddenError(f"node {caller.node} may not act for node {request.match_info['node']}")
        if route.who == "manager" and service.role_of(_caller(service, request).node) != "manager":
            raise ForbiddenError("this is for managers")
        return await route.handler(service, request)

    return until_disconnect(handler) if route.handler in (_assignment, _errand) else handler


def _caller(service: ManagerService, request: web.Request) -> Identity:
    """Who is at the other end. The TLS library checked the certificate as well, against the roots of its time."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    if certificate is None:
        raise ForbiddenError("this needs a node's certificate", hint="`vxnet join` gets one")
    # Its PeerError goes through: a forbidden node takes itself for removed, and this may be a clock that is wrong.
    caller = verify_certificate(certificate, service.roots, time.time())
    service.role_of(caller.node)
    return caller


# Handlers


async def _ca(service: ManagerService, request: web.Request) -> web.StreamResponse:
    return json_response(Roots(roots=service.roots, endorsements=service.ca.endorsements))


async def _join(service: ManagerService, request: web.Request) -> web.StreamResponse:
    return json_response(await service.join(await read_record(request, JoinClaim), request.remote or ""))


async def _assignment(service: ManagerService, request: web.Request) -> web.StreamResponse:
    since = request.query.get("since")
    if since is not None and not (since.isascii() and since.isdigit() and len(since) <= 18):
        raise CallerError(f"?since= takes a revision, found {since!r}")
    updates = service.assignments(request.match_info["node"], None if since is None else int(since))
    return await stream_response(request, _lines(updates, request.app[_STOPPING]), "application/x-ndjson")


async def _lines(updates: AsyncGenerator[Update, None], stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """Each update as a line, and a sign of life first and whenever there is none for :data:`KEEPALIVE_S`."""
    coming: asyncio.Future[Update] = asyncio.ensure_future(anext(updates))
    stop = asyncio.ensure_future(stopping.wait())
    try:
        yield b"\n"
        while not stop.done():
            await asyncio.wait((coming, stop), timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                yield b"\n"
                continue
            line = to_json(coming.result()) + b"\n"
            coming = asyncio.ensure_future(anext(updates))
            yield line
    except StopAsyncIteration:
        return
    except VxnetError as error:
        # Lines are whole by themselves, so that an end is no lie: the node comes again and is told the reason then.
        log.info("a stream ends: %s", error)
    finally:
        stop.cancel()
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, VxnetError):
            await coming
        await updates.aclose()


async def _leases(service: ManagerService, request: web.Request) -> web.StreamResponse:
    wanted = await read_record(request, LeaseRequest)
    return json_response(await service.lease(request.match_info["node"], wanted))


async def _returned_leases(service: ManagerService, request: web.Request) -> web.StreamResponse:
    returned = await read_record(request, ReturnedLeases)
    return json_response(await service.release(request.match_info["node"], returned.leases))


async def _report(service: ManagerService, request: web.Request) -> web.StreamResponse:
    await service.report(request.match_info["node"], await read_record(request, NodeReport))
    return empty_response()


async def _tasks(service: ManagerService, request: web.Request) -> web.StreamResponse:
    await service.report_tasks(request.match_info["node"], (await read_record(request, TaskReports)).reports)
    return empty_response()


async def _saying(service: ManagerService, request: web.Request) -> web.StreamResponse:
    if not service.errands.say(request.match_info["node"], await read_record(request, Errand)):
        raise NotFoundError("that node does not follow this manager")
    return empty_response()


async def _errand(service: ManagerService, request: web.Request) -> web.StreamResponse:
    node, errand = request.match_info["node"], request.match_info["errand"]
    await service.errands.deliver(node, errand, request.content.iter_any())
    return empty_response()


async def _certificate(service: ManagerService, request: web.Request) -> web.StreamResponse:
    renewal = await read_record(request, Renewal)
    return json_response(Renewed(certificate=service.renew(request.match_info["node"], renewal.csr)))


async def _store(service: ManagerService, request: web.Request) -> web.StreamResponse:
    wanted = await read_record(request, Renewal)
    return json_response(await service.grant_store(request.match_info["node"], wanted.csr))


async def _leave(service: ManagerService, request: web.Request) -> web.StreamResponse:
    await service.leave(request.match_info["node"])
    return empty_response()


ROUTES = (
    Route("GET", "/v1/ca", "anyone", _ca),
    Route("POST", "/v1/join", "anyone", _join),
    Route("GET", "/v1/nodes/{node}/assignment", "self", _assignment),
    Route("POST", "/v1/nodes/{node}/leases", "self", _leases),
    Route("POST", "/v1/nodes/{node}/returned-leases", "self", _returned_leases),
    Route("POST", "/v1/nodes/{node}/report", "self", _report),
    Route("POST", "/v1/nodes/{node}/tasks", "self", _tasks),
    Route("POST", "/v1/nodes/{node}/errands", "manager", _saying),
    Route("POST", "/v1/nodes/{node}/errands/{errand}", "self", _errand),
    Route("POST", "/v1/nodes/{node}/certificate", "self", _certificate),
    Route("POST", "/v1/nodes/{node}/store", "self", _store),
    Route("DELETE", "/v1/nodes/{node}", "self", _leave),
)

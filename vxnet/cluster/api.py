"""What vxnet's HTTP servers share: the local API (unix socket) and the managers' (TLS on 2377).

A route is a coroutine ``handler(request) -> StreamResponse`` that raises a :class:`VxnetError` to refuse.

    app = make_app()
    app.router.add_get("/v1/info", handler)
    async with serving(app, unix_listener("/run/vxnet/vxnet.sock")):
        await stop.wait()

A client that goes away cancels only the handlers marked ``@until_disconnect`` (long waits, streams). All others run to
their end, so that Ctrl-C in the middle of a request leaves no half of a network behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import ssl
import stat
import struct
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
)
from pathlib import Path
from typing import Final, TypeVar

from aiohttp import web

from vxnet.cluster.failure import failure_to_json
from vxnet.model import codec
from vxnet.model.errors import (
    CallerError,
    ConflictError,
    HostError,
    NotFoundError,
    VxnetError,
)

T = TypeVar("T")
F = TypeVar("F")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[web.StreamResponse]])

BODY_LIMIT: Final = 1 << 20
"""Octets of a request's body."""
SHUTDOWN_S: Final = 3.0
"""How long open requests may go on once the server stops; the shell's users wait for it at `systemctl restart`."""
GROUP: Final = "vxnet"
"""Its members may use the local API beside root."""

_MARK: Final = "_vxnet_until_disconnect"
_LIMIT: Final = "_vxnet_body_limit"
_RUNNING: Final = web.AppKey("running", set[asyncio.Task[web.StreamResponse]])
"""Requests that are carried out, whatever becomes of their client."""
_WAITING: Final = web.AppKey("waiting", set[asyncio.Task[object]])
"""Those that wait for something or somebody, and end with the server."""

log = logging.getLogger(__name__)


def until_disconnect(handler: HandlerT) -> HandlerT:
    """Mark a handler that is to be cancelled when its client goes away or the server stops."""
    setattr(handler, _MARK, True)
    return handler


# ---------------------------------------------------------------------------------------------------------- requests


def takes(octets: int) -> Callable[[F], F]:
    """A handler whose request may be longer than :data:`BODY_LIMIT`."""

    def mark(handler: F) -> F:
        setattr(handler, _LIMIT, octets)
        return handler

    return mark


async def read_record(request: web.Request, kind: type[T]) -> T:
    """The request's body as a record of type ``kind``.

    Raises :class:`CallerError` naming the field (``$.subnets[0]``) when the body does not fit.
    """
    body = await request.read()
    try:
        return codec.from_json(body, kind)
    except RecursionError:
        raise CallerError(f"expected a {kind.__name__} in JSON, found too many brackets in brackets") from None
    except ValueError as error:
        raise CallerError(f"expected a {kind.__name__} in JSON: {error}") from None


def query_flag(request: web.Request, name: str) -> bool:
    """``?name=1`` or ``?name=true``; absent is false. Raises :class:`CallerError` on anything else."""
    text = request.query.get(name, "0").lower()
    if text in ("1", "true"):
        return True
    if text in ("0", "false"):
        return False
    raise CallerError(f"?{name}= takes 1 or 0, found {text!r}")


def query_number(request: web.Request, name: str, default: float) -> float:
    """``?name=2.5``, not negative. Raises :class:`CallerError` on anything else."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise CallerError(f"?{name}= takes a number that is not negative, found {text!r}")
    return number


def peer_uid(request: web.Request) -> int | None:
    """Who is at the other end of a unix socket (SO_PEERCRED, unix(7)); None: gone already, or another kind."""
    peer = request.transport.get_extra_info("socket") if request.transport is not None else None
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


# ----------------------------------------------------------------------------------------------------------- answers


def json_response(record: object, *, status: int = 200) -> web.Response:
    """One JSON document; a tuple of records becomes an array."""
    return web.Response(body=codec.to_json(record), status=status, content_type="application/json")


def empty_response() -> web.Response:
    return web.Response(status=204)


async def stream_response(request: web.Request, chunks: AsyncIterable[bytes], content_type: str) -> web.StreamResponse:
    """Send ``chunks`` as they come, each at once.

    An error before the first chunk is an ordinary refusal. Later ones break the connection off before the end mark, so
    that the reader cannot take a torn stream for a whole one.
    """
    async with _closing(chunks) as iterator:
        first = await anext(iterator, None)
        response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-store"})
        await response.prepare(request)
        try:
            if first is not None:
                await response.write(first)
            async for chunk in iterator:
                await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            pass  # the reader has gone: nobody is left to tell
        except Exception:
            log.exception("%s %s broken off", request.method, request.path)
            if request.transport is not None:
                request.transport.abort()
    return response


async def ndjson_response(request: web.Request, records: AsyncIterable[object]) -> web.StreamResponse:
    """One JSON document a line, each sent at once; errors as in :func:`stream_response`."""

    async def lines() -> AsyncIterator[bytes]:
        async with _closing(records) as iterator:
            async for record in iterator:
                yield codec.to_json(record) + b"\n"

    return await stream_response(request, lines(), "application/x-ndjson")


@contextlib.asynccontextmanager
async def _closing(items: AsyncIterable[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Iterate over ``items`` and close it at once at the end if it is a generator: it may hold files open."""
    iterator = aiter(items)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


def failure_response(error: VxnetError, *, status: int | None = None) -> web.Response:
    """The refusal ``error`` as :mod:`vxnet.cluster.failure` writes it; ``status`` replaces the kind's own."""
    return web.Response(
        body=failure_to_json(error),
        status=status or error.http_status,
        content_type="application/json",
    )


# ------------------------------------------------------------------------------------------------------- application


def make_app() -> web.Application:
    """An application without routes whose every error is JSON and whose requests survive their client."""
    app = web.Application(
        middlewares=[_error_middleware, _survival_middleware],
        client_max_size=BODY_LIMIT,
    )
    app[_RUNNING], app[_WAITING] = set(), set()
    app.on_shutdown.append(_end_waiting)
    app.on_cleanup.append(_finish_running)
    return app


@web.middleware
async def _error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except VxnetError as error:
        log.info("%s %s refused: %s", request.method, request.path, error)
        return failure_response(error)
    except web.HTTPRequestEntityTooLarge:
        return failure_response(
            CallerError(f"a request's body is at most {BODY_LIMIT} octets long"),
            status=413,
        )
    except web.HTTPNotFound:
        hint = "are the client and the daemon of the same version?"
        return failure_response(NotFoundError(f"no such path: {request.method} {request.path}", hint=hint))
    except web.HTTPException as error:
        return failure_response(
            CallerError(f"{request.method} {request.path}: {error.reason}"),
            status=error.status,
        )
    except OSError as error:
        log.exception("%s %s failed", request.method, request.path)
        return failure_response(HostError(f"this host refused: {error}"))
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        shown = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return failure_response(
            HostError(
                f"a bug of vxnet's: {shown}",
                hint="the daemon's log has the whole of it",
            )
        )


@web.middleware
async def _survival_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    if hasattr(request.match_info.handler, _MARK):
        return await _wait_for(handler, request)
    if (limit := getattr(request.match_info.handler, _LIMIT, None)) is not None:
        request = request.clone(client_max_size=limit)
    # The body is read here: once the client has gone, there is nothing left to read it from.
    await request.read()
    task = asyncio.ensure_future(handler(request))
    running = request.app[_RUNNING]
    running.add(task)
    task.add_done_callback(running.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_report_unheard)
        raise


async def _wait_for(handler: Handler, request: web.Request) -> web.StreamResponse:
    task = asyncio.current_task()
    assert task is not None
    request.app[_WAITING].add(task)
    try:
        return await handler(request)
    finally:
        request.app[_WAITING].discard(task)


def _report_unheard(task: asyncio.Task[web.StreamResponse]) -> None:
    """The outcome of a request whose client is gone: only the log can still hear of a failure."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("a request without its client failed: %s", error)


async def _end_waiting(app: web.Application) -> None:
    for task in app[_WAITING]:
        task.cancel()


async def _finish_running(app: web.Application) -> None:
    if running := app[_RUNNING]:
        _, late = await asyncio.wait(running, timeout=SHUTDOWN_S)
        for task in late:
            task.cancel()


# --------------------------------------------------------------------------------------------------------- listening


def unix_listener(path: str | os.PathLike[str], *, group: str = GROUP) -> socket.socket:
    """A socket bound to ``path`` that root and ``group`` may use (0660; without such a group 0600).

    A socket left behind by a dead process is replaced. Raises :class:`ConflictError` when a living one answers there
    and :class:`HostError` when the place cannot be used.
    """
    place = Path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(place)
        listener.bind(os.fspath(place))
        # Between bind and listen nobody can connect, so the socket is never open to more than it should be.
        _hand_to_group(place, group)
        listener.setblocking(False)
        listener.listen(128)
    except VxnetError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen on {place}: {error.strerror or error}") from error
    return listener


def _clear_stale(place: Path) -> None:
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"cannot listen on {place}: it exists and is no socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(place))
        except (ConnectionRefusedError, FileNotFoundError):
            place.unlink(missing_ok=True)
            return
        except (TimeoutError, BlockingIOError):
            pass  # somebody holds it and is busy
    raise ConflictError(f"another process serves {place} already", hint="is a vxnet daemon running?")


def _hand_to_group(place: Path, group: str) -> None:
    try:
        gid = grp.getgrnam(group).gr_gid
        os.chown(place, -1, gid)
    except (KeyError, PermissionError):
        place.chmod(0o600)
    else:
        place.chmod(0o660)


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, listener: socket.socket, *, tls: ssl.SSLContext | None = None, keep_path: bool = False
) -> AsyncIterator[web.AppRunner]:
    """Serve ``app`` on a bound socket (unix or TCP) for as long as the block lasts; then finish, and close it.

    A unix socket's path is removed at the end unless ``keep_path``: somebody else listens there on.
    """
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        auto_decompress=False,
    )
    path = listener.getsockname() if listener.family == socket.AF_UNIX and not keep_path else None
    try:
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=tls).start()
        yield runner
    finally:
        await runner.cleanup()
        listener.close()
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@contextlib.asynccontextmanager
async def serve_unix(
    app: web.Application, path: str | os.PathLike[str], held: socket.socket | None = None
) -> AsyncIterator[web.AppRunner]:
    """:func:`serving` on :func:`unix_listener`, or on the socket that systemd ``held`` for us, and goes on to hold."""
    listener = unix_listener(path) if held is None else held
    listener.setblocking(False)
    async with serving(app, listener, keep_path=held is not None) as runner:
        yield runner

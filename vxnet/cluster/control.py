"""A node's side of the conversation with the managers: join, follow the assignments, ask for leases.

The token's digest is what a joiner trusts::

    GET /v1/ca  (from anybody) ──> a CA with the digest in the token?  ──> POST /v1/join, to a manager of that CA only

so that the secret is shown to nobody who is not of the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import NamedTuple, TypeVar

import aiohttp
from yarl import URL

from vxnet.cluster.failure import failure_from_json
from vxnet.cluster.manager_api import KEEPALIVE_S, Renewal, Renewed, ReturnedLeases, Roots
from vxnet.cluster.tls import MANAGER_NAME, Credentials, blind_context, client_context
from vxnet.core.assignment import Update, decode_update
from vxnet.core.trust import Token, certificate_to_pem, is_endorsed, pins
from vxnet.model.api import JoinClaim, JoinGrant, LeaseRequest, NodeReport, TaskReport, TaskReports
from vxnet.model.cluster import CONTROL_PORT, Lease, Manager, Signed
from vxnet.model.codec import from_json, to_json
from vxnet.model.errand import Errand
from vxnet.model.errors import CallerError, ForbiddenError, PeerError, UnavailableError, VxnetError
from vxnet.model.store import StoreAccess

CONNECT_S = 3.0
ANSWER_S = 10.0
"""For a whole request; a commit takes milliseconds."""
SILENCE_S = 3.3 * KEEPALIVE_S
"""A stream without a sign of life for so long is dead, whatever TCP thinks."""
BACKOFF_S = (0.2, 5.0)
"""First and longest pause between two rounds over all managers; doubling, and then some chance less."""
MAX_LINE = 64 << 20
"""Octets."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Server(NamedTuple):
    host: str
    port: int
    name: str = ""

    def __str__(self) -> str:
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{self.name} ({place})" if self.name else place


def parse_manager(text: str) -> tuple[str, int]:
    """``HOST[:PORT]``; an IPv6 address with a port stands in brackets. Raises :class:`CallerError`."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        wrong = "]" not in text or (rest and not rest.startswith(":"))
    else:
        if text.count(":") == 1:
            host, _, port = text.partition(":")
        wrong = False
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else (0 if port else CONTROL_PORT)
    if wrong or not host or not 0 < number < 65536 or any(sign in host for sign in "/@?# "):
        raise CallerError(f"{text!r} is not the address of a manager", hint="give HOST or HOST:PORT")
    return host, number


async def fetch_roots(host: str, port: int, token: Token) -> tuple[bytes, ...]:
    """The CA certificate (DER) that the token pins, and its successor, from the manager at ``host``.

    Raises :class:`UnavailableError` if nobody answers there, :class:`PeerError` if it is not the token's cluster.
    """
    server = _Server(host, port)
    roots = await _ask(server, blind_context(), "GET", "/v1/ca", None, Roots)
    pinned = tuple(root for root in roots.roots if pins(token, root))
    if not pinned:
        raise PeerError(
            f"the manager at {server} is not of the cluster that the join token is for: its CA is another",
            hint="take the token from that cluster (`vxnet join-token worker`); if you did, somebody stands between",
        )
    successors = (root for root in roots.roots if any(is_endorsed(root, one, pinned[0]) for one in roots.endorsements))
    return (*pinned, *successors)


async def join(host: str, port: int, roots: Sequence[bytes], claim: JoinClaim) -> JoinGrant:
    """Shows the claim's secret only to a manager of the CAs ``roots``. Raises what the manager refuses with, and as
    :func:`fetch_roots`.
    """
    return await _ask(_Server(host, port), client_context(roots), "POST", "/v1/join", claim, JoinGrant)


class ManagerClient:
    """Speaks to whichever of ``managers`` answers, the last that did first.

    Its requests raise what the manager refuses with, or :class:`UnavailableError` naming whom it tried.
    """

    def __init__(
        self,
        node_id: str,
        managers: Sequence[Manager],
        *,
        certificate: bytes,
        key: bytes,
        roots: Sequence[bytes],
    ) -> None:
        """``certificate`` and ``roots`` are DER, ``key`` is PEM."""
        self.reachable = False
        """Whether the stream of :meth:`follow` lives."""
        self._node_id = node_id
        self._managers = tuple(managers)
        self._credentials = Credentials(certificate_to_pem(certificate), key)
        self._roots = tuple(roots)
        self._last: str | None = None
        """Id of the manager that answered last."""

    def update(
        self,
        *,
        managers: Sequence[Manager] | None = None,
        certificate: bytes | None = None,
        roots: Sequence[bytes] | None = None,
    ) -> None:
        """For the connections from now on. Without managers the ones known before stay: better old than none."""
        self._managers = tuple(managers or self._managers)
        self._roots = tuple(roots or self._roots)
        if certificate is not None:
            self._credentials = self._credentials._replace(certificate=certificate_to_pem(certificate))

    async def follow(self, since: int | None) -> AsyncGenerator[Update, None]:
        """Updates after revision ``since`` (None: from a snapshot on), for ever and from any manager. Raises only
        :class:`ForbiddenError`: this node was removed.
        """
        pause = BACKOFF_S[0]
        try:
            while True:
                for manager in self._in_turn():
                    try:
                        async with contextlib.aclosing(self._stream(manager, since)) as updates:
                            async for update in updates:
                                if update is not None and update.snapshot and update.revision < (since or 0):
                                    raise UnavailableError("it knows less than this node has heard from another one")
                                self._last, pause = manager.id, BACKOFF_S[0]
                                if update is not None:
                                    since = update.revision
                                    yield update
                        reason = "the stream ended"
                    except ForbiddenError:
                        raise
                    except VxnetError as error:
                        reason = error.message
                    if self.reachable:
                        log.warning("lost manager %s: %s", manager.name, reason)
                        self.reachable = False
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, BACKOFF_S[1])
        finally:
            self.reachable = False

    async def lease(self, request: LeaseRequest) -> Signed:
        return await self._request("POST", "/leases", request, Signed)

    async def release(self, leases: Sequence[Lease]) -> Signed:
        return await self._request("POST", "/returned-leases", ReturnedLeases(leases=tuple(leases)), Signed)

    async def report(self, report: NodeReport) -> None:
        await self._request("POST", "/report", report, None)

    async def report_tasks(self, reports: Sequence[TaskReport]) -> None:
        await self._request("POST", "/tasks", TaskReports(reports=tuple(reports)), None)

    async def deliver(self, errand: Errand, pieces: AsyncIterator[bytes]) -> None:
        """To the manager that waits for it; for as long as there are pieces. Raises :class:`NotFoundError` when nobody
        waits for them any more.
        """
        manager = next((one for one in self._managers if one.id == (errand.manager or self._last)), None)
        if manager is None:
            raise UnavailableError("the manager that asked for it is not known")
        server = _Server(str(manager.addr), manager.port, manager.name)
        context = client_context(self._roots, self._credentials)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        path = f"/v1/nodes/{self._node_id}/errands/{errand.id}"
        async with _answer(server, context, "POST", path, pieces, timeout):
            pass

    async def pass_on(self, node: str, errand: Errand) -> bool:
        """Of a manager: have that other one say it whom ``node`` follows; whether there is one."""
        context = client_context(self._roots, self._credentials)

        async def say(manager: Manager) -> bool:
            server = _Server(str(manager.addr), manager.port, manager.name)
            with contextlib.suppress(VxnetError):
                await _ask(server, context, "POST", f"/v1/nodes/{node}/errands", errand, None)
                return True
            return False

        return any(await asyncio.gather(*(say(one) for one in self._managers if one.id != self._node_id)))

    async def renew(self, csr: bytes) -> bytes:
        """The new certificate, DER; hand it to :meth:`update`."""
        return (await self._request("POST", "/certificate", Renewal(csr=csr), Renewed)).certificate

    async def grant_store(self, csr: bytes) -> StoreAccess:
        """How the managers' store is reached. Raises :class:`ForbiddenError` unless this node is one of them."""
        return await self._request("POST", "/store", Renewal(csr=csr), StoreAccess)

    async def leave(self) -> None:
        await self._request("DELETE", "", None, None)

    # Parts

    def _in_turn(self) -> list[Manager]:
        shuffled = random.sample(self._managers, len(self._managers))
        return sorted(shuffled, key=lambda manager: manager.id != self._last)

    async def _request(self, method: str, path: str, body: object | None, kind: type[T] | None) -> T:
        context = client_context(self._roots, self._credentials)
        tried = []
        for manager in self._in_turn():
            server = _Server(str(manager.addr), manager.port, manager.name)
            try:
                answer = await _ask(server, context, method, f"/v1/nodes/{self._node_id}{path}", body, kind)
            except (UnavailableError, PeerError) as error:
                tried.append(error.message)
            else:
                self._last = manager.id
                return answer
        raise UnavailableError(
            "; ".join(tried) or "no manager is known", hint="what runs goes on; try again when a manager is back"
        )

    async def _stream(self, manager: Manager, since: int | None) -> AsyncGenerator[Update | None, None]:
        """None for a sign of life."""
        server = _Server(str(manager.addr), manager.port, manager.name)
        path = f"/v1/nodes/{self._node_id}/assignment" + ("" if since is None else f"?since={since}")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        context = client_context(self._roots, self._credentials)
        async with _answer(server, context, "GET", path, None, timeout) as response:
            if not self.reachable:
                log.info("following manager %s", server)
                self.reachable = True
            async for line in _lines(response.content):
                yield decode_update(line) if line else None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Without their ends. Not the reader's own iteration, which gives up above 512 KiB a line."""
    begun: list[bytes] = []
    octets = 0
    async for chunk in content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield b"".join((*begun, part))
            begun, octets = [], 0
        begun.append(rest)
        octets += len(rest)
        if octets > MAX_LINE:
            raise PeerError(f"a manager sent a line of more than {MAX_LINE} octets")


async def _ask(
    server: _Server, context: ssl.SSLContext, method: str, path: str, body: object | None, kind: type[T] | None
) -> T:
    """The answer as a record of type ``kind``; None: there is nothing in it."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
    async with _answer(server, context, method, path, body, timeout) as response:
        content = await response.read()
    if kind is None:
        return None  # type: ignore[return-value]
    try:
        return from_json(content, kind)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"the manager {server} sent no {kind.__name__} ({error})") from error


@contextlib.asynccontextmanager
async def _answer(
    server: _Server,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: object | None,
    timeout: aiohttp.ClientTimeout,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A successful answer. Raises what the manager refuses with, :class:`UnavailableError` (nobody, or no longer there)
    or :class:`PeerError` (somebody else); also for what fails while the answer is read.
    """
    url = URL(f"https://{'[' + server.host + ']' if ':' in server.host else server.host}:{server.port}{path}")
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    name = MANAGER_NAME if context.check_hostname else None
    data = body if body is None or isinstance(body, AsyncIterator) else to_json(body)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, url, data=data, server_hostname=name, allow_redirects=False) as response,
        ):
            if response.status >= 300:
                raise failure_from_json(response.status, await response.read())
            yield response
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        raise PeerError(
            f"{server} is not a manager of this cluster: {_reason(error)}",
            hint="is that the right host? Are the clocks of both hosts right?",
        ) from error
    except TimeoutError as error:
        raise UnavailableError(f"manager {server} does not answer in time", hint=_REACH_HINT) from error
    except (aiohttp.ClientError, OSError) as error:
        raise UnavailableError(f"manager {server} cannot be reached: {_reason(error)}", hint=_REACH_HINT) from error


_REACH_HINT = f"is that a manager's address, is its daemon running, and is {CONTROL_PORT}/tcp open?"


def _reason(error: BaseException) -> str:
    """The system's words without the layers around them."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    if isinstance(inner, ssl.SSLError):
        return (inner.reason or str(inner)).replace("_", " ").lower()
    if isinstance(inner, OSError) and (inner.errno or 0) > 0:
        return os.strerror(inner.errno or 0)
    return str(getattr(inner, "strerror", None) or inner or type(inner).__name__)

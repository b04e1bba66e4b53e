"""etcd's JSON gateway (3.4 to 3.6): one request that any member may answer, one stream of a watch.

A member that is silent, frozen or without a leader is passed over, and the next one asked: requests are made so that it
does no harm if two members carry out the same one. Nobody's answer becomes a sentence that names who is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec

from vxnet.cluster.tls import etcd_context
from vxnet.model.errors import HostError, UnavailableError
from vxnet.model.store import StoreAccess

T = TypeVar("T")
log = logging.getLogger(__name__)

CONNECT_S = 0.7
ATTEMPT_S = 1.2
"""For one member's answer: an election takes up to 2 s, and who has lost the leader may be asked again meanwhile."""
WITHIN_S = 2.8
"""For anybody's answer: with the search for who is missing, a command is refused within 5 s."""
BEGIN_S = 3.0
"""For the first line of an answer that does not end: longer than an election."""
PROBE_S = 0.7
AVOID_S = 10.0
"""A member that was silent is asked last for so long."""
PAUSE_S = (0.05, 0.4)
MAX_LINE = 64 << 20
"""Octets; a commit of 1 MB is 1.4 MB in JSON."""

_CODES_ELSEWHERE = (1, 4, 14)
"""gRPC: cancelled, deadline exceeded, unavailable (no leader, a learner, a request that timed out)."""
_BUSY = "too many requests"
_FULL = "database space exceeded"


class EtcdError(Exception):
    """etcd understood, and refuses."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class _ElsewhereError(Exception):
    """This member cannot; another one may."""


class Health(NamedTuple):
    silent: tuple[str, ...]
    """Members that do not answer, by name."""
    present: tuple[str, ...]


class _Failure(msgspec.Struct):
    error: str = ""
    message: str = ""
    code: int = 2


class Etcd:
    """``names``: of the members for people, by endpoint. The first endpoint is asked first while it answers."""

    def __init__(self, access: StoreAccess) -> None:
        self._access = access
        self._context = etcd_context(access)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._bad: dict[str, float] = {}
        self._last = ""

    @property
    def access(self) -> StoreAccess:
        return self._access

    def use(self, endpoints: Sequence[str], names: Mapping[str, str]) -> None:
        """From now on: members came or went."""
        self._access = msgspec.structs.replace(self._access, endpoints=tuple(endpoints), names=dict(names))

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None
            # Connections that were aborted are gone with the loop's next turns.
            for _ in range(3):
                await asyncio.sleep(0)

    def in_turn(self) -> list[str]:
        """Endpoints, those first that are likely to answer."""
        now = asyncio.get_running_loop().time()
        order = {endpoint: number for number, endpoint in enumerate(self._access.endpoints)}
        return sorted(order, key=lambda one: (self._bad.get(one, 0.0) > now, order[one] != 0, one != self._last))

    def avoid(self, endpoint: str) -> None:
        self._bad[endpoint] = asyncio.get_running_loop().time() + AVOID_S

    async def call(
        self,
        path: str,
        body: Mapping[str, Any],
        kind: type[T],
        *,
        within_s: float = WITHIN_S,
        attempt_s: float = ATTEMPT_S,
    ) -> T:
        """Raises :class:`EtcdError`; :class:`UnavailableError` if nobody answers in time, though it may have been done;
        :class:`HostError` when etcd's own space is used up.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        pause = PAUSE_S[0]
        encoded = msgspec.json.encode(body)
        while True:
            for endpoint in self.in_turn():
                left = deadline - loop.time()
                if left <= 0:
                    break
                try:
                    answer = await self._post(endpoint, path, encoded, min(attempt_s, left))
                    found = msgspec.json.decode(answer, type=kind, strict=False)
                except (_ElsewhereError, msgspec.DecodeError) as error:
                    log.debug("etcd member %s: %s", self.name(endpoint), error)
                    self.avoid(endpoint)
                    continue
                self._bad.pop(endpoint, None)
                self._last = endpoint
                return found
            if loop.time() + pause >= deadline:
                raise await self._nobody(path)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_S[1])

    @contextlib.asynccontextmanager
    async def stream(self, endpoint: str, path: str, body: Mapping[str, Any]) -> AsyncIterator[aiohttp.StreamReader]:
        """The lines of an answer that does not end. Raises what aiohttp does, and TimeoutError if it does not begin."""
        timeout = aiohttp.ClientTimeout(total=None)
        # Without this a watch hangs in silence when there is no quorum.
        headers = {"Grpc-Metadata-hasleader": "true"}
        async with contextlib.AsyncExitStack() as stack:
            # On a connection of before, a member that is frozen takes the question and says nothing.
            async with asyncio.timeout(BEGIN_S):
                post = self._opened().post(
                    endpoint + path, data=msgspec.json.encode(body), timeout=timeout, headers=headers
                )
                response = await stack.enter_async_context(post)
            if response.status >= 300:
                raise aiohttp.ClientPayloadError(f"status {response.status}")
            try:
                yield response.content
            finally:
                # A polite end waits for the member's own, which may be frozen; and this loop may end before it comes.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    async def health(self) -> Health:
        """Who answers, whether or not there is a leader."""
        endpoints = self._access.endpoints
        found = await asyncio.gather(*(self._answers(endpoint) for endpoint in endpoints))
        return Health(
            tuple(self.name(one) for one, answers in zip(endpoints, found, strict=True) if not answers),
            tuple(self.name(one) for one, answers in zip(endpoints, found, strict=True) if answers),
        )

    def name(self, endpoint: str) -> str:
        place = endpoint.partition("://")[2]
        name = self._access.names.get(endpoint)
        return f"{name} ({place})" if name else place

    # Parts

    def _opened(self) -> aiohttp.ClientSession:
        if self._closed:
            raise UnavailableError("the store is closed: this host's manager is stopping")
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._context if self._context is not None else True, limit=0)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def _post(self, endpoint: str, path: str, body: bytes, within_s: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=min(CONNECT_S, within_s))
        try:
            async with self._opened().post(endpoint + path, data=io.BytesIO(body), timeout=timeout) as response:
                answer = await response.read()
                if response.status < 300:
                    return answer
        except TimeoutError:
            raise _ElsewhereError("no answer in time") from None
        except (aiohttp.ClientError, OSError, ssl.SSLError) as error:
            raise _ElsewhereError(str(error) or type(error).__name__) from error
        except RuntimeError:
            self._opened()  # the session was closed meanwhile
            raise
        raise _refusal(response.status, answer)

    async def _answers(self, endpoint: str) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_S)
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._opened().get(f"{endpoint}/version", timeout=timeout) as response:
                await response.read()
                return True
        return False

    async def _nobody(self, path: str) -> UnavailableError:
        health = await self.health()
        whole = len(health.silent) + len(health.present)
        unsure = "; whether it was written shows when they are back" if path.endswith("/txn") else ""
        if len(health.silent) * 2 >= whole:
            what = "does not answer" if len(health.silent) == 1 else "do not answer"
            silent = ", ".join(health.silent)
            return UnavailableError(
                f"the managers' store has no quorum: of its {whole} etcd members {silent} {what}{unsure}",
                hint="what runs goes on; wishes can be changed again as soon as most of them are back",
            )
        missing = f" (without {', '.join(health.silent)})" if health.silent else ""
        return UnavailableError(
            f"the managers' store did not answer in time{missing}{unsure}", hint="try again; etcd's log says more"
        )


def _refusal(status: int, answer: bytes) -> Exception:
    try:
        failure = msgspec.json.decode(answer, type=_Failure)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return _ElsewhereError(f"status {status}")
    message = failure.error or failure.message
    if _FULL in message:
        return HostError(
            f"etcd cannot be written: {message}", hint="compact and defragment it, then `etcdctl alarm disarm`"
        )
    if failure.code in _CODES_ELSEWHERE or _BUSY in message:
        return _ElsewhereError(message)
    return EtcdError(message)

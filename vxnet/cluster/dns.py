"""Serves names on the containers' own sockets, and asks the host's resolvers for the rest.

::

     namespace of a container                 host namespace
     127.0.0.11:port  udp  ◀──▶  fast path: a known name ─▶ octets: back at once, whatever the daemon does
                                     └─ all else ─▶ Resolver ── core/names: answer ─▶ octets: back
                      tcp  ◀─────────────────────▶     └─────── Forward ─▶ a fresh socket ─▶ host's resolver
     (the shim holds them too)

The sockets were bound in the container's namespace and handed over, so that what comes on them is that container's and
nobody else's. UDP is drained 64 datagrams a wake-up straight from the event loop (asyncio's datagram transport costs
50 µs each); a task is made only for a TCP connection and for a query that goes outside. Without a fast path all of UDP
comes here.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVarTuple

import structlog

from vxnet.cluster.upstream import DNS_PORT, Upstreams, framed, receive_message
from vxnet.core.names import Forward, Names, Query, Rejected, View, forward
from vxnet.core.names.message import TCP_QUERY_MAX, UDP_QUERY_MAX
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Network
from vxnet.model.row import RowKey, Value, Version
from vxnet.model.service import PublicService

log = structlog.get_logger()

Arguments = TypeVarTuple("Arguments")

DRAIN_MAX = 64
"""Datagrams, and connections, taken before the daemon's other work has its turn."""
CONNECTIONS_MAX = 64
"""Of one container."""
TCP_IDLE_S = 10.0
"""Between two queries, and for a client to take its reply."""
ACCEPT_PAUSE_S = 1.0
"""After the host ran out of descriptors or memory."""

CLIENT_OCTETS = 6
"""Address and port before a datagram that the fast path passes on."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class FastPath(Protocol):
    """:class:`vxnet.host.dnsfast.FastNames`."""

    def serve(self, container: str, udp: socket.socket, networks: Sequence[str]) -> socket.socket: ...
    def update(self, container: str, networks: Sequence[str]) -> None: ...
    def leave(self, container: str) -> None: ...
    def put(self, network: str, name: bytes, answers: Mapping[int, tuple[int, int, bytes]] | None) -> None: ...
    def statistics(self) -> dict[str, int]: ...


class _Container:
    """What is served for one container."""

    __slots__ = ("connections", "id", "in_flight", "misses", "tasks", "tcp", "udp", "view")

    def __init__(self, container_id: str, udp: socket.socket, tcp: socket.socket, view: View) -> None:
        self.id = container_id
        self.udp = udp
        self.tcp = tcp
        self.misses: socket.socket | None = None
        """Where the fast path passes queries on, while it serves."""
        self.view = view
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.in_flight = 0


class Resolver:
    """Use as ``async with Resolver() as resolver``; leaving closes everything. The other methods do not block.

    Names change by :meth:`know` and are the next query's at once.
    """

    def __init__(self, fast: FastPath | None = None, *, upstream_port: int = DNS_PORT) -> None:
        self._names = Names()
        self._fast = fast
        self._counts: Counter[str] = Counter()
        self._upstreams = Upstreams(upstream_port, self._counts)
        self._containers: dict[str, _Container] = {}
        self._in_flight = 0
        self._paused = False
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container_id in list(self._containers):
            self.remove(container_id)
        await self._tasks.__aexit__(kind, error, trace)

    def know(
        self,
        rows: Iterable[tuple[RowKey, Version, Value]],
        networks: Mapping[str, Network],
        services: Iterable[PublicService] = (),
    ) -> None:
        """The whole truth, as :meth:`vxnet.core.names.Names.update` takes it."""
        changed = self._names.update(rows, networks, services)
        if self._fast is not None:
            for (network, name), answers in changed.items():
                self._fast.put(network, name, answers)

    def add(self, container_id: str, udp: socket.socket, tcp: socket.socket, view: View) -> None:
        """Serve a container on its bound ``udp`` and listening ``tcp`` socket, which are closed when it is removed."""
        self.remove(container_id)
        container = _Container(container_id, udp, tcp, view)
        udp.setblocking(False)
        tcp.setblocking(False)
        self._containers[container_id] = container
        if not self._paused:
            self._listen(container)

    def pause(self) -> None:
        """Take no queries until :meth:`resume`; they wait in the sockets. For a daemon that has just started and does
        not know all names yet: a wrong "no such name" is worse than a late answer."""
        self._paused = True
        for container in self._containers.values():
            self._ignore(container)

    def resume(self) -> None:
        self._paused = False
        for container in self._containers.values():
            self._listen(container)

    def _listen(self, container: _Container) -> None:
        loop = asyncio.get_running_loop()
        if self._fast is not None:
            self._release_misses(container)
            container.misses = self._fast.serve(container.id, container.udp, container.view.networks)
        loop.add_reader(container.misses or container.udp, self._drain, container)
        loop.add_reader(container.tcp, self._accept, container)

    def _ignore(self, container: _Container) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(container.udp)
        loop.remove_reader(container.tcp)
        self._release_misses(container)

    def _release_misses(self, container: _Container) -> None:
        if self._fast is not None and container.misses is not None:
            self._fast.leave(container.id)
            # What has come out of it already is of nobody else.
            self._drain(container)
            asyncio.get_running_loop().remove_reader(container.misses)
            container.misses.close()
            container.misses = None

    def update(self, container_id: str, view: View) -> None:
        """Its networks have changed. An unknown container is none of ours (any more)."""
        if container := self._containers.get(container_id):
            if self._fast is not None and container.view.networks != view.networks:
                self._fast.update(container_id, view.networks)
            container.view = view

    def remove(self, container_id: str) -> None:
        """Stop serving it and close all that was open for it. Harmless if it is unknown."""
        container = self._containers.pop(container_id, None)
        if container is None:
            return
        self._ignore(container)
        container.udp.close()
        container.tcp.close()
        for task in container.tasks:
            task.cancel()

    def set_upstreams(self, addresses: Sequence[IPAddress]) -> None:
        """The host's resolvers, in order; the first few are used. They are asked from the daemon's own namespace, so a
        loopback address means the host's."""
        self._upstreams.set(addresses)

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and how much there is now: ``containers``, ``connections``, ``in_flight``."""
        counts = self._counts + Counter(self._fast.statistics() if self._fast is not None else {})
        counts["queries_udp"] += counts["fast_answered"]
        return dict(counts) | {
            "containers": len(self._containers),
            "connections": sum(container.connections for container in self._containers.values()),
            "in_flight": self._in_flight,
            "names": len(self._names),
        }

    # UDP

    def _drain(self, container: _Container) -> None:
        answer, view = self._names.answer, container.view
        for _ in range(DRAIN_MAX):
            try:
                data, client = _receive(container)
            except BlockingIOError:
                return
            except OSError as error:
                self._count("udp_errors", container, error)
                return
            self._counts["queries_udp"] += 1
            outcome = answer(view, data, random.getrandbits(32))
            if isinstance(outcome, bytes):
                self._send(container, outcome, client)
            elif isinstance(outcome, Rejected):
                self._counts["rejected_" + outcome.reason] += 1
                self._send(container, outcome.reply, client)
            elif self._admit(container):
                self._spawn(container, self._forward_udp, outcome.query, client, done=self._release)
            else:
                self._send(container, self._turn_away(container, outcome.query), client)

    def _send(self, container: _Container, reply: bytes, client: tuple[str, int]) -> None:
        if not reply:
            return
        try:
            container.udp.sendto(reply, client)
        except OSError as error:
            # Its buffer is full, or the container's own firewall says no: the client asks again.
            self._count("udp_errors", container, error)

    async def _forward_udp(self, container: _Container, query: Query, client: tuple[str, int]) -> None:
        self._send(container, await self._upstreams.ask(query, container.view.servers, tcp=False), client)

    # TCP

    def _accept(self, container: _Container) -> None:
        for _ in range(DRAIN_MAX):
            try:
                connection, _ = container.tcp.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._count("tcp_errors", container, error)
                if error.errno in _EXHAUSTED:
                    # It would be readable again at once, and again.
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(container.tcp)
                    loop.call_later(ACCEPT_PAUSE_S, self._accept_again, container)
                return
            if container.connections >= CONNECTIONS_MAX:
                self._counts["connections_refused"] += 1
                connection.close()
                continue
            connection.setblocking(False)
            container.connections += 1
            self._spawn(container, self._converse, connection, done=partial(self._hang_up, connection))

    def _accept_again(self, container: _Container) -> None:
        if self._containers.get(container.id) is container and not self._paused:
            asyncio.get_running_loop().add_reader(container.tcp, self._accept, container)

    def _hang_up(self, connection: socket.socket, container: _Container) -> None:
        connection.close()
        container.connections -= 1

    async def _converse(self, container: _Container, connection: socket.socket) -> None:
        """One query after the other until the client goes, falls silent or sends what deserves no reply."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_S):
                    data = await receive_message(connection, TCP_QUERY_MAX)
                reply = await self._answer_tcp(container, data)
                if not reply:
                    return
                async with asyncio.timeout(TCP_IDLE_S):
                    await loop.sock_sendall(connection, framed(reply))
        except EOFError:
            return
        except OSError as error:
            self._count("tcp_errors", container, error)

    async def _answer_tcp(self, container: _Container, data: bytes) -> bytes:
        self._counts["queries_tcp"] += 1
        outcome = self._names.answer(container.view, data, random.getrandbits(32), tcp=True)
        if isinstance(outcome, bytes):
            return outcome
        if isinstance(outcome, Forward):
            if not self._admit(container):
                return self._turn_away(container, outcome.query)
            try:
                return await self._upstreams.ask(outcome.query, container.view.servers, tcp=True)
            finally:
                self._release(container)
        self._counts["rejected_" + outcome.reason] += 1
        return outcome.reply

    # Forwarding

    def _admit(self, container: _Container) -> bool:
        """Whether one more may go outside; if so it is counted until :meth:`_release`."""
        if (
            self._in_flight >= forward.IN_FLIGHT_MAX
            or container.in_flight >= forward.IN_FLIGHT_PER_CONTAINER_MAX
            or not (self._upstreams or container.view.servers)
        ):
            self._counts["forwards_refused"] += 1
            return False
        self._counts["forwarded"] += 1
        self._in_flight += 1
        container.in_flight += 1
        return True

    def _turn_away(self, container: _Container, query: Query) -> bytes:
        """The reply where nobody will be asked."""
        anybody = self._upstreams or container.view.servers
        return forward.failure(query) if anybody else forward.nobody(query)

    def _release(self, container: _Container) -> None:
        self._in_flight -= 1
        container.in_flight -= 1

    # Tasks

    def _spawn(
        self,
        container: _Container,
        work: Callable[[_Container, *Arguments], Awaitable[None]],
        *arguments: *Arguments,
        done: Callable[[_Container], None],
    ) -> None:
        """Run ``work``, then ``done``, also where ``work`` was cancelled before it began."""
        task = self._tasks.create_task(self._contain(container, work, *arguments))
        container.tasks.add(task)

        def finish(task: asyncio.Task[None]) -> None:
            container.tasks.discard(task)
            done(container)

        task.add_done_callback(finish)

    async def _contain(
        self,
        container: _Container,
        work: Callable[[_Container, *Arguments], Awaitable[None]],
        *arguments: *Arguments,
    ) -> None:
        try:
            await work(container, *arguments)
        except Exception:  # a bug here must not let one container's query end the daemon
            self._counts["bugs"] += 1
            log.exception("dns query failed", container=container.id[:12])

    def _count(self, what: str, container: _Container, error: OSError) -> None:
        self._counts[what] += 1
        log.debug("dns socket failed", container=container.id[:12], what=what, error=str(error))


def _receive(container: _Container) -> tuple[bytes, tuple[str, int]]:
    """The next datagram and whom it is from. Raises OSError, BlockingIOError if there is none (any more)."""
    if container.misses is None:
        data, client = container.udp.recvfrom(UDP_QUERY_MAX + 1)
        return data, client
    message = container.misses.recv(CLIENT_OCTETS + UDP_QUERY_MAX + 1)
    if not message:
        raise BlockingIOError
    port = int.from_bytes(message[4:CLIENT_OCTETS], "big")
    return message[CLIENT_OCTETS:], (socket.inet_ntoa(message[:4]), port)

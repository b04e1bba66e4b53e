"""Asks the host's resolvers, from the daemon's own namespace. Whom, how long and what counts: core/names/forward."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Sequence

from vxnet.core.names import Query, forward
from vxnet.core.names.message import TCP_REPLY_MAX
from vxnet.model.address import IPAddress

DNS_PORT = 53
UDP_REPLY_MAX = 4096
"""Octets read of a reply: more than any client is promised, so that a longer one shows."""


class Upstreams:
    """Counts ``upstream_silent`` (by time or an error), ``upstream_refused`` and ``upstream_stray`` in ``counts``."""

    def __init__(self, port: int, counts: Counter[str]) -> None:
        self._port = port
        self._counts = counts
        self._addresses: tuple[IPAddress, ...] = ()
        self._silent: dict[IPAddress, float] = {}

    def __bool__(self) -> bool:
        return bool(self._addresses)

    def set(self, addresses: Sequence[IPAddress]) -> None:
        self._addresses = tuple(addresses)
        self._silent = {address: when for address, when in self._silent.items() if address in self._addresses}

    async def ask(self, query: Query, servers: Sequence[IPAddress] = (), *, tcp: bool) -> bytes:
        """The reply for the client: of the first that gives one, else that there is none. ``servers`` instead of the
        host's resolvers, if there are any."""
        ask = self._ask_tcp if tcp else self._ask_udp
        now = asyncio.get_running_loop().time
        for address in forward.order(tuple(servers) or self._addresses, self._silent, now()):
            try:
                async with asyncio.timeout(forward.TIMEOUT_S):
                    reply = await ask(address, query)
            except (OSError, EOFError):
                self._counts["upstream_silent"] += 1
                self._silent[address] = now()
                continue
            self._silent.pop(address, None)
            if reply is not None:
                return forward.relay(query, reply)
            self._counts["upstream_refused"] += 1
        return forward.failure(query)

    async def _ask_udp(self, address: IPAddress, query: Query) -> bytes | None:
        """Its reply; None if that says to ask somebody else."""
        loop = asyncio.get_running_loop()
        number = secrets.randbelow(1 << 16)
        with _open(address, socket.SOCK_DGRAM) as connection:
            # Connected: the kernel picks a random port and keeps away what others send to it.
            connection.connect((str(address), self._port))
            connection.send(forward.pack_query(query, number))
            while True:
                reply = await loop.sock_recv(connection, UDP_REPLY_MAX)
                verdict = forward.judge(query, number, reply)
                if verdict != "stray":
                    return reply if verdict == "good" else None
                self._counts["upstream_stray"] += 1

    async def _ask_tcp(self, address: IPAddress, query: Query) -> bytes | None:
        loop = asyncio.get_running_loop()
        number = secrets.randbelow(1 << 16)
        with _open(address, socket.SOCK_STREAM) as connection:
            await loop.sock_connect(connection, (str(address), self._port))
            await loop.sock_sendall(connection, framed(forward.pack_query(query, number)))
            while True:
                reply = await receive_message(connection, TCP_REPLY_MAX)
                verdict = forward.judge(query, number, reply)
                if verdict != "stray":
                    return reply if verdict == "good" else None
                self._counts["upstream_stray"] += 1


def _open(address: IPAddress, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def framed(message: bytes) -> bytes:
    """As it goes over TCP (RFC 1035 4.2.2)."""
    return len(message).to_bytes(2, "big") + message


async def receive_message(connection: socket.socket, size_max: int) -> bytes:
    """The next message of a TCP connection. Raises :class:`EOFError` at its end or if it is larger."""
    size = int.from_bytes(await _receive(connection, 2), "big")
    if size > size_max:
        raise EOFError
    return await _receive(connection, size)


async def _receive(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)

"""Ends of measurements on this host: each a process that lives for as long as somebody reads what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable

from aiohttp import web
from msgspec.structs import astuple, replace

from vxnet.cluster.api import read_record, stream_response, until_disconnect
from vxnet.daemon.config import UserspaceConfig
from vxnet.daemon.manager import Manager
from vxnet.daemon.membership import Membership
from vxnet.model.bench import BenchWish
from vxnet.model.codec import to_json
from vxnet.model.errors import NotFoundError

MODULE = "vxnet.tools.bench_end"
END_S = 5.0
"""For an end to take its devices away."""


async def end(wish: BenchWish, config: UserspaceConfig) -> AsyncGenerator[bytes, None]:
    """Its lines. It is over when this is closed."""
    queues, spin_us, virtual = astuple(config)
    wish = replace(wish, queues=queues, spin_us=spin_us, virtual_underlay=virtual)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        MODULE,
        to_json(wish).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        while line := await process.stdout.readline():
            yield line
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode:
            # It was killed, and its iperf3 servers are in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def routes(membership: Membership, own: Callable[[BenchWish], AsyncGenerator[bytes, None]]) -> list[web.RouteDef]:
    """``own``: an end on this host."""

    def lines(manager: Manager, node: str, wish: BenchWish) -> AsyncGenerator[bytes, None]:
        if node == manager.node_id:
            return own(wish)
        if node not in {one.id for one in manager.nodes()}:
            raise NotFoundError(f"there is no node {node}")
        return manager.services.errands.bench(node, wish)

    @until_disconnect
    async def bench(request: web.Request) -> web.StreamResponse:
        manager = membership.manager("bench")
        wish = await read_record(request, BenchWish)
        async with contextlib.aclosing(lines(manager, request.match_info["ref"], wish)) as pieces:
            return await stream_response(request, pieces, "application/x-ndjson")

    return [web.post("/v1/nodes/{ref}/bench", bench)]

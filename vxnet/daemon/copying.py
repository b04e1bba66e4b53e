"""``vxnet cp``: files of a container in and out as a tar stream, by a :mod:`vxnet.daemon.copier` in its mounts."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterable, AsyncIterator

from vxnet.cluster.failure import failure_from_json
from vxnet.model.errors import HostError

PIECE = 1 << 16


async def read_files(mounts: int, path: str, *, follow: bool) -> AsyncIterator[bytes]:
    """``mounts``: a descriptor of the namespace. Raises what :func:`vxnet.cluster.archive.pack` does; close it when the
    reader goes.
    """
    async with _copier("pack", mounts, path, follow) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdin.close()
        while piece := await process.stdout.read(PIECE):
            yield piece
        await _judge(process)


async def write_files(mounts: int, path: str, pieces: AsyncIterable[bytes], *, owners: bool) -> None:
    """Raises what :func:`vxnet.cluster.archive.unpack` does."""
    async with _copier("unpack", mounts, path, owners) as process:
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has refused, and says why
            async for piece in pieces:
                process.stdin.write(piece)
                await process.stdin.drain()
            process.stdin.close()
        await _judge(process)


@contextlib.asynccontextmanager
async def _copier(verb: str, mounts: int, path: str, flag: bool) -> AsyncIterator[Process]:
    words = ("-m", "vxnet.daemon.copier", verb, str(mounts), path, str(int(flag)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=PIPE, stdout=PIPE, stderr=PIPE, pass_fds=(mounts,)
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _judge(process: Process) -> None:
    assert process.stderr is not None
    said = await process.stderr.read()
    if await process.wait() == 0:
        return
    if said.startswith(b"{"):
        raise failure_from_json(500, said)
    last = said.decode(errors="replace").strip().splitlines()[-1:] or ["without a word"]
    raise HostError(f"the copying process ended: {last[0]}")

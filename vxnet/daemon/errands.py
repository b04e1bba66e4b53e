"""What a manager asks of a node for somebody who waits: the output of a task, or an end of a measurement.

::

     vxnet service logs ──> manager ── item "errand" in the node's assignment stream ──> node
                    <── lines ──┴── POST /v1/nodes/{node}/errands/{id}, the log as it is read ──┘

Nodes listen to managers and never the other way round, so the way back is a request of the node's. A node that follows
another manager hears it from that one, which is asked to say it (POST /v1/nodes/{node}/errands). An errand is said
once, to whoever follows at that moment, and is not kept anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from vxnet.core.assignment import item
from vxnet.daemon.mirror import Mirror
from vxnet.model.api import LogRequest
from vxnet.model.bench import BenchWish
from vxnet.model.errand import Errand
from vxnet.model.errors import NotFoundError, UnavailableError

BEGIN_S = 5.0
"""For a node to begin with its answer."""
PIECES = 16
"""Held for a reader who is slower than the node."""


async def _nobody(node: str, errand: Errand) -> bool:
    return False


class Errands:
    def __init__(self, own: str, mirror: Mirror, new_id: Callable[[], str]) -> None:
        """``own``: id of the manager, as a node."""
        self._own = own
        self._mirror = mirror
        self._new_id = new_id
        self._waiting: dict[str, _Waiting] = {}
        self.pass_on: Callable[[str, Errand], Awaitable[bool]] = _nobody
        """Has another manager say it, whom the node follows; whether there is one. The daemon sets it."""

    async def logs(self, node: str, task: str, request: LogRequest) -> AsyncGenerator[bytes, None]:
        """The log of a task in pieces, as its node reads it. Raises :class:`UnavailableError` if the node is not there
        to be asked, or does not begin in time.
        """
        async with contextlib.aclosing(
            self._ask(node, Errand(id=self._new_id(), manager=self._own, task=task, request=request))
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def bench(self, node: str, wish: BenchWish) -> AsyncGenerator[bytes, None]:
        """What its end of a measurement says, for as long as it is read. Raises as :meth:`logs`."""
        async with contextlib.aclosing(
            self._ask(node, Errand(id=self._new_id(), manager=self._own, bench=wish))
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def _ask(self, node: str, errand: Errand) -> AsyncGenerator[bytes, None]:
        waiting = self._waiting[errand.id] = _Waiting(node)
        try:
            if not (self.say(node, errand) or await self.pass_on(node, errand)):
                raise UnavailableError("its node follows no manager")
            try:
                async with asyncio.timeout(BEGIN_S):
                    piece = await waiting.next()
            except TimeoutError:
                raise UnavailableError("its node does not answer") from None
            while piece is not None:
                yield piece
                piece = await waiting.next()
        finally:
            del self._waiting[errand.id]
            waiting.over.set()

    def say(self, node: str, errand: Errand) -> bool:
        """To the node, if it follows this manager; whether it does."""
        return self._mirror.say(node, item("errand", errand.id, errand))

    async def deliver(self, node: str, id: str, pieces: AsyncIterator[bytes]) -> None:
        """What ``node`` brings. Raises :class:`NotFoundError` when nobody waits for it (any more)."""
        waiting = self._waiting.get(id)
        if waiting is None or waiting.node != node:
            raise NotFoundError("nobody waits for that")
        await waiting.pieces.put(b"")  # it has begun
        over = asyncio.ensure_future(waiting.over.wait())
        coming: asyncio.Future[Any] = over
        try:
            while not over.done():
                coming = asyncio.ensure_future(_pass_on(pieces, waiting.pieces))
                await asyncio.wait((coming, over), return_when=asyncio.FIRST_COMPLETED)
                if coming.done() and not coming.result():
                    return
            raise NotFoundError("nobody waits for that any more")
        except BaseException:
            waiting.tear()
            raise
        finally:
            for one in (over, coming):
                one.cancel()
            await asyncio.wait((over, coming))  # who closes the source must not meet its reader


class _Waiting:
    def __init__(self, node: str) -> None:
        self.node = node
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES)
        """None: that was all."""
        self.over = asyncio.Event()
        """The reader has gone."""
        self._torn = False

    async def next(self) -> bytes | None:
        """None: that was all. Raises :class:`UnavailableError` if it was not, and there comes no more."""
        if not (self._torn and self.pieces.empty()) and (piece := await self.pieces.get()) is not None:
            return piece
        if self._torn:
            raise UnavailableError("its node has gone in the middle of it")
        return None

    def tear(self) -> None:
        """Nothing comes any more, and it is not whole."""
        self._torn = True
        with contextlib.suppress(asyncio.QueueFull):  # then nobody is asleep
            self.pieces.put_nowait(None)


async def _pass_on(source: AsyncIterator[bytes], to: asyncio.Queue[bytes | None]) -> bool:
    """One piece; whether there may be more."""
    piece = await anext(source, None)
    await to.put(piece)
    return piece is not None

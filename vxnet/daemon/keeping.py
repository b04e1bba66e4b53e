"""What is remembered on disk while the daemon goes on: a disk that others keep busy syncs nothing for many seconds."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

import structlog

from vxnet.model.errors import HostError

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


async def in_thread(write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """``write`` to the disk, which takes many seconds when others keep it busy: names, gossip and containers go on.

    Whoever is cancelled waits for it to end, so that no file is written by two, nor comes back after it was forgotten.
    """
    writing = asyncio.get_running_loop().run_in_executor(None, functools.partial(write, *args, **kwargs))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        writing.exception()  # nobody asks for it
        raise


@contextlib.contextmanager
def or_later(what: str) -> Iterator[None]:
    """A full disk ends no daemon: what was to be kept is used, and written with the next change. A restart before that
    goes on from what is on disk, which is older and not wrong.
    """
    try:
        yield
    except HostError as error:
        log.error("not kept", what=what, error=str(error))


async def keep(
    what: str, save: Callable[[T], None], look: Callable[[], T], moved: Callable[[], Awaitable[None]]
) -> None:
    """Save what ``look`` returns whenever that is another than before; ``moved`` returns when it may be. What comes
    while one is written is written together.
    """
    kept = look()
    while True:
        now = look()
        if now != kept:
            with or_later(what):
                await in_thread(save, now)
                kept = now
                continue
        await moved()

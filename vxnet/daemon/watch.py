"""When the kernel is looked at although no wish changed.

    an event               → after 50 ms, what it is about       (a pause follows, so that noise costs a bounded share)
    each second            → what raises no events, read from files
    each half a minute     → everything                          (:mod:`vxnet.daemon.reconcile`)

vxnet's own changes raise events as well. The look at them finds nothing, changes nothing, and so raises none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from vxnet.daemon.reconcile import Reconciler
from vxnet.host.events import Look
from vxnet.host.tasks import readable
from vxnet.model.errors import VxnetError
from vxnet.model.host import HostState

DEBOUNCE_S = 0.05
"""What belongs together (a link and its rows) comes within a few milliseconds."""
PAUSE_S = 0.4
PAUSE_FACTOR = 10
"""Between two looks ``max(PAUSE_S, PAUSE_FACTOR * what the last one took)``, at most LONGEST_PAUSE_S: whoever changes
things without end makes vxnetd use a tenth of a core."""
LONGEST_PAUSE_S = 1.5
ECHO_S = 0.2
"""After a change of the wish: what comes then is most likely its echo, and waits LONGEST_PAUSE_S. So a hundred
containers that are started in a row make one look in 1.5 s and not one each."""
GLANCE_S = 1.0


class Events(Protocol):
    def fileno(self) -> int: ...

    def drain(self) -> Look | None: ...


class Kernel(Protocol):
    @property
    def events(self) -> Events: ...

    def is_intact(self, state: HostState) -> bool: ...


def loops(kernel: Kernel, reconciler: Reconciler[Any]) -> tuple[Coroutine[None, None, None], ...]:
    """To be run beside ``reconciler.run()``."""
    return _hear(kernel.events, reconciler), _glance(kernel.is_intact, reconciler)


async def _hear(events: Events, reconciler: Reconciler[Any]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await readable(events.fileno())
        await asyncio.sleep(DEBOUNCE_S if loop.time() - reconciler.worked_at > ECHO_S else LONGEST_PAUSE_S)
        look = events.drain()
        began = loop.time()
        if look is not None:
            await _look(reconciler, look)
        # Meanwhile events wait in the socket; if they are too many, that is told, and everything is looked at.
        await asyncio.sleep(min(max(PAUSE_S, PAUSE_FACTOR * (loop.time() - began)), LONGEST_PAUSE_S))


async def _glance(is_intact: Callable[[HostState], bool], reconciler: Reconciler[Any]) -> None:
    while True:
        await asyncio.sleep(GLANCE_S)
        state = reconciler.settled
        try:
            intact = state is None or await reconciler.call(is_intact, state)
        except VxnetError:
            intact = False
        if not intact:
            await _look(reconciler, Look(everything=True))


async def _look(reconciler: Reconciler[Any], where: Look) -> None:
    # What fails is logged by the reconciler, and tried again.
    with contextlib.suppress(VxnetError):
        await reconciler.look(where)

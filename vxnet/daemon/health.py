"""Health checks: a command run in the container again and again, whose exit status says how it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from vxnet.model.errors import ConflictError, VxnetError
from vxnet.model.service import HealthCheck

OUTPUT_SHOWN = 200
"""Octets of a failed check's words in the message."""

Execute = Callable[[], Awaitable[tuple[int, bytes]]]
"""Runs the check once: its exit status and output. Raises :class:`TimeoutError`, :class:`VxnetError`."""


async def watch_health(check: HealthCheck, execute: Execute, healthy: Callable[[], None], was_healthy: bool) -> str:
    """Returns when the container is unhealthy, with why; or empty when it has ended. ``healthy`` is called after the
    first success.

    Until then it looks every ``start_interval_s``, so that a container is of use as soon as it works; but a failure
    counts only once an interval, so that being quick to look makes nobody impatient.
    """
    clock = asyncio.get_running_loop().time
    begun = counted_at = clock()
    failures = 0
    while True:
        began = clock()
        try:
            why = await _once(check, execute)
        except ConflictError:
            return ""
        if not why:
            failures = 0
            if not was_healthy:
                was_healthy = True
                healthy()
        elif was_healthy or clock() - begun >= check.start_period_s:
            if was_healthy or clock() - counted_at >= check.interval_s:
                counted_at = clock()
                failures += 1
            if failures >= check.retries:
                return why
        else:
            counted_at = clock()
        pause_s = check.interval_s if was_healthy else min(check.start_interval_s, check.interval_s)
        await asyncio.sleep(max(began + pause_s - clock(), 0.0))


async def _once(check: HealthCheck, execute: Execute) -> str:
    """Why it failed; empty: it did not. Raises :class:`ConflictError` when the container has ended."""
    try:
        status, output = await execute()
    except TimeoutError:
        return f"unhealthy: the check took longer than {check.timeout_s:g} s"
    except ConflictError:
        raise
    except VxnetError as error:
        return f"unhealthy: {error.message}"
    if status == 0:
        return ""
    words = output[:OUTPUT_SHOWN].decode(errors="replace").strip()
    return f"unhealthy: the check ended with {status}" + (f" ({words})" if words else "")

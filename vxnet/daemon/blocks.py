"""Blocks of addresses of this host: asked for before they run out, given back when nobody uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

from vxnet.daemon.attachments import Attachments
from vxnet.daemon.membership import Membership
from vxnet.model.cluster import Lease
from vxnet.model.errors import VxnetError

log = structlog.get_logger()

LEASE_RETRY_S = 5.0
CHOSEN_IDLE_S = 0.1
"""From the lease of a chosen address to a container that has it is less."""
IDLE_S = 30.0
"""Between two looks for blocks of addresses that nobody uses."""


class Blocks:
    """:meth:`look` is called when containers or blocks may be others than before; it does not wait."""

    def __init__(self, membership: Membership, attachments: Attachments) -> None:
        self._membership = membership
        self._attachments = attachments
        self._short = asyncio.Event()
        self._idle = asyncio.Event()

    def look(self) -> None:
        self._short.set()
        self._idle.set()

    def loops(self) -> tuple[Coroutine[None, None, None], ...]:
        return self._ask_for_blocks(), self._return_chosen(), self._return_blocks()

    async def _ask_for_blocks(self) -> None:
        """Further addresses, before the last ones are taken."""
        while True:
            await self._short.wait()
            self._short.clear()
            refused = False
            for request in self._attachments.running_short():
                try:
                    await self._membership.lease(request)
                except VxnetError as error:
                    log.info("no further addresses yet", network=request.network, error=str(error))
                    refused = True
            if refused:
                await asyncio.sleep(LEASE_RETRY_S)

    async def _return_chosen(self) -> None:
        """An address that somebody chose goes back when its container is gone: it may be wanted on another host."""
        while True:
            await self._idle.wait()
            self._idle.clear()
            idle = self._attachments.idle_chosen()
            if not idle:
                continue
            await asyncio.sleep(CHOSEN_IDLE_S)
            idle &= self._attachments.idle_chosen()
            try:
                if self._membership.place is not None and idle:
                    await self._membership.place.release(idle)
            except VxnetError as error:
                log.info("addresses not given back yet", error=str(error))

    async def _return_blocks(self) -> None:
        """What was idle at two looks in a row goes back."""
        idle: set[Lease] = set()
        while True:
            await asyncio.sleep(IDLE_S)
            now_idle = set(self._attachments.idle())
            try:
                if self._membership.place is not None:
                    await self._membership.place.release(idle & now_idle)
            except VxnetError as error:
                log.info("blocks of addresses not given back", error=str(error))
            idle = now_idle

"""The agent's part of the local API that is about the managers' store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vxnet.daemon import moves
from vxnet.daemon.membership import Membership
from vxnet.model.cluster import Node
from vxnet.model.store import Backup, RestoreRequest, StoreWish


class StoreCommands:
    """``look`` looks at the host's addresses anew."""

    def __init__(self, membership: Membership, look: Callable[[], Awaitable[None]]) -> None:
        self._membership = membership
        self._look = look

    async def migrate(self, wish: StoreWish) -> None:
        await self._membership.migrate(wish)

    async def back_up(self) -> Backup:
        return await moves.back_up(self._membership.manager("store backup"))

    async def restore(self, request: RestoreRequest) -> Node:
        await self._look()
        return await self._membership.restore(request)

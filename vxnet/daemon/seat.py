"""A manager's seat on this host: taken while the node's role is manager, given up when it is worker again.

::

     role manager ──> how the store is reached (another manager tells) ──> the store ──> Manager, port 2377
          │                    ^ vxnet's own etcd: a member of it on this host
          └── role worker ──> all of that goes

Whatever fails is tried again; meanwhile the node is as a worker is, and says what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import structlog
from msgspec.structs import replace

from vxnet.cluster.etcd_store import EtcdStore
from vxnet.cluster.manager_api import serve_manager
from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.core import etcd_trust, trust
from vxnet.daemon.keeping import in_thread, or_later
from vxnet.daemon.manager import Manager
from vxnet.daemon.member import EtcdMember
from vxnet.daemon.state import StateDirectory
from vxnet.host.etcd import EtcdProcess
from vxnet.model.cluster import Node
from vxnet.model.errors import UnavailableError, VxnetError
from vxnet.model.store import StoreAccess

log = structlog.get_logger()

AGAIN_S = (0.2, 5.0)
OPEN_S = 30.0
LOOK_S = 0.05

Grant = Callable[[bytes], Awaitable[StoreAccess]]
"""Asks another manager how the store is reached, with a request for a certificate."""


class Seat:
    """``manager`` is there while it works; ``taken`` is called with it, before it does."""

    def __init__(self, state: StateDirectory, node: Node, manager: Manager | None = None) -> None:
        self.manager = manager
        self.trouble = ""
        """Why there is no manager although there should be one."""
        self._state = state
        self._node = node
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._reopen = asyncio.Event()

    @property
    def member(self) -> EtcdMember:
        return member_of(self._state, self._node)

    def want(self, wanted: bool) -> None:
        yes, no = (self._wanted, self._unwanted) if wanted else (self._unwanted, self._wanted)
        yes.set()
        no.clear()

    def reopen(self) -> None:
        """The store is another one now."""
        self._reopen.set()

    async def wait_open(self) -> None:
        """Until there is a manager again. Raises :class:`UnavailableError` if it takes too long."""
        try:
            async with asyncio.timeout(OPEN_S):
                while self.manager is None or self._reopen.is_set():
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise unreachable(self.trouble) from None

    async def run(
        self, grant: Grant, certified: Callable[[], Awaitable[None]], taken: Callable[[Manager], None]
    ) -> None:
        """``certified`` returns when this node's certificate is a manager's."""
        pause = AGAIN_S[0]
        while True:
            try:
                if self.manager is None:
                    if self._unwanted.is_set():
                        await self.give_up()
                    await self._wanted.wait()
                    await self._prepare(grant)
                    await certified()
                    self.manager = await open_manager(self._state, self._node.id)
                    log.info("this node is a manager")
                self.trouble, pause = "", AGAIN_S[0]
                taken(self.manager)
                await self._work(self.manager)
            except VxnetError as error:
                self.trouble = str(error)
                log.warning("no manager on this host", error=str(error))
                other = self._wanted if self._unwanted.is_set() else self._unwanted
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await other.wait()
                pause = min(pause * 2, AGAIN_S[1])
            finally:
                if self.manager is not None:
                    await self.manager.close()
                    self.manager = None

    async def give_up(self) -> None:
        """No way to the store stays on this host, nor a part of it."""
        access = self._state.store_access()
        if access is not None:
            if access.managed:
                await self.member.withdraw(access)
            self._state.forget_store()

    async def _prepare(self, grant: Grant) -> None:
        access = self._state.store_access()
        if access is None and not self._state.store_path.exists():
            key = etcd_trust.member_key(os.urandom(40))
            access = await grant(etcd_trust.member_csr(key))
            if access.managed:
                access = replace(access, key=etcd_trust.member_key_to_pem(key))
            await in_thread(self._state.save_store_access, access)
        if access is not None and access.managed:
            await self.member.ensure(access)

    async def _work(self, manager: Manager) -> None:
        """Until the role is another, the store is another, or the manager fails."""
        self._reopen.clear()
        async with contextlib.AsyncExitStack() as stack:
            ends = [asyncio.ensure_future(self._unwanted.wait()), asyncio.ensure_future(self._reopen.wait())]
            for end in ends:
                stack.callback(end.cancel)
            working = asyncio.ensure_future(self._run(manager))
            try:
                await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                working.cancel()
                await asyncio.wait({working})
            if not working.cancelled() and (error := working.exception()) is not None:
                raise error

    async def _run(self, manager: Manager) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(manager.run())
                group.create_task(serve_manager(manager, self._state, self._node.advertise_addr))
                if manager.access is not None and manager.access.managed and isinstance(manager.store, EtcdStore):
                    etcd = manager.store.etcd

                    async def learned(access: StoreAccess) -> None:
                        manager.access = access
                        with or_later("store access"):
                            await in_thread(self._state.save_store_access, access)

                    group.create_task(self.member.tend(etcd, manager, learned))
        except* VxnetError as errors:
            raise errors.exceptions[0] from None


def member_of(state: StateDirectory, node: Node) -> EtcdMember:
    return EtcdMember(EtcdProcess(state.etcd_path), node.name, node.advertise_addr, node.id)


async def open_manager(state: StateDirectory, node_id: str) -> Manager:
    """On the store that the state directory tells of. Raises what opening does."""
    access = state.store_access()
    certificate_pem, key_pem = state.credentials()
    store = await (EtcdStore.open(access, node_id) if access is not None else SqliteStore.open(state.store_path))
    try:
        manager = await Manager.open(
            store,
            node_id=node_id,
            key=trust.key_from_pem(key_pem),
            certificate=trust.certificate_from_pem(certificate_pem),
        )
    except BaseException:
        await store.close()
        raise
    manager.access = access
    return manager


def unreachable(trouble: str) -> UnavailableError:
    return UnavailableError(
        f"this manager does not reach the store: {trouble or 'it has just started'}",
        hint="what runs goes on; try again, or on another manager",
    )

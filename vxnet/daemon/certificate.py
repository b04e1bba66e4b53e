"""This node's certificate: renewed at half its life, and as soon as the node has another role."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.core import trust
from vxnet.daemon.keeping import in_thread, or_later
from vxnet.daemon.state import StateDirectory
from vxnet.model.cluster import Node
from vxnet.model.errors import VxnetError

log = structlog.get_logger()

RENEWAL_RETRY_S = 600.0
ROLE_RETRY_S = 1.0
"""A node whose certificate does not say its role waits for it."""
CLOCK_S = 600.0
"""How late a clock that was set (at boot it may be years off) is noticed."""


class NodeCertificate:
    """``renew`` asks a manager for one, ``use`` has it used everywhere; both may raise."""

    def __init__(
        self,
        state: StateDirectory,
        node: Callable[[], Node],
        renew: Callable[[bytes], Awaitable[bytes]],
        use: Callable[[bytes], Awaitable[None]],
    ) -> None:
        certificate_pem, key_pem = state.credentials()
        self.key: Ed25519PrivateKey = trust.key_from_pem(key_pem)
        self.key_pem = key_pem
        self.der = trust.certificate_from_pem(certificate_pem)
        self._state = state
        self._node = node
        self._renew = renew
        self._use = use
        self._moved = asyncio.Event()
        """Set, and replaced, whenever role or certificate may be others."""

    def look(self) -> None:
        """The role may be another."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait_manager(self) -> None:
        """Until this certificate is a manager's, which others ask for."""
        while trust.role_of(self.der) != "manager":
            await self._moved.wait()

    async def run(self) -> None:
        while True:
            wait_s = trust.renewal_time(self.der) - time.time()
            if wait_s > 0 and trust.role_of(self.der) == self._node().role:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait_s, CLOCK_S)):
                        await self._moved.wait()
                continue
            try:
                await self._replace(await self._renew(trust.make_csr(self.key, self._node().name)))
                log.info("certificate renewed")
                if trust.role_of(self.der) != self._node().role:
                    await asyncio.sleep(ROLE_RETRY_S)  # that manager has not heard of it yet
            except VxnetError as error:
                log.warning("certificate not renewed", error=str(error))
                await asyncio.sleep(RENEWAL_RETRY_S if wait_s <= 0 else ROLE_RETRY_S)

    async def _replace(self, certificate: bytes) -> None:
        """Raises what the store does, on a manager: then it is not in use everywhere, and another is to be had."""
        with or_later("certificate"):
            await in_thread(self._state.save_credentials, trust.certificate_to_pem(certificate))
        await self._use(certificate)
        self.der = certificate
        self.look()

"""This node's certificate: renewed at half its life, and when role or address are others, or another CA signs."""

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
from vxnet.model.cluster import Node, Role
from vxnet.model.errors import UnavailableError, VxnetError

log = structlog.get_logger()

RETRY_S = (5.0, 600.0)
"""After the first refusal, and at most: it doubles."""
SOON_S = 1.0
"""A node whose certificate does not say its role waits for it."""
CLOCK_S = 600.0
"""How late a clock that was set (at boot it may be years off) is noticed."""


class NodeCertificate:
    """``holder`` tells the node and the roots that it trusts, the CA that signs first. ``renew`` asks
    a manager for a certificate, ``use`` has it used everywhere; both may raise.
    """

    def __init__(
        self,
        state: StateDirectory,
        holder: Callable[[], tuple[Node, tuple[bytes, ...]]],
        renew: Callable[[bytes], Awaitable[bytes]],
        use: Callable[[bytes], Awaitable[None]],
    ) -> None:
        certificate_pem, key_pem = state.credentials()
        self.key: Ed25519PrivateKey = trust.key_from_pem(key_pem)
        self.key_pem = key_pem
        self.der = trust.certificate_from_pem(certificate_pem)
        self._state = state
        self._holder = holder
        self._renew = renew
        self._use = use
        self._moved = asyncio.Event()
        """Set, and replaced, whenever role, roots or certificate are others."""
        self._seen: tuple[Role, tuple[bytes, ...]] | None = None

    def look(self) -> None:
        """Role or roots may be others: then a certificate is asked for without a pause."""
        node, roots = self._holder()
        if self._seen != (node.role, roots):
            self._seen = (node.role, roots)
            self._stir()

    def _stir(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait_manager(self) -> None:
        """Until this certificate is a manager's, which others ask for."""
        while trust.role_of(self.der) != "manager":
            await self._moved.wait()

    def authorities(self) -> tuple[str, ...]:
        """Digests of the roots, its own first: what the managers are told."""
        _, roots = self._holder()
        issuer = trust.issuer(self.der, roots)
        return tuple(trust.certificate_digest(root) for root in sorted(roots, key=lambda root: root != issuer))

    async def run(self) -> None:
        pause = RETRY_S[0]
        while True:
            wait_s = trust.renewal_time(self.der) - time.time()
            if wait_s > 0 and self._says_what_it_should():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait_s, CLOCK_S)):
                        await self._moved.wait()
                continue
            moved = self._moved
            try:
                renewed = await self._renew(trust.make_csr(self.key, self._holder()[0].name))
                self._check_issuer(renewed)
                await self._replace(renewed)
                log.info("certificate renewed")
                pause = RETRY_S[0]
                if not self._says_what_it_should():
                    await asyncio.sleep(SOON_S)  # that manager has not heard of it yet
            except VxnetError as error:
                log.warning("certificate not renewed", error=str(error))
                rest_s = SOON_S if trust.role_of(self.der) != self._holder()[0].role else pause
                pause = min(pause * 2, RETRY_S[1])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await moved.wait()
                        pause = RETRY_S[0]

    def _says_what_it_should(self) -> bool:
        node, roots = self._holder()
        return (
            trust.role_of(self.der) == node.role
            and trust.addresses(self.der) == {node.advertise_addr, node.data_path_addr}
            and trust.issuer(self.der, roots[:1]) is not None
        )

    def _check_issuer(self, certificate: bytes) -> None:
        """Raises :class:`UnavailableError` on a step back to the CA before: the managers count on this node's having
        left it, and end that CA. One that was cut off from the store knows of none of this, and signs as before.
        """
        _, roots = self._holder()
        if trust.issuer(self.der, roots[:1]) is not None and trust.issuer(certificate, roots[:1]) is None:
            raise UnavailableError(
                "a manager signs with a CA that another has taken the place of",
                hint="it will know in a moment, if it reaches the store",
            )

    async def _replace(self, certificate: bytes) -> None:
        """Raises what the store does, on a manager: then it is not in use everywhere, and another is to be had."""
        with or_later("certificate"):
            await in_thread(self._state.save_credentials, trust.certificate_to_pem(certificate))
        await self._use(certificate)
        self.der = certificate
        self._stir()

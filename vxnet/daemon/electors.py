"""Who has a way to the managers' etcd: certificates for it are granted and revoked, members of it dismissed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from vxnet.core import decisions, electorate, etcd_trust, trust
from vxnet.daemon.commits import Commits
from vxnet.daemon.mirror import Mirror
from vxnet.model.cluster import Node
from vxnet.model.errors import ForbiddenError
from vxnet.model.store import StoreAccess, StoreMember

log = structlog.get_logger(__name__)


class Electors:
    """``access``: how a manager reaches the store, if several can. What commits raises what the store does."""

    def __init__(
        self, mirror: Mirror, commits: Commits, entropy: Callable[[int], bytes], now: Callable[[], float]
    ) -> None:
        self.access: StoreAccess | None = None
        self._mirror = mirror
        self._commits = commits
        self._entropy = entropy
        self._now = now
        self._patience = electorate.Patience()
        self._stuck: frozenset[int] = frozenset()

    @property
    def is_managed(self) -> bool:
        return self.access is not None and self.access.managed

    async def grant(self, node_id: str, csr: bytes) -> StoreAccess:
        """How ``node_id``, a manager, reaches the store; ``csr`` is for a key of its own, if vxnet runs the store.
        Raises :class:`ForbiddenError` if it is none.
        """
        node = decisions.member(self._mirror.wishes, node_id)
        if node.role != "manager" or self.access is None:
            raise ForbiddenError(f"node {node.name} is a worker: the managers' store is not for it")
        ca = self._mirror.wishes.etcd_ca
        if not self.is_managed or ca is None:
            return self.access
        addresses = etcd_trust.member_addresses(node.advertise_addr, node.data_path_addr)
        certificate = etcd_trust.issue_member(ca, csr, node.name, addresses, self._entropy(8), self._now())
        await self._admit(node, certificate)
        return replace(
            self.access, certificate=trust.certificate_to_pem(certificate), key=b"", revoked=self.revocations() or b""
        )

    async def introduce(self, node: Node) -> None:
        """This host's own certificate is known to the others: so that it can be revoked."""
        if self.access is not None and self.is_managed:
            await self._admit(node, trust.certificate_from_pem(self.access.certificate))

    def revocations(self) -> bytes | None:
        """The list for etcd, DER, signed now; None: the store has no CA for it."""
        wishes = self._mirror.wishes
        if wishes.etcd_ca is None:
            return None
        return etcd_trust.make_crl(wishes.etcd_ca, electorate.revoked(wishes), self._now())

    def revoked(self) -> frozenset[int]:
        return electorate.revoked(self._mirror.wishes)

    def is_due(self, members: Sequence[StoreMember], alive: Callable[[str], bool]) -> bool:
        """Whether the leader seems to have something to do: to be asked again and again, with any list of members."""
        wishes = self._mirror.wishes
        self._stuck = self._patience.look(members, wishes.nodes.values(), alive, time.monotonic())
        return (
            bool(electorate.settle(wishes, members)[1])
            or electorate.dismiss(wishes, members, self._stuck)[1] is not None
        )

    async def dismiss(self, members: Sequence[StoreMember]) -> int | None:
        """The leader's part: what was carried out is settled, and the member told that etcd is to remove now.
        ``members`` must be the list as it is.
        """
        before = self.revoked()
        await self._commits.decide_as_leader(lambda wishes: electorate.settle(wishes, members))
        if fresh := self.revoked() - before:
            log.info("certificates for etcd revoked", numbers=[f"{one:x}" for one in fresh])
        return await self._commits.decide_as_leader(lambda wishes: electorate.dismiss(wishes, members, self._stuck))

    async def _admit(self, node: Node, certificate: bytes) -> None:
        serial = etcd_trust.serial_of(certificate)
        await self._commits.decide(lambda wishes: electorate.admit(wishes, node, serial))

"""The etcd member on a manager's host, where vxnet runs the store itself.

::

    nothing ──> learner ──> voter          the host becomes a manager
    voter ──> removed by the leader ──> nothing left        … and ceases to be one

Level-triggered, as everything: what etcd says of its members is compared with which nodes are managers. Who is to be
removed, and whose certificate is to be revoked, :mod:`vxnet.core.electorate` decides; the store's record of this node
is asked before it takes part, whatever this host has heard.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection

import structlog
from msgspec.structs import replace

from vxnet.cluster.etcd import Etcd
from vxnet.cluster.etcd_members import (
    add_learner,
    members_of,
    node_of,
    promote_learner,
    remove_member,
    settled_members_of,
)
from vxnet.core import electorate, etcd_trust, trust
from vxnet.daemon.manager import Manager
from vxnet.host import etcd as host_etcd
from vxnet.host.connections import cut_others
from vxnet.host.etcd import EtcdProcess
from vxnet.model.address import IPAddress
from vxnet.model.errors import ConflictError, HostError, UnavailableError, VxnetError
from vxnet.model.store import CLIENT_PORT, PEER_PORT, StoreAccess, StoreMember, etcd_url

log = structlog.get_logger()

LOOK_S = 0.5
READY_S = 30.0
WITHDRAW_S = 10.0


class EtcdMember:
    """``node_id`` is this host's; there is none yet where etcd is founded."""

    def __init__(self, process: EtcdProcess, name: str, address: IPAddress, node_id: str = "") -> None:
        self._process = process
        self._name = name
        self._address = str(address)
        self._node_id = node_id

    @property
    def endpoint(self) -> str:
        return etcd_url(self._address, CLIENT_PORT)

    @property
    def _peer_url(self) -> str:
        return etcd_url(self._address, PEER_PORT)

    async def found(self, ca: trust.CertificateAuthority, addresses: Collection[IPAddress]) -> StoreAccess:
        """The first member of a new etcd. Raises :class:`HostError`."""
        key = etcd_trust.member_key(os.urandom(40))
        csr = etcd_trust.member_csr(key)
        certificate = etcd_trust.issue_member(ca, csr, self._name, [*addresses], os.urandom(8), time.time())
        access = StoreAccess(
            endpoints=(self.endpoint,),
            names={self.endpoint: self._name},
            ca=trust.certificate_to_pem(ca.certificate),
            certificate=trust.certificate_to_pem(certificate),
            key=etcd_trust.member_key_to_pem(key),
            revoked=etcd_trust.make_crl(ca, (), time.time()),
            managed=True,
        )
        await self._start(access, {self._name: self._peer_url}, new=True)
        await self._wait_ready(access)
        return access

    async def start_alone(self, access: StoreAccess) -> StoreAccess:
        """With what it has, as the only member: the others are lost for good. Raises :class:`HostError`, and
        :class:`ConflictError` if it never had a vote: etcd makes none of those the only one.
        """
        own = await self._own_word(access)
        if own is not None and own.learner:
            raise ConflictError(
                "this host's member of etcd has not heard that it has a vote, and cannot go on alone",
                hint="bring another manager back, or `vxnet store restore` a backup",
            )
        alone = replace(access, endpoints=(self.endpoint,), names={self.endpoint: self._name})
        await asyncio.to_thread(self._process.stop)
        await self._start(alone, {self._name: self._peer_url}, new=False, alone=True)
        await self._wait_ready(alone)
        # Not so at the next start: that would throw out who has joined meanwhile.
        await asyncio.to_thread(self._process.stop)
        await self._start(alone, {self._name: self._peer_url}, new=False)
        await self._wait_ready(alone)
        return alone

    async def ensure(self, access: StoreAccess) -> None:
        """It runs, and is a member, and lets nobody in whose certificate was revoked. Raises what is in the way; then
        it is to be tried again.
        """
        if await asyncio.to_thread(self._process.pid) is not None:
            if not access.revoked or await asyncio.to_thread(self._process.refuses):
                return
            log.info("etcd is started again: it knows no revoked certificates", name=self._name)
            await asyncio.to_thread(self._process.stop)
        etcd = Etcd(access)
        try:
            if self._process.has_data:
                try:
                    known = self._own(await members_of(etcd)) is not None
                except UnavailableError:
                    known = True  # it may be the one that is missing
                if known or not await self._is_out(etcd):
                    await self._start(access, {self._name: self._peer_url}, new=False)
                    return
                log.warning("this etcd member was taken out; it begins anew")
                await asyncio.to_thread(self._process.wipe)
            if self._own(await members_of(etcd)) is None:
                await self._check_manager(etcd)
                await add_learner(etcd, self._peer_url)
                log.info("etcd member added", name=self._name)
            members = {
                self._name if self._peer_url in one.peers else one.name or f"member{number}": one.peers[0]
                for number, one in enumerate(await members_of(etcd))
            }
            await self._start(access, members, new=False)
        finally:
            await etcd.close()

    async def tend(self, etcd: Etcd, manager: Manager, learned: Callable[[StoreAccess], Awaitable[None]]) -> None:
        """As long as this host is a manager. ``learned`` keeps how the store is reached."""
        refused: frozenset[int] | None = None
        while True:
            try:
                if refused != (revoked := manager.electors.revoked()):
                    await self._refuse(manager, learned)
                    refused = revoked
                assert manager.access is not None
                await self.ensure(replace(etcd.access, revoked=manager.access.revoked))
                members = await members_of(etcd)
                await self._take_part(etcd, members)
                await self._learn(etcd, members, manager, learned)
                if manager.leader == manager.node_id and manager.electors.is_due(members, manager.alive):
                    await self._dismiss(etcd, manager)
            except VxnetError as error:
                log.debug("etcd members not looked after", error=str(error))
            await asyncio.sleep(LOOK_S)

    async def withdraw(self, access: StoreAccess) -> None:
        """Out of the members, and nothing left on this host. Who cannot be told finds out by the leader."""
        etcd = Etcd(access)
        deadline = time.monotonic() + WITHDRAW_S
        try:
            while time.monotonic() < deadline:
                try:
                    members = await members_of(etcd)
                    own = self._own(members)
                    if own is None or len(members) == 1:
                        break
                    await remove_member(etcd, own.id)
                    log.info("etcd member removed", name=self._name)
                    break
                except VxnetError as error:
                    log.debug("etcd member not removed", error=str(error))
                    await asyncio.sleep(LOOK_S)
        finally:
            await etcd.close()
        await asyncio.to_thread(self._process.stop)
        await asyncio.to_thread(self._process.wipe)

    # Parts

    def _own(self, members: Collection[StoreMember]) -> StoreMember | None:
        return next((one for one in members if self._peer_url in one.peers), None)

    async def _own_word(self, access: StoreAccess) -> StoreMember | None:
        """What this host's member has heard of itself; None also if it does not answer."""
        etcd = Etcd(replace(access, endpoints=(self.endpoint,), names={self.endpoint: self._name}))
        try:
            return self._own(await members_of(etcd))
        except UnavailableError:
            return None
        finally:
            await etcd.close()

    async def _is_out(self, etcd: Etcd) -> bool:
        """A voter that begins anew has forgotten what it acknowledged."""
        try:
            return self._own(await settled_members_of(etcd)) is None
        except UnavailableError:
            return False

    async def _check_manager(self, etcd: Etcd) -> None:
        """Raises :class:`ConflictError` where this node is to have no part in etcd (any more)."""
        node = await node_of(etcd, self._node_id)
        if node is None or node.role != "manager":
            raise ConflictError("this node is no manager any more: etcd is not for it")

    async def _start(self, access: StoreAccess, members: dict[str, str], *, new: bool, alone: bool = False) -> None:
        arguments = host_etcd.argv(
            self._process.directory, self._name, self._address, members, new=new, token="vxnet",
            listed=bool(access.revoked),
        )  # fmt: skip
        flags = ["--force-new-cluster"] if alone else []
        await asyncio.to_thread(self._process.prepare, access.ca, access.certificate, access.key, access.revoked)
        await asyncio.to_thread(self._process.start, [*arguments, *flags])

    async def _wait_ready(self, access: StoreAccess) -> None:
        etcd = Etcd(access)
        deadline = time.monotonic() + READY_S
        try:
            while True:
                try:
                    await etcd.call("/v3/kv/range", {"key": b"vxnet"}, dict, within_s=1.0)
                    return
                except UnavailableError:
                    if time.monotonic() > deadline or await asyncio.to_thread(self._process.pid) is None:
                        words = self._process.last_words()
                        raise HostError(f"etcd does not start on this host: {words or 'it said nothing'}") from None
        finally:
            await etcd.close()

    async def _take_part(self, etcd: Etcd, members: Collection[StoreMember]) -> None:
        own = self._own(members)
        if own is not None and own.learner:
            await self._check_manager(etcd)
            await promote_learner(etcd, own.id)
            log.info("etcd member has a vote", name=self._name)

    async def _learn(
        self,
        etcd: Etcd,
        members: Collection[StoreMember],
        manager: Manager,
        learned: Callable[[StoreAccess], Awaitable[None]],
    ) -> None:
        places = electorate.places(members, manager.nodes(), self.endpoint)
        if places is not None and places != (etcd.access.endpoints, etcd.access.names):
            assert manager.access is not None
            if self.endpoint in places[0] and self.endpoint not in etcd.access.endpoints:
                # Others know of its vote first. A member that has not heard of it cannot go on alone.
                own = await self._own_word(manager.access)
                if own is None or own.learner:
                    return
            etcd.use(*places)
            await learned(replace(manager.access, endpoints=places[0], names=places[1]))
            log.info("etcd members known", members=", ".join(etcd.name(place) for place in places[0]))

    async def _refuse(self, manager: Manager, learned: Callable[[StoreAccess], Awaitable[None]]) -> None:
        """Certificates that were revoked open this host's member no more, and what they had open ends: etcd looks at a
        certificate once, when a connection begins.
        """
        listed = manager.electors.revocations()
        if listed is not None and manager.access is not None:
            await asyncio.to_thread(self._process.refuse, listed)
            await learned(replace(manager.access, revoked=listed))
            hosts = {
                one
                for node in manager.nodes()
                for one in (node.advertise_addr, node.data_path_addr)
                if node.role == "manager"
            }
            try:
                if cut := await asyncio.to_thread(cut_others, (CLIENT_PORT, PEER_PORT), hosts):
                    log.info("connections to etcd ended, which are of no manager", count=cut)
            except HostError as error:
                log.warning("connections of removed managers to etcd stay until they end", error=str(error))

    async def _dismiss(self, etcd: Etcd, manager: Manager) -> None:
        members = await settled_members_of(etcd)
        id = await manager.electors.dismiss(members)
        if id is not None:
            await remove_member(etcd, id)
            log.info("etcd member removed", name=next((one.name for one in members if one.id == id), "") or f"{id:x}")

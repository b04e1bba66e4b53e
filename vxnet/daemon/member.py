"""The etcd member on a manager's host, where vxnet runs the store itself.

::

    nothing ──> learner ──> voter          the host becomes a manager
    voter ──> removed by the leader ──> nothing left        … and ceases to be one

Level-triggered, as everything: what etcd says of its members is compared with which nodes are managers.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection

import structlog
from msgspec.structs import replace

from vxnet.cluster.etcd import Etcd, EtcdError
from vxnet.cluster.etcd_members import Member, add_learner, members_of, promote_learner, remove_member
from vxnet.core import etcd_trust, trust
from vxnet.host import etcd as host_etcd
from vxnet.host.etcd import CLIENT_PORT, PEER_PORT, EtcdProcess
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Node
from vxnet.model.errors import ConflictError, HostError, UnavailableError, VxnetError
from vxnet.model.store import StoreAccess

log = structlog.get_logger()

LOOK_S = 0.5
READY_S = 30.0
STUCK_S = 30.0
"""A learner whose host is away for so long is taken out: etcd has room for one at a time."""
WITHDRAW_S = 10.0


class EtcdMember:
    def __init__(self, process: EtcdProcess, name: str, address: IPAddress) -> None:
        self._process = process
        self._name = name
        self._address = str(address)
        self._stuck: dict[int, float] = {}

    @property
    def endpoint(self) -> str:
        return host_etcd.url(self._address, CLIENT_PORT)

    @property
    def _peer_url(self) -> str:
        return host_etcd.url(self._address, PEER_PORT)

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
            managed=True,
        )
        await self._start(access, {self._name: self._peer_url}, new=True)
        await self._wait_ready(access)
        return access

    async def start_alone(self, access: StoreAccess) -> StoreAccess:
        """With what it has, as the only member: the others are lost for good. Raises :class:`HostError`, and
        :class:`ConflictError` if it never had a vote: etcd makes none of those the only one.
        """
        alone = replace(access, endpoints=(self.endpoint,), names={self.endpoint: self._name})
        if await self._is_learner(alone):
            raise ConflictError(
                "this host's member of etcd has not heard that it has a vote, and cannot go on alone",
                hint="bring another manager back, or `vxnet store restore` a backup",
            )
        await asyncio.to_thread(self._process.stop)
        await self._start(alone, {self._name: self._peer_url}, new=False, alone=True)
        await self._wait_ready(alone)
        # Not so at the next start: that would throw out who has joined meanwhile.
        await asyncio.to_thread(self._process.stop)
        await self._start(alone, {self._name: self._peer_url}, new=False)
        await self._wait_ready(alone)
        return alone

    async def _is_learner(self, alone: StoreAccess) -> bool:
        """By its own word; False also if it does not run."""
        etcd = Etcd(alone)
        try:
            own = self._own(await members_of(etcd))
        except UnavailableError:
            return False
        finally:
            await etcd.close()
        return own is not None and own.learner

    async def ensure(self, access: StoreAccess) -> None:
        """It runs, and is a member. Raises what is in the way; then it is to be tried again."""
        if await asyncio.to_thread(self._process.pid) is not None:
            return
        etcd = Etcd(access)
        try:
            if self._process.has_data:
                try:
                    known = self._own(await members_of(etcd)) is not None
                except UnavailableError:
                    known = True  # it may be the one that is missing
                if known or not await self._is_out(access):
                    await self._start(access, {self._name: self._peer_url}, new=False)
                    return
                log.warning("this etcd member was taken out; it begins anew")
                await asyncio.to_thread(self._process.wipe)
            if self._own(await members_of(etcd)) is None:
                await add_learner(etcd, self._peer_url)
                log.info("etcd member added", name=self._name)
            members = {
                self._name if self._peer_url in one.peers else one.name or f"member{number}": one.peers[0]
                for number, one in enumerate(await members_of(etcd))
            }
            await self._start(access, members, new=False)
        finally:
            await etcd.close()

    async def tend(
        self,
        etcd: Etcd,
        nodes: Callable[[], Collection[Node]],
        leads: Callable[[], bool],
        alive: Callable[[str], bool],
        learned: Callable[[StoreAccess], Awaitable[None]],
    ) -> None:
        """As long as this host is a manager. ``learned`` keeps where the members are."""
        while True:
            try:
                await self.ensure(etcd.access)
                members = await members_of(etcd)
                await self._take_part(etcd, members)
                await self._learn(etcd, members, nodes(), learned)
                if leads():
                    await self._tidy(etcd, members, nodes(), alive)
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

    def _own(self, members: Collection[Member]) -> Member | None:
        return next((one for one in members if self._peer_url in one.peers), None)

    async def _is_out(self, access: StoreAccess) -> bool:
        """By the word of one that has just been in touch with most of the others. Any member tells who they are, also
        one that is late or cut off; and a voter that begins anew has forgotten what it acknowledged.
        """
        for endpoint in access.endpoints:
            etcd = Etcd(replace(access, endpoints=(endpoint,)))
            try:
                await etcd.call("/v3/kv/range", {"key": b"vxnet"}, dict, within_s=1.0)
                return self._own(await members_of(etcd)) is None
            except (EtcdError, VxnetError) as error:
                log.debug("etcd member not asked", endpoint=endpoint, error=str(error))
            finally:
                await etcd.close()
        return False

    async def _start(self, access: StoreAccess, members: dict[str, str], *, new: bool, alone: bool = False) -> None:
        arguments = host_etcd.argv(self._process.directory, self._name, self._address, members, new=new, token="vxnet")
        flags = ["--force-new-cluster"] if alone else []
        await asyncio.to_thread(self._process.prepare, access.ca, access.certificate, access.key)
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

    async def _take_part(self, etcd: Etcd, members: Collection[Member]) -> None:
        own = self._own(members)
        if own is not None and own.learner:
            await promote_learner(etcd, own.id)
            log.info("etcd member has a vote", name=self._name)

    async def _learn(
        self,
        etcd: Etcd,
        members: Collection[Member],
        nodes: Collection[Node],
        learned: Callable[[StoreAccess], Awaitable[None]],
    ) -> None:
        hosts = {host_etcd.url(str(node.advertise_addr), CLIENT_PORT): node.name for node in nodes}
        places = [one.clients[0] for one in members if one.clients and not one.learner]
        places.sort(key=lambda place: (place != self.endpoint, place))
        names = {place: hosts[place] for place in places if place in hosts}
        if places and (tuple(places) != etcd.access.endpoints or names != etcd.access.names):
            etcd.use(places, names)
            await learned(etcd.access)
            log.info("etcd members known", members=", ".join(etcd.name(place) for place in places))

    async def _tidy(
        self, etcd: Etcd, members: Collection[Member], nodes: Collection[Node], alive: Callable[[str], bool]
    ) -> None:
        """The leader's part: members of hosts that are no managers (any more), and learners that nobody starts."""
        managers = {
            host_etcd.url(str(node.advertise_addr), PEER_PORT): node for node in nodes if node.role == "manager"
        }
        for one in members:
            node = next((managers[place] for place in one.peers if place in managers), None)
            stuck = node is not None and one.learner and not alive(node.id)
            since = self._stuck.setdefault(one.id, time.monotonic()) if stuck else time.monotonic()
            if not stuck:
                self._stuck.pop(one.id, None)
            if node is None or time.monotonic() - since > STUCK_S:
                await remove_member(etcd, one.id)
                log.info("etcd member removed", name=one.name or one.peers)
                return

"""A place in a cluster, taken: the loops that run as long as this host is a member.

::

      assignments ──> networks, blocks, keys, roots ──┐
                                                      └──> changed()
      gossip <── publish(endpoints)     gossip ──> rows, members ──> told()

On a manager the assignments come from the manager in this process, elsewhere over 2377. Everything else is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import structlog
from msgspec.structs import replace

from vxnet.cluster.control import ManagerClient
from vxnet.cluster.gossip import Gossip
from vxnet.cluster.journal import Journal
from vxnet.core import assignment as assignments
from vxnet.core import trust
from vxnet.core.applied import Acknowledgements
from vxnet.core.facts import Facts
from vxnet.core.members import Member
from vxnet.core.timing import LAN, PROFILES
from vxnet.daemon import words
from vxnet.daemon.absences import Absences
from vxnet.daemon.certificate import NodeCertificate
from vxnet.daemon.keeping import in_thread, keep, or_later
from vxnet.daemon.manager import Manager
from vxnet.daemon.managers import Here, Managers, node_report
from vxnet.daemon.seat import Seat, open_manager
from vxnet.daemon.state import LastMembers, LocalNode, StateDirectory
from vxnet.model.address import IPAddress
from vxnet.model.api import LeaseRequest, NodeReport, TaskReport
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import GOSSIP_PORT, Lease, Network
from vxnet.model.errand import Errand
from vxnet.model.errors import ForbiddenError, HostError, VxnetError
from vxnet.model.host import HostFacts
from vxnet.model.row import Applied, Endpoint, Gateway

OwnRows = Mapping[tuple[str, str], Endpoint | Gateway]
"""By kind and id."""
log = structlog.get_logger()

GOODBYE_S = 2.0
"""For the news of a leave to get out."""
RETRY_S = 5.0
"""After a manager refused or was not there."""
PORT_RETRY_S = 2.0
SYNC_S = 0.5
"""From meeting a member to having its table: a push/pull over TCP and what follows from it."""
KNOWN_S = 0.5
"""Longest that a container's start waits for the others. It takes 20 ms, which the making of its sandbox hides; a
daemon that hangs is waited for until it counts as dead."""
FOLLOW_AGAIN_S = 0.2


class Place:
    """Made by :meth:`open`; lives while :meth:`run` runs."""

    def __init__(
        self,
        state: StateDirectory,
        local: LocalNode,
        assignment: Assignment,
        manager: Manager | None,
        facts: Callable[[], HostFacts],
        changed: Callable[[], None],
        told: Callable[[], None] = lambda: None,
        errand: Callable[[Errand], None] = lambda errand: None,
    ) -> None:
        self.node = local.node
        self.seat = Seat(state, local.node, manager)
        self.assignment = assignment
        self.networks: dict[str, Network] = {}
        self.blocks: dict[str, tuple[Lease, ...]] = {}
        self._local = local
        self._kept_local = local
        """As on disk."""
        self._learning = asyncio.Lock()
        """Held from a word of the managers to its use: in between it is kept."""
        self._state = state
        self._facts = facts
        self._changed = changed
        self._gossip_changed = told
        self._errand = errand
        self._own = NodeCertificate(
            state, lambda: (self.node, self.assignment.roots), lambda csr: self._managers.renew(csr), self._use
        )
        self._report_due = asyncio.Event()
        self._moved = asyncio.Event()
        """Set, and replaced, whenever gossip tells something new."""
        self._saved: Assignment | None = None
        self._published: OwnRows = {}
        self._acknowledgements = Acknowledgements()
        self._told: Applied | None = None
        self._remembered_vteps = state.last_members().vteps
        self._remembered_until = time.monotonic() + LAN.paths_kept_s
        self._absences = Absences(lambda: self.manager.nodes() if self.manager else (), self._reschedule, self.node.id)
        self._leaving = False
        self.removed = False
        """The managers say that this node is none of the cluster any more."""
        self._client = ManagerClient(
            self.node.id,
            assignment.managers,
            certificate=self.certificate,
            key=self._own.key_pem,
            roots=assignment.roots,
        )
        self.gossip = Gossip(
            node_id=self.node.id,
            name=self.node.name,
            address=self.node.advertise_addr,
            port=GOSSIP_PORT,
            tags=words.tags_of(self.node, self._facts()),
            keys=tuple(key.secret for key in assignment.keys),
            key=self._own.key,
            certificate=self.certificate,
            roots=assignment.roots,
            leases=assignment.leases,
            incarnation=local.row_incarnation,
            label=assignment.cluster.gossip_label,
            settings=PROFILES[assignment.cluster.gossip_profile],
            journal=Journal(state.rows_path),
        )
        with or_later("assignment"):
            state.save_assignment(assignment)
            self._saved = assignment
            if (kept := self._without_returned(assignment)) != local:
                state.save_local_node(kept)
                self._local = self._kept_local = kept
        self._take(assignment)
        if manager is not None:
            self._equip(manager)

    @classmethod
    async def open(
        cls,
        state: StateDirectory,
        local: LocalNode,
        assignment: Assignment | None,
        manager: Manager | None,
        facts: Callable[[], HostFacts],
        changed: Callable[[], None],
        told: Callable[[], None] = lambda: None,
        errand: Callable[[Errand], None] = lambda errand: None,
    ) -> Place:
        """With the store on a manager. Raises :class:`HostError` on a damaged state directory."""
        own = state.store_access() is None and state.store_path.exists()
        if local.node.role == "manager" and manager is None and own:
            # A store that others share may be out of reach for now: that is the seat's business.
            manager = await open_manager(state, local.node.id)
        if manager is not None:
            assignment = manager.assignment_of(local.node.id)
        if assignment is None:
            raise HostError(
                f"{state.path / 'assignment.json'} is missing: this node cannot tell which cluster it is in",
                hint=f"restore it, or move {state.path} away and join again",
            )
        return cls(state, local, assignments.reread(assignment), manager, facts, changed, told, errand)

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            if self.manager is not None:
                await self.manager.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.seat.run(self._client.grant_store, self._own.wait_manager, self._equip))
            group.create_task(self._gossip())
            group.create_task(self._follow())
            group.create_task(self._report())
            group.create_task(self._own.run())
            group.create_task(self._watch_gossip())
            group.create_task(keep("members", self._state.save_last_members, self._last_members, self._wait_moved))

    async def _gossip(self) -> None:
        """A port that is taken is tried again and again: whoever has it may go, and meanwhile what runs here is looked
        after, with the others as they were."""
        complained = False
        while True:
            try:
                await self.gossip.run()
            except HostError as error:
                if not complained:
                    log.error("no gossip", error=str(error))
                complained = True
                await asyncio.sleep(PORT_RETRY_S)

    # The managers' word

    @property
    def certificate(self) -> bytes:
        """DER."""
        return self._own.der

    @property
    def manager_reachable(self) -> bool:
        return self.manager is not None or self._client.reachable

    @property
    def manager(self) -> Manager | None:
        """While this node is one, and reaches the store."""
        return self.seat.manager

    @property
    def _managers(self) -> Managers:
        return self._client if self.manager is None else Here(self.manager)

    def _equip(self, manager: Manager) -> None:
        """With what only this host knows."""
        if trust.role_of(self.certificate) == "manager":
            manager.certificate = self.certificate  # it may have been renewed while the store was being opened
        manager.users_of = self.users_of
        manager.alive = self.is_alive
        manager.gone = self._is_gone
        manager.services.scheduler.lost = self._absences.lost
        manager.errands.pass_on = self._client.pass_on

    def _reschedule(self) -> None:
        if self.manager is not None:
            self.manager.services.scheduler.wake()

    def _is_gone(self, node_id: str) -> bool:
        return self._absences.lost().get(node_id, math.inf) <= time.time()

    async def _follow(self) -> None:
        while True:
            try:
                async for update in self._managers.follow(self.assignment.revision):
                    for errand in assignments.errands(update):
                        self._errand(errand)
                    await self._learn(lambda old, update=update: assignments.apply(old, update))  # type: ignore[misc]
            except ForbiddenError as error:
                if not self._leaving:
                    self.removed = True
                    log.error("this node was removed from the cluster; what runs here goes on", error=str(error))
                return
            except VxnetError as error:
                # This host's own manager stopped; there may be others.
                log.debug("the stream of assignments ends", error=str(error))
                await asyncio.sleep(FOLLOW_AGAIN_S)

    async def _learn(self, change: Callable[[Assignment], Assignment]) -> None:
        """Kept before it is used."""
        async with self._learning:
            assignment = change(self.assignment)
            with or_later("assignment"):
                if assignment != self._saved:
                    await in_thread(self._state.save_assignment, assignment)
                    self._saved = assignment
                # Not before: the older assignment has blocks that went back as this node's.
                await self._keep_local(self._without_returned(assignment))
                self._local = self._without_returned(assignment)
            self._take(assignment)

    def _take(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.networks = {network.id: network for network in assignment.networks}
        self.blocks = {}
        if assignment.leases is not None:
            for lease in assignments.lease_set(assignment.leases).leases:
                if lease not in self._local.returning:
                    self.blocks[lease.network] = (*self.blocks.get(lease.network, ()), lease)
        self._client.update(
            managers=words.managers_among(self.members(), self.assignment, self.node.id), roots=assignment.roots
        )
        role = words.role_in(assignment, self.node.id)
        if role != self.node.role:
            log.info("this node has another role", role=role)
            self.node = replace(self.node, role=role)
            self.gossip.update(tags=words.tags_of(self.node, self._facts()))
        self.seat.want(role == "manager")
        self.gossip.update(
            keys=tuple(key.secret for key in assignment.keys),
            roots=assignment.roots,
            revoked=assignment.revoked,
            leases=assignment.leases,
        )
        self._own.look()
        # The managers wait for this before they have a new key or CA used.
        self._report_due.set()
        self._changed()

    async def heard(self) -> None:
        """Until what the managers have said is in use; on a manager, what it has decided."""
        if (manager := self.manager) is not None:
            await self._learn(lambda old: manager.assignment_of(self.node.id))
        else:
            async with self._learning:
                pass

    async def lease(self, request: LeaseRequest) -> None:
        """Further addresses of a network; they are in ``blocks`` when this returns."""
        signed = await self._managers.lease(request)
        await self._learn(lambda old: assignments.with_leases(old, signed))

    async def release(self, leases: Collection[Lease]) -> None:
        """Give blocks back that nobody here has an address of, and those whose return failed.

        From now on nobody is given an address of them. Remembered before it is said: an answer that is lost must not
        leave this host and the managers with different minds about an address.
        """
        returning = {*self._local.returning, *leases}
        if not returning:
            return
        if returning != {*self._local.returning}:
            self._local = replace(self._local, returning=tuple(returning))
        self._take(self.assignment)
        async with self._learning:
            await self._keep_local(self._local)
        signed = await self._managers.release(self._local.returning)
        await self._learn(lambda old: assignments.with_leases(old, signed))

    def _without_returned(self, assignment: Assignment) -> LocalNode:
        """Us, without the blocks that the managers have back."""
        if assignment.leases is None:
            return self._local
        leases = assignments.lease_set(assignment.leases).leases
        returning = tuple(lease for lease in self._local.returning if lease in leases)
        return replace(
            self._local,
            node=replace(self._local.node, role=words.role_in(assignment, self.node.id)),
            returning=returning,
        )

    async def _keep_local(self, local: LocalNode) -> None:
        if local != self._kept_local:
            await in_thread(self._state.save_local_node, local)
            self._kept_local = local

    def facts_changed(self) -> None:
        self._report_due.set()

    async def _report(self) -> None:
        """The managers know this host's routes and version: pools avoid the one, upgrades need the other."""
        last: NodeReport | None = None
        while True:
            report = node_report(self._facts(), self._state.gateway(), self.assignment.keys, self._own.authorities())
            try:
                if report != last:
                    await self._managers.report(report)
                    last = report
                await self._report_due.wait()
                self._report_due.clear()
            except VxnetError as error:
                log.debug("report not delivered", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _use(self, certificate: bytes) -> None:
        self._client.update(certificate=certificate)
        if self.manager is not None and trust.role_of(certificate) == "manager":
            await self.manager.use_certificate(certificate)
        self.gossip.update(certificate=certificate)
        self._report_due.set()

    async def resign(self) -> None:
        """Tell the managers. Raises what they say; then this node is a member as before."""
        self._leaving = True
        try:
            await self._managers.leave()
        except VxnetError:
            self._leaving = False
            raise

    async def say_goodbye(self) -> None:
        """To the other members."""
        self._leaving = True
        self.publish({})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self.gossip.leave()

    # Facts

    def publish(self, rows: OwnRows) -> None:
        """This host's rows from now on. Only what differs is told."""
        for kind, row_id in self._published.keys() - rows.keys():
            self.gossip.delete(kind, row_id)
        for (kind, row_id), row in rows.items():
            if self._published.get((kind, row_id)) != row:
                self.gossip.put(kind, row_id, row)
        self._published = dict(rows)

    def acknowledge(self, seen: Facts, vnis: Collection[int]) -> None:
        """Tell those who wait for it that this host's kernel carries ``seen`` in its segments ``vnis``."""
        told = self._acknowledgements.to_tell(seen, self.node.id, vnis)
        if told is not None and told != self._told:
            self._told = told
            self.gossip.put("applied", "", told)

    async def known(self, row_ids: Collection[str]) -> None:
        """Until all nodes on the networks of these rows of ours carry them, or that takes too long."""
        try:
            async with asyncio.timeout(KNOWN_S):
                await self.gossip.said("endpoint", row_ids)
                while self._unaware(row_ids):
                    await self._moved.wait()
        except TimeoutError:
            silent = ", ".join(sorted(self.names().get(node, node) for node in self._unaware(row_ids)))
            log.warning("the way back is not known everywhere yet", rows=", ".join(row_ids), by=silent)

    async def drained(self, row_ids: Collection[str], bound_s: float) -> bool:
        """Until no other node sends new connections to these *draining* rows of ours; False: not within ``bound_s``."""
        try:
            async with asyncio.timeout(bound_s):
                await self.gossip.said("endpoint", row_ids)
                while self._acknowledgements.unaware(self.rows(), self.node.id, row_ids, "draining"):
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _unaware(self, row_ids: Collection[str]) -> frozenset[str]:
        return self._acknowledgements.unaware(self.rows(), self.node.id, row_ids)

    async def _watch_gossip(self) -> None:
        """Managers and last members are where to begin; from then on, whatever changes is passed on."""
        seeds = {manager.addr for manager in self.assignment.managers} | {*self._state.last_members().addresses}
        self.gossip.join([(str(address), GOSSIP_PORT) for address in seeds - {self.node.advertise_addr}])
        while True:
            await self.gossip.changed.wait()
            self.gossip.changed.clear()
            self._moved.set()
            self._moved = asyncio.Event()
            self._absences.look(self.members())
            self._client.update(managers=words.managers_among(self.members(), self.assignment, self.node.id))
            self._gossip_changed()

    async def _wait_moved(self) -> None:
        await self._moved.wait()

    def _last_members(self) -> LastMembers:
        addresses = {member.address for member in self.members() if member.present}
        return LastMembers(addresses=tuple(sorted(addresses, key=str)), vteps=self.vteps())

    async def caught_up(self) -> None:
        """Until somebody of those who were there before has told what it knows, and that has been passed on here."""
        others = {*self._state.last_members().addresses} - {self.node.advertise_addr}
        while others and not any(m.present and m.id != self.node.id for m in self.members()):
            await self._moved.wait()
        if others:
            await asyncio.sleep(SYNC_S)

    def members(self) -> tuple[Member, ...]:
        """Of vxnet's; foreign agents in the gossip have no part in networks."""
        return tuple(member for member in self.gossip.members() if member.id)

    def rows(self) -> Facts:
        return self.gossip.rows()

    def paths(self) -> Facts:
        """Like rows, and those of hosts whose daemon is silent: their containers may well live."""
        return self.gossip.paths()

    def vteps(self) -> dict[str, IPAddress]:
        """Of each node that may send on the data path; of those not met yet as it was before the restart.

        A member's tags are its own word, which also a removed node can give under another name: an address counts that
        a manager has certified. Nor does a word of others ("it has left") shut anybody out.
        """
        remembered = self._remembered_vteps if time.monotonic() < self._remembered_until else {}
        found = {node: vtep for node, vtep in remembered.items() if node not in self.assignment.revoked}
        for member in self.members():
            with contextlib.suppress(ValueError):
                vtep = ipaddress.ip_address(member.tags.get("vtep", ""))
                if vtep in self.gossip.places(member.id):
                    found[member.id] = vtep
        return found

    def is_alive(self, node_id: str) -> bool:
        return node_id == self.node.id or any(member.id == node_id and member.present for member in self.members())

    async def deliver(self, errand: Errand, pieces: AsyncIterator[bytes]) -> None:
        """Raises :class:`NotFoundError` when nobody waits for it any more."""
        await (self._managers if errand.manager in ("", self.node.id) else self._client).deliver(errand, pieces)

    async def report_tasks(self, reports: Sequence[TaskReport]) -> None:
        """Raises what the managers do, or that there is none in reach."""
        await self._managers.report_tasks(reports)

    def users_of(self, network_id: str) -> list[str]:
        """``web on h2``: whoever still uses a network."""
        return words.users_among(self.paths(), self.names(), network_id)

    def names(self) -> dict[str, str]:
        """Host names by node id."""
        return {member.id: member.name for member in self.members()} | {self.node.id: self.node.name}

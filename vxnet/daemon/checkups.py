"""Examinations of the ways between this host and the others: asked for by `doctor`, and taken part in when others ask.

What is said and when is core/checkup's, what goes to the VXLAN port host/probes'; here the two are brought together::

    gossip.on_word ──> Side of its speaker <── Line (packets heard)
    every round:       words to all, packets to all
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import structlog

from vxnet.core import checkup
from vxnet.core.checkup import Packet, Side, Word
from vxnet.core.members import Member
from vxnet.daemon.membership import Membership
from vxnet.daemon.place import Place
from vxnet.host.probes import Line, room
from vxnet.model.address import IPAddress
from vxnet.model.checkup import Exam, Heard, PeerExam
from vxnet.model.cluster import CONTROL_PORT
from vxnet.model.errors import VxnetError
from vxnet.model.host import HostFacts
from vxnet.model.store import CLIENT_PORT, PEER_PORT

log = structlog.get_logger()

CONNECT_S = 1.0
"""For a port of a manager to take a connection."""


class _Examination:
    """One, on one side of it."""

    def __init__(self, id_: bytes, *, asked: bool) -> None:
        self.id = id_
        self.asked = asked
        """By this host."""
        self.sides: dict[str, Side] = {}
        """By the name of the other."""

    def side(self, name: str) -> Side:
        return self.sides.setdefault(name, Side())


class Checkups:
    """:meth:`look` is called when the place may be another one; :meth:`run` answers others."""

    def __init__(self, membership: Membership, facts: Callable[[], HostFacts], mtu: Callable[[], int]) -> None:
        self._membership = membership
        self._facts = facts
        self._mtu = mtu
        self._running: dict[bytes, _Examination] = {}
        self._line: Line | None = None
        self._users = 0
        """Of the line."""
        self._turn = asyncio.Lock()
        """Who opens, closes or uses it."""
        self._calls: asyncio.Queue[_Examination] = asyncio.Queue(checkup.AT_ONCE)

    @property
    def _place(self) -> Place:
        return self._membership.joined()

    def look(self) -> None:
        if (place := self._membership.place) is not None:
            place.gossip.on_word = self._hear

    def _hear(self, word: Word) -> None:
        running = self._running.get(word.id)
        if running is None:
            if not word.asked or len(self._running) >= checkup.AT_ONCE or self._member(word.source) is None:
                return
            running = self._running[word.id] = _Examination(word.id, asked=False)
            self._calls.put_nowait(running)
        if running.asked or word.source in running.sides or not running.sides:
            running.side(word.source).hear(word, time.time(), time.monotonic())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                examination = await self._calls.get()
                group.create_task(self._take_part(examination))

    async def _take_part(self, examination: _Examination) -> None:
        try:
            await self._go_through(examination, list(examination.sides))
        except (OSError, VxnetError) as error:
            log.warning("no part taken in an examination", error=str(error))
        finally:
            del self._running[examination.id]

    async def examine(self) -> Exam:
        """All members but those that have left. Raises :class:`ConflictError` on a host that is in no cluster."""
        peers = {
            member.name: member
            for member in self._place.members()
            if _takes_part(member) and member.id != self._place.node.id
        }
        examination = _Examination(secrets.token_bytes(8), asked=True)
        self._running[examination.id] = examination
        error = ""
        try:
            large = await self._go_through(examination, list(peers))
        except OSError as failure:
            large, error = 0, str(failure)
        finally:
            del self._running[examination.id]
        vteps = self._place.vteps()
        found = [
            self._told(member, vteps.get(member.id, member.address), examination.side(name))
            for name, member in sorted(peers.items())
        ]
        return Exam(peers=tuple(found), machine=self._machine(), probed_data=bool(large), large=large, error=error)

    @staticmethod
    def _told(member: Member, vtep: IPAddress, side: Side) -> PeerExam:
        return PeerExam(
            name=member.name,
            node=member.id,
            address=member.address,
            vtep=vtep,
            role="manager" if member.tags.get("role") == "manager" else "worker",
            version=member.tags.get("version", ""),
            present=member.present,
            answered=side.answered,
            here=tuple(sorted(side.here)),
            there=tuple(sorted(side.there)),
            clock_ahead_s=side.clock_ahead_s,
            machine=side.machine,
        )

    def _machine(self) -> str:
        """Salted with the cluster's id, so that it says nothing outside."""
        own = self._facts().machine_id
        salted = f"{self._place.assignment.cluster.id} {own}".encode()
        return hashlib.blake2b(salted, digest_size=8).hexdigest() if own else ""

    def _member(self, name: str) -> Member | None:
        return next((member for member in self._place.members() if member.name == name and _takes_part(member)), None)

    # The rounds

    async def _go_through(self, examination: _Examination, names: Sequence[str]) -> int:
        """Speak to these, and listen; octets of the large packets. Raises OSError."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with self._lines():
            connects = asyncio.gather(*(self._reach(examination, *way) for name in names for way in self._ports(name)))
            for at_s in checkup.ROUNDS_S:
                await asyncio.sleep(begin + at_s - loop.time())
                members = [member for name in names if (member := self._member(name)) is not None]
                self._speak(examination, members)
                await self._send(examination, members)
            await asyncio.sleep(begin + checkup.LENGTH_S - loop.time())
            await connects
            return self._mtu()

    def _speak(self, examination: _Examination, members: Sequence[Member]) -> None:
        source, machine = self._place.node.name, self._machine()
        for member in members:
            side = examination.side(member.name)
            for by in ("udp", "tcp"):
                word = side.say(
                    examination.id, source, by, time.time(), time.monotonic(), machine, asked=examination.asked
                )
                self._place.gossip.say(word, member)

    async def _send(self, examination: _Examination, members: Sequence[Member]) -> None:
        place, line = self._place, self._line
        local, vteps = place.node.data_path_addr, place.vteps()
        there = [vteps[one.id] for one in members if one.id in vteps and vteps[one.id].version == local.version]
        for large in (False, True):
            octets = room(self._mtu(), local.version) if large else checkup.SMALL
            content = checkup.content(Packet(examination.id, large, place.node.name), octets)
            async with self._turn:
                if line is not None:
                    await asyncio.to_thread(line.send, there, content)

    def _ports(self, name: str) -> Iterator[tuple[Member, int, Heard]]:
        """Of a manager, and what it means that one takes a connection. A manager wants to know whether others reach
        it: so these are tried in both roles, as each side tells what came from the other, and what this one has
        reached is told by it."""
        member = self._member(name)
        if member is None or member.tags.get("role") != "manager":
            return
        yield member, CONTROL_PORT, "control"
        manager = self._place.manager
        if manager is not None and manager.electors.is_managed:
            yield member, CLIENT_PORT, "etcd-client"
            yield member, PEER_PORT, "etcd-peer"

    async def _reach(self, examination: _Examination, member: Member, port: int, word: Heard) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                local = str(self._place.node.advertise_addr), 0
                _, writer = await asyncio.open_connection(str(member.address), port, local_addr=local)
            writer.close()
            examination.side(member.name).here.add(word)

    @contextlib.asynccontextmanager
    async def _lines(self) -> AsyncIterator[None]:
        """One for all that are under way: a host has a VNI but once. Raises OSError."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self._line is None:
                self._line = await asyncio.to_thread(self._open)
                for one in (self._line.wire, self._line.data):
                    loop.add_reader(one, self._listen)
            self._users += 1
        try:
            yield
        finally:
            async with self._turn:
                self._users -= 1
                if not self._users and self._line is not None:
                    line, self._line = self._line, None
                    for one in (line.wire, line.data):
                        loop.remove_reader(one)
                    await asyncio.to_thread(line.close)

    def _open(self) -> Line:
        place = self._place
        return Line(
            place.node.data_path_addr,
            place.assignment.cluster.data_port,
            checkup.PROBE_VNI,
            self._mtu(),
            kernel=self._facts().datapath == "kernel",
        )

    def _listen(self) -> None:
        for arrived in self._line.heard() if self._line is not None else ():
            packet = checkup.read_content(arrived.content)
            examination = self._running.get(packet.id) if packet is not None else None
            if packet is None or examination is None or self._member(packet.source) is None:
                continue
            if not examination.asked and packet.source not in examination.sides:
                continue
            words: list[Heard] = ["data-large" if packet.large else "data"] if arrived.passed else []
            if not arrived.passed:
                words = ["wire-large" if packet.large else "wire"]
                if arrived.damaged:
                    words.append("damaged-large" if packet.large else "damaged")
            examination.side(packet.source).here.update(words)


def _takes_part(member: Member) -> bool:
    """Also one that counts as dead: it may be that only the gossip's port is closed."""
    return member.is_vxnet and member.status != "left"

"""The gossip's sockets on 7946: one for datagrams, one that listens, one timer. It decides nothing.

::

    UDP ──> drain ──> core ──> datagrams ──> UDP
    TCP <─> streams ──┘  └──> one timer
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.cluster.journal import Journal
from vxnet.core.checkup import Word
from vxnet.core.facts import Facts
from vxnet.core.gossip import GossipNode
from vxnet.core.members import Address, Member
from vxnet.core.stream import Stream
from vxnet.core.table import Table
from vxnet.core.timing import LAN, Settings
from vxnet.core.wire import RECEIVE_LIMIT
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Signed
from vxnet.model.errors import HostError
from vxnet.model.row import Value

__all__ = ["Gossip", "Member"]

log = logging.getLogger(__name__)

DATAGRAMS_AT_ONCE = 64
"""Read before the loop's other work gets its turn."""
STREAMS_AT_ONCE = 128
"""Connections of others under way; more are closed at once, and tried again by their own timers."""
DIALLED_AT_ONCE = 256
DIALLED_OCTETS = 64 << 20
"""Connections of our own under way, and what is to be said over them: an address that does not answer takes ten
seconds, and a member that lies can name many."""
ARRIVING_LIMIT = 64 << 20
"""Octets of others' streams that are not whole yet: until then nobody has shown that it has the key, so all of them
together are bounded, not each."""
SOCKET_BUFFER = 2 << 20
LEAVE_STEP_S = 0.25
"""Between the two steps of a goodbye, and after each: it has to reach everybody and be passed on."""
ACCEPT_PAUSE_S = 0.1
SAID_LOOK_S = 0.003


class Gossip:
    """Made in any state of the loop; :meth:`run` opens the sockets and is to be run for as long as the node lives.
    ``changed`` is set when members or rows are other than before; who waits for it clears it.
    """

    def __init__(
        self,
        *,
        node_id: str,
        name: str,
        address: IPAddress,
        port: int,
        tags: Mapping[str, str],
        keys: Sequence[bytes],
        key: Ed25519PrivateKey,
        certificate: bytes,
        roots: Sequence[bytes],
        incarnation: int,
        leases: Signed | None = None,
        revoked: Collection[str] = (),
        label: str = "",
        settings: Settings = LAN,
        journal: Journal | None = None,
    ) -> None:
        """``address`` and ``port``: bound, and told to others. ``keys``: AES keys of the ring, the one in use first;
        empty: unencrypted. ``incarnation``: of the rows; must grow with every start. ``journal``: where to begin from,
        and to keep what comes. Raises :class:`CallerError` on bad keys, and on tags that are too long.
        """
        self._bind = (str(address), port)
        self._family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self.core = GossipNode(
            node_id=node_id,
            name=name,
            address=address,
            port=port,
            tags=tags,
            keys=keys,
            key=key,
            certificate=certificate,
            roots=roots,
            incarnation=incarnation,
            rng=random.SystemRandom(),
            now=time.monotonic(),
            wall=time.time(),
            leases=leases,
            revoked=revoked,
            label=label,
            settings=settings,
        )
        self._journal = journal
        if journal is not None:
            self.core.remember(journal.load(), time.monotonic())
            journal.rewrite(self.core.table.batches())
            self.core.table.received = journal.append
        self.changed = asyncio.Event()
        self.on_word: Callable[[Word], None] = lambda word: None
        """Is told what others say in an examination (core/checkup)."""
        self._udp: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._group: asyncio.TaskGroup | None = None
        self._failure: asyncio.Future[None] | None = None
        self._accepted = 0
        self._dialled = 0
        self._dialled_octets = 0
        self._arriving = 0
        self._unsent = 0

    async def run(self) -> None:
        """Until cancelled. Raises :class:`HostError` if the port cannot be had."""
        loop = asyncio.get_running_loop()
        listener = self._open(socket.SOCK_STREAM)
        try:
            udp = self._open(socket.SOCK_DGRAM)
        except HostError:
            listener.close()
            raise
        self._failure = loop.create_future()
        self._udp = udp
        try:
            async with asyncio.TaskGroup() as self._group:
                loop.add_reader(udp, self._guarded, self._drain)
                self._group.create_task(self._listen(listener, self._group))
                self._transmit()
                await self._failure
        finally:
            self._group = self._udp = None
            if self._timer is not None:
                self._timer.cancel()
            loop.remove_reader(udp)
            udp.close()
            listener.close()
            if self._journal is not None:
                self.core.table.received = lambda batch: None
                self._journal.close()

    # What the daemon wants

    def join(self, addresses: Iterable[Address]) -> None:
        """Meet the cluster at these addresses; they are tried again as long as no live member has them."""
        self.core.join(tuple(addresses), time.monotonic())
        self._transmit()

    def put(self, kind: str, id_: str, value: Value) -> None:
        """Tell everybody of this node's row. Raises :class:`CallerError` if it is too large."""
        self.core.put(kind, id_, value, time.monotonic())
        self._transmit()

    def delete(self, kind: str, id_: str) -> None:
        self.core.delete(kind, id_, time.monotonic())
        self._transmit()

    async def said(self, kind: str, ids: Collection[str]) -> None:
        """Until these rows of this node stand in its own table, as the others will have them: what is put is gathered
        for a moment."""
        while any(self.core.author.is_pending(kind, one) for one in ids):
            await asyncio.sleep(SAID_LOOK_S)

    def say(self, word: Word, member: Member) -> None:
        """A part of an examination."""
        self.core.say(word, member, time.monotonic())
        self._transmit()

    def republished(self) -> None:
        """After a start: all rows have been put, and what others remember of the life before is no more."""
        self.core.republished(time.monotonic())
        self._transmit()

    def update(
        self,
        *,
        keys: Sequence[bytes] | None = None,
        roots: Sequence[bytes] | None = None,
        revoked: Collection[str] | None = None,
        leases: Signed | None = None,
        certificate: bytes | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """What is None stays as it is. Raises :class:`CallerError` as the constructor does."""
        self.core.update(
            time.monotonic(),
            keys=keys,
            roots=roots,
            revoked=revoked,
            leases=leases,
            certificate=certificate,
            tags=tags,
        )
        self._transmit()

    async def leave(self) -> None:
        """Say goodbye; takes less than a second. The node stays silent afterwards: cancel :meth:`run`."""
        for _ in range(3):
            self.core.leave(time.monotonic())
            self._transmit()
            await asyncio.sleep(LEAVE_STEP_S)

    async def restarting(self, seconds: int) -> None:
        """Before a planned stop: for so long others keep this node's rows as they are."""
        self.core.restarting(seconds, time.monotonic())
        self._transmit()
        await asyncio.sleep(LEAVE_STEP_S)

    # What it knows

    @property
    def is_open(self) -> bool:
        """Whether it has its sockets."""
        return self._udp is not None

    def members(self) -> tuple[Member, ...]:
        """Oneself and the gone included."""
        return self.core.members()

    def rows(self) -> Facts:
        """(key, version, value) of every row that counts, of nodes that are here."""
        return self.core.rows(time.time())

    def paths(self) -> Facts:
        """The same, and for 30 minutes of nodes whose daemon fell silent."""
        return self.core.paths(time.time())

    def places(self, node_id: str) -> frozenset[IPAddress]:
        """The addresses at which a manager has certified a node to be; empty if nothing proves that it is one."""
        return self.core.places(node_id, time.time())

    def refused(self) -> Counter[str]:
        """How many rows are kept without effect, by reason."""
        return self.core.refused(time.time())

    def dropped(self) -> Counter[str]:
        """Packets and messages that were of no use, by reason."""
        return self.core.dropped()

    def age_s(self, member: Member) -> float:
        """How long its status is what it is."""
        return self.core.age_s(member)

    def table(self) -> Table:
        """All rows as received; to look at only."""
        return self.core.table

    def statistics(self) -> dict[str, int]:
        return {**self.core.statistics(), "unsent": self._unsent}

    # Sockets

    def _open(self, kind: socket.SocketKind) -> socket.socket:
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        opened = socket.socket(self._family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if kind == socket.SOCK_STREAM:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            opened.bind(self._bind)
            if kind == socket.SOCK_STREAM:
                opened.listen(128)
        except OSError as error:
            opened.close()
            hint = ""
            if error.errno == errno.EADDRINUSE:
                hint = f"`ss -lp 'sport = :{self._bind[1]}'` shows who has it; Docker Swarm uses the same port"
            raise HostError(
                f"the gossip cannot have {self._bind[0]}:{self._bind[1]}/{protocol} ({error.strerror})", hint=hint
            ) from error
        return opened

    def _guarded(self, action: Callable[[], None]) -> None:
        """The loop only logs what its callbacks raise; here it ends :meth:`run`."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, run() raises it
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)

    def _drain(self) -> None:
        udp = self._udp
        if udp is None:
            return
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data, addr = udp.recvfrom(RECEIVE_LIMIT)
            except BlockingIOError:
                break
            except OSError as error:
                # An ICMP answer to an earlier packet; the failure detector notices by itself.
                log.debug("gossip socket: %s", error)
                continue
            self.core.receive_datagram(data, addr[:2], time.monotonic())
        self._transmit()

    def _transmit(self) -> None:
        """All that the core has to say; then one timer."""
        udp, group = self._udp, self._group
        if udp is None or group is None:
            return
        for data, addr in self.core.datagrams_to_send(time.monotonic()):
            try:
                udp.sendto(data, addr)
            except OSError as error:
                self._unsent += 1
                log.debug("gossip to %s: %s", addr, error)
        for stream in self.core.streams_to_open():
            octets = len(stream.to_send)
            if self._dialled >= DIALLED_AT_ONCE or self._dialled_octets + octets > DIALLED_OCTETS:
                self._unsent += 1
                stream.fail(time.monotonic())
            else:
                self._dialled += 1
                self._dialled_octets += octets
                group.create_task(self._dial(stream))
        while (contact := self.core.next_event()) is not None:
            log.info("gossip %s %s:%s", "met" if contact.reached else "cannot reach", *contact.address)
        while (word := self.core.next_word()) is not None:
            self.on_word(word)
        if self.core.take_changes():
            self.changed.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.get_timer()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._guarded, self._tick)

    def _tick(self) -> None:
        self.core.handle_timer(time.monotonic())
        if self._journal is not None:
            self._journal.tend(self.core.table.octets, self.core.table.batches)
        self._transmit()

    async def _listen(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, addr = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, or the peer was quicker to go than we to accept.
                log.warning("gossip listener: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._accepted >= STREAMS_AT_ONCE:
                connection.close()
            else:
                group.create_task(self._serve(connection, addr[:2]))

    async def _serve(self, connection: socket.socket, addr: Address) -> None:
        self._accepted += 1
        try:
            await self._converse(connection, self.core.accept(addr), dial=False)
        finally:
            self._accepted -= 1

    async def _dial(self, stream: Stream) -> None:
        octets = len(stream.to_send)
        try:
            connection = socket.socket(
                socket.AF_INET6 if ":" in stream.addr[0] else socket.AF_INET,
                socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            )
        except OSError as error:
            # Out of descriptors: as if nobody had answered.
            log.warning("gossip stream to %s: %s", stream.addr, error)
            self._unsent += 1
            stream.fail(time.monotonic())
            self._transmit()
        else:
            await self._converse(connection, stream, dial=True)
        finally:
            self._dialled -= 1
            self._dialled_octets -= octets

    async def _converse(self, connection: socket.socket, stream: Stream, *, dial: bool) -> None:
        loop = asyncio.get_running_loop()
        arrived = 0
        with connection:
            try:
                async with asyncio.timeout(stream.timeout_s):
                    if dial:
                        # From our own address: others know us by it.
                        connection.bind((self._bind[0], 0))
                        await loop.sock_connect(connection, stream.addr)
                        await loop.sock_sendall(connection, stream.to_send)
                    while not stream.done:
                        data = await loop.sock_recv(connection, 1 << 16)
                        if not dial:
                            arrived += len(data)
                            self._arriving += len(data)
                            if self._arriving > ARRIVING_LIMIT:
                                raise ConnectionError("others send too much at once")
                        answer = stream.receive(data, time.monotonic())
                        self._transmit()
                        await loop.sock_sendall(connection, answer)
            except (OSError, TimeoutError) as error:
                log.debug("gossip stream with %s: %s", stream.addr, error)
                stream.fail(time.monotonic())
                self._transmit()
            finally:
                self._arriving -= arrived

"""A place in a cluster goes on where a part of it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.core import decisions, trust
from vxnet.core.timing import LAN, WAN
from vxnet.daemon import certificate as certificates
from vxnet.daemon import place as places
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import Place
from vxnet.daemon.state import LocalNode, StateDirectory
from vxnet.model.api import LeaseRequest, NetworkCreate
from vxnet.model.cluster import CONTROL_PORT, GOSSIP_PORT
from vxnet.model.errors import HostError, UnavailableError
from vxnet.model.host import HostFacts

ADDRESS = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}.77"
"""Of this process alone: the ports are the real ones."""


@pytest.fixture
async def place(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """A manager's own, without its loops. A test's parameter: what else the cluster is made with."""
    state = StateDirectory(tmp_path)
    key = trust.node_key(os.urandom(32))
    store = await SqliteStore.open(state.store_path)
    address = ipaddress.ip_address(ADDRESS)
    manager = await Manager.create(
        store,
        name="h1",
        advertise_addr=address,
        data_path_addr=address,
        key=key,
        gossip_label="blue",
        **getattr(request, "param", {}),
    )
    state.save_credentials(trust.certificate_to_pem(manager.certificate), trust.key_to_pem(key))
    facts = HostFacts(hostname="h1", machine_id="", addresses=(), routes=(), nameservers=(), missing=())
    yield await Place.open(
        state, LocalNode(node=manager.node, row_incarnation=1), None, manager, lambda: facts, lambda: None
    )
    await store.close()


@contextlib.asynccontextmanager
async def running(place: Place) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(place.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not within 10 s: {what}"
        await asyncio.sleep(0.01)


def is_held(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return True
    return False


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_gossip_port_that_is_taken_is_had_once_it_is_free(place, monkeypatch, kind):
    """After a reboot another program may be quicker. Managers' port, API and containers do not wait for it."""
    monkeypatch.setattr(places, "PORT_RETRY_S", 0.05)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((ADDRESS, GOSSIP_PORT))
        async with running(place) as task:
            await wait(lambda: is_held(CONTROL_PORT, socket.SOCK_STREAM), "the managers' port is served")
            assert not task.done()
            taken.close()
            await wait(lambda: is_held(GOSSIP_PORT, socket.SOCK_DGRAM), "the gossip's port is served")
            assert not task.done()


async def test_a_clock_that_is_set_is_noticed(place, monkeypatch):
    """A host whose clock was years behind at its start must not sleep for years: its certificate would run out."""
    first, last = trust.validity(place.certificate)
    offset = -400 * 86400.0
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + offset)
    monkeypatch.setattr(certificates, "CLOCK_S", 0.05)
    before = place.certificate
    async with running(place) as task:
        await asyncio.sleep(0.2)
        assert place.certificate == before
        offset = (last - first) * 0.6
        await wait(lambda: place.certificate != before, "the certificate is renewed")
        assert not task.done()


async def test_a_renewal_that_the_store_refuses_is_tried_again(place, monkeypatch):
    """A full disk, say: neither the daemon's end nor the certificate's."""
    monkeypatch.setattr(certificates, "RETRY_S", (0.05, 0.05))
    monkeypatch.setattr(trust, "renewal_time", lambda certificate: 0.0 if certificate == before else 1e12)
    before, refusals = place.certificate, []
    use = place.manager.use_certificate

    async def refuse_once(certificate: bytes) -> None:
        if not refusals:
            refusals.append(certificate)
            raise UnavailableError("the disk is full")
        await use(certificate)

    monkeypatch.setattr(place.manager, "use_certificate", refuse_once)
    async with running(place) as task:
        await wait(lambda: place.certificate != before, "the certificate is renewed")
        assert refusals and not task.done()


async def test_a_manager_signs_with_a_certificate_that_came_while_its_store_was_opened(place):
    manager = place.manager
    place._own.der = manager.renew(manager.node_id, trust.make_csr(place._own.key, "h1"))
    assert manager.certificate != place.certificate
    place._equip(manager)
    assert manager.certificate == place.certificate


async def test_no_certificate_of_the_ca_before_is_taken(place, monkeypatch):
    """From a manager that does not hear of the other one: the managers count this node as gone over."""
    monkeypatch.setattr(certificates, "RETRY_S", (0.01, 0.01))
    manager = place.manager
    new, old = (trust.make_ca(bytes([octet]) * 48, "c", time.time()) for octet in b"no")
    node, csr = manager.node, trust.make_csr(place._own.key, "h1")
    issued = {ca: decisions.certify(ca, node, csr, os.urandom(8), time.time()) for ca in (new, old)}
    again = decisions.certify(new, node, csr, os.urandom(8), time.time())
    answers = [issued[old], issued[old], again]
    used: list[bytes] = []

    async def renew(csr: bytes) -> bytes:
        return answers.pop(0)

    async def use(certificate: bytes) -> None:
        used.append(certificate)

    monkeypatch.setattr(trust, "renewal_time", lambda der: 0.0 if der == issued[new] else 1e12)
    own = certificates.NodeCertificate(place._state, lambda: (node, (new.certificate, old.certificate)), renew, use)
    own.der = issued[new]
    task = asyncio.create_task(own.run())
    await wait(lambda: used, "the certificate is renewed")
    task.cancel()
    await asyncio.wait([task])
    assert used == [again] and not answers and own.authorities()[0] == trust.certificate_digest(new.certificate)


async def test_news_of_role_or_roots_cut_the_pause_short(place, monkeypatch):
    """And nothing else does: the managers' word comes with every change of the cluster."""
    node, ca = place.manager.node, trust.make_ca(b"n" * 48, "c", time.time())
    known = [(ca.certificate,)]
    asked = []

    async def renew(csr: bytes) -> bytes:
        asked.append(csr)
        raise UnavailableError("no manager")

    async def use(certificate: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(certificates, "RETRY_S", (600.0, 600.0))
    own = certificates.NodeCertificate(place._state, lambda: (node, known[0]), renew, use)
    own.look()
    task = asyncio.create_task(own.run())
    await wait(lambda: asked, "a certificate is asked for")
    own.look()
    await asyncio.sleep(0.05)
    assert len(asked) == 1
    known[0] = (*known[0], b"another")
    own.look()
    await wait(lambda: len(asked) == 2, "it is asked for again")
    task.cancel()
    await asyncio.wait([task])


class Disk:
    """One that is busy: what is synced waits until :meth:`free`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.late: list[str] = []
        """What nobody freed, as the loop stood still."""
        self._free = threading.Event()
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, fd: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).removesuffix(".new")
        self.asked.append(name)
        if not self._free.wait(5):
            self.late.append(name)

    def free(self) -> None:
        self._free.set()


async def test_a_disk_that_is_busy_holds_up_nothing_else(place, monkeypatch):
    """Names, gossip and the ends of containers share the loop: they stood still for 16 s."""
    async with running(place):
        await wait(lambda: is_held(GOSSIP_PORT, socket.SOCK_DGRAM), "it runs")
        disk = Disk(monkeypatch)
        network = await place.manager.create_network(NetworkCreate(name="red"))
        await wait(lambda: "assignment.json" in disk.asked, "the assignment is written")
        monkeypatch.setattr(place, "vteps", lambda: {"n2": ipaddress.ip_address("192.0.2.2")})
        place.gossip.changed.set()
        await wait(lambda: "members.json" in disk.asked, "the members are written")
        assert network.id not in place.networks, "kept before it is used"
        disk.free()
        await wait(lambda: network.id in place.networks, "the network is known")
        assert not disk.late


async def test_what_was_just_said_is_waited_for(place, monkeypatch):
    """`vxnet run` right after `vxnet network create`, on a disk that takes its time."""
    async with running(place):
        disk = Disk(monkeypatch)
        network = await place.manager.create_network(NetworkCreate(name="red"))
        assert network.id not in place.networks
        hearing = asyncio.create_task(place.heard())
        await wait(lambda: "assignment.json" in disk.asked, "the assignment is written")
        assert not hearing.done()
        disk.free()
        await hearing
        assert network.id in place.networks


async def test_blocks_that_go_back_are_kept_before_it_is_said(place, monkeypatch):
    async with running(place):
        network = await place.manager.create_network(NetworkCreate(name="red"))
        await place.lease(LeaseRequest(network=network.id))
        (block,) = place.blocks[network.id]
        await wait(lambda: place.assignment.revision == place.manager._wishes.revision, "nothing else is to be written")
        disk = Disk(monkeypatch)
        release = asyncio.create_task(place.release([block]))
        await wait(lambda: "node.json" in disk.asked, "it is written")
        assert network.id not in place.blocks, "nobody is given an address of it"
        assert block in place.manager._wishes.leases_of_network(network.id)
        disk.free()
        await release
        assert not disk.late
        assert block not in place.manager._wishes.leases_of_network(network.id)


async def test_a_full_disk_does_not_forget_what_went_back(place, monkeypatch):
    """The assignment on disk has the block as this node's: a daemon that starts from it would give its addresses."""
    async with running(place):
        network = await place.manager.create_network(NetworkCreate(name="red"))
        await place.lease(LeaseRequest(network=network.id))
        (block,) = place.blocks[network.id]

        def full(assignment):
            raise HostError("no space left on device")

        monkeypatch.setattr(place._state, "save_assignment", full)
        await place.release([block])
        assert block not in place.manager._wishes.leases_of_network(network.id)
        assert place._state.local_node().returning == (block,)


async def test_nothing_is_written_after_the_end(place, monkeypatch, tmp_path):
    """`vxnet leave` forgets secrets: a file that came back would hold them."""
    async with running(place) as task:
        await wait(lambda: is_held(GOSSIP_PORT, socket.SOCK_DGRAM), "it runs")
        disk = Disk(monkeypatch)
        await place.manager.create_network(NetworkCreate(name="red"))
        await wait(lambda: "assignment.json" in disk.asked, "the assignment is written")
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
        assert not task.done()
        disk.free()
        await asyncio.wait([task])
    assert not disk.late
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(
    "place, settings", [({}, LAN), ({"gossip_profile": "wan"}, WAN)], indirect=["place"], ids=["lan", "wan"]
)
async def test_the_clusters_label_and_profile_are_the_gossips(place, settings):
    assert place.assignment.cluster.gossip_label == place.gossip.core.swim._label == "blue"
    assert place.gossip.core.swim.settings is settings

"""A place in a cluster goes on where a part of it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.core import trust
from vxnet.daemon import place as places
from vxnet.daemon.manager import Manager
from vxnet.daemon.place import Place
from vxnet.daemon.state import LocalNode, StateDirectory
from vxnet.model.cluster import CONTROL_PORT, GOSSIP_PORT
from vxnet.model.errors import UnavailableError
from vxnet.model.host import HostFacts

ADDRESS = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}.77"
"""Of this process alone: the ports are the real ones."""


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """A manager's own, without its loops."""
    state = StateDirectory(tmp_path)
    key = trust.node_key(os.urandom(32))
    store = await SqliteStore.open(state.store_path)
    address = ipaddress.ip_address(ADDRESS)
    manager = await Manager.create(
        store, name="h1", advertise_addr=address, data_path_addr=address, key=key, gossip_label="blue"
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
    monkeypatch.setattr(places, "CLOCK_S", 0.05)
    before = place.certificate
    async with running(place) as task:
        await asyncio.sleep(0.2)
        assert place.certificate == before
        offset = (last - first) * 0.6
        await wait(lambda: place.certificate != before, "the certificate is renewed")
        assert not task.done()


async def test_a_renewal_that_the_store_refuses_is_tried_again(place, monkeypatch):
    """A full disk, say: neither the daemon's end nor the certificate's."""
    monkeypatch.setattr(places, "RENEWAL_RETRY_S", 0.05)
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


async def test_the_clusters_label_is_the_gossips(place):
    assert place.assignment.cluster.gossip_label == place.gossip.core.swim._label == "blue"

"""Into a cluster and out of it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.daemon.config import Config
from vxnet.daemon.membership import Membership
from vxnet.daemon.moves import back_up
from vxnet.daemon.state import StateDirectory
from vxnet.model.api import InitRequest
from vxnet.model.errors import CallerError, ConflictError
from vxnet.model.host import HostAddress, HostFacts
from vxnet.model.store import RestoreRequest

ADDRESS = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}.78"
"""Of this process alone: the ports are the real ones."""
REQUEST = InitRequest(advertise_addr=ADDRESS)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Membership]:
    address = HostAddress(interface="eth1", address=ipaddress.ip_interface(f"{ADDRESS}/8"))
    facts = HostFacts(hostname="h1", machine_id="", addresses=(address,), routes=(), nameservers=())
    return lambda: Membership(StateDirectory(tmp_path), Config(), lambda: facts, lambda: None)


def stores() -> set[threading.Thread]:
    """Open ones, by their threads."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("vxnet-store")}


async def closed(others: set[threading.Thread]) -> None:
    """A thread ends a moment after its store is closed."""
    async with asyncio.timeout(5):
        while stores() - others:
            await asyncio.sleep(0.01)


async def test_init_does_not_touch_a_store_that_holds_a_cluster(make, tmp_path):
    """Restored from a backup, and the rest not yet."""
    (tmp_path / "store.db").write_bytes(b"precious")
    async with make() as membership:
        with pytest.raises(ConflictError, match="holds a cluster already") as caught:
            await membership.init(REQUEST)
        assert "restore" in caught.value.hint
    assert (tmp_path / "store.db").read_bytes() == b"precious"


async def test_neither_does_a_restore(make, tmp_path):
    """It would take it away as it failed."""
    async with make() as membership:
        node = await membership.init(REQUEST)
        backup = await back_up(membership.manager("store backup"))
    (tmp_path / "node.json").unlink()
    async with make() as membership:
        with pytest.raises(ConflictError, match="holds a cluster already"):
            await membership.restore(RestoreRequest(backup=backup, advertise_addr=ADDRESS))
    assert f"node/{node.id}" in (await load(tmp_path / "store.db"))
    assert (tmp_path / "node.key").exists()


async def load(path: Path) -> Mapping[str, object]:
    store = await SqliteStore.open(path)
    try:
        return (await store.load()).records
    finally:
        await store.close()


async def test_a_store_is_open_as_long_as_its_cluster(make, tmp_path):
    async with make() as membership:
        others = stores()  # of an earlier test, which may just be ending
        with pytest.raises(CallerError, match="fits into address pool"):
            await membership.init(
                InitRequest(advertise_addr=ADDRESS, default_addr_pool=(ipaddress.ip_network("10.0.0.0/24"),))
            )
        await closed(others)
        assert not (tmp_path / "store.db").exists()
        for _ in range(2):
            await membership.init(REQUEST)
            assert len(stores() - others) == 1
            await membership.leave(force=True)
            await closed(others)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["containers"]

"""Who may change the members of a real etcd, and whose certificates open it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import tempfile
import time
import urllib.request

import pytest
from msgspec.structs import replace

from vxnet.cluster.etcd import Etcd
from vxnet.cluster.etcd_members import add_learner, members_of, settled_members_of
from vxnet.cluster.etcd_store import EtcdStore
from vxnet.cluster.store import LeadershipLostError
from vxnet.core import etcd_trust, trust
from vxnet.daemon.manager import Manager
from vxnet.daemon.member import EtcdMember
from vxnet.host.etcd import EtcdProcess
from vxnet.model.codec import to_json
from vxnet.model.errors import ConflictError, UnavailableError
from vxnet.model.store import CLIENT_PORT, PEER_PORT, etcd_url

pytestmark = pytest.mark.slow

DEADLINE_S = 30
NOBODY = "127.0.0.9"


@pytest.fixture
async def manager(etcd_cluster):
    """On the first member's host; the others' hosts have managers, too. It leads."""
    access = replace(etcd_cluster.access(prefix=os.urandom(4).hex()), managed=True)
    store = await EtcdStore.open(access)
    addresses = [ipaddress.ip_address(member.address) for member in etcd_cluster.members]
    made = await Manager.create(
        store,
        name="m0",
        advertise_addr=addresses[0],
        data_path_addr=addresses[0],
        key=trust.node_key(os.urandom(32)),
        etcd_ca=etcd_cluster.authority,
    )
    made.access = access
    for number, address in enumerate(addresses[1:], 1):
        node = replace(made.node, id=f"n{number}", name=f"m{number}", advertise_addr=address)
        await store.commit({f"node/{node.id}": to_json(node)})
    mirror = asyncio.create_task(made._mirror.run())
    made.commits._leadership = await store.lead(made.node_id)
    await made._mirror.reach(made.commits._leadership.version)
    yield made
    mirror.cancel()
    await asyncio.wait([mirror])
    await store.close()


def host_of(cluster, manager):
    """The part of the first member's host that looks after etcd."""
    first = cluster.members[0]
    return EtcdMember(EtcdProcess(first.directory), first.name, ipaddress.ip_address(first.address), manager.node_id)


async def test_only_the_leader_has_a_member_removed(etcd_cluster, manager):
    etcd = Etcd(manager.access)
    try:
        await persist(lambda: member_added(etcd, etcd_url(NOBODY, PEER_PORT)))
        members = await settled_members_of(etcd)
        assert len(members) == 4 and manager.electors.is_due(members, lambda node: True)
        # It was deposed, and does not know yet.
        another = await EtcdStore.open(manager.access)
        leadership = await another.lead("n1", lambda holder: True)
        host = host_of(etcd_cluster, manager)
        with pytest.raises(LeadershipLostError):
            await host._dismiss(etcd, manager)
        assert len(await settled_members_of(etcd)) == 4 and not manager._wishes.dismissed
        manager.commits._leadership = leadership
        await host._dismiss(etcd, manager)
        assert len(members := await settled_members_of(etcd)) == 3
        assert len(manager._wishes.dismissed) == 1
        # The decision stood until it was carried out, and is settled then.
        assert await manager.electors.dismiss(members) is None
        assert not manager._wishes.dismissed and not manager.electors.is_due(members, lambda node: True)
        await another.close()
    finally:
        await etcd.close()


def copy_of(access):
    context = ssl.create_default_context(cadata=access.ca.decode())
    with tempfile.NamedTemporaryFile() as both:
        both.write(access.certificate + access.key)
        both.flush()
        context.load_cert_chain(both.name)
    return context


async def member_added(etcd, peer_url):
    """Whose answer was lost may have been added all the same. All are refused until the others have known each other
    for a while.
    """
    if not any(peer_url in member.peers for member in await settled_members_of(etcd)):
        await add_learner(etcd, peer_url)


def opens(context, address, port):
    """Whether etcd answers, or ends the connection. Who is silent, or has not begun yet, is asked again."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(etcd_url(address, port) + "/version", timeout=3, context=context) as answer:
                return b"etcdserver" in answer.read()
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionResetError | ssl.SSLError):
                return False
            assert time.monotonic() < deadline, reason
            time.sleep(0.1)


def open_in_time(context, ports):
    """Members that are busy end a connection, too: only as long as they are."""
    deadline = time.monotonic() + DEADLINE_S
    while not all(opens(context, *port) for port in ports):
        assert time.monotonic() < deadline


async def test_a_removed_managers_copy_opens_nothing(etcd_cluster, manager):
    """Neither etcd's client port nor the members' own; and all others go on."""
    host, address = manager.node, ipaddress.ip_address("127.0.0.1")
    node = replace(host, id="gone", name="gone", advertise_addr=address)
    await manager._put("node/gone", node)
    key = etcd_trust.member_key(os.urandom(40))
    granted = await manager.electors.grant("gone", etcd_trust.member_csr(key))
    copy = copy_of(replace(granted, key=etcd_trust.member_key_to_pem(key)))
    ports = [(member.address, port) for member in etcd_cluster.members for port in (CLIENT_PORT, PEER_PORT)]
    open_in_time(copy, ports)
    await manager._put("node/gone", replace(node, role="worker"))
    etcd = Etcd(manager.access)
    try:
        assert manager.electors.is_due(await members_of(etcd), lambda node: True)
        assert await manager.electors.dismiss(await settled_members_of(etcd)) is None
    finally:
        await etcd.close()
    assert len(manager.electors.revoked()) == 1
    kept = []

    async def learned(access):
        kept.append(access)

    for member in etcd_cluster.members:
        process = EtcdProcess(member.directory)
        await EtcdMember(process, member.name, ipaddress.ip_address(member.address))._refuse(manager, learned)
    assert len(kept) == 3 and kept[0].revoked == (etcd_cluster.members[0].directory / "revoked.crl").read_bytes()
    assert not any(opens(copy, *port) for port in ports)
    # Made manager again it gets another certificate, and the copy stays worthless.
    await manager._put("node/gone", node)
    assert await manager.electors.dismiss(await settled(manager)) is None
    assert len(manager.electors.revoked()) == 1 and not opens(copy, *ports[0])
    # The members take each other's connections: one that comes back finds the others.
    etcd_cluster.members[2].kill()
    etcd_cluster.mend()
    fine = copy_of(manager.access)
    open_in_time(fine, ports)
    await persist(lambda: manager._put("token/worker", manager._wishes.secrets["worker"]))


async def persist(ask):
    """Until somebody answers."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return await ask()
        except (UnavailableError, ConflictError):
            assert time.monotonic() < deadline


async def settled(manager):
    etcd = Etcd(manager.access)
    try:
        return await settled_members_of(etcd)
    finally:
        await etcd.close()

"""The manager on a real store: what it grants, refuses and tells; and that it survives restarts and races."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import re
from collections import Counter

import pytest
from msgspec.structs import replace

from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.core import decisions, trust
from vxnet.core.assignment import apply, errands, lease_set
from vxnet.daemon.commits import encoded
from vxnet.daemon.manager import Manager
from vxnet.model.api import JoinClaim, LeaseRequest, LogRequest, NetworkCreate, NodeReport
from vxnet.model.cluster import Signed
from vxnet.model.codec import to_json
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import (
    CallerError,
    ConflictError,
    ExhaustedError,
    ForbiddenError,
    HostError,
    NotFoundError,
    PeerError,
    UnavailableError,
    UnsupportedError,
)
from vxnet.model.gossip import RotateKeys, Rotation
from vxnet.model.service import ServiceSpec, TaskSpec

DEADLINE_S = 20
START = 1_800_000_000.0


def address(text):
    return ipaddress.ip_address(text)


def prefix(text):
    return ipaddress.ip_network(text)


class Cluster:
    """A manager with clock and entropy in the test's hands; ``run`` runs for as long as the fixture lasts."""

    def __init__(self, path):
        self.path = path
        self.random = random.Random(7)
        self.time = START
        self.keys = {}
        self.tasks = []

    async def create(self, **settings):
        self.store = await SqliteStore.open(self.path)
        self.key = trust.node_key(b"m" * 32)
        self.manager = await Manager.create(
            self.store,
            name="h1",
            advertise_addr=address("192.0.2.1"),
            data_path_addr=address("192.0.2.1"),
            key=self.key,
            now=lambda: self.time,
            entropy=self.random.randbytes,
            **settings,
        )
        return self._run()

    async def reopen(self, certificate=None):
        node_id, certificate = self.manager.node_id, certificate or self.manager.certificate
        await self.stop()
        self.store = await SqliteStore.open(self.path)
        self.manager = await Manager.open(
            self.store,
            node_id=node_id,
            key=self.key,
            certificate=certificate,
            now=lambda: self.time,
            entropy=self.random.randbytes,
        )
        return self._run()

    def _run(self):
        self.tasks.append(asyncio.create_task(self.manager.run()))
        return self.manager

    async def stop(self):
        while self.tasks:
            task = self.tasks.pop()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, UnavailableError):
                await task
        await self.store.close()

    def claim(self, number, **changes):
        self.keys.setdefault(number, trust.node_key(bytes([number]) * 32))
        fields = {
            "secret": trust.parse_token(self.manager.join_token("worker")).secret,
            "csr": trust.make_csr(self.keys[number], f"h{number}"),
            "name": f"h{number}",
            "advertise_addr": address(f"192.0.2.{number}"),
            "data_path_addr": address(f"192.0.2.{number}"),
        }
        return JoinClaim(**(fields | changes))

    async def join(self, number, **changes):
        return await self.manager.join(self.claim(number, **changes), "test")

    def leases(self, signed):
        """The set, as everybody checks it, without those of the ingress network, which each node has."""
        identity = trust.verify_certificate(signed.certificate, self.manager.roots, self.time)
        key = trust.public_key(signed.certificate)
        assert trust.is_signed_by(key, trust.LEASES_PURPOSE, signed.content, signed.signature)
        assert identity == trust.Identity(node=self.manager.node_id, role="manager")
        found = lease_set(signed)
        ingress = {one.id for one in self.manager.networks() if one.ingress}
        return replace(found, leases=tuple(lease for lease in found.leases if lease.network not in ingress))

    @property
    def networks(self):
        """But ``ingress``."""
        return tuple(one for one in self.manager.networks() if not one.ingress)


@pytest.fixture
async def cluster(tmp_path):
    cluster = Cluster(tmp_path / "store.db")
    await cluster.create()
    yield cluster
    await cluster.stop()


@pytest.fixture
def manager(cluster):
    return cluster.manager


async def wait_until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


def network(name="net", **fields):
    return NetworkCreate(name=name, **({"attachable": True} | fields))


async def lease_until_exhausted(manager, node_id, network):
    while True:
        await manager.lease(node_id, LeaseRequest(network=network.id))


# Birth


async def test_a_new_cluster(cluster, manager):
    assert len(manager.cluster.id) == len(manager.node.id) == 25
    assert manager.cluster.pools == (prefix("10.0.0.0/8"),)
    identity = trust.verify_certificate(manager.certificate, manager.roots, cluster.time)
    assert identity == trust.Identity(node=manager.node_id, role="manager")
    assignment = manager.assignment_of(manager.node_id)
    assert [one.name for one in assignment.managers] == ["h1"]
    assert len(assignment.keys[0].secret) == 32
    assert assignment.roots == manager.roots
    assert cluster.leases(assignment.leases).leases == ()


async def test_a_store_holds_one_cluster(cluster, manager):
    with pytest.raises(ConflictError, match="holds a cluster already"):
        await Manager.create(
            cluster.store,
            name="h1",
            advertise_addr=address("192.0.2.1"),
            data_path_addr=address("192.0.2.1"),
            key=cluster.key,
        )


async def test_another_clusters_store_is_refused(cluster):
    with pytest.raises(NotFoundError, match="no cluster with node nobody"):
        await Manager.open(cluster.store, node_id="nobody", key=cluster.key, certificate=b"")


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        (["10.0.0.0/24"], "no /20 subnet fits"),
        (["fd00::/72"], "no /64 subnet fits"),
        (["127.0.0.0/8"], "cannot be given"),
        (["10.0.0.0/8", "10.1.0.0/16"], "overlap"),
    ],
)
async def test_pools_that_cannot_be(tmp_path, pools, words):
    cluster = Cluster(tmp_path / "store.db")
    with pytest.raises(CallerError, match=words):
        await cluster.create(pools=[prefix(pool) for pool in pools])
    assert (await cluster.store.load()).records == {}
    await cluster.stop()


async def test_everything_survives_a_restart(cluster, manager):
    made = await manager.create_network(network())
    grant = await cluster.join(2)
    token = manager.join_token("worker")
    before = manager.assignment_of(grant.node.id)
    again = await cluster.reopen()
    after = again.assignment_of(grant.node.id)
    assert cluster.networks == (made,) and again.join_token("worker") == token
    assert (after.keys, after.networks, after.roots) == (before.keys, before.networks, before.roots)
    assert cluster.leases(after.leases).leases == cluster.leases(before.leases).leases
    assert cluster.leases(after.leases).revision > cluster.leases(before.leases).revision


# Networks


async def test_networks_get_subnets_and_vnis_of_their_own(cluster, manager):
    made = [await manager.create_network(network(f"n{number}")) for number in range(3)]
    assert [one.vni for one in made] == [65537, 65538, 65539]
    assert [str(one.subnets[0].prefix) for one in made] == ["10.0.16.0/20", "10.0.32.0/20", "10.0.48.0/20"]
    assert str(made[0].subnets[0].gateway) == "10.0.16.1"
    assert all(len(one.id) == 25 for one in made)
    await manager.remove_network("n2")
    assert (await manager.create_network(network("n3"))).vni == 65540


async def test_a_network_is_found_by_name_id_and_beginning(manager):
    for ref_of in (lambda made: made.id[:6], lambda made: made.id, lambda made: made.name):
        made = await manager.create_network(network("one"))
        assert await manager.remove_network(ref_of(made)) == made
    await manager.create_network(network("one"))
    with pytest.raises(NotFoundError, match="no network 'two'") as caught:
        await manager.remove_network("two")
    assert "one" in caught.value.hint


async def test_a_network_in_use_names_its_users(cluster, manager):
    made = await manager.create_network(network())
    manager.users_of = lambda network_id: ["web (h2)", "db (h1)"] if network_id == made.id else []
    with pytest.raises(ConflictError, match=r"net is still in use by db \(h1\), web \(h2\)"):
        await manager.remove_network("net")
    assert cluster.networks == (made,)


REFUSED = [
    ({"name": "-net"}, CallerError, "'-net' cannot be"),
    ({"name": "a b"}, CallerError, "cannot be a network's name"),
    ({"name": ""}, CallerError, "cannot be a network's name"),
    ({"name": "n\n"}, CallerError, "cannot be a network's name"),
    ({"name": "x" * 65}, CallerError, "at most 64"),
    *(({"name": name}, ConflictError, "vxnet makes itself") for name in ("bridge", "host", "none", "vxnet_gw")),
    ({"name": "ingress"}, ConflictError, "kept for the routing mesh's network"),
    ({"name": "taken"}, ConflictError, "there is a network 'taken' already"),
    ({"driver": "bridge"}, CallerError, "one host's own"),
    ({"options": {"encrypted": ""}}, UnsupportedError, "not built yet"),
    ({"options": {"mtu": "1400", "colour": "red"}}, CallerError, "unknown option 'colour'"),
    *(
        ({"options": {"mtu": text}}, CallerError, "576 to 65535")
        for text in ("", "x", "575", "65536", "-1", "9" * 9000)
    ),
    ({"options": {"mtu": "1200"}, "subnets": ["fd01::/64"]}, CallerError, "1280"),
    ({"subnets": ["10.200.0.0/30"]}, CallerError, "too small.*|at least a /29"),
    ({"subnets": ["fd01::/127"]}, CallerError, "too small"),
    ({"subnets": ["224.0.0.0/8"]}, CallerError, "cannot be given"),
    ({"subnets": ["0.0.0.0/0"]}, CallerError, "cannot be given"),
    ({"subnets": ["127.0.1.0/24"]}, CallerError, "cannot be given"),
    ({"subnets": ["10.200.0.0/16", "10.200.1.0/24"]}, CallerError, "10.200.0.0/16 and 10.200.1.0/24 overlap"),
    ({"subnets": ["10.100.0.0/16"]}, ConflictError, "10.100.8.0/24 of network taken"),
    ({"subnets": ["192.0.2.0/24"]}, ConflictError, "192.0.2.1, an address of node h1"),
    ({"subnets": ["10.50.0.0/24"]}, ConflictError, "10.50.0.0/16, to which node h2 has a route"),
    ({"subnets": ["10.200.0.0/24"], "gateways": ["10.201.0.1"]}, CallerError, "10.201.0.1 lies outside"),
    ({"subnets": ["10.200.0.0/24"], "gateways": ["10.200.0.0"]}, CallerError, "network or broadcast"),
    ({"subnets": ["10.200.0.0/24"], "gateways": ["10.200.0.1", "10.200.0.2"]}, CallerError, "two gateways"),
]


@pytest.mark.parametrize(("fields", "error", "words"), REFUSED, ids=lambda value: str(value)[:40])
async def test_refused_networks(cluster, manager, fields, error, words):
    await manager.create_network(network("taken", subnets=(prefix("10.100.8.0/24"),)))
    await cluster.join(2, routes=(prefix("10.50.0.0/16"), prefix("0.0.0.0/0")))
    fields = dict(fields)
    for name, parse in (("subnets", prefix), ("gateways", address)):
        fields[name] = tuple(parse(text) for text in fields.get(name, ()))
    before = (await cluster.store.load()).revision
    with pytest.raises(error, match=words):
        await manager.create_network(network(**fields))
    assert (await cluster.store.load()).revision == before


async def test_options_and_gateway(manager):
    made = await manager.create_network(
        network(options={"mtu": "1400"}, subnets=(prefix("10.9.0.0/24"),), gateways=(address("10.9.0.254"),))
    )
    assert made.mtu == 1400 and made.subnets[0].gateway == address("10.9.0.254")
    assert (
        await manager.create_network(network("docker", options={"com.docker.network.driver.mtu": "1300"}))
    ).mtu == 1300


async def test_pools_avoid_the_routes_of_all_hosts_and_of_later_joiners(cluster, manager):
    await cluster.join(2, routes=(prefix("10.0.0.0/17"), prefix("0.0.0.0/0")))
    assert str((await manager.create_network(network("a"))).subnets[0].prefix) == "10.0.128.0/20"
    grant = await cluster.join(3)
    await manager.report(grant.node.id, NodeReport(routes=(prefix("10.0.128.0/17"),), version="1"))
    assert str((await manager.create_network(network("b"))).subnets[0].prefix) == "10.1.0.0/20"


async def test_a_used_up_pool(tmp_path):
    cluster = Cluster(tmp_path / "store.db")
    manager = await cluster.create(pools=[prefix("10.3.0.0/19")])
    await manager.create_network(network("a"))
    with pytest.raises(ExhaustedError, match=r"10\.3\.0\.0/19.*2 of their subnets are in use"):
        await manager.create_network(network("c"))
    await manager.create_network(network("c", subnets=(prefix("10.4.0.0/24"),)))
    await cluster.stop()


# Joining


async def test_join(cluster, manager):
    await manager.create_network(network())
    grant = await cluster.join(2)
    identity = trust.verify_certificate(grant.certificate, manager.roots, cluster.time)
    assert identity == trust.Identity(node=grant.node.id, role="worker")
    (lease,) = cluster.leases(grant.assignment.leases).leases
    assert lease.node == grant.node.id and lease.prefix.prefixlen == 29
    assert [one.name for one in manager.nodes()] == ["h1", "h2"]


async def test_wrong_and_rotated_secrets(cluster, manager):
    with pytest.raises(ForbiddenError, match="not valid"):
        await cluster.join(2, secret="0" * 25)
    old = cluster.claim(2)
    token = await manager.rotate_token("worker")
    assert trust.pins(trust.parse_token(token), manager.roots[0])
    with pytest.raises(ForbiddenError, match="not valid"):
        await manager.join(old)
    await cluster.join(2)


async def test_managers_need_another_store(manager):
    with pytest.raises(UnsupportedError, match="etcd"):
        manager.join_token("manager")
    with pytest.raises(UnsupportedError, match="etcd"):
        await manager.rotate_token("manager")


async def test_only_a_worker_is_promoted(cluster, manager):
    await cluster.join(2)
    assert (await manager.set_role("h1", "manager")).role == "manager"
    with pytest.raises(UnsupportedError, match="etcd"):
        await manager.set_role("h2", "manager")
    with pytest.raises(NotFoundError, match="h9"):
        await manager.set_role("h9", "manager")


@pytest.mark.parametrize("alive", [True, False])
async def test_names_and_addresses_are_unique(cluster, manager, alive):
    await cluster.join(2)
    manager.alive = lambda node_id: alive
    with pytest.raises(ConflictError, match="'h2' already") as caught:
        await cluster.join(3, name="H2")
    assert ("node rm" in caught.value.hint) is not alive
    for field in ("advertise_addr", "data_path_addr"):
        with pytest.raises(ConflictError, match=r"192\.0\.2\.2 is that of node 'h2'") as caught:
            await cluster.join(3, **{field: address("192.0.2.2")})
        assert ("node rm" in caught.value.hint) is not alive
    assert len(manager.nodes()) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advertise_addr": address("127.0.0.1")}, "advertise address 127.0.0.1"),
        ({"data_path_addr": address("::")}, "data-path address ::"),
        ({"data_path_addr": address("fe80::2")}, "data-path address fe80::2 cannot be reached"),
        ({"data_path_addr": address("2001:db8::2")}, "not of the cluster's family"),
        ({"advertise_addr": address("2001:db8::2")}, "not of the cluster's family"),
        ({"name": "vxnet-manager"}, "reserved"),
        ({"name": "*"}, "cannot be a node's name"),
        ({"csr": b"rubbish"}, "certificate request"),
    ],
)
async def test_claims_that_cannot_be(cluster, manager, changes, words):
    with pytest.raises(CallerError, match=words):
        await cluster.join(2, **changes)
    assert len(manager.nodes()) == 1


async def test_a_repeated_join_is_the_same_node(cluster, manager):
    first = await cluster.join(2)
    again = await cluster.join(2)
    assert again.node.id == first.node.id and len(manager.nodes()) == 2
    with pytest.raises(ConflictError, match="already"):
        await cluster.join(2, advertise_addr=address("192.0.2.77"))


async def test_twenty_join_at_once(cluster, manager):
    await manager.create_network(network())
    grants = await asyncio.gather(*(cluster.join(number) for number in range(2, 22)))
    assert len({grant.node.id for grant in grants}) == 20
    blocks = [lease.prefix for grant in grants for lease in cluster.leases(grant.assignment.leases).leases]
    assert len(blocks) == len(set(blocks)) == 20


# Removing


async def test_node_rm(cluster, manager):
    await manager.create_network(network())
    grant = await cluster.join(2)
    with pytest.raises(ConflictError, match="h2 is alive"):
        await manager.remove_node("h2")
    manager.alive = lambda node_id: False
    assert (await manager.remove_node("h2")).id == grant.node.id
    with pytest.raises(ForbiddenError, match="was removed"):
        manager.role_of(grant.node.id)
    assert manager.assignment_of(manager.node_id).revoked == (grant.node.id,)
    for forbidden in (
        lambda: manager.lease(grant.node.id, LeaseRequest(network="x")),
        lambda: manager.report(grant.node.id, NodeReport()),
        lambda: manager.leave(grant.node.id),
        lambda: manager.release(grant.node.id, []),
        lambda: anext(manager.assignments(grant.node.id)),
    ):
        with pytest.raises(ForbiddenError, match="was removed"):
            await forbidden()
    with pytest.raises(ForbiddenError):
        manager.renew(grant.node.id, cluster.claim(2).csr)
    assert (await cluster.join(2)).node.id != grant.node.id


async def test_its_leases_end_at_once_but_never_by_silence(cluster, manager):
    made = await manager.create_network(network(subnets=(prefix("10.9.0.0/28"),)))
    grant = await cluster.join(2)
    manager.alive = lambda node_id: node_id == manager.node_id
    with pytest.raises(ExhaustedError, match="net has no address left"):
        await lease_until_exhausted(manager, grant.node.id, made)
    with pytest.raises(ExhaustedError):
        await lease_until_exhausted(manager, manager.node_id, made)
    cluster.time += 10 * 365 * 86400
    with pytest.raises(ExhaustedError):
        await manager.lease(manager.node_id, LeaseRequest(network=made.id))
    await manager.remove_node("h2")
    await manager.lease(manager.node_id, LeaseRequest(network=made.id))


async def test_the_last_manager_stays(manager):
    for attempt in (lambda: manager.remove_node("h1", force=True), lambda: manager.leave(manager.node_id)):
        with pytest.raises(ConflictError, match="last manager"):
            await attempt()


async def test_revocations_are_kept_as_long_as_the_certificate_could_be_valid(cluster, manager):
    grant = await cluster.join(2)
    await manager.remove_node("h2", force=True)
    cluster.time += 90 * 86400
    await cluster.join(3)
    await manager.mend()
    assert manager.assignment_of(manager.node_id).revoked == (grant.node.id,)
    cluster.time += 2 * 86400
    with pytest.raises(PeerError, match="not valid now"):
        trust.verify_certificate(grant.certificate, manager.roots, cluster.time)
    await manager.mend()
    assert manager.assignment_of(manager.node_id).revoked == ()


async def test_leave(cluster, manager):
    grant = await cluster.join(2)
    await manager.leave(grant.node.id)
    assert len(manager.nodes()) == 1


# Leases


async def test_blocks_of_all_nodes_when_a_network_is_made(cluster, manager):
    grants = [await cluster.join(number) for number in (2, 3)]
    await manager.create_network(network())
    await manager.create_network(network("services", attachable=False))
    for node_id in (manager.node_id, *(grant.node.id for grant in grants)):
        leases = cluster.leases(manager.assignment_of(node_id).leases).leases
        assert [lease.vni for lease in leases] == [65537]


async def test_lease_and_release(cluster, manager):
    made = await manager.create_network(network())
    node_id = (await cluster.join(2)).node.id
    signed = await manager.lease(node_id, LeaseRequest(network=made.id))
    first, second = cluster.leases(signed).leases
    released = cluster.leases(await manager.release(node_id, [second]))
    assert released.leases == (first,) and released.revision > cluster.leases(signed).revision
    again = cluster.leases(await manager.lease(node_id, LeaseRequest(network=made.id))).leases[-1]
    assert again.prefix == second.prefix and again.epoch > second.epoch
    assert again in cluster.leases(await manager.release(node_id, [second])).leases
    with pytest.raises(NotFoundError):
        await manager.lease(node_id, LeaseRequest(network="gone"))


async def test_nobody_releases_for_another(cluster, manager):
    made = await manager.create_network(network())
    node_id = (await cluster.join(2)).node.id
    (theirs,) = cluster.leases(manager.assignment_of(manager.node_id).leases).leases
    await manager.release(node_id, [theirs])
    assert cluster.leases(manager.assignment_of(manager.node_id).leases).leases == (theirs,)
    assert made.id == theirs.network


async def test_chosen_addresses(cluster, manager):
    made = await manager.create_network(network(subnets=(prefix("10.9.0.0/24"),)))
    node_id = (await cluster.join(2)).node.id
    chosen = LeaseRequest(network=made.id, address=address("10.9.0.200"))
    leases = cluster.leases(await manager.lease(node_id, chosen)).leases
    assert [lease.prefix for lease in leases if lease.chosen] == [prefix("10.9.0.200/32")]
    assert cluster.leases(await manager.lease(node_id, chosen)).leases == leases
    with pytest.raises(ConflictError, match="leased to node h2"):
        await manager.lease(manager.node_id, chosen)
    with pytest.raises(CallerError, match="gateway"):
        await manager.lease(node_id, LeaseRequest(network=made.id, address=address("10.9.0.1")))


async def test_no_block_twice_when_all_ask_at_once(cluster, manager):
    made = await manager.create_network(network(subnets=(prefix("10.9.0.0/23"),)))
    nodes = [(await cluster.join(number)).node.id for number in range(2, 8)]

    async def ask(node_id, number):
        with contextlib.suppress(ExhaustedError):
            signed = await manager.lease(node_id, LeaseRequest(network=made.id, addresses=number))
            if number % 3 == 2:
                await manager.release(node_id, cluster.leases(signed).leases[-1:])

    await asyncio.gather(*(ask(node_id, number) for node_id in nodes for number in range(8)))
    taken = Counter()
    for node_id in (manager.node_id, *nodes):
        for lease in cluster.leases(manager.assignment_of(node_id).leases).leases:
            taken.update(lease.prefix)
    assert taken and set(taken.values()) == {1}
    before = {node_id: manager.assignment_of(node_id).leases.content for node_id in nodes}
    await cluster.reopen()
    for node_id in nodes:
        after = cluster.leases(cluster.manager.assignment_of(node_id).leases).leases
        signed = Signed(content=before[node_id], signature=b"", certificate=b"")
        assert after == tuple(lease for lease in lease_set(signed).leases if lease.network == made.id)


async def test_what_a_crash_left_over_is_mended(cluster, manager):
    """More leases than one commit takes, and the manager dies after the first."""
    for number in range(100):
        await manager.create_network(network(f"n{number}", subnets=(prefix(f"10.9.{number}.0/24"),)))
    grant = await cluster.join(2)
    await wait_until(lambda: len(cluster.leases(manager.assignment_of(grant.node.id).leases).leases) == 100)
    manager.alive = lambda node_id: False
    await manager.remove_node("h2")
    again = await cluster.reopen()
    await wait_until(lambda: not again._wishes.leases_of_node(grant.node.id))
    assert len(cluster.leases(again.assignment_of(again.node_id).leases).leases) == 100


# Streams


async def collect(events, current, until):
    async with asyncio.timeout(DEADLINE_S):
        while not until(current):
            current = apply(current, await anext(events))
    return current


async def test_a_stream_follows(cluster, manager):
    grant = await cluster.join(2)
    events = manager.assignments(grant.node.id)
    current = await collect(events, None, lambda current: current is not None)
    assert current == manager.assignment_of(grant.node.id)
    made = await manager.create_network(network())
    await manager.create_network(network("other", attachable=False))
    current = await collect(events, current, lambda current: len(current.networks) == 3)
    assert current == manager.assignment_of(grant.node.id)
    await manager.lease(grant.node.id, LeaseRequest(network=made.id))
    await manager.remove_network("other")
    third = await cluster.join(3)
    await manager.remove_node("h3", force=True)
    current = await collect(events, current, lambda current: third.node.id in current.revoked)
    assert current == manager.assignment_of(grant.node.id)
    await events.aclose()


async def test_a_stream_resumes_and_repeats_nothing(cluster, manager):
    grant = await cluster.join(2)
    current = grant.assignment
    made = await manager.create_network(network())
    events = manager.assignments(grant.node.id, current.revision)
    update = await asyncio.wait_for(anext(events), DEADLINE_S)
    assert not update.snapshot and [one.kind for one in update.items] == ["network", "leases"]
    current = apply(current, update)
    await events.aclose()
    events = manager.assignments(grant.node.id, current.revision)
    waiting = asyncio.ensure_future(anext(events))
    await manager.report(grant.node.id, NodeReport(version="9"))
    await manager.lease(manager.node_id, LeaseRequest(network=made.id))
    assert not waiting.done()
    await manager.remove_network("net")
    current = apply(current, await asyncio.wait_for(waiting, DEADLINE_S))
    assert current.networks == grant.assignment.networks and cluster.leases(current.leases).leases == ()
    await events.aclose()


@pytest.mark.parametrize("since", [1, 10**9])
async def test_from_a_revision_that_is_not_kept_comes_a_snapshot(cluster, manager, since):
    grant = await cluster.join(2)
    manager = await cluster.reopen()
    events = manager.assignments(grant.node.id, since)
    assert (await asyncio.wait_for(anext(events), DEADLINE_S)).snapshot
    await events.aclose()


async def test_a_removed_node_is_told_and_its_stream_ends(cluster, manager):
    grant = await cluster.join(2)
    events = manager.assignments(grant.node.id, grant.assignment.revision)
    waiting = asyncio.ensure_future(anext(events))
    await manager.remove_node("h2", force=True)
    assert grant.node.id in apply(grant.assignment, await asyncio.wait_for(waiting, DEADLINE_S)).revoked
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_streams_end_with_the_manager(cluster, manager):
    events = manager.assignments(manager.node_id, manager.assignment_of(manager.node_id).revision)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await cluster.stop()
    with pytest.raises(UnavailableError, match="stop"):
        await waiting


# Certificates, disk


async def test_gossip_keys_turn_when_all_that_are_here_have_reported(cluster, manager):
    alive = {"h2"}
    manager.alive = lambda node_id: node_id == manager.node_id or manager._wishes.nodes[node_id].name in alive
    grants = [await cluster.join(number) for number in (2, 3)]
    ids = (manager.node_id, grants[0].node.id)

    def ring():
        return tuple(key.epoch for key in manager.assignment_of(ids[1]).keys)

    async def report(*node_ids):
        for node_id in node_ids:
            await manager.report(node_id, NodeReport(key_epochs=ring()))

    await report(*ids)
    rotation = await manager.rotate_keys(RotateKeys(bits=128))
    assert (rotation.epoch, rotation.in_use, rotation.waiting) == (2, False, ("h1", "h2"))
    assert ring() == (1, 2) and len(manager.assignment_of(ids[1]).keys[1].secret) == 16
    await report(ids[0])
    assert manager.rotation().waiting == ("h2",)
    await report(ids[1])
    await wait_until(lambda: ring() == (2, 1))
    # The old one stays until all use the new one, and a while longer.
    cluster.time += 3600
    await report(ids[0])
    await manager.turn_keys()
    assert ring() == (2, 1)
    await report(ids[1])
    await wait_until(lambda: ring() == (2,))
    assert manager.rotation() == Rotation(epoch=2, in_use=True, made_at=START)
    # 12 hours after it was made, another; a removed node's knowledge is worth nothing 10 s later.
    cluster.time = START + 12 * 3600
    await wait_until(lambda: ring() == (2, 3))
    await report(*ids)
    await wait_until(lambda: ring() == (3, 2))
    await manager.remove_node("h3", force=True)
    cluster.time += 11
    await wait_until(lambda: ring() == (3, 2, 4))
    alive.clear()
    await report(ids[0])
    await wait_until(lambda: ring() == (4, 3))


async def test_a_key_can_be_given_and_forced(cluster, manager):
    await cluster.join(2)
    with pytest.raises(CallerError, match="not 5"):
        await manager.rotate_keys(RotateKeys(key=b"short"))
    rotation = await manager.rotate_keys(RotateKeys(key=b"k" * 24, force=True))
    assert rotation.in_use and rotation.waiting == ("h1", "h2")
    assert manager.assignment_of(manager.node_id).keys[0].secret == b"k" * 24
    # A ring survives a restart of the manager, between its phases too.
    await manager.rotate_keys(RotateKeys())
    manager = await cluster.reopen()
    assert [key.epoch for key in manager.assignment_of(manager.node_id).keys] == [2, 1, 3]


async def test_the_ca_goes_over_when_all_have(cluster, manager):
    grant = await cluster.join(2)
    ids = (manager.node_id, grant.node.id)
    old_token = manager.join_token("worker")

    async def report(node_id, certificate):
        roots = manager.assignment_of(node_id).roots
        own = trust.issuer(certificate, roots)
        known = sorted(roots, key=lambda root: root != own)
        await manager.report(node_id, NodeReport(authorities=tuple(trust.certificate_digest(root) for root in known)))

    def uses():
        return [(one.number, one.use) for one in manager.ca.view().authorities]

    await report(ids[0], manager.certificate)
    manager.trust_changed.clear()
    assert (await manager.ca.rotate()).waiting == ("h1", "h2")
    # No agent has been told of it yet: the server on 2377 learns of new roots by itself.
    assert manager.trust_changed.is_set()
    assert uses() == [(1, "signs"), (2, "next")]
    # A second wish is the same one; so is one after a restart.
    manager = await cluster.reopen()
    assert len((await manager.ca.rotate()).authorities) == 2
    await report(ids[0], manager.certificate)
    await report(ids[1], grant.certificate)
    await wait_until(lambda: uses() == [(2, "signs"), (1, "old")])
    # Who joins now with the old token gets a certificate of the new CA, and is waited for until it says so.
    assert manager.join_token("worker") == old_token
    late = await cluster.join(3)
    assert trust.issuer(late.certificate, manager.roots) == manager.roots[0]
    for node_id, number in ((ids[1], 2), (late.node.id, 3)):
        await report(node_id, manager.renew(node_id, cluster.claim(number).csr))
    await report(ids[0], manager.renew(ids[0], trust.make_csr(cluster.key, "h1")))
    await wait_until(lambda: manager._wishes.authorities["2"].settled_at)
    cluster.time += 11
    await wait_until(lambda: uses() == [(2, "signs")])
    assert manager.join_token("worker") != old_token
    with pytest.raises(PeerError):
        trust.verify_certificate(grant.certificate, manager.roots, cluster.time)


async def test_nobody_is_let_in_with_a_certificate_of_a_ca_that_is_gone(cluster, manager):
    """By a manager that was frozen while the CA was replaced: its join is over the CAs of before."""
    wishes = manager._wishes
    decision, (_, certificate) = decisions.join(wishes, cluster.claim(2), lambda node: True, "n2", b"12345678", START)
    assert trust.issuer(certificate, manager.roots) == manager.roots[0]
    guards = {key: wishes.version(key) for key in decision.guards}
    await cluster.store.commit({"ca/2": to_json(trust.make_ca(b"n" * 48, "c 2", START)), "ca/1": None})
    with pytest.raises(ConflictError, match="ca/1"):
        await cluster.store.commit(encoded(decision), guards)


async def test_renewal(cluster, manager):
    grant = await cluster.join(2)
    cluster.time += 60 * 86400
    certificate = manager.renew(grant.node.id, cluster.claim(2).csr)
    cluster.time += 80 * 86400
    assert trust.verify_certificate(certificate, manager.roots, cluster.time).node == grant.node.id


async def test_a_manager_with_a_new_certificate_signs_all_leases_anew(cluster, manager):
    await manager.create_network(network())
    grant = await cluster.join(2)
    events = manager.assignments(grant.node.id, grant.assignment.revision)
    cluster.time += 60 * 86400
    new = manager.renew(manager.node_id, trust.make_csr(cluster.key, "h1"))
    await manager.use_certificate(new)
    current = await collect(events, grant.assignment, lambda current: current.leases.certificate == new)
    cluster.time += 80 * 86400
    assert len(cluster.leases(current.leases).leases) == 1
    await events.aclose()


async def test_a_service_without_a_name_is_given_one(manager):
    spec = ServiceSpec(name="", task=TaskSpec(container=ContainerSpec(argv=("true",))))
    names = {(await manager.services.create(spec)).name for _ in range(5)}
    assert len(names) == 5 and all(re.fullmatch("[a-z]+_[a-z]+", name) for name in names)


async def test_a_full_disk_refuses_and_the_manager_lives_on(cluster, manager, monkeypatch):
    made = await manager.create_network(network())
    full = HostError("the disk is full")

    async def refuse(changes, guards=None):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(cluster.store, "commit", refuse)
        with pytest.raises(HostError, match="full"):
            await manager.create_network(network("two"))
        assert cluster.networks == (made,)
    assert (await manager.create_network(network("two"))).vni == made.vni + 1
    assert not cluster.tasks[0].done()


async def test_a_deposed_manager_commits_nothing(cluster, manager):
    await cluster.store.lead("somebody else")
    with pytest.raises(UnavailableError, match="no longer leads"):
        await manager.create_network(network())
    assert cluster.networks == ()


async def test_one_that_cannot_see_whether_it_leads_ends_and_begins_anew(cluster, manager, monkeypatch):
    """Where there is one manager, nobody else would schedule."""

    async def refuse(store, leadership):
        raise HostError("the store is in use by another process")

    monkeypatch.setattr(SqliteStore, "keep", refuse)
    await cluster.reopen()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(HostError, match="in use"):
            await cluster.tasks.pop()


# The routing mesh's network


async def test_each_cluster_has_an_ingress_network(cluster, manager):
    (ingress,) = manager.networks()
    assert (ingress.name, ingress.ingress, ingress.vni, ingress.attachable) == ("ingress", True, 65536, False)
    assert [subnet.prefix.version for subnet in ingress.subnets] == [4, 6]
    grant = await cluster.join(2)
    for node_id in (manager.node_id, grant.node.id):
        leases = lease_set(manager.assignment_of(node_id).leases).leases
        assert [(lease.network, lease.prefix.version) for lease in leases] == [(ingress.id, 4), (ingress.id, 6)]


async def test_an_older_cluster_gets_it_at_the_first_start(cluster, manager):
    grant = await cluster.join(2)
    (ingress,) = manager.networks()
    await manager.remove_network("ingress")
    await wait_until(lambda: not manager._wishes.leases_of_network(ingress.id))
    await cluster.store.commit({"set/ingress": None})
    again = await cluster.reopen()
    await wait_until(lambda: len(again._wishes.leases_of_network(ingress.id)) == 4)
    assert again.networks() == (replace(ingress, vni=ingress.vni + 1),)
    assert lease_set(again.assignment_of(grant.node.id).leases).leases


async def test_another_ingress_network_in_place_of_the_first(cluster, manager):
    own = network("doors", attachable=False, ingress=True, subnets=(prefix("10.77.0.0/16"),), options={"mtu": "1400"})
    with pytest.raises(ConflictError, match="there is an ingress network already: ingress"):
        await manager.create_network(own)
    await manager.remove_network("ingress")
    with pytest.raises(CallerError, match="neither --attachable nor --internal"):
        await manager.create_network(network("doors", ingress=True))
    both = await manager.create_network(network("ingress", attachable=False, ingress=True))
    assert [subnet.prefix.version for subnet in both.subnets] == [4, 6]
    await manager.remove_network("ingress")
    made = await manager.create_network(own)
    await cluster.reopen()
    assert cluster.manager.networks() == (made,) and made.mtu == 1400


async def test_who_waits_for_a_store_that_does_not_answer_is_told_so_at_once(cluster, manager, monkeypatch):
    """And not after as long again: two commands at once without a quorum took twice the time of one."""
    asked, silence = [], asyncio.Event()

    async def commit(changes, guards=None):
        asked.append(changes)
        await silence.wait()
        raise UnavailableError("no quorum")

    monkeypatch.setattr(cluster.store, "commit", commit)
    commands = [asyncio.create_task(manager.create_network(NetworkCreate(name=f"n{number}"))) for number in range(3)]
    await wait_until(lambda: asked)
    await asyncio.sleep(0)
    silence.set()
    answers = await asyncio.gather(*commands, return_exceptions=True)
    assert [str(one) for one in answers] == ["no quorum"] * 3 and len(asked) == 1


async def test_a_report_is_not_cancelled_with_another(cluster, manager):
    """Whoever's report was written together with that of a node which went away was cancelled with it: on the manager's
    own host the loop that reports ended without a word."""
    async with manager.commits.turn:
        first = asyncio.create_task(manager.report_tasks(manager.node_id, []))
        await asyncio.sleep(0)
        second = asyncio.create_task(manager.report_tasks(manager.node_id, []))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait((first, second), timeout=20)
    with pytest.raises(UnavailableError, match="not written"):
        await second
    await manager.report_tasks(manager.node_id, [])


async def test_a_log_that_breaks_off_is_told(cluster, manager):
    """Who read it waited for the rest for ever."""

    async def pieces(broken):
        for number in range(40):
            yield b"%d\n" % number
        if broken:
            raise ConnectionResetError("the node is gone")

    async def follow(broken):
        async for update in manager.assignments(manager.node_id):
            for errand in errands(update):
                with contextlib.suppress(ConnectionResetError):
                    await manager.errands.deliver(manager.node_id, errand.id, pieces(broken))

    for broken in (False, True):
        following = asyncio.create_task(follow(broken))
        await asyncio.sleep(0)
        heard = b""
        async with asyncio.timeout(20):
            with pytest.raises(UnavailableError, match="in the middle") if broken else contextlib.nullcontext():
                async for piece in manager.errands.logs(manager.node_id, "task", LogRequest()):
                    heard += piece
        assert heard == b"".join(b"%d\n" % number for number in range(40))
        following.cancel()

"""What a manager decides, where a commit has its limits and a node its history."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from vxnet.cluster.store import MAX_GUARDS, MAX_RECORDS
from vxnet.core import decisions, trust
from vxnet.core.wishes import RemovedNode, Wishes
from vxnet.model.api import JoinClaim
from vxnet.model.cluster import FIRST_VNI, Cluster, Network, Node, Subnet
from vxnet.model.codec import to_json

DAY = 86_400.0
NOW = 1_800_000_000.0


def address(number):
    return ipaddress.ip_address(f"192.0.2.{number}")


class Managers:
    """What a cluster's managers know, and what becomes of it."""

    def __init__(self):
        self.wishes = Wishes()
        key = trust.node_key(bytes(32))
        pool = ipaddress.ip_network("10.0.0.0/8")
        founding = decisions.found(
            Cluster(id="c", pools=(pool,), created_at=NOW),
            Node(
                id="n1", name="h1", role="manager", advertise_addr=address(1), data_path_addr=address(1), joined_at=NOW
            ),
            trust.make_csr(key, "h1"),
            ca_entropy=bytes(48),
            serial=bytes(8),
            secret=bytes(16),
            gossip_key=bytes(32),
        )
        self.commit(founding.decision)

    def commit(self, decision):
        self.write(decision.changes)

    def write(self, changes):
        encoded = {key: None if value is None else to_json(value) for key, value in changes.items()}
        self.wishes.apply(self.wishes.revision + 1, encoded)

    def join(self, now=NOW):
        """Host h2; the decision and the node."""
        claim = JoinClaim(
            secret=self.wishes.secrets["worker"].secret,
            csr=trust.make_csr(trust.node_key(bytes([2]) * 32), "h2"),
            name="h2",
            advertise_addr=address(2),
            data_path_addr=address(2),
        )
        decision, (node, _) = decisions.join(self.wishes, claim, lambda id: False, "n2", bytes(8), now)
        return decision, node

    def make_networks(self, count, subnet_bits):
        for number in range(count):
            prefix = ipaddress.ip_network((int(ipaddress.ip_address("10.64.0.0")) + (number << 12), subnet_bits))
            subnet = Subnet(prefix=prefix, gateway=prefix.network_address + 1)
            network = Network(
                id=f"net{number}", name=f"net{number}", vni=FIRST_VNI + 1 + number, subnets=(subnet,), attachable=True
            )
            self.write({f"network/{network.id}": network})


@pytest.fixture
def managers():
    return Managers()


def test_a_commit_takes_a_join_to_any_number_of_networks(managers):
    managers.make_networks(150, 20)
    decision, _ = managers.join()
    assert len(decision.changes) <= MAX_RECORDS and len(decision.guards) <= MAX_GUARDS
    managers.commit(decision)
    while (found := decisions.mend(managers.wishes, NOW))[1]:
        managers.commit(found[0])
    assert len({lease.network for lease in managers.wishes.leases_of_node("n2")}) == 151
    decision, _ = managers.join()
    assert len(decision.guards) <= MAX_GUARDS, "it is the same node, and has all its blocks"


def test_a_join_that_is_repeated_undoes_nothing_that_was_said_of_the_node(managers):
    managers.commit(managers.join()[0])
    known = replace(managers.wishes.nodes["n2"], labels={"zone": "a"}, availability="drain", cpus=4.0)
    managers.write({"node/n2": known})
    _, node = managers.join(NOW + DAY)
    assert node == known


def test_what_is_no_more_leaves_no_trace(managers):
    for _ in range(3):
        managers.make_networks(20, 20)
        while (found := decisions.mend(managers.wishes, NOW))[1]:
            managers.commit(found[0])
        for number in range(20):
            managers.commit(decisions.remove_network(managers.wishes, f"net{number}", lambda id: [])[0])
    assert {lease.network for lease in managers.wishes.leases()} == managers.wishes.networks.keys()
    assert managers.wishes._leases_of_network.keys() == managers.wishes.networks.keys()


def test_removed_nodes_are_forgotten_however_many_are_not_yet(managers):
    gone = {
        f"removed/{at}{n}": RemovedNode(id=f"{at}{n}", name="h", removed_at=NOW - at * DAY)
        for at in (1, 200)
        for n in range(100)
    }
    managers.write(gone)
    while (found := decisions.mend(managers.wishes, NOW))[1]:
        assert len(found[0].changes) <= MAX_RECORDS
        managers.commit(found[0])
    assert {one.removed_at for one in managers.wishes.removed.values()} == {NOW - DAY}

"""Nothing is given twice: VNIs, subnets, blocks, addresses; under any interleaving of managers, agents and crashes."""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vxnet.core import allocate
from vxnet.model.cluster import FIRST_VNI, LAST_VNI, Lease, Network, Subnet
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError


def prefix(text):
    return ipaddress.ip_network(text)


def network(*prefixes, name="net", gateways=()):
    subnets = []
    for number, text in enumerate(prefixes):
        subnet = prefix(text)
        gateway = ipaddress.ip_address(gateways[number]) if gateways else subnet.network_address + 1
        subnets.append(Subnet(prefix=subnet, gateway=gateway))
    return Network(id="n" * 25, name=name, vni=FIRST_VNI, subnets=tuple(subnets))


def lease(net, node, block, epoch=1):
    return Lease(network=net.id, vni=net.vni, prefix=prefix(str(block)), node=node, epoch=epoch)


def test_mac_follows_from_vni_and_address():
    assert allocate.mac_of(65536 + 0x42, ipaddress.ip_address("10.0.16.3")) == "02:42:0a:00:10:03"
    six = ipaddress.ip_address("fd00::1")
    assert allocate.mac_of(65536, six) == allocate.mac_of(65536, six)
    assert allocate.mac_of(65536, six) != allocate.mac_of(65537, six)
    assert allocate.mac_of(65536, six).startswith("02:") and len(allocate.mac_of(65536, six)) == 17


def test_vnis_are_not_reused_at_once():
    assert allocate.next_vni(()) == FIRST_VNI
    assert allocate.next_vni({FIRST_VNI}, FIRST_VNI) == FIRST_VNI + 1
    assert allocate.next_vni((), FIRST_VNI + 1) == FIRST_VNI + 2
    assert allocate.next_vni({FIRST_VNI}, LAST_VNI) == FIRST_VNI + 1


def test_vnis_end(monkeypatch):
    last = FIRST_VNI + 1000  # of 16 million
    monkeypatch.setattr(allocate, "LAST_VNI", last)
    with pytest.raises(ExhaustedError, match=str(last)):
        allocate.next_vni(range(FIRST_VNI, last + 1), FIRST_VNI + 500)
    assert allocate.next_vni(range(FIRST_VNI + 1, last + 1), FIRST_VNI + 500) == FIRST_VNI


def test_pools_avoid_networks_and_routes():
    pools = (prefix("10.0.0.0/8"),)
    pick = lambda taken, routes: str(allocate.pick_subnet(pools, 20, taken, routes))  # noqa: E731
    assert pick((), ()) == "10.0.0.0/20"
    assert pick([prefix("10.0.0.0/20")], [prefix("10.0.16.0/24")]) == "10.0.32.0/20"
    assert pick((), [prefix("10.0.0.0/9"), prefix("10.128.0.0/16")]) == "10.129.0.0/20"
    assert pick((), [prefix("192.168.0.0/16"), prefix("fd00::/8")]) == "10.0.0.0/20"


def test_a_used_up_pool_says_by_what():
    with pytest.raises(ExhaustedError) as caught:
        allocate.pick_subnet([prefix("10.1.0.0/19")], 20, [prefix("10.1.0.0/20")], [prefix("10.1.16.0/24")])
    assert "/20" in str(caught.value) and "10.1.0.0/19" in str(caught.value) and "10.1.16.0/24" in str(caught.value)


@given(
    st.lists(st.integers(0, 2**12 - 1), max_size=40),
    st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(16, 28)), max_size=20),
)
def test_a_picked_subnet_overlaps_nothing(used, routed):
    pool = prefix("10.4.0.0/14")
    taken = {ipaddress.ip_network((0x0A040000 + (number % 64 << 12), 20)) for number in used}
    routes = [ipaddress.ip_network((0x0A040000 + number * 4, length), strict=False) for number, length in routed]
    try:
        subnet = allocate.pick_subnet([pool], 20, taken, routes)
    except ExhaustedError:
        candidates = pool.subnets(new_prefix=20)
        assert all(any(one.overlaps(other) for other in (*taken, *routes)) for one in candidates)
    else:
        assert subnet.subnet_of(pool) and subnet.prefixlen == 20
        assert not any(subnet.overlaps(other) for other in (*taken, *routes))


def test_gateway_subnet_avoids_routes():
    assert str(allocate.gateway_subnet(())) == "172.19.0.0/16"
    assert str(allocate.gateway_subnet([prefix("172.19.4.0/24")])) == "172.20.0.0/16"
    assert str(allocate.gateway_subnet([prefix("172.16.0.0/12")])) == "192.168.0.0/20"
    with pytest.raises(ExhaustedError):
        allocate.gateway_subnet([prefix("128.0.0.0/1"), prefix("0.0.0.0/1")])


# Blocks


def grant(net, leases, node, nodes, addresses=1):
    blocks = allocate.lease_blocks(net, leases, node, addresses, nodes)
    leases.extend(lease(net, node, block) for block in blocks)
    return blocks


def grant_until_exhausted(net, leases, nodes):
    while True:
        grant(net, leases, f"node{len(leases) % nodes}", nodes)


def assert_disjoint(net, leases):
    reserved = set().union(*(allocate.reserved_addresses(subnet) for subnet in net.subnets))
    for one, other in itertools.combinations(leases, 2):
        assert not one.prefix.overlaps(other.prefix), (one, other)
    for one in leases:
        assert any(
            one.prefix.subnet_of(subnet.prefix) for subnet in net.subnets if subnet.prefix.version == one.prefix.version
        )
        assert not any(address in one.prefix for address in reserved)


def test_blocks_start_small_and_grow_with_use():
    net, leases = network("10.0.0.0/20"), []
    sizes = [grant(net, leases, "a", nodes=3)[0].num_addresses for _ in range(8)]
    assert sizes[:4] == [8, 8, 16, 32]
    assert max(sizes) <= allocate.LARGEST_BLOCK[4]
    assert_disjoint(net, leases)


def test_in_a_small_network_nobody_has_more_than_it_needs():
    """Five addresses and three nodes: whoever asks before there is need would have them all."""
    net = network("10.0.0.0/29")
    nodes = ["a", "b", "c"]
    leases = [lease(net, node, block) for node, block in allocate.first_blocks(net, (), nodes)]
    assert [one.prefix.num_addresses for one in leases] == [1, 1, 1]
    for left in (2, 1):
        with pytest.raises(ExhaustedError, match="few addresses left"):
            allocate.lease_blocks(net, leases, "a", 1, 3, early=True)
        assert grant(net, leases, "b", nodes=3)[0].num_addresses == 1, left
    with pytest.raises(ExhaustedError, match="no address left"):
        allocate.lease_blocks(net, leases, "a", 1, 3, early=True)


def test_what_is_asked_for_early_leaves_a_first_block_for_another():
    net, leases = network("10.0.0.0/26"), []
    for _ in range(5):
        leases.extend(lease(net, "a", block) for block in allocate.lease_blocks(net, leases, "a", 1, 3, early=True))
    assert [one.prefix.num_addresses for one in leases] == [8] * 5
    with pytest.raises(ExhaustedError, match="few addresses left"):
        allocate.lease_blocks(net, leases, "a", 1, 3, early=True)
    assert [block.num_addresses for block in grant(net, leases, "b", nodes=3)] == [8]


def test_every_node_of_a_small_cluster_has_a_first_block():
    net = network("10.0.0.0/20")
    given = allocate.first_blocks(net, (), ["a", "b", "c"])
    assert [(node, block.prefixlen) for node, block in given] == [("a", 29), ("b", 29), ("c", 29)]
    assert allocate.first_blocks(net, [lease(net, node, block) for node, block in given], ["a", "b", "c"]) == []


def test_500_nodes_in_a_slash_20_all_get_their_first_block_on_demand():
    net, leases = network("10.0.0.0/20"), []
    nodes = [f"node{number}" for number in range(500)]
    for node in nodes:
        (block,) = grant(net, leases, node, nodes=500)
        assert block.prefixlen == 29
    assert_disjoint(net, leases)


@pytest.mark.parametrize("count", [3, 256, 500, 1000, 2000])
def test_first_blocks_for_all_take_at_most_half(count):
    net = network("10.0.0.0/20")
    nodes = [f"node{number}" for number in range(count)]
    given = allocate.first_blocks(net, (), nodes)
    assert {node for node, _ in given} == set(nodes)
    assert sum(block.num_addresses for _, block in given) <= 2048
    assert_disjoint(net, [lease(net, node, block) for node, block in given[:100]])
    assert len({block for _, block in given}) == count


def test_first_blocks_leave_small_networks_some_room():
    net = network("10.0.0.0/28")
    given = allocate.first_blocks(net, (), [f"node{number}" for number in range(30)])
    assert 0 < sum(block.num_addresses for _, block in given) <= 8


def test_many_nodes_grow_without_starving_the_others():
    """1,000 nodes, half of which ask again and again, in a /20: the others still get something."""
    net, leases = network("10.0.0.0/20"), []
    nodes = [f"node{number}" for number in range(1000)]
    for node, block in allocate.first_blocks(net, leases, nodes[:500]):
        leases.append(lease(net, node, block))
    for node in nodes[:100]:
        grant(net, leases, node, nodes=1000)
    for node in nodes[500:]:
        assert grant(net, leases, node, nodes=1000)
    assert len({one.node for one in leases}) == 1000


def test_every_usable_address_can_be_leased_and_then_it_says_so():
    net, leases = network("10.0.0.0/28", name="tiny"), []
    with pytest.raises(ExhaustedError) as caught:
        grant_until_exhausted(net, leases, 3)
    assert sum(one.prefix.num_addresses for one in leases) == 13
    for word in ("tiny", "10.0.0.0/28", "13", "3 nodes"):
        assert word in str(caught.value)
    assert_disjoint(net, leases)


def test_two_families():
    net, leases = network("10.0.0.0/24", "fd00:1::/64"), []
    four, six = grant(net, leases, "a", nodes=3)
    assert (four.version, four.prefixlen) == (4, 29) and (six.version, six.prefixlen) == (6, 112)
    assert allocate.lease_blocks(net, leases, "a", 1, 3, family=4)[0].version == 4
    assert [block.version for _, block in allocate.first_blocks(net, (), ["b"])] == [4, 6]


def test_a_second_subnet_is_used_when_the_first_is_full():
    net, leases = network("10.0.0.0/29", "10.9.0.0/29"), []
    with pytest.raises(ExhaustedError, match=r"10\.9\.0\.0/29"):
        grant_until_exhausted(net, leases, 1)
    assert sum(one.prefix.num_addresses for one in leases) == 10


def test_chosen_addresses():
    net = network("10.0.0.0/24", gateways=["10.0.0.254"])
    address = ipaddress.ip_address
    leases = [lease(net, "a", "10.0.0.8/29")]
    assert allocate.lease_address(net, leases, "b", address("10.0.0.50")) == prefix("10.0.0.50/32")
    assert allocate.lease_address(net, leases, "a", address("10.0.0.9")) is None
    with pytest.raises(ConflictError, match=r"10\.0\.0\.9.*10\.0\.0\.8/29.*node a"):
        allocate.lease_address(net, leases, "b", address("10.0.0.9"))
    for text, words in (
        ("10.0.1.1", "outside"),
        ("10.0.0.254", "gateway"),
        ("10.0.0.0", "network or broadcast"),
        ("10.0.0.255", "network or broadcast"),
        ("fd00::1", "outside"),
    ):
        with pytest.raises(CallerError, match=words):
            allocate.lease_address(net, leases, "b", address(text))


@settings(deadline=None)
@given(
    st.sampled_from(["10.0.0.0/29", "10.0.0.0/27", "10.0.0.128/25", "10.0.0.0/22", "fd00::/120", "fd00::/64"]),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.booleans()), max_size=60),
)
def test_blocks_never_overlap(subnet, steps):
    net, leases = network(subnet), []
    for node, number, returns in steps:
        mine = [one for one in leases if one.node == f"node{node}"]
        if returns and mine:
            leases.remove(mine[number % len(mine)])
        elif number % 5 == 4:
            address = net.subnets[0].prefix.network_address + number % net.subnets[0].prefix.num_addresses
            try:
                block = allocate.lease_address(net, leases, f"node{node}", address)
            except CallerError:
                continue
            if block is not None:
                leases.append(lease(net, f"node{node}", block))
        else:
            try:
                grant(net, leases, f"node{node}", nodes=7, addresses=number)
            except ExhaustedError:
                usable = net.subnets[0].prefix.num_addresses - 3
                assert sum(one.prefix.num_addresses for one in leases) == usable
        assert_disjoint(net, leases)


# Addresses


def test_addresses_rest_before_they_are_given_again():
    blocks = [prefix("10.0.0.16/30"), prefix("10.0.0.8/30")]
    taken, last, seen = set(), None, []
    for _ in range(9):
        last = allocate.pick_address(blocks, taken, last=last)
        seen.append(int(last) & 0xFF)
    assert seen == [8, 9, 10, 11, 16, 17, 18, 19, 8]
    taken = {address for block in blocks for address in block}
    assert allocate.pick_address(blocks, taken, last=last) is None
    assert allocate.pick_address([], ()) is None
    assert str(allocate.pick_address([prefix("10.0.0.0/31")], (), [ipaddress.ip_address("10.0.0.0")])) == "10.0.0.1"


def test_empty_blocks_go_back_but_one_stays():
    blocks = [prefix("10.0.0.8/29"), prefix("10.0.0.16/29"), prefix("10.0.0.32/28")]
    assert [str(block) for block in allocate.idle_blocks(blocks, ())] == ["10.0.0.32/28", "10.0.0.8/29"]
    assert allocate.idle_blocks(blocks[:1], ()) == ()
    used = [ipaddress.ip_address(f"10.0.0.{number}") for number in range(8, 14)]
    assert [str(block) for block in allocate.idle_blocks(blocks, used)] == ["10.0.0.32/28"]


class Agent:
    """One node: what is on its disk (``leases``, ``returning``, ``used``), and how it uses the pure functions."""

    def __init__(self):
        self.revision, self.leases, self.returning, self.used = 0, [], [], []

    def hear(self, revision, leases):
        if revision > self.revision:
            self.revision, self.leases = revision, leases
            self.returning = [one for one in self.returning if one in leases]

    def usable(self):
        return [one.prefix for one in self.leases if one not in self.returning]


class Addresses(RuleBasedStateMachine):
    """One manager, three agents, a network between them that loses, delays and repeats every message."""

    agents = st.integers(0, 2)

    @initialize(subnet=st.sampled_from(["10.0.0.0/27", "10.0.0.0/26", "fd00::/122"]))
    def start(self, subnet):
        self.net = network(subnet)
        self.revision, self.leases = 1, []
        self.agents_by_number = [Agent() for _ in range(3)]
        self.answers = [[] for _ in range(3)]
        self.returns = []

    def _commit(self, node, leases):
        self.revision += 1
        self.leases = leases
        self.answers[node].append((self.revision, [one for one in leases if one.node == str(node)]))

    @rule(node=agents, addresses=st.integers(1, 9))
    def lease(self, node, addresses):
        try:
            blocks = allocate.lease_blocks(self.net, self.leases, str(node), addresses, 3)
        except ExhaustedError:
            return
        new = [lease(self.net, str(node), block, epoch=self.revision + 1) for block in blocks]
        self._commit(node, self.leases + new)

    @rule(node=agents, age=st.integers(1, 4))
    def hear_something_new_or_old(self, node, age):
        self.agents_by_number[node].hear(*([(0, [])] * 4 + self.answers[node])[-age])

    @rule(node=agents, addresses=st.integers(1, 12))
    def pick(self, node, addresses):
        agent = self.agents_by_number[node]
        for _ in range(addresses):
            last = agent.used[-1] if agent.used else None
            address = allocate.pick_address(agent.usable(), agent.used, last=last)
            if address is not None:
                agent.used.append(address)

    @rule(node=agents, addresses=st.integers(1, 12))
    def free(self, node, addresses):
        del self.agents_by_number[node].used[:addresses]

    @rule(node=agents)
    def send_back(self, node):
        agent = self.agents_by_number[node]
        idle = allocate.idle_blocks(agent.usable(), agent.used)
        going = [one for one in agent.leases if one.prefix in idle and one not in agent.returning]
        agent.returning += going
        self.returns += [(node, one) for one in agent.returning]

    @rule(age=st.integers(1, 6))
    def a_return_arrives_perhaps_once_more(self, age):
        if age <= len(self.returns):
            node, returned = self.returns[-age]
            self._commit(node, [one for one in self.leases if one != returned])

    @invariant()
    def no_address_twice(self):
        used = Counter(address for agent in self.agents_by_number for address in agent.used)
        assert all(count == 1 for count in used.values()), used

    @invariant()
    def nothing_is_used_that_is_not_leased(self):
        for number, agent in enumerate(self.agents_by_number):
            own = [one.prefix for one in self.leases if one.node == str(number)]
            assert all(any(address in block for block in own) for address in agent.used)


Addresses.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestAddresses = Addresses.TestCase


def test_a_repeated_return_does_not_take_a_block_that_was_leased_anew():
    cluster = Addresses()
    cluster.start(subnet="10.0.0.0/27")
    for _ in range(2):
        cluster.lease(node=0, addresses=1)
    cluster.hear_something_new_or_old(node=0, age=1)
    cluster.send_back(node=0)
    returned = cluster.returns[-1][1].prefix
    cluster.a_return_arrives_perhaps_once_more(age=1)
    cluster.hear_something_new_or_old(node=0, age=1)
    cluster.lease(node=0, addresses=1)
    cluster.hear_something_new_or_old(node=0, age=1)
    assert returned in cluster.agents_by_number[0].usable()
    cluster.pick(node=0, addresses=30)
    cluster.a_return_arrives_perhaps_once_more(age=1)
    cluster.nothing_is_used_that_is_not_leased()

"""No address is ever given twice: blocks, chosen addresses and services' virtual IPs, by the managers' real decisions,
under crashes, partitions and restarts of managers.

::

     managers 0 and 1 ── commit, guarded ──> store ── watch, late ──> their mirrors
        ^  requests: lost, late, doubled       │
     agents ── answers: lost, late, out of order

Nobody leads: two managers decide at once, each by a mirror that may be old, which is more than the store allows.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vxnet.core import allocate, decisions, services, wishes
from vxnet.core.wishes import Wishes
from vxnet.model import cluster as records
from vxnet.model.api import LeaseRequest, ServiceUpdate
from vxnet.model.cluster import FIRST_VNI, Network, Node, Subnet
from vxnet.model.codec import to_json
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import VxnetError
from vxnet.model.service import ServiceSpec, TaskSpec

NET = "n" * 25
AGENTS = 3
NAMES = ("web", "api")


class Refused(Exception):
    """By the store: a guard has another version."""


class Store:
    """As :class:`vxnet.cluster.store.Store`, without a leader."""

    def __init__(self):
        self.commits = []
        self.versions = {}

    def commit(self, decision, known):
        """``known``: the versions that the decision was made by. Raises :class:`Refused`."""
        for key in decision.guards:
            if self.versions.get(key, 0) != known.version(key):
                raise Refused(key)
        if decision.changes:
            self.commits.append(
                {key: None if record is None else to_json(record) for key, record in decision.changes.items()}
            )
            for key, record in decision.changes.items():
                self.versions[key] = len(self.commits) if record is not None else 0

    def wishes(self):
        """As a manager has them that has just started."""
        wishes = Wishes()
        self.follow(wishes)
        return wishes

    def follow(self, wishes, revision=None):
        until = len(self.commits) if revision is None else revision
        for number in range(wishes.revision, until):
            wishes.apply(number + 1, self.commits[number])


class Agent:
    """What a node has on disk: ``leases``, ``returning``; and the containers that live on it, daemon or not."""

    def __init__(self, node):
        self.node = node
        self.revision, self.leases, self.returning, self.used = 0, (), [], []
        self.last = None
        """In memory."""
        self.told = []
        """Sets of leases on their way here, (revision, leases)."""

    def hear(self, revision, leases):
        if revision > self.revision:
            self.revision, self.leases = revision, leases
            self.returning = [one for one in self.returning if one in leases]

    def blocks(self):
        return [one.prefix for one in self.leases if one not in self.returning]


class Cluster(RuleBasedStateMachine):
    managers = st.integers(0, 1)
    agents = st.integers(0, AGENTS - 1)
    names = st.sampled_from(NAMES)

    @initialize(subnet=st.sampled_from(["10.0.0.0/28", "10.0.0.0/27", "10.0.0.0/26", "fd00::/122"]))
    def start(self, subnet):
        self.store, self.now, self.ids = Store(), 1.0, itertools.count(1)
        self.prefix = ipaddress.ip_network(subnet)
        self.gateway = self.prefix.network_address + 1
        network = Network(
            id=NET,
            name="blue",
            vni=FIRST_VNI,
            subnets=(Subnet(prefix=self.prefix, gateway=self.gateway),),
            attachable=True,
        )
        self.agents_by_number = {}
        cluster = records.Cluster(id="c", pools=(ipaddress.ip_network("10.0.0.0/8"),), created_at=self.now)
        # It had an ingress network, and lost it: there are the addresses of one network to look after.
        founding = {"cluster": cluster, "set/ingress": wishes.Counter(), f"network/{NET}": network}
        for number in range(AGENTS):
            founding |= self._new_agent(number)
        self.store.commit(decisions.Decision(founding), Wishes())
        self.truth, *self.mirrors = (self.store.wishes() for _ in range(3))
        self.requests = []

    def _new_agent(self, number):
        id = f"node{next(self.ids):021d}"
        self.agents_by_number[number] = Agent(id)
        address = ipaddress.ip_address("192.0.2.1") + next(self.ids)
        node = Node(id=id, name=id, role="worker", advertise_addr=address, data_path_addr=address, joined_at=self.now)
        return {f"node/{id}": node}

    def _decide(self, manager, decide):
        """As Manager._decide: what the store refuses is decided once more, by a mirror that knows a little more."""
        mirror = self.mirrors[manager]
        try:
            while True:
                decision, answer = decide(mirror)
                try:
                    self.store.commit(decision, mirror)
                    break
                except Refused:
                    self.store.follow(mirror, mirror.revision + 1)
        except VxnetError:
            return None
        self.store.follow(mirror)
        self.store.follow(self.truth)
        for agent in self.agents_by_number.values():
            agent.told.append((mirror.revision, mirror.leases_of_node(agent.node)))
        return answer

    # Managers

    @rule(manager=managers, steps=st.integers(1, 5))
    def a_mirror_catches_up_a_little(self, manager, steps):
        mirror = self.mirrors[manager]
        self.store.follow(mirror, min(mirror.revision + steps, len(self.store.commits)))

    @rule(manager=managers)
    def a_manager_starts_anew(self, manager):
        self.mirrors[manager] = self.store.wishes()
        self._decide(manager, lambda wishes: decisions.mend(wishes, self.now))

    # Agents and their blocks

    @rule(
        number=agents,
        wish=st.one_of(st.integers(1, 9), st.none()),
        offset=st.integers(0, 63),
        manager=managers,
        lost=st.booleans(),
    )
    def ask_for_a_block(self, number, wish, offset, manager, lost):
        """Or for a chosen address. The answer may be lost."""
        node = self.agents_by_number[number].node
        address = self.prefix[offset % self.prefix.num_addresses] if wish is None else None
        request = LeaseRequest(network=NET, addresses=wish or 1, address=address)
        self._send(manager, lambda wishes: decisions.lease(wishes, node, request))
        if not lost:
            self.answers_arrive(number, [1])

    @rule(number=agents, manager=managers)
    def send_blocks_back(self, number, manager):
        """Remembered on disk before it is said."""
        agent = self.agents_by_number[number]
        idle = allocate.idle_blocks(agent.blocks(), agent.used)
        chosen = [one for one in agent.leases if one.chosen and one.prefix.network_address not in agent.used]
        agent.returning += [
            one for one in agent.leases if (one.prefix in idle or one in chosen) and one not in agent.returning
        ]
        node, leases = agent.node, tuple(agent.returning)
        self._send(manager, lambda wishes: decisions.release(wishes, node, leases))

    def _send(self, manager, request):
        self.requests.append(request)
        self._decide(manager, request)

    @precondition(lambda self: self.requests)
    @rule(manager=managers, age=st.integers(1, 8))
    def a_request_arrives_once_more(self, manager, age):
        self._decide(manager, self.requests[max(len(self.requests) - age, 0)])

    @rule(number=agents, ages=st.lists(st.integers(1, 5), max_size=3))
    def answers_arrive(self, number, ages):
        """In any order; the rest is lost in a partition."""
        agent = self.agents_by_number[number]
        for age in ages:
            if age <= len(agent.told):
                agent.hear(*agent.told[-age])
        if not ages:
            agent.told.clear()

    @rule(number=agents, addresses=st.integers(1, 12), crash=st.booleans())
    def containers_start(self, number, addresses, crash):
        agent = self.agents_by_number[number]
        for _ in range(addresses):
            address = allocate.pick_address(agent.blocks(), agent.used, [self.gateway], agent.last)
            if address is not None:
                agent.used.append(address)
                agent.last = None if crash else address

    @rule(number=agents, offset=st.integers(0, 63))
    def a_container_starts_at_a_chosen_address(self, number, offset):
        agent, address = self.agents_by_number[number], self.prefix[offset % self.prefix.num_addresses]
        if address not in agent.used and any(address in block for block in agent.blocks()):
            agent.used.append(address)

    @rule(number=agents, addresses=st.integers(1, 12))
    def containers_end(self, number, addresses):
        del self.agents_by_number[number].used[:addresses]

    @rule(manager=managers, number=agents)
    def a_node_is_removed_and_another_joins(self, manager, number):
        """What the removed one goes on using is refused by all others: its certificate counts for nothing."""
        node = self.agents_by_number[number].node
        if self._decide(manager, lambda wishes: decisions.remove_node(wishes, node, True, bool, self.now)) is None:
            return
        new = self._new_agent(number)
        self.store.commit(decisions.Decision(new), Wishes())
        self.store.follow(self.mirrors[manager])
        self.store.follow(self.truth)

    # Services

    @rule(manager=managers, name=names, wish=st.sampled_from(["vip", "vip", "dnsrr", "no network", "back", "rm"]))
    def wish_for_a_service(self, manager, name, wish):
        networks = (NetworkWish(network="blue"),) if wish != "no network" else ()
        task = TaskSpec(container=ContainerSpec(argv=("true",), networks=networks))
        spec = ServiceSpec(name=name, task=task, endpoint_mode="dnsrr" if wish == "dnsrr" else "vip")
        id = f"s{next(self.ids):024d}"

        def decide(wishes):
            old = next((one.spec for one in wishes.services.values() if one.name == name), None)
            if old is None:
                return services.create(wishes, spec, id, self.now)
            if wish == "rm":
                return services.remove(wishes, name)
            if wish == "back":
                return services.roll_back(wishes, name, self.now)
            return services.update(wishes, name, ServiceUpdate(spec=spec, base=old), self.now)

        self._decide(manager, decide)

    # What must hold

    def _given(self):
        """(holder, address) of all that is given."""
        for agent in self.agents_by_number.values():
            yield from ((agent.node, address) for address in agent.used)
        for service in self.truth.services.values():
            for place in service.networks:
                yield from ((service.id, vip) for vip in place.vips)

    @invariant()
    def no_address_twice(self):
        given = Counter(address for _, address in self._given())
        assert all(count == 1 for count in given.values()), given
        assert self.gateway not in given and self.prefix.network_address not in given

    @invariant()
    def nothing_is_used_that_is_not_leased(self):
        leases = list(self.truth.leases())
        for holder, address in self._given():
            assert [one for one in leases if address in one.prefix and holder in (one.node, one.service)], address

    @invariant()
    def leases_are_apart(self):
        prefixes = [one.prefix for one in self.truth.leases()]
        for one, other in itertools.combinations(prefixes, 2):
            assert not one.overlaps(other), (one, other)


Cluster.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestCluster = Cluster.TestCase


@pytest.mark.parametrize("manager", [0, 1])
def test_a_return_that_comes_once_more_takes_nothing(manager):
    """Nor by a manager (1) that has not heard that the block went back, and was leased anew to the same node."""
    cluster = Cluster()
    cluster.start(subnet="10.0.0.0/26")
    for _ in range(2):
        cluster.ask_for_a_block(number=0, wish=1, offset=0, manager=0, lost=False)
    cluster.a_mirror_catches_up_a_little(manager=1, steps=99)
    cluster.send_blocks_back(number=0, manager=0)
    cluster.answers_arrive(number=0, ages=[1])
    (returned,) = {lease.prefix for lease in cluster.mirrors[1].leases()} - {
        one.prefix for one in cluster.truth.leases()
    }
    cluster.ask_for_a_block(number=0, wish=1, offset=0, manager=0, lost=False)
    assert returned in cluster.agents_by_number[0].blocks()
    cluster.containers_start(number=0, addresses=30, crash=False)
    cluster._decide(manager, cluster.requests[2])
    cluster.nothing_is_used_that_is_not_leased()

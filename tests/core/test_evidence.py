"""What a holder of a good certificate may not say in its own rows."""

from __future__ import annotations

import ipaddress

import pytest

from tests.gossip_cluster import VTEP, Cluster, endpoint
from vxnet.core.author import Author
from vxnet.core.evidence import Judge
from vxnet.core.table import Table
from vxnet.model.row import ADDRESSES_MAX, ALIASES_MAX, Certificate, Endpoint, Leases

NOW = 1_800_000_000.0


class Worker:
    """``node1`` with 10.0.1.0/24, and what everybody makes of its rows."""

    def __init__(self, cluster: Cluster) -> None:
        self.papers = cluster.papers("node1")
        self.cluster = cluster
        self.judge = Judge(cluster.roots)
        self.table = Table()
        self._author = Author("node1", self.papers.key, 1)
        self.show_leases("10.0.1.0/24")

    def show_leases(self, *prefixes: str) -> None:
        signed = self.cluster.leases("node1", *prefixes)
        self._author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))

    def show_certificate(self) -> None:
        self._author.put("certificate", "", Certificate(self.papers.certificate))

    def say(self, row: Endpoint) -> tuple[list[Endpoint], dict[str, int]]:
        """(what counts, refusals by reason)."""
        self._author.put("endpoint", "c1", row)
        self.flush()
        rows, refused = self.judge.effective(self.table, NOW)
        return [value for _, _, value in rows if isinstance(value, Endpoint)], dict(refused)

    def flush(self) -> None:
        for batch in self._author.flush():
            self.table.receive(batch)


@pytest.fixture
def worker(rng) -> Worker:
    return Worker(Cluster(rng, NOW))


def test_what_is_leased_certified_and_at_the_certified_place_counts(worker):
    worker.show_certificate()
    assert worker.say(endpoint("10.0.1.2")) == ([endpoint("10.0.1.2")], {})


def test_of_the_leases_that_somebody_shows_the_last_are_remembered(worker):
    """There are new ones with each network."""
    worker.show_certificate()
    worker.say(endpoint("10.0.1.2"))
    before = worker.judge.remembered_octets
    for number in range(20):
        worker.show_leases("10.0.1.0/24", f"10.0.{2 + number}.0/24")
        assert worker.say(endpoint("10.0.1.2")) == ([endpoint("10.0.1.2")], {})
    assert worker.judge.remembered_octets < before * 1.5


@pytest.mark.parametrize("vtep", ["192.0.2.2", "224.0.0.1", "255.255.255.255", "2001:db8::1"])
def test_nobody_lives_at_a_place_that_no_manager_certified(worker, vtep):
    """It would be let in by every host's allow-list, and get the broadcasts of the network; one of another family
    would make every kernel refuse."""
    worker.show_certificate()
    rows, refused = worker.say(endpoint("10.0.1.2", vtep=ipaddress.ip_address(vtep)))
    assert rows == []
    assert refused == {"VTEP is not the owner's": 1}


@pytest.mark.parametrize("vni", [-1, 1 << 32, 1 << 63])
def test_a_network_that_cannot_be_is_one_that_nothing_is_leased_of(worker, vni):
    """One row of one worker's would else stop the plan and the names of everybody."""
    worker.show_certificate()
    for addresses in ((ipaddress.ip_address("10.0.1.2"),), ()):
        rows, refused = worker.say(endpoint("10.0.1.2", vni=vni, addresses=addresses))
        assert rows == []
        assert refused == {"address is not leased to the owner": 1}


@pytest.mark.parametrize("name, most", [("aliases", ALIASES_MAX), ("addresses", ADDRESSES_MAX)])
def test_a_row_that_would_cost_everybody_much_counts_for_nothing(worker, name, most):
    worker.show_certificate()
    one = {"aliases": "a", "addresses": ipaddress.ip_address("10.0.1.2")}[name]
    assert worker.say(endpoint("10.0.1.2", **{name: (one,) * most}))[1] == {}
    rows, refused = worker.say(endpoint("10.0.1.2", **{name: (one,) * (most + 1)}))
    assert rows == []
    assert refused == {"more addresses or aliases than anybody has": 1}


def test_a_place_is_proven_by_a_certificate_alone(worker):
    worker.say(endpoint("10.0.1.2"))
    assert worker.judge.addresses(worker.table, "node1", NOW) == frozenset()
    worker.show_certificate()
    worker.say(endpoint("10.0.1.3"))
    assert worker.judge.addresses(worker.table, "node1", NOW) == {VTEP}
    worker.judge.update(revoked=["node1"])
    assert worker.judge.addresses(worker.table, "node1", NOW) == frozenset()


def test_a_place_is_not_remembered_for_longer_than_what_proves_it(worker):
    """What was found out about all rows is good for this question too, until there are others or time has passed."""
    worker.say(endpoint("10.0.1.2"))
    worker.show_certificate()
    worker.flush()
    assert worker.judge.addresses(worker.table, "node1", NOW) == {VTEP}
    worker.say(endpoint("10.0.1.3"))
    assert worker.judge.addresses(worker.table, "node1", NOW) == {VTEP}
    ten_years_s = 10 * 365 * 86_400
    assert worker.judge.addresses(worker.table, "node1", NOW + ten_years_s) == frozenset()

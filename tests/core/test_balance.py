"""Virtual IPs: who stands behind them."""

from __future__ import annotations

import ipaddress
import random

from vxnet.core.balance import Balance
from vxnet.core.facts import Facts
from vxnet.model.host import STICKY_BUCKETS, VirtualService
from vxnet.model.row import Endpoint, EndpointState, RowKey, Version
from vxnet.model.service import Affinity, PublicService, ServiceNetwork

VIP4, VIP6 = ipaddress.ip_address("10.0.16.100"), ipaddress.ip_address("fd00::64")
Row = tuple[RowKey, Version, Endpoint]


def service(affinity: Affinity = "", network: str = "n") -> PublicService:
    return PublicService(
        id="s", name="app", networks=(ServiceNetwork(network=network, vips=(VIP4, VIP6)),), affinity=affinity
    )


def task(number: int, state: EndpointState = "ready", *, service: str = "s", network: str = "n") -> Row:
    endpoint = Endpoint(
        network=network,
        vni=65536,
        addresses=(ipaddress.ip_address(f"10.0.16.{number}"), ipaddress.ip_address(f"fd00::{number:x}")),
        mac="",
        vtep=ipaddress.ip_address("192.0.2.1"),
        name=f"app.{number}",
        service=service,
        state=state,
    )
    return RowKey(f"node{number % 3}", "endpoint", f"{number}.{network}"), Version(1, 1), endpoint


def of(*rows: Row, affinity: Affinity = "", balance: Balance | None = None) -> tuple[VirtualService, ...]:
    made = (balance or Balance()).of(Facts.gather(rows), [service(affinity)], ["n"])
    assert made.keys() == {"n"}
    return made["n"]


def backends(*rows: Row) -> tuple[list[str], list[str]]:
    first, second = of(*rows)
    assert (first.address, second.address) == (VIP4, VIP6)
    assert [one.packed[-1] for one in first.backends] == [one.packed[-1] for one in second.backends]
    return [str(one) for one in first.backends], [str(one) for one in first.draining]


def test_ready_tasks_stand_behind_it() -> None:
    rows = [task(4), task(3), task(5, "starting"), task(6, "draining"), task(7, service="t"), task(8, network="m")]
    assert backends(*rows) == (["10.0.16.3", "10.0.16.4"], ["10.0.16.6"])


def test_draining_ones_where_there_is_nobody_else() -> None:
    assert backends(task(3, "draining"), task(4, "starting")) == (["10.0.16.3"], ["10.0.16.3"])
    assert backends(task(4, "starting")) == ([], [])
    assert backends() == ([], [])


def test_a_service_elsewhere_is_none_here() -> None:
    assert Balance().of(Facts.gather([task(3)]), [service(network="m")], ["n"]) == {"n": ()}


def test_order_of_facts_does_not_matter_and_same_facts_are_the_same_records(rng: random.Random) -> None:
    rows = [task(number, "draining" if number % 4 == 0 else "ready") for number in range(2, 20)]
    balance = Balance()
    for affinity in ("", "client-ip"):
        before = of(*rows, affinity=affinity, balance=balance)
        rng.shuffle(rows)
        again = of(*rows, affinity=affinity, balance=balance)
        assert all(one is other for one, other in zip(before, again, strict=True))
        assert of(*rows, affinity=affinity) == before
        assert of(*rows[1:], affinity=affinity, balance=balance) != before


def test_a_client_stays_where_it_is_when_others_come_and_go() -> None:
    rows = [task(number) for number in range(2, 8)]
    before = of(*rows, affinity="client-ip")[0]
    assert before.sticky and len(before.backends) == STICKY_BUCKETS
    assert set(before.backends) == {row[2].addresses[0] for row in rows}
    gone = rows[0][2].addresses[0]
    after = of(*rows[1:], affinity="client-ip")[0]
    moved = {old for old, new in zip(before.backends, after.backends, strict=True) if old != new}
    assert moved == {gone}
    assert of(affinity="client-ip")[0].backends == ()


def test_one_step_after_the_other_is_the_same_as_all_at_once(rng: random.Random) -> None:
    """The memory changes nothing but the time it takes."""
    balance = Balance()
    states: list[EndpointState] = ["starting", "ready", "draining"]
    rows = {number: task(number) for number in range(2, 12)}
    services = [service()]
    networks = ["n"]
    for _ in range(300):
        number = rng.randrange(2, 12)
        if rng.random() < 0.3:
            rows.pop(number, None)
        else:
            rows[number] = task(
                number, rng.choice(states), service=rng.choice("st"), network=rng.choice(["n", "n", "m"])
            )
        if rng.random() < 0.1:
            affinity: Affinity = rng.choice(["", "client-ip"])
            services = [service(affinity, network) for network in rng.sample(["n", "m"], rng.randrange(3))]
            networks = rng.sample(["n", "m"], rng.randrange(3))
        facts = Facts.gather(rows.values())
        assert balance.of(facts, services, networks) == Balance().of(facts, services, networks)

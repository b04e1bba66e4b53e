"""Rows that are written on the word of what was written before: a complete look afterwards finds nothing to do."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.host.rig import GATEWAY, Container, Machine, addresses, errors, interfaces
from vxnet.model.host import Change, HostState, Remote, Sandbox, Segment

pytestmark = pytest.mark.host

LOCAL, OTHER = addresses("192.168.9.1", "192.168.9.2")
STEPS = 40


class Bench:
    def __init__(self) -> None:
        self.machine = Machine()
        self.containers = [Container(number) for number in range(2, 8)]

    def close(self) -> None:
        for place in (self.machine, *self.containers):
            place.close()

    def state(self, boxes: list[Sandbox], remotes: list[Remote]) -> HostState:
        segment = Segment(vni=65536, mtu=1450, local=LOCAL, remotes=tuple(remotes), flood=(OTHER,) if remotes else ())
        return HostState(segments=(segment,), sandboxes=tuple(boxes), gateway=GATEWAY, vteps=(OTHER,))

    def lack(self, state: HostState) -> list[Change]:
        """What a complete look does, but for the ports of containers that have gone."""
        changes = self.machine.reconcile(state)
        return [change for change in changes if change.verb != "delete" or not change.object.startswith("link v")]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def remote(number: int) -> Remote:
    own = addresses(f"10.0.16.{number}", f"fd00:16::{number:x}")
    return Remote(mac=f"02:00:0a:00:10:{number:02x}", addresses=own, vtep=OTHER)


def with_address_of(box: Sandbox, number: int) -> Sandbox:
    """On the overlay and on ``vxnet_gw``: the same as another's."""
    first, way_out = box.interfaces
    own = interfaces(f"10.0.16.{number}/24", f"fd00:16::{number:x}/64")
    moved = replace(first, mac=remote(number).mac, addresses=own)
    out = replace(way_out, mac=f"02:ff:ac:13:00:{number:02x}", addresses=interfaces(f"172.19.0.{number}/16"))
    return replace(box, interfaces=(moved, out))


def test_addresses_move_between_containers_and_hosts(bench: Bench, seed: int) -> None:
    """Each step looks at the containers alone that are others than before, as a start of one does."""
    order = random.Random(seed)
    # Of each address: one container that has it, another one, a remote one, nobody.
    holders = {2 + at: bench.containers[2 * at : 2 * at + 2] for at in range(3)}
    before = bench.state([], [])
    for _ in range(STEPS):
        boxes, remotes = [], []
        for number, (one, other) in holders.items():
            match order.randrange(4):
                case 0:
                    boxes.append(with_address_of(one.sandbox(), number))
                case 1:
                    boxes.append(with_address_of(other.sandbox(), number))
                case 2:
                    remotes.append(remote(number))
        state = bench.state(boxes, remotes)
        changed = [box.id for box in boxes if box not in before.sandboxes]
        assert errors(bench.machine.reconcile(state, changed)) == []
        assert bench.machine.do(bench.machine.kernel.is_intact, state)
        if order.random() < 0.3:
            assert bench.lack(state) == []
        before = state
    assert bench.lack(before) == []


def test_a_port_that_has_left_its_bridge_gets_its_rows_back(bench: Bench) -> None:
    """They went with it, and nothing tells of rows on the host's bridges."""
    state = bench.state([one.sandbox() for one in bench.containers], [])
    assert errors(bench.machine.reconcile(state)) == []
    bench.machine.sh(f"ip link set {bench.containers[0].port('eth9')} nomaster")
    assert errors(bench.machine.reconcile(state, [])) == []
    assert bench.machine.do(bench.machine.kernel.is_intact, state)
    assert bench.lack(state) == []


def test_a_bridge_that_had_lost_its_address_gets_its_neighbours_back(bench: Bench) -> None:
    """In the same look that gives it its address: one damage is one repair."""
    state = bench.state([one.sandbox() for one in bench.containers], [])
    assert errors(bench.machine.reconcile(state)) == []
    bench.machine.sh("ip -4 addr flush dev vxnet_gw")
    assert errors(bench.machine.reconcile(state, [])) == []
    assert bench.machine.do(bench.machine.kernel.is_intact, state)
    assert bench.lack(state) == []


def test_a_bridge_that_was_made_anew_knows_its_containers(bench: Bench) -> None:
    state = bench.state([one.sandbox() for one in bench.containers], [remote(9)])
    assert errors(bench.machine.reconcile(state)) == []
    bench.machine.sh("ip link del vxnet_gw")
    bench.machine.inside("ip", "link", "del", "br65536")
    assert errors(bench.machine.reconcile(state, [])) == []
    assert bench.machine.do(bench.machine.kernel.is_intact, state)
    assert bench.lack(state) == []

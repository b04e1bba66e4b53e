"""From any state to any other: in the order of a table, then in random order, then between states that are made up.

After each step the host looks as if it had never been anything else: the same text as a fresh host gives.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.host.rig import GATEWAY, Container, Machine, addresses, errors, interfaces
from vxnet.host.addresses import PROTOCOL
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.host import GatewayBridge, HostState, Remote, Sandbox, Segment

pytestmark = [pytest.mark.host, pytest.mark.slow]

LOCAL, OTHER, THIRD = addresses("192.168.9.1", "192.168.9.2", "192.168.9.3")
VNIS = (65536, 65537)


class Bench:
    """A machine and three containers that live through all its states."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.containers = [Container(number) for number in (2, 3, 4)]

    def close(self) -> None:
        for place in (self.machine, *self.containers):
            place.close()

    def become(self, wanted: HostState, *, partial: bool = False) -> None:
        """Reconcile until settled: ports of containers that left go with the second look."""
        if partial:
            assert errors(self.machine.reconcile(wanted, [box.id for box in wanted.sandboxes])) == []
        for _ in range(2):
            assert errors(self.machine.reconcile(wanted)) == []
        assert self.machine.reconcile(wanted) == []

    def picture(self, state: HostState) -> str:
        """As ``ip``, ``bridge`` and ``nft`` tell it. Of a container that is not in the state, its lack of links."""
        lines: list[str] = []
        present = {box.id for box in state.sandboxes}
        if "vxnet" in self.machine.run("ip", "netns"):
            names = ("-n", "vxnet")
            lines += ["in vxnet:", *links(self.machine, *names)]
            fdb = json.loads(self.machine.inside("bridge", "-j", "fdb"))
            lines += sorted(
                f"{row['mac']} dev {row['ifname']} master {row.get('master')} dst {row.get('dst')}"
                for row in fdb
                if row["state"] == "static" or row.get("dst")
            )
            lines += sorted(self.machine.run("ip", *names, "neigh", "show", "nud", "permanent").splitlines())
        lines += ["on the host:", *links(self.machine), *scope_global(self.machine)]
        # The operator's table stays until teardown, as its rules are not vxnet's to take away.
        lines += [
            re.sub(
                r"table inet vxnet_user \{\n.*?\n\}\n", "", self.machine.run("nft", "list", "ruleset"), flags=re.DOTALL
            )
        ]
        for container in self.containers:
            lines += [f"in {container.number}:", *(line for line in links(container) if "lo mtu" not in line)]
            if container.id not in present:
                continue
            lines += [*links(container), *scope_global(container)]
            lines += [container.run("ip", "route", "show", "default"), container.run("nft", "list", "ruleset")]
            lines += [container.run("ip", family, "route", "show", "proto", str(PROTOCOL)) for family in ("-4", "-6")]
        return "\n".join(lines)


def links(place: Machine | Container, *options: str) -> list[str]:
    return sorted(
        f"{name} mtu {link['mtu']} master {link.get('master')} {'UP' if 'UP' in link['flags'] else 'DOWN'}"
        f" {link['address'] if name.startswith(('eth', 'vxnet')) else ''}"
        f" {link.get('linkinfo', {}).get('info_data', {}).get('port', '')}"
        for name, link in place.links(*options).items()
    )


def scope_global(place: Machine | Container) -> list[str]:
    out = place.run("ip", "-o", "addr", "show", "scope", "global")
    return sorted(" ".join(line.split()[1:4]) for line in out.splitlines())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def remote(number: int, vtep: IPAddress = OTHER) -> Remote:
    own = addresses(f"10.0.16.{number}", f"fd00:16::{number:x}")
    return Remote(mac=f"02:00:0a:00:10:{number:02x}", addresses=own, vtep=vtep)


def table(bench: Bench) -> dict[str, HostState]:
    c2, c3, c4 = bench.containers
    one = Segment(vni=65536, mtu=1450, local=LOCAL, remotes=(remote(20), remote(21)), flood=(OTHER,))
    base = HostState(gateway=GATEWAY, vteps=(OTHER,))
    first = replace(base, segments=(one,), sandboxes=(c2.sandbox(),))
    two = replace(base, segments=(one, replace(one, vni=65537, remotes=(), flood=())))
    return {
        "nothing": HostState(),
        "a member without containers": base,
        "one container": first,
        "three containers": replace(first, sandboxes=(c2.sandbox(), c3.sandbox(), c4.sandbox())),
        "another one alone": replace(first, sandboxes=(c3.sandbox(),)),
        "internal": replace(first, sandboxes=(c2.sandbox(gateway=False),)),
        "without a gateway at all": replace(first, sandboxes=(c2.sandbox(gateway=False),), gateway=None),
        "on two networks": replace(two, sandboxes=(c2.sandbox(vnis=VNIS), c3.sandbox(vnis=VNIS[1:]))),
        "networks the other way round": replace(two, sandboxes=(c2.sandbox(vnis=VNIS[::-1]),)),
        "a remote moved": replace(
            first, segments=(replace(one, remotes=(remote(20, THIRD), remote(21))),), vteps=(OTHER, THIRD)
        ),
        "a remote came here": replace(
            first, segments=(replace(one, remotes=(remote(21),)),), sandboxes=(c2.sandbox(), replace_number(c3, 20))
        ),
        "a container went there": replace(first, segments=(replace(one, remotes=(remote(3), remote(20))),)),
        "more to flood to": replace(first, segments=(replace(one, flood=(OTHER, THIRD)),)),
        "jumbo": replace(first, segments=(replace(one, mtu=8950),), sandboxes=(c2.sandbox(mtu=8950),)),
        "another VTEP": replace(first, segments=(replace(one, local=addresses("192.168.9.11")[0]),)),
        "another port": replace(first, data_port=4799),
        "another gateway": replace(first, gateway=GatewayBridge(addresses=interfaces("172.19.0.254/16"), mtu=1400)),
        "another resolver": replace(first, sandboxes=(c2.sandbox(dns=40001),)),
        "no resolver": replace(first, sandboxes=(c2.sandbox(dns=0),)),
        "more subnets": replace(first, sandboxes=(beside(c2.sandbox(), links=networks("10.9.0.0/24", "fd09::/64")),)),
        "a family too many": replace(first, sandboxes=(beside(c2.sandbox(), unreachable=networks("fd09::/64")),)),
        "the other family too many": replace(
            first,
            sandboxes=(beside(c2.sandbox(), links=networks("fd09::/64"), unreachable=networks("10.9.0.0/24")),),
        ),
    }


def networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def beside(box: Sandbox, *, links: tuple[IPNetwork, ...] = (), unreachable: tuple[IPNetwork, ...] = ()) -> Sandbox:
    """With other subnets on its first network than the one of its addresses."""
    first, *rest = box.interfaces
    return replace(box, interfaces=(replace(first, links=links, unreachable=unreachable), *rest))


def replace_number(container: Container, number: int) -> Sandbox:
    """A container with another's overlay address and MAC."""
    box = container.sandbox()
    moved = replace(
        box.interfaces[0],
        mac=remote(number).mac,
        addresses=interfaces(f"10.0.16.{number}/24", f"fd00:16::{number:x}/64"),
    )
    return replace(box, interfaces=(moved, *box.interfaces[1:]))


def test_in_table_order_and_at_random(bench: Bench, seed: int) -> None:
    expected = {}
    states = table(bench)
    for name, wanted in states.items():
        bench.become(wanted)
        expected[name] = bench.picture(wanted)
        with contextlib.closing(Bench()) as fresh:
            fresh.become(table(fresh)[name])
            assert expected[name] == fresh.picture(wanted), name
    order = random.Random(seed)
    names = order.choices(list(states), k=3 * len(states))
    for before, name in zip([list(states)[-1], *names], names, strict=False):
        bench.become(states[name], partial=order.random() < 0.5)
        assert bench.picture(states[name]) == expected[name], f"from {before} to {name}"


class Shape(NamedTuple):
    """What a state is made from: hypothesis shrinks and prints it."""

    boxes: dict[int, tuple[tuple[int, ...], bool, int]]
    """Of container: VNIs, if it has a way out, port of its resolver."""
    remotes: dict[int, IPAddress]
    mtu: int
    gateway: bool
    partial: bool


shapes = st.builds(
    Shape,
    boxes=st.dictionaries(
        st.integers(0, 2),
        st.tuples(
            st.sampled_from([(), VNIS[:1], VNIS[1:], VNIS, VNIS[::-1]]),
            st.booleans(),
            st.sampled_from([0, 40000, 40001]),
        ),
    ),
    remotes=st.dictionaries(st.integers(20, 24), st.sampled_from([OTHER, THIRD])),
    mtu=st.sampled_from([1450, 1430]),
    gateway=st.booleans(),
    partial=st.booleans(),
)


def build(bench: Bench, shape: Shape) -> HostState:
    sandboxes = tuple(
        bench.containers[at].sandbox(vnis=vnis, gateway=way_out and shape.gateway, dns=dns, mtu=shape.mtu)
        for at, (vnis, way_out, dns) in sorted(shape.boxes.items())
    )
    live = sorted({one.vni for box in sandboxes for one in box.interfaces if one.vni is not None})
    far = tuple(remote(number, vtep) for number, vtep in sorted(shape.remotes.items()))
    vteps = tuple(sorted({one.vtep for one in far}, key=str))
    return HostState(
        segments=tuple(
            Segment(vni=vni, mtu=shape.mtu, local=LOCAL, remotes=far if vni == VNIS[0] else (), flood=vteps)
            for vni in live
        ),
        sandboxes=sandboxes,
        gateway=GATEWAY if shape.gateway else None,
        vteps=vteps,
    )


@settings(max_examples=12)
@given(walk=st.lists(shapes, min_size=2, max_size=5))
def test_between_states_that_are_made_up(walk: list[Shape]) -> None:
    with contextlib.closing(Bench()) as bench, contextlib.closing(Bench()) as fresh:
        for shape in walk:
            wanted = build(bench, shape)
            bench.become(wanted, partial=shape.partial)
        fresh.become(build(fresh, walk[-1]))
        assert bench.picture(wanted) == fresh.picture(wanted)

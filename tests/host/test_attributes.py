"""The devices compared with a set made by hand: every attribute that ``ip -d`` and ``bridge -d`` know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.host.rig import Container, Machine, addresses, errors, state, wait_until
from tests.host.throwaway import Host, Place

pytestmark = pytest.mark.host

NAMES = {"v00000002.eth0": "port", "eth0": "inside", "vx65536": "tunnel", "br65536": "bridge"}
OWN = {
    # What tells one link from another, and what follows from the clock.
    *("ifname", "ifindex", "link", "link_index", "link_netnsid", "address", "ifalias", "master"),
    *("bridge_id", "root_id", "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "bridge", "root"),
    *("hold_timer", "message_age_timer", "forward_delay_timer"),
}


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: bare(part) for name, part in value.items() if name not in OWN}
    return [bare(part) for part in value] if isinstance(value, list) else value


def described(run: Callable[..., str], *, ports: bool) -> dict[str, Any]:
    """``run``: of the namespace to look at."""
    links = {
        NAMES[link["ifname"]]: bare(link)
        for link in json.loads(run("ip", "-d", "-j", "link"))
        if link["ifname"] in NAMES
    }
    if ports:
        links |= {
            NAMES[port["ifname"]] + " as port": bare(port) for port in json.loads(run("bridge", "-d", "-j", "link"))
        }
    return links


class ByHand:
    """The recipe, typed."""

    def __init__(self, local: str) -> None:
        self.host, self.datapath, self.container = Host(), Place(), Container(2)
        inner, box = (f"/proc/{os.getpid()}/fd/{place.fd}" for place in (self.datapath, self.container))
        self.datapath.sh("echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode")
        self.datapath.sh(
            "ip link add br65536 mtu 1450 type bridge stp_state 0 forward_delay 0 mcast_snooping 0;"
            "ip link set br65536 address 06:00:00:00:00:01 up;"
        )
        self.host.sh(
            f"ip link add vx65536 mtu 1450 netns {inner} type vxlan id 65536 local {local} dstport 4789 nolearning"
        )
        self.datapath.sh(
            "ip link set vx65536 master br65536 up;"
            "bridge link set dev vx65536 learning off flood off neigh_suppress on;"
            f"ip link add v00000002.eth0 mtu 1450 type veth peer name eth0 mtu 1450 netns {box};"
            "ip link set v00000002.eth0 master br65536 up;"
            "bridge link set dev v00000002.eth0 learning off"
        )
        self.container.sh("ip link set eth0 up")

    def close(self) -> None:
        for place in (self.host, self.datapath, self.container):
            place.close()


@pytest.fixture(params=("192.168.9.1", "fd00:9::1"))
def both(request: pytest.FixtureRequest) -> Iterator[tuple[ByHand, Machine, Container]]:
    by_hand, machine, container = ByHand(request.param), Machine(), Container(2)
    wanted = state(addresses(request.param)[0], [container.sandbox(gateway=False)], [])
    assert errors(machine.reconcile(wanted)) == []
    yield by_hand, machine, container
    for part in (by_hand, machine, container):
        part.close()


def test_devices_are_those_of_the_recipe(both: tuple[ByHand, Machine, Container]) -> None:
    by_hand, machine, container = both
    # The kernel notices a carrier in its own time, and with it the state of a port.
    wait_until(lambda: described(machine.inside, ports=True) == described(by_hand.datapath.run, ports=True))
    expected = described(by_hand.datapath.run, ports=True)
    found = described(machine.inside, ports=True)
    assert set(expected) == {"bridge", "tunnel", "port", "tunnel as port", "port as port"}
    for name, attributes in expected.items():
        assert found[name] == attributes, name
    wait_until(lambda: described(container.run, ports=False) == described(by_hand.container.run, ports=False))
    assert described(container.run, ports=False) == described(by_hand.container.run, ports=False)


def test_socket_stays_with_the_host(both: tuple[ByHand, Machine, Container]) -> None:
    _, machine, _ = both
    assert ":4789" in machine.run("ss", "-Huln")
    assert machine.inside("ss", "-Huln") == ""

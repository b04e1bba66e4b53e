"""Networks: made on a manager, seen everywhere at once, gone when nobody uses them."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import pytest

from tests.system.operator import Session, eventually
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOSTS = ("h1", "h2", "h3")


def test_a_network_is_seen_on_all_nodes_at_once(session: Session) -> None:
    session.network("seen", "--driver overlay --attachable --label team=a --opt mtu=1400")
    made = time.monotonic()
    for host in HOSTS:
        eventually(lambda host=host: "seen" in {net.name for net in session.lab.client(host).networks()})  # type: ignore[misc]
    assert time.monotonic() - made < 2
    for host in HOSTS:
        table = {row["name"]: row for row in session.table(host, "vxnet network ls")}
        assert {"bridge", "host", "none", "vxnet_gw", "ingress"} <= table.keys()
        assert (table["seen"]["driver"], table["seen"]["scope"]) == ("overlay", "swarm")
        assert table["vxnet_gw"]["scope"] == "local"
        seen = session.json(host, "vxnet network inspect seen")[0]["network"]
        assert seen["vni"] >= 65536 and seen["labels"] == {"team": "a"} and seen["mtu"] == 1400
        assert ipaddress.ip_network(seen["subnets"][0]["prefix"]).prefixlen == 20
    address = session.container("h2", "a", "seen")
    assert "mtu 1400" in session.inside("h2", "a", "ip link show eth0").stdout
    view = eventually(lambda: session.json("h3", "vxnet network inspect -v seen")[0]["endpoints"])
    assert [(row["name"], row["node"], row["vtep"], row["addresses"]) for row in view] == [
        ("a", "h2", "192.168.56.12", [address])
    ]
    session.say("h1", "vxnet rm -f nobody || true")
    session.forget()
    for host in HOSTS:
        eventually(lambda host=host: "seen" not in {net.name for net in session.lab.client(host).networks()}, 2)  # type: ignore[misc]


def test_it_is_removed_when_nobody_uses_it(session: Session) -> None:
    session.network("used")
    session.container("h2", "a", "used")
    session.container("h3", "b", "used")
    line = eventually(lambda: session.refusal("h1", "vxnet network rm used"))
    assert "a on h2" in line and "b on h3" in line
    session.say("h2", "vxnet network disconnect used a")
    session.say("h3", "vxnet stop -t 1 b")
    eventually(lambda: session.run("h1", "vxnet network rm used").returncode == 0)
    # The same name again is another network.
    first = session.network("used")
    assert session.say("h3", "vxnet run --rm --network used -- true") == ""
    assert session.json("h3", "vxnet network inspect used")[0]["network"]["id"] == first


def test_subnets_do_not_meet(session: Session) -> None:
    session.network("one", "--attachable --subnet 10.60.0.0/16 --gateway 10.60.9.9")
    for flags in ("--subnet 10.60.5.0/24", "--subnet 10.0.0.0/8"):
        assert "overlaps" in session.refusal("h1", f"vxnet network create {flags} two")
    for number in range(3):
        session.network(f"auto{number}")
    prefixes = [
        ipaddress.ip_network(session.json("h1", f"vxnet network inspect {name}")[0]["network"]["subnets"][0]["prefix"])
        for name in ("one", "auto0", "auto1", "auto2")
    ]
    assert not any(a.overlaps(b) for a in prefixes for b in prefixes if a is not b)
    address = session.container("h2", "a", "one")
    assert ipaddress.ip_address(address) in prefixes[0] and address not in ("10.60.9.9", "10.60.0.0", "10.60.255.255")


def test_a_chosen_address_moves(session: Session) -> None:
    """From host to host, and to another container on the same one, with nobody left who looks for it where it was."""
    session.network("chosen", "--attachable --subnet 10.61.0.0/24")
    session.container("h2", "peer", "chosen")
    run = "vxnet run --name mover --network chosen --ip 10.61.0.200"
    for host, other in (("h3", "h1"), ("h1", "h3"), ("h1", "h3")):
        eventually(lambda host=host: session.run(host, f"{run} -d -- sleep infinity").returncode == 0, 2)  # type: ignore[misc]
        assert "10.61.0.200/24" in session.inside(host, "mover", "ip -4 -br addr", check=True).stdout
        assert session.inside(host, "mover", "ping -c1 -W1 peer").returncode == 0
        assert session.inside("h2", "peer", "ping -c1 -W1 10.61.0.200").returncode == 0
        assert "10.61.0.200" in session.refusal(host, "vxnet run --rm --network chosen --ip 10.61.0.200 -- true")
        line = session.refusal(other, "vxnet run --rm --network chosen --ip 10.61.0.200 -- true")
        assert "10.61.0.200" in line and host in line
        session.say(host, "vxnet rm -f mover")


def test_an_internal_network_has_no_way_out(session: Session) -> None:
    session.network("inside", "--internal --attachable")
    session.container("h2", "a", "inside")
    session.container("h3", "b", "inside")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0)
    assert "default" not in session.inside("h2", "a", "ip route", check=True).stdout
    assert session.inside("h2", "a", "ping -c1 -W1 192.168.56.11").returncode != 0
    # The other kind has one.
    session.network("outside")
    session.container("h2", "c", "outside")
    assert session.inside("h2", "c", "ping -c1 -W1 192.168.56.101").returncode == 0


def test_networks_do_not_hear_each_other(session: Session) -> None:
    session.network("red")
    session.network("blue")
    red = session.container("h2", "r", "red")
    blue = session.container("h3", "b", "blue")
    session.container("h1", "both", "red blue")
    eventually(lambda: session.inside("h1", "both", "ping -c1 -W1 r && ping -c1 -W1 b").returncode == 0)
    for host, name, stranger, address in (("h2", "r", "b", blue), ("h3", "b", "r", red)):
        assert session.inside(host, name, f"getent hosts {stranger}").returncode != 0
        assert session.inside(host, name, f"ping -c1 -W1 {address}").returncode != 0
        assert session.inside(host, name, "ping -c1 -W1 both").returncode == 0


def test_pools_avoid_what_hosts_route(make_lab: Callable[..., Lab]) -> None:
    """Of those that are there, and of one that joins later."""
    lab = make_lab(hosts=3, join=False)
    session = Session(lab)
    session.say("h1", "ip link add vpn type bridge && ip addr add 10.0.3.1/18 dev vpn && ip link set vpn up")
    session.say("h1", "vxnet init --advertise-addr eth1")
    token = session.say("h1", "vxnet join-token -q worker").strip()
    session.say("h2", f"vxnet join --token {token} --advertise-addr eth1 192.168.56.11")

    def prefix(name: str) -> str:
        session.network(name)
        return str(session.json("h1", f"vxnet network inspect {name}")[0]["network"]["subnets"][0]["prefix"])

    assert prefix("first") == "10.0.80.0/20", "behind ingress, which has 10.0.64.0/20"
    session.say("h3", "ip link add vpn type bridge && ip addr add 10.0.97.1/20 dev vpn && ip link set vpn up")
    session.say("h3", f"vxnet join --token {token} --advertise-addr eth1 192.168.56.11")
    assert prefix("second") == "10.0.112.0/20"
    assert "10.0.0.0/18" in session.refusal("h1", "vxnet network create --subnet 10.0.32.0/24 third")

"""Networks of one host, ports of the host, the host's own namespace; beside rules of others.

::

     h2   networks "desk" (bridge), "lan" (macvlan upon eth1)
      │
     ─┴── underlay ──┬──
                     x1   no daemon
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.operator import eventually
from tests.system.typed import refused, typed
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SERVER = """python3 -uc '
import socket
one = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    client, peer = one.accept()
    client.sendall(peer[0].removeprefix("::ffff:").encode())
    client.close()
'"""
CLOSE = (
    "nft 'add table inet filter; add chain inet filter forward { type filter hook forward priority 0; policy drop; }'"
)
ASK = (
    "python3 -c 'import socket, sys; "
    "print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(99).decode())'"
)


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> Iterator[None]:
    yield
    for host in ("h1", "h2"):
        typed(lab, host, "vxnet rm -f $(vxnet ps -aq) >/dev/null 2>&1; vxnet network prune -f >/dev/null 2>&1; true")
        typed(lab, host, "nft delete table inet filter 2>/dev/null; true")


def drift(lab: Lab, host: str) -> int:
    return int(json.loads(typed(lab, host, "vxnet info --format json"))["drift"])


def test_a_bridge_network(lab: Lab) -> None:
    """On a worker, whoever manages: names, ports, the way out; it outlives the daemon, and goes without a trace."""
    lab.kill("h1", daemon=True)
    try:
        typed(lab, "h2", "vxnet network create -d bridge --ipv6 --label team=x desk")
        listed = [line.split()[1:] for line in typed(lab, "h2", "vxnet network ls").splitlines()]
        assert ["desk", "bridge", "local"] in listed and ["host", "host", "local"] in listed
        assert ["none", "null", "local"] in listed and ["vxnet_gw", "bridge", "local"] in listed
        typed(lab, "h2", f"vxnet run -d --name a --network desk -p 8080:80 -- {SERVER}")
    finally:
        lab.start("h1")
    typed(lab, "h2", "vxnet run -d --name b --network desk -- sleep infinity")
    said = eventually(lambda: typed(lab, "h2", f"vxnet exec b -- {ASK} a 80 || true"))
    assert said.strip() in typed(lab, "h2", "vxnet exec b -- ip -br addr")
    for name in ("a", "a.desk"):
        typed(lab, "h2", f"vxnet exec b -- sh -c 'ping -4 -c1 -W1 {name} && ping -6 -c1 -W1 {name}'")
    assert typed(lab, "x1", f"{ASK} {lab['h2'].address} 8080").strip() == str(lab["x1"].address)
    assert typed(lab, "h2", f"{ASK} 127.0.0.1 8080") != ""
    typed(lab, "h2", f"vxnet exec b -- ping -c1 -W1 {lab['x1'].address}")
    # Of this host alone.
    assert "desk" not in typed(lab, "h1", "vxnet network ls")
    assert "there is no network" in refused(lab, "h1", "vxnet run --rm --network desk -- true", 125)
    assert "used by containers: a, b" in refused(lab, "h2", "vxnet network rm desk")
    # A daemon that starts anew finds all as it should be.
    before = drift(lab, "h2")
    lab.kill("h2", daemon=True)
    assert typed(lab, "x1", f"{ASK} {lab['h2'].address} 8080").strip() == str(lab["x1"].address)
    lab.start("h2")
    eventually(lambda: typed(lab, "h2", "vxnet exec b -- getent ahosts a || true"))
    assert drift(lab, "h2") <= before
    (shown,) = json.loads(typed(lab, "h2", "vxnet network inspect desk"))
    assert {one["name"] for one in shown["endpoints"]} == {"a", "b"} and shown["mtu"] == 1500
    # Onto an overlay as well, and off again.
    typed(lab, "h2", "vxnet network disconnect desk b")
    assert "default via 172.19." in eventually(lambda: typed(lab, "h2", "vxnet exec b -- ip route"))
    typed(lab, "h2", "vxnet network connect --alias bee desk b; vxnet exec a -- ping -c1 -W1 bee")
    typed(lab, "h2", "vxnet rm -f a b; vxnet network rm desk")
    told = typed(lab, "h2", "vxnet events --since 5m --until 0s --filter type=network")
    assert "network remove" in told and "desk" in told and "network connect" in told
    eventually(lambda: shown["link"] not in typed(lab, "h2", "ip -br link; nft list ruleset"))


def test_macvlan_host_and_none(lab: Lab) -> None:
    h2, x1 = lab["h2"].address, lab["x1"].address
    typed(
        lab,
        "h2",
        "vxnet network create -d macvlan --subnet 192.168.56.0/24 --ip-range 192.168.56.64/28 -o parent=eth1 lan",
    )
    typed(lab, "h2", f"vxnet run -d --name m --network lan --ip 192.168.56.70 -- {SERVER}")
    assert eventually(lambda: typed(lab, "x1", f"{ASK} 192.168.56.70 80 || true")).strip() == str(x1)
    assert "default via 192.168.56.1 dev eth0" in typed(lab, "h2", "vxnet exec m -- ip route")
    (shown,) = json.loads(typed(lab, "h2", "vxnet network inspect lan"))
    assert shown["link"] == "eth1" and "neighbours" in shown["warnings"][0]
    typed(lab, "h2", "nsenter -t $(vxnet inspect m | grep -m1 -oP '\"pid\": \\K\\d+') -n ip link del eth0")
    assert eventually(lambda: typed(lab, "x1", f"{ASK} 192.168.56.70 80 || true")).strip() == str(x1)
    # The host's own namespace: its addresses, its name, its ports.
    typed(lab, "h2", f"vxnet run -d --name own --network host -- {SERVER}")
    assert eventually(lambda: typed(lab, "x1", f"{ASK} {h2} 80 || true")).strip() == str(x1)
    assert typed(lab, "h2", "vxnet exec own -- hostname").strip() == "h2"
    assert typed(lab, "h2", "vxnet exec own -- readlink /proc/self/ns/net") == typed(
        lab, "h2", "readlink /proc/self/ns/net"
    )
    assert "no interfaces" in refused(lab, "h2", "vxnet network connect lan own")
    assert "host's ports themselves" in refused(lab, "h2", "vxnet run --rm --network host -p 80:80 -- true", 125)
    assert typed(lab, "h2", "vxnet run --rm --network none -- ls /sys/class/net") == "lo\n"


def test_what_a_network_of_one_host_may_not_be(lab: Lab) -> None:
    for words, why in (
        ("-d host h", "there is one network of driver host"),
        ("-d macvlan m", "needs a parent; `--opt parent=LINK`; this host has eth1"),
        ("-d bridge --subnet 192.168.56.0/26 b", "overlaps 192.168.56.0/24"),
        ("-d bridge ingress", "ingress"),
    ):
        assert why in refused(lab, "h2", f"vxnet network create {words}")


def test_beside_a_closed_firewall(lab: Lab) -> None:
    """A FORWARD that drops and rules that somebody flushed: mended, and counted."""
    typed(lab, "h2", "vxnet run -d --name out -- sleep infinity")
    reach = f"vxnet exec out -- ping -c1 -W1 {lab['x1'].address} >/dev/null"
    typed(lab, "h2", reach)
    for damage in (
        CLOSE,
        "nft flush ruleset",
    ):
        before = drift(lab, "h2")
        typed(lab, "h2", damage)
        eventually(lambda: typed(lab, "h2", f"{reach} && echo it does || true"), 6)
        eventually(lambda before=before: drift(lab, "h2") == before + 1)  # type: ignore[misc]
    typed(
        lab,
        "h2",
        "nft 'add table inet filter; add chain inet filter input { type filter hook input priority 0; policy drop; };"
        "add rule inet filter input tcp dport 7946 accept'",
    )
    told = typed(lab, "h2", "vxnet info 2>&1")
    assert "udp port 4789 (VXLAN)" in told and "udp port 7946 (gossip)" in told and "tcp port 7946" not in told

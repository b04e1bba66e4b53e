"""What a container is connected to: overlay networks that come and go, and the way out.

::

     h1, h2, h3   networks "net-a", "net-b", "inside" (internal)
        │
     ───┴──────── underlay ──────┬──
                                 x1   no daemon; tells everybody their address on port 8000
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.system.operator import eventually
from tests.system.typed import networks, refused, run, typed
from vxnet.lab import Lab
from vxnet.model.api import NetworkConnect, NetworkCreate
from vxnet.model.container import Container, ContainerSpec, NetworkWish
from vxnet.model.errors import ConflictError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WHO = r"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
PING = "ping -c 1 -W 2"
ASK = "curl -sS --max-time 1"


@pytest.fixture(scope="module")
def three(shared_lab: Lab) -> Iterator[None]:
    with networks(
        shared_lab,
        NetworkCreate(name="net-a", attachable=True),
        NetworkCreate(name="net-b", attachable=True),
        NetworkCreate(name="inside", attachable=True, internal=True),
        NetworkCreate(name="services"),
    ):
        yield


@pytest.fixture(autouse=True)
def clean(lab: Lab, three: None) -> Iterator[None]:
    yield
    for host in lab.hosts:
        for container in lab.client(host).containers(all=True):
            lab.client(host).remove(container.id, force=True)


@pytest.fixture(scope="module")
def outside(shared_lab: Lab) -> Iterator[str]:
    """``address:port`` of the server on x1."""
    with shared_lab.popen("x1", ["python3", "-c", WHO]) as server:
        eventually(lambda: run(shared_lab, "x1", f"{ASK} http://127.0.0.1:8000").returncode == 0)
        yield f"{shared_lab['x1'].address}:8000"
        server.kill()


def start(lab: Lab, host: str, name: str, *wished: str | NetworkWish) -> Container:
    wishes = tuple(NetworkWish(network=wish) if isinstance(wish, str) else wish for wish in wished)
    spec = ContainerSpec(name=name, argv=("sleep", "infinity"), networks=wishes)
    return lab.client(host).create_container(spec, start=True)


def address(container: Container, number: int = 0) -> str:
    return str(container.attachments[number].addresses[0].ip)


def interfaces(lab: Lab, host: str, name: str) -> list[str]:
    return re.findall(r"^[a-z0-9]+", typed(lab, host, f"vxnet exec {name} ip -br -4 address"), re.MULTILINE)


# Overlay networks


def test_a_container_on_several(lab: Lab) -> None:
    a, b = start(lab, "h1", "only-a", "net-a"), start(lab, "h2", "only-b", "net-b")
    wished = "--network net-a --alias ay --network name=net-b,alias=bee"
    both = typed(lab, "h3", f"vxnet run -d --name both {wished} -- sleep infinity")
    assert interfaces(lab, "h3", "both") == ["lo", "eth0", "eth1", "eth2"]
    assert "default via" in typed(lab, "h3", "vxnet exec both ip route show dev eth2")
    for other in (a, b):
        eventually(lambda other=other: run(lab, "h3", f"vxnet exec both {PING} {address(other)}").returncode == 0)  # type: ignore[misc]
    eventually(lambda: run(lab, "h1", f"vxnet exec only-a {PING} ay").returncode == 0)
    eventually(lambda: run(lab, "h2", f"vxnet exec only-b {PING} bee").returncode == 0)
    assert run(lab, "h1", f"vxnet exec only-a ping -c 1 -W 1 {address(b)}").returncode != 0, "one net reaches the other"
    view = lab.client("h3").containers()[0]
    assert view.id == both.strip() and view.networks == ("net-a", "net-b") and len(view.addresses) == 2


def test_a_chosen_address(lab: Lab) -> None:
    subnet = next(net for net in lab.client("h1").networks() if net.name == "net-a").subnets[0].prefix
    free, last = subnet[-100], subnet.broadcast_address
    typed(lab, "h3", f"vxnet run -d --name chosen --network net-a --ip {free} -- sleep infinity")
    near = start(lab, "h2", "near", "net-a")
    eventually(lambda: run(lab, "h2", f"vxnet exec near {PING} {free}").returncode == 0)
    for host, wrong, why in (
        ("h3", free, "chosen"),
        ("h2", free, "h3"),
        ("h2", address(near), "near"),
        ("h2", subnet[0], "network or broadcast"),
        ("h2", subnet[1], "gateway"),
        ("h2", last, "network or broadcast"),
        ("h2", "192.0.2.1", "outside"),
    ):
        line = refused(lab, host, f"vxnet run --rm --network net-a --ip {wrong} -- true", 125)
        assert str(wrong) in line and why in line
    assert [view.name for view in lab.client("h2").containers(all=True)] == ["near"]
    typed(lab, "h3", "vxnet rm -f chosen")
    typed(lab, "h2", f"vxnet run --rm --network net-a --ip {subnet[-101]} -- ip address")


def test_connect_and_disconnect(lab: Lab) -> None:
    start(lab, "h1", "far", "net-b")
    near = start(lab, "h2", "near", "net-a")
    peer = start(lab, "h1", "peer", "net-a")
    chosen = next(net for net in lab.client("h1").networks() if net.name == "net-b").subnets[0].prefix[-50]
    with lab.popen(
        "h2", ["vxnet", "exec", "near", "ping", "-i", "0.05", "-w", "20", address(peer)], stdout=subprocess.PIPE
    ) as ping:
        typed(lab, "h2", f"vxnet network connect --alias guest --ip {chosen} net-b near")
        assert interfaces(lab, "h2", "near") == ["lo", "eth0", "eth1", "eth2"]
        eventually(lambda: run(lab, "h1", f"vxnet exec far {PING} guest").returncode == 0)
        eventually(lambda: run(lab, "h2", f"vxnet exec near {PING} far").returncode == 0)
        assert "already" in refused(lab, "h2", "vxnet network connect net-b near")
        typed(lab, "h2", "vxnet network disconnect net-b near")
        assert "eth2" not in interfaces(lab, "h2", "near")
        assert "not on network" in refused(lab, "h2", "vxnet network disconnect net-b near")
        eventually(lambda: run(lab, "h1", "vxnet exec far getent hosts guest").returncode == 2)
        typed(lab, "h2", "kill -INT $(pgrep -x ping)")
        said = ping.communicate(timeout=10)[0].decode()
    assert " 0% packet loss" in said, "the other network was disturbed"
    # From the last one off, and on again: the address is another or the same, the name is back.
    typed(lab, "h2", "vxnet network disconnect net-a near && vxnet network connect net-a near")
    eventually(lambda: run(lab, "h1", f"vxnet exec peer {PING} near").returncode == 0)
    assert lab.client("h2").container("near").attachments[0].ifname == near.attachments[0].ifname


def test_wrong_connects(lab: Lab) -> None:
    start(lab, "h2", "near", "net-a")
    before = interfaces(lab, "h2", "near")
    for wrong, why in {
        "connect nowhere near": "nowhere",
        "connect net-b nobody": "nobody",
        "connect bridge near": "bridge",
        "disconnect vxnet_gw near": "vxnet_gw",
        "disconnect nowhere near": "nowhere",
        "connect services near": "attachable",
        "connect --ip 192.0.2.1 net-b near": "192.0.2.1",
        "connect --alias 'a b' net-b near": "a b",
    }.items():
        assert why in refused(lab, "h2", f"vxnet network {wrong}")
    assert "h2" in refused(lab, "h1", "vxnet network rm net-a")
    assert interfaces(lab, "h2", "near") == before
    typed(lab, "h2", "vxnet stop near")
    refused(lab, "h2", "vxnet network connect net-b near")


def test_of_eight_who_connect_it_at_once_one_does(lab: Lab) -> None:
    start(lab, "h2", "near", "net-a")
    results: list[str] = []

    def connect() -> None:
        try:
            lab.client("h2").connect("net-b", NetworkConnect(container="near"))
            results.append("done")
        except ConflictError:
            results.append("already")

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["already"] * 7 + ["done"]
    assert interfaces(lab, "h2", "near") == ["lo", "eth0", "eth1", "eth2"]


def test_a_network_by_the_beginning_of_its_id(lab: Lab) -> None:
    id = next(net for net in lab.client("h1").networks() if net.name == "net-a").id
    typed(lab, "h2", f"vxnet run -d --name near --network {id[:8]} -- sleep infinity")
    assert [view.networks for view in lab.client("h2").containers()] == [("net-a",)]
    typed(lab, "h2", f"vxnet network disconnect {id[:8]} near && vxnet network connect {id} near")


# The way out


def test_the_way_out(lab: Lab, outside: str) -> None:
    """The server sees the host. A network that is internal leads nowhere."""
    for name, wished in {
        "plain": (),
        "joined": ("net-a",),
        "locked": ("inside",),
        "mixed": ("inside", "net-a"),
    }.items():
        start(lab, "h2", name, *wished)
    ask = f"{ASK} http://{outside}"
    for name in ("plain", "joined", "mixed"):
        assert typed(lab, "h2", f"vxnet exec {name} {ask}") == str(lab["h2"].address)
    assert typed(lab, "h2", f"vxnet run --rm --network vxnet_gw -- {ask}") == str(lab["h2"].address)
    assert run(lab, "h2", f"vxnet exec locked {ask}").returncode == 7, "an internal network has a way out"
    assert interfaces(lab, "h2", "locked") == ["lo", "eth0"]
    assert typed(lab, "h2", "vxnet run --rm --network none -- ls /sys/class/net") == "lo\n"
    # With the first network that is not internal the way out comes, with the last it goes.
    typed(lab, "h2", "vxnet network connect net-a locked")
    assert typed(lab, "h2", f"vxnet exec locked {ask}") == str(lab["h2"].address)
    typed(lab, "h2", "vxnet network disconnect net-a locked")
    assert run(lab, "h2", f"vxnet exec locked {ask}").returncode == 7
    assert interfaces(lab, "h2", "locked") == ["lo", "eth0"]


def test_the_host_by_a_name(lab: Lab) -> None:
    with lab.popen("h2", ["python3", "-c", WHO]) as server:
        try:
            ask = f"--add-host me:host-gateway -- {ASK} http://me:8000"
            eventually(lambda: run(lab, "h2", f"{ASK} http://127.0.0.1:8000").returncode == 0)
            for network in ("net-a", "vxnet_gw"):
                assert typed(lab, "h2", f"vxnet run --rm --network {network} {ask}").startswith("172.")
            assert typed(lab, "h2", f"vxnet run --rm --network host {ask}") == "127.0.0.1"
            refused = run(lab, "h2", f"vxnet run --rm --network inside {ask}")
            assert refused.returncode and "me:host-gateway would lead nowhere" in refused.stderr
        finally:
            server.kill()


def test_no_way_between_containers_over_the_gateway(lab: Lab) -> None:
    for name, wished in {"one": ("net-a",), "two": ("net-b",), "three": ()}.items():
        start(lab, "h2", name, *wished)
    typed(lab, "h2", "vxnet exec one sh -c 'python3 -m http.server 8080 >/dev/null 2>&1 &'")
    gateway = lab.client("h2").container("one").gateway
    assert gateway is not None
    ip = gateway.addresses[0].ip
    eventually(lambda: run(lab, "h2", f"{ASK} http://{ip}:8080 >/dev/null").returncode == 0)  # the host itself may
    for name in ("two", "three"):
        assert run(lab, "h2", f"vxnet exec {name} sh -c 'ping -c 1 -W 1 {ip} || {ASK} {ip}:8080'").returncode in (7, 28)
    # Nor for another host that takes this one for a router.
    try:
        assert (
            run(lab, "h1", f"ip route add {ip}/32 via {lab['h2'].address} && {ASK} http://{ip}:8080").returncode == 28
        )
    finally:
        typed(lab, "h1", f"ip route del {ip}/32")

"""IPv6 as IPv4; several subnets, one added under way; who hears what is said to all."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import subprocess
from collections.abc import Callable

import pytest

from tests.system.operator import Session, eventually
from tests.system.test_data_path import on_the_wire
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def addresses(session: Session, host: str, name: str, network: int = 0) -> list[str]:
    """Of a container, IPv4 first."""
    found = session.json(host, f"vxnet inspect {name}")[0]["attachments"][network]["addresses"]
    return [text.split("/")[0] for text in found]


def asked(session: Session, host: str, name: str, question: str) -> list[str]:
    return session.inside(host, name, f"dig +short {question}", check=True).stdout.split()


@pytest.fixture(params=["--ipv6", "--ipv6 --no-ipv4"])
def families(request: pytest.FixtureRequest, session: Session) -> list[int]:
    """Containers a on h2 and b on h3, in networks with both families and with IPv6 alone."""
    session.network("families", f"--attachable {request.param}")
    session.container("h2", "a", "families")
    session.container("h3", "b", "families")
    eventually(lambda: session.inside("h2", "a", "ping -6 -c1 -W1 b").returncode == 0)
    return [6] if "no-ipv4" in request.param else [4, 6]


def test_families(session: Session, families: list[int]) -> None:
    """Names, both ways, of each family; addresses that can be bound at once; frames of the right size."""
    there = addresses(session, "h3", "b")
    assert [ipaddress.ip_address(text).version for text in there] == families
    assert all(ipaddress.ip_address(text).is_private for text in there)
    for version, question in ((4, "A"), (6, "AAAA")):
        wanted = [text for text in there if ipaddress.ip_address(text).version == version]
        assert asked(session, "h2", "a", f"b {question}") == wanted
        assert asked(session, "h2", "a", f"b.families {question}") == wanted
    for text in there:
        assert asked(session, "h2", "a", f"-x {text}") == ["b.families."]
        size = 1450 - (28 if "." in text else 48)
        assert session.inside("h2", "a", f"ping -c1 -W1 -M do -s {size} {text}").returncode == 0
        assert session.inside("h2", "a", f"ping -c1 -W1 -M do -s {size + 1} {text}").returncode != 0
    assert "tentative" not in session.inside("h3", "b", "ip -6 addr show dev eth0", check=True).stdout
    if families == [6]:
        assert " inet " not in session.inside("h3", "b", "ip addr show dev eth0", check=True).stdout
    # A server that binds its address as the first thing that it does.
    session.say(
        "h2",
        "vxnet run --rm --network families -- python3 -c '"
        "import socket, subprocess; "
        'text = subprocess.check_output("ip -6 -br addr show dev eth0 scope global", shell=True, text=True); '
        'socket.create_server((text.split()[2].split("/")[0], 80), family=socket.AF_INET6)'
        "'",
    )


def test_neighbours_are_not_asked_for_over_the_tunnel(session: Session, families: list[int]) -> None:
    pid = session.pid("h2", "a")
    there = addresses(session, "h3", "b")[-1]
    with on_the_wire(session, "h2") as frames:
        session.say("h2", f"nsenter -t {pid} -n ip -6 neigh flush all")
        session.inside("h2", "a", f"ping -c2 -i0.2 -W1 {there}", check=True)
    assert any("echo request" in frame for frame in frames)
    assert not [frame for frame in frames if "neighbor solicitation" in frame and there in frame]


def test_chosen_addresses_of_both_families(session: Session) -> None:
    session.network("chosen", "--attachable --subnet 10.66.0.0/24 --ip-range 10.66.0.64/28 --subnet fd00:66::/64")
    run = "vxnet run -d --network chosen"
    session.say("h2", f"{run} --name a --ip 10.66.0.200 --ip6 fd00:66::200 -- sleep infinity")
    session.say("h3", "vxnet run -d --name b --network name=chosen,ip6=fd00:66::201 -- sleep infinity")
    session.say("h1", "vxnet run -d --name c -- sleep infinity")
    session.say("h1", "vxnet network connect --ip6 fd00:66::202 chosen c")
    try:
        assert addresses(session, "h2", "a") == ["10.66.0.200", "fd00:66::200"]
        for host, name, ip6 in (("h3", "b", "fd00:66::201"), ("h1", "c", "fd00:66::202")):
            ip4, found = addresses(session, host, name)
            assert found == ip6 and ipaddress.ip_address(ip4) in ipaddress.ip_network("10.66.0.64/28")
            eventually(lambda ip6=ip6: session.inside("h2", "a", f"ping -c1 -W1 {ip6}").returncode == 0)  # type: ignore[misc]
        line = session.refusal("h3", "vxnet run --rm --network chosen --ip6 fd00:66::200 -- true")
        assert "fd00:66::200" in line and "h2" in line
        assert "outside" in session.refusal("h3", "vxnet run --rm --network chosen --ip6 fd00:67::1 -- true")
        assert "both of IPv4" in session.refusal(
            "h3", "vxnet run --rm --network chosen --ip 10.66.0.9 --ip6 10.66.0.8 -- true"
        )
    finally:
        for host, name in (("h2", "a"), ("h3", "b"), ("h1", "c")):
            session.say(host, f"vxnet rm -f {name}")


def test_a_subnet_is_added_under_way(session: Session) -> None:
    """A network that is full gets room; who was there before and who comes after reach each other, with no loss."""
    session.network("grown", "--attachable --subnet 10.67.0.0/29")
    old = session.container("h2", "old", "grown")
    session.container("h3", "peer", "grown")
    eventually(lambda: session.inside("h2", "old", "ping -c1 -W1 peer").returncode == 0)
    ping = session.ping("h2", "old", "peer", "-i0.02", "-c100")
    taken = []
    for number in range(8):
        done = session.run("h1", f"vxnet run -d --name more{number} --network grown -- sleep infinity")
        if done.returncode:
            assert "no address left" in done.stderr and "--subnet-add" in done.stderr
            break
        taken.append(f"more{number}")
    # Of five addresses, two are theirs: nobody is refused before all are used.
    assert len(taken) == 3
    session.say("h1", "vxnet network update --subnet-add 10.68.0.0/24 --subnet-add fd00:68::/64 grown")
    new = eventually(lambda: session.container("h1", "new", "grown"))
    ip4, ip6 = addresses(session, "h1", "new")
    assert (ip4, ip4.rsplit(".", 1)[0]) == (new, "10.68.0") and ip6.startswith("fd00:68::")
    # Its name has addresses of both families; only one is there for who has been here since before, and it is told so
    # at once instead of asking the way out.
    eventually(lambda: session.inside("h2", "old", "ping -c1 -W1 new").returncode == 0)
    assert "No route to host" in session.inside("h2", "old", f"ping -6 -c1 -W1 {ip6}").stderr
    assert session.inside("h1", "new", f"ping -6 -c1 -W1 {ip6}").returncode == 0
    assert session.inside("h1", "new", f"ping -c1 -W1 {old}").returncode == 0
    # Not by way of the host.
    assert "10.68.0.0/24 dev eth0" in session.inside("h2", "old", "ip route", check=True).stdout
    assert not ping.unanswered(100)
    # Mended, as everything is.
    pid = session.pid("h2", "old")
    session.say("h2", f"nsenter -t {pid} -n ip route del 10.68.0.0/24 dev eth0")
    eventually(lambda: session.inside("h2", "old", f"ping -c1 -W1 {new}").returncode == 0, 2)
    for name in taken:
        session.say("h1", f"vxnet rm -f {name}")


def test_networks_that_nobody_uses_are_pruned(session: Session) -> None:
    session.network("kept")
    session.network("idle", "--attachable --label team=a")
    session.container("h3", "a", "kept")
    eventually(lambda: "a" in session.say("h1", "vxnet network inspect -v kept"))
    assert session.say("h1", "vxnet network prune -f --filter label=team=b") == ""
    assert session.say("h1", "vxnet network prune -f --filter label=team --filter until=1h") == ""
    assert session.say("h1", "echo y | vxnet network prune --filter label=team=a").endswith("idle\n")
    assert "kept" in session.say("h1", "vxnet network ls")


HEAR = """
import select, socket, struct, sys
GROUPS = ("239.1.2.3", "ff15::77")
sockets = []
for group in GROUPS:
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    for index, name in socket.if_nameindex():
        if name == "lo":
            continue
        one = socket.socket(family, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", 5000))
        packed = socket.inet_pton(family, group)
        if family == socket.AF_INET:
            one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", packed, bytes(4), index))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("=i", index))
        sockets.append(one)
print("ready", flush=True)
heard = set()
while True:
    for one in select.select(sockets, [], [])[0]:
        word = one.recv(100).decode()
        if word == "over":
            sys.exit()
        if word not in heard:
            heard.add(word)
            print(word, flush=True)
"""
SAY = """
import socket
for group in ("239.1.2.3", "ff15::77", "255.255.255.255"):
    one = socket.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(3):
        one.sendto(group.encode(), (group, 5000))
"""
OVER = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"over", ("127.0.0.1", 5000))
"""


def test_what_is_said_to_all_is_heard_by_the_members_alone(session: Session) -> None:
    """Multicast of both families and broadcast: on the same host and on others; not on another network, nor by way of
    vxnet_gw, nor on a host without a member."""
    session.network("club", "--attachable --ipv6")
    session.network("street", "--attachable --ipv6")
    session.container("h2", "speaker", "club")
    places = {"near": ("h2", "club"), "far": ("h3", "club"), "passer": ("h2", "street"), "stranger": ("h3", "street")}
    with contextlib.ExitStack() as stack:
        listeners: dict[str, subprocess.Popen[str]] = {}
        for name, (host, network) in places.items():
            session.container(host, name, network)
            listener = session.popen_inside(host, name, ["python3", "-c", HEAR], stdout=subprocess.PIPE)
            listeners[name] = stack.enter_context(listener)
            stack.callback(listener.kill)
            assert listener.stdout and listener.stdout.readline() == "ready\n"
        eventually(lambda: session.inside("h2", "speaker", "ping -c1 -W1 far").returncode == 0)
        with on_the_wire(session, "h1") as elsewhere:
            said = session.lab.run("h2", ["vxnet", "exec", "speaker", "python3", "-c", SAY])
            assert said.returncode == 0, said.stderr
            heard: dict[str, set[str]] = {}
            for name in ("near", "far"):
                heard[name] = {listeners[name].stdout.readline().strip() for _ in range(3)}  # type: ignore[union-attr]
        for name, (host, _) in places.items():
            session.lab.run(host, ["vxnet", "exec", name, "python3", "-c", OVER], check=True)
            heard[name] = heard.get(name, set()) | {*listeners[name].communicate(timeout=10)[0].split()}
    groups = {"239.1.2.3", "ff15::77", "255.255.255.255"}
    assert heard == {"near": groups, "far": groups, "passer": set(), "stranger": set()}
    assert elsewhere == []


def test_an_address_that_a_container_gave_itself_is_found(session: Session) -> None:
    """Nobody's row tells of it: ARP for it goes to the members, and nowhere else."""
    session.network("float", "--attachable --subnet 10.69.0.0/24 --ip-range 10.69.0.64/26")
    session.container("h2", "a", "float")
    session.container("h3", "b", "float")
    pid = session.pid("h3", "b")
    session.say("h3", f"nsenter -t {pid} -n ip addr add 10.69.0.9/24 dev eth0")
    with on_the_wire(session, "h1") as elsewhere:
        eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 10.69.0.9").returncode == 0)
    assert elsewhere == []


def test_both_families_over_an_underlay_of_ipv6(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, ipv6=True, join=False)
    session = Session(lab)
    six = {host: str(lab[host].addresses[-1]) for host in lab.hosts}
    session.say("h1", f"vxnet init --advertise-addr {six['h1']}")
    token = session.say("h1", "vxnet join-token -q worker").strip()
    session.say("h2", f"vxnet join --token {token} --advertise-addr {six['h2']} [{six['h1']}]")
    session.network("both", "--attachable --ipv6")
    session.container("h1", "a", "both")
    session.container("h2", "b", "both")
    for text in addresses(session, "h2", "b"):
        eventually(lambda text=text: session.inside("h1", "a", f"ping -c1 -W1 {text}").returncode == 0)  # type: ignore[misc]
        size = 1430 - (28 if "." in text else 48)
        assert session.inside("h1", "a", f"ping -c1 -W1 -M do -s {size} {text}").returncode == 0
        assert session.inside("h1", "a", f"ping -c1 -W1 -M do -s {size + 1} {text}").returncode != 0
    fdb = json.loads(session.datapath("h1", "bridge -j fdb show"))
    assert {row["dst"] for row in fdb if "dst" in row} == {six["h2"]}
    assert re.search(r"tunnel|vxlan id", session.datapath("h1", "ip -d link"))

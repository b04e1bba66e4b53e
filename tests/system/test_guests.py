"""Processes and namespaces that are none of vxnet's containers, on its networks.

::

     h2   namespace "vm" (ip netns)  ──┐                     h3   container b
          process in `unshare -n`    ──┴── network "party" ──────
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture
def party(session: Session) -> str:
    """A network with b on h3; b's address."""
    session.network("party", "--attachable --ipv6 --subnet 10.72.0.0/24")
    return session.container("h3", "b", "party")


@pytest.fixture
def spawn(session: Session) -> Iterator[Callable[[str], int]]:
    """Starts a command on h2 and tells its pid there."""
    with contextlib.ExitStack() as stack:

        def start(command: str) -> int:
            line = f"echo $$; exec {command}"
            child = session.lab.popen("h2", ["sh", "-c", line], stdout=subprocess.PIPE, text=True)
            stack.callback(child.wait)
            stack.callback(child.kill)
            stack.enter_context(contextlib.closing(child.stdout))  # type: ignore[type-var]
            pid = int(child.stdout.readline())  # type: ignore[union-attr]
            look = f"readlink /proc/{pid}/ns/net /proc/1/ns/net | uniq | wc -l"
            eventually(lambda: session.say("h2", look) == "2\n")
            return pid

        yield start


@pytest.fixture
def vm(session: Session) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a command in namespace "vm" of h2."""
    session.say("h2", "ip netns add vm")
    yield lambda command, **options: session.run("h2", f"ip netns exec vm {command}", **options)
    session.run("h2", "ip netns del vm")


def resolves(session: Session, name: str) -> bool:
    return session.inside("h3", "b", f"getent hosts {name}").returncode == 0


def test_a_namespace_with_a_name(
    session: Session, party: str, vm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    vm("ip link add eth0 type veth peer name other", check=True)  # what it has is not touched
    done = session.run("h2", "vxnet network connect --netns /run/netns/vm --ip 10.72.0.50 --alias guest party")
    assert done.stdout == "vm\n" and "nameserver 127.0.0.11" in done.stderr.splitlines()[-1]
    assert "10.72.0.50/24" in vm("ip -br addr show dev eth1", check=True).stdout
    for target in ("10.72.0.50", "vm", "guest", "vm.party", "-6 vm"):
        eventually(lambda target=target: session.inside("h3", "b", f"ping -c1 -W1 {target}").returncode == 0)  # type: ignore[misc]
    assert vm(f"ping -c1 -W1 {party}").returncode == 0
    assert vm("dig +short @127.0.0.11 b").stdout == f"{party}\n"
    assert vm("dig +short +tcp @127.0.0.11 b").stdout == f"{party}\n"
    assert vm(f"dig +short @127.0.0.11 -x {party}").stdout == "b.party.\n"
    (view,) = session.table("h2", "vxnet network guests")
    assert (view["name"], view["networks"], view["interfaces"]) == ("vm", ["party"], ["eth1"])
    assert [row["name"] for row in session.json("h3", "vxnet network inspect -v party")[0]["endpoints"]] == ["vm", "b"]
    # What is lost comes back, as in a container.
    vm("ip addr flush dev eth1", check=True)
    eventually(lambda: vm(f"ping -c1 -W1 {party}").returncode == 0, 5)
    vm("ip link del eth1", check=True)
    eventually(lambda: vm(f"ping -c1 -W1 {party}").returncode == 0, 5)
    # A second network, by its name; then from the first one off.
    session.network("second", "--attachable --subnet 10.73.0.0/24")
    session.say("h2", "vxnet network connect second vm")
    assert "10.73.0." in vm("ip -br addr show dev eth2", check=True).stdout
    session.say("h2", "vxnet network disconnect --netns /run/netns/vm party")
    assert "eth1" not in vm("ip -br link", check=True).stdout
    eventually(lambda: not resolves(session, "vm"))
    assert "inet vxnet" in vm("nft list tables").stdout
    # The last: nothing of vxnet's is left in there, and what was there before is.
    session.say("h2", "vxnet network disconnect second vm")
    assert vm("nft list tables").stdout == ""
    assert vm("ls /sys/class/net", check=True).stdout.split() == ["eth0", "lo", "other"]
    assert session.table("h2", "vxnet network guests") == []


def test_it_ends_with_its_name(
    session: Session, party: str, vm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    session.say("h2", "vxnet network connect --netns /run/netns/vm party")
    eventually(lambda: resolves(session, "vm"))
    session.say("h2", "ip netns del vm")
    eventually(lambda: not resolves(session, "vm"), 3)
    eventually(lambda: session.table("h2", "vxnet network guests") == [])
    eventually(lambda: "br" not in session.datapath("h2", "ip -br link"))


def test_it_ends_with_its_process(session: Session, party: str, spawn: Callable[[str], int]) -> None:
    """Also where others live on in its namespace."""
    pid = spawn("unshare -n sleep infinity")
    other = spawn(f"nsenter -t {pid} -n sleep infinity")
    session.say("h2", f"vxnet network connect --pid {pid} --name worker --ifname vx0 party")
    eventually(lambda: session.inside("h3", "b", "ping -c1 -W1 worker").returncode == 0)
    inside = f"nsenter -t {other} -n"
    assert "vx0" in session.say("h2", f"{inside} ip -br link")
    session.say("h2", f"kill -9 {pid}")
    eventually(lambda: not resolves(session, "worker"), 2)
    eventually(lambda: "vx0" not in session.say("h2", f"{inside} ip -br link"))
    eventually(lambda: session.say("h2", f"{inside} nft list tables") == "")


def test_it_outlives_the_daemon(
    session: Session,
    party: str,
    vm: Callable[..., subprocess.CompletedProcess[str]],
    spawn: Callable[[str], int],
) -> None:
    """Not a packet is lost, a question that is asked meanwhile is answered late; who ends meanwhile is cleared away."""
    session.say("h2", "vxnet network connect --netns /run/netns/vm party")
    brief = spawn("unshare -n sleep infinity")
    session.say("h2", f"vxnet network connect --pid {brief} --name brief party")
    eventually(lambda: session.inside("h3", "b", "ping -c1 -W1 brief && ping -c1 -W1 vm").returncode == 0)
    before = vm("nft list table inet vxnet", check=True).stdout
    with session.lab.popen(
        "h2", ["ip", "netns", "exec", "vm", "ping", "-i0.02", "-c200", party], stdout=subprocess.PIPE, text=True
    ) as ping:
        session.lab.kill("h2", daemon=True)
        question = session.lab.popen(
            "h2",
            ["ip", "netns", "exec", "vm", "dig", "+short", "+time=2", "+tries=5", "@127.0.0.11", "b"],
            stdout=subprocess.PIPE,
            text=True,
        )
        session.say("h2", f"kill -9 {brief}")
        with question:
            session.lab.start("h2")
            # It was asked again, by the one who asks: refused it would have been over at once.
            said = question.communicate(timeout=20)[0].splitlines()
            assert said[-1] == party and not any("refused" in line for line in said)
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", ping.communicate(timeout=20)[0])}
        assert sorted({*range(1, 201)} - answered) == []
    assert vm("nft list table inet vxnet", check=True).stdout == before
    assert [view["name"] for view in session.table("h2", "vxnet network guests")] == ["vm"]
    eventually(lambda: not resolves(session, "brief"))
    assert resolves(session, "vm")


def test_who_reads_the_right_resolv_conf_is_told_nothing(
    session: Session, party: str, spawn: Callable[[str], int]
) -> None:
    """Another mount namespace, as containers of other programs have."""
    session.say("h2", "echo nameserver 127.0.0.11 >/tmp/resolv.conf")
    pid = spawn("unshare -nm sh -c 'mount --bind /tmp/resolv.conf /etc/resolv.conf && exec sleep infinity'")
    eventually(lambda: "127.0.0.11" in session.say("h2", f"cat /proc/{pid}/root/etc/resolv.conf"))
    done = session.run("h2", f"vxnet network connect --pid {pid} party")
    assert (done.stdout, done.stderr) == (f"pid-{pid}\n", "")
    assert session.say("h2", f"nsenter -t {pid} -n -m getent hosts b.party").split()[-1] == "b.party"


def test_another_name_server_is_left_alone(session: Session, party: str, spawn: Callable[[str], int]) -> None:
    """Docker's listens on 127.0.0.11 too, in containers on networks of its own."""
    serve = (
        "import socket, time; one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.bind(('127.0.0.11', 41000)); "
        "time.sleep(600)"
    )
    pid = spawn(f'unshare -n sh -c "ip link set lo up && exec python3 -c \\"{serve}\\""')
    eventually(lambda: "0B00007F" in session.say("h2", f"cat /proc/{pid}/net/udp"))
    done = session.run("h2", f"vxnet network connect --pid {pid} party")
    assert "nameserver 127.0.0.12" in done.stderr
    assert session.say("h2", f"nsenter -t {pid} -n dig +short @127.0.0.12 b") == f"{party}\n"


def test_refusals(
    session: Session, party: str, vm: Callable[..., subprocess.CompletedProcess[str]], spawn: Callable[[str], int]
) -> None:
    mine = session.container("h2", "mine", "party")
    pid = session.pid("h2", "mine")
    session.say("h2", "vxnet network connect --netns /run/netns/vm party")
    other = spawn("unshare -n sleep infinity")
    for words, why in {
        "connect --pid 1 party": "host's own network namespace",
        "connect --netns /run/netns/vxnet party": "vxnet's own",
        "connect --pid 4194304 party": "no process 4194304",
        "connect --netns /run/netns/nobody party": "no namespace /run/netns/nobody",
        "connect --netns /etc/passwd party": "not a network namespace",
        "connect --netns /proc/self/ns/mnt party": "not a network namespace",
        f"connect --pid {pid} party": 'container "mine"',
        "connect --netns /run/netns/vm party": "already on network",
        "connect --netns /run/netns/vm --name other party": 'as "vm" already',
        f"connect --pid {other} --name mine party": "taken",
        f"connect --pid {other} --name 'a b' party": "name",
        f"connect --pid {other} --ifname lo party": "interface's name",
        f"connect --pid {other} --ip {mine} party": mine,
        f"connect --pid {other} nowhere": "nowhere",
        f"disconnect --pid {other} party": "on no network",
    }.items():
        assert why in session.refusal("h2", f"vxnet network {words}"), words
    assert [view["name"] for view in session.table("h2", "vxnet network guests")] == ["vm"]
    assert "vm" in session.refusal("h2", "vxnet run --name vm -- true")
    assert "vm on h2" in eventually(lambda: session.refusal("h1", "vxnet network rm party"))

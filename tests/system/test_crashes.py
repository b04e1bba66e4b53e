"""Daemons die and come back, in the middle of things; what runs does not notice."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from tests.system.operator import Session, eventually, watching

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_a_restarted_daemon_adopts_everything_and_changes_nothing(session: Session, host: str) -> None:
    """On the manager and on a worker."""
    other = "h3"
    session.network("crash")
    session.network("crash2")
    session.container(host, "a", "crash crash2", "sh -c 'echo begun; while sleep 0.2; do echo on; done'")
    session.container(other, "b", "crash")
    session.container(other, "c", "crash2")
    before = eventually(lambda: session.tables(host))
    eventually(lambda: session.inside(host, "a", "getent hosts b && getent hosts c").returncode == 0)
    pid = session.pid(host, "a")
    with watching(session, host, ["a"]) as seen:
        eventually(lambda: session.inside(host, "a", "ping -c1 -W1 b").returncode == 0)
        session.lab.kill(host, daemon=True)
        asking = session.lab.popen(host, ["sh", "-c", f"nsenter -t {pid} -a getent hosts c.crash2"], text=True,
                                   stdout=subprocess.PIPE)  # fmt: skip
        session.lab.start(host)
        assert "c" in asking.communicate(timeout=10)[0], "a query made while the daemon was dead is answered later"
        assert "b" in session.inside(host, "a", "getent hosts b", check=True).stdout
    assert seen == {}
    assert session.tables(host) == before
    assert session.pid(host, "a") == pid
    assert session.say(host, "vxnet logs a").startswith("begun\n")
    length = len(session.say(host, "vxnet logs a"))
    eventually(lambda: len(session.say(host, "vxnet logs a")) > length)
    assert "mended: 0" in session.say(host, "vxnet info")


def test_a_dead_daemon_leaves_its_containers_reachable(session: Session) -> None:
    session.network("crash")
    session.container("h2", "a", "crash")
    address = session.container("h3", "b", "crash")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0)
    before = session.tables("h2")
    session.lab.kill("h3", daemon=True)
    killed = time.monotonic()
    eventually(lambda: session.inside("h2", "a", "getent hosts b").returncode != 0, 15)
    assert time.monotonic() - killed < 10  # 2.4 s on a quiet machine: docs/performance.md
    assert session.tables("h2") == before
    assert session.inside("h2", "a", f"ping -c3 -i0.2 -W1 {address}").returncode == 0
    # It outlives a restart of the host that remembers, too.
    session.lab.kill("h2", daemon=True)
    session.lab.start("h2")
    assert session.inside("h2", "a", f"ping -c3 -i0.2 -W1 {address}").returncode == 0
    assert session.tables("h2") == before
    session.lab.start("h3")
    eventually(lambda: session.inside("h2", "a", "getent hosts b").returncode == 0)


def test_a_daemon_that_is_stopped_on_purpose_keeps_its_names(session: Session) -> None:
    session.network("crash")
    session.container("h2", "a", "crash")
    session.container("h3", "b", "crash")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0)
    before = session.tables("h3")
    session.say("h3", "kill -TERM $(cat /run/vxnet/vxnetd.pid)")
    eventually(lambda: not session.lab["h3"].daemon_pid)
    assert session.tables("h3") == before

    def seen() -> str:
        members = session.json("h2", "vxnet gossip --format json")["members"]
        return str({one["name"]: one["status"] for one in members}["h3"])

    eventually(lambda: seen() == "dead", 20)
    assert session.inside("h2", "a", "getent hosts b && ping -c1 -W1 b").returncode == 0
    session.lab.start("h3")
    assert session.tables("h3") == before


def traces(session: Session, host: str) -> dict[str, str]:
    """All that containers leave on a host."""
    looks = {
        "processes": "ps -eo args | grep -c '[i]nfinity' || true",
        "files": "mkdir -p /run/vxnet/c; ls /var/lib/vxnet/containers; ls /run/vxnet/c",
        "ports": "ip -br link show type veth | cut -d' ' -f1",
        "datapath": "ip netns exec vxnet ip -br link 2>&1 | cut -d' ' -f1",
        "mounts": "grep -c vxnet/containers /proc/mounts || true",
        "cgroups": "find /sys/fs/cgroup -path '*vxnet*' -type d | grep -c '[0-9a-f]\\{12\\}' || true",
    }
    return {name: session.say(host, look) for name, look in looks.items()}


def half_way(session: Session, host: str, killed: str, command: str, delay_s: float) -> None:
    """Type ``command`` on ``host`` and kill a daemon while it is carried out."""
    typed = session.lab.popen(host, ["sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.1 + delay_s)  # the command line needs 0.1 s to get to the daemon
    session.lab.kill(killed, daemon=True)
    session.lab.start(killed)
    typed.wait(timeout=30)


def test_run_is_done_or_undone(session: Session, rng: random.Random) -> None:
    session.network("crash")
    session.container("h3", "peer", "crash")
    before = eventually(lambda: traces(session, "h2"))
    for number in range(3):
        half_way(session, "h2", "h2", f"vxnet run -d --name k{number} --network crash -- sleep infinity",
                 rng.uniform(0, 0.15))  # fmt: skip
        for container in session.table("h2", "vxnet ps -a"):
            assert container["state"] in ("created", "running", "dead", "exited")
            if container["state"] == "running":
                assert session.inside("h2", container["name"], "ping -c1 -W1 peer").returncode == 0
            session.say("h2", f"vxnet rm -f {container['name']}")
        eventually(lambda: traces(session, "h2") == before, 20)
    assert session.inside("h3", "peer", "getent hosts k0").returncode != 0


def test_network_create_is_done_or_undone(session: Session, rng: random.Random) -> None:
    def runs(name: str) -> bool:
        return session.run("h3", f"vxnet run --rm --network {name} -- true").returncode == 0

    for number in range(3):
        name = f"half{number}"
        half_way(session, "h1", "h1", f"vxnet network create --attachable {name}", rng.uniform(0, 0.05))
        if name not in session.say("h1", "vxnet network ls"):
            session.network(name)
        eventually(lambda name=name: runs(name))  # type: ignore[misc]
        eventually(lambda name=name: session.run("h1", f"vxnet network rm {name}").returncode == 0)  # type: ignore[misc]


def test_join_is_done_or_undone(session: Session, rng: random.Random) -> None:
    for killed in ("h3", "h1"):
        session.say("h3", "vxnet leave --force")
        token = session.say("h1", "vxnet join-token -q worker").strip()
        half_way(session, "h3", killed, f"vxnet join --token {token} 192.168.56.11", rng.uniform(0, 0.2))
        if "Cluster: none" in session.say("h3", "vxnet info"):
            session.say("h3", f"vxnet join --token {token} 192.168.56.11")
        eventually(lambda: session.say("h1", "vxnet node ls").count("Ready") == 3)
        assert len(session.table("h1", "vxnet node ls")) == 3

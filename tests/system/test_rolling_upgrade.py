"""An older version, built from git, gives way host by host, takes its place again, and gives way again.

::

    x1 (curl, iperf3) ── h1  manager     SQLite, or a member of etcd
                         h2  worker      kernel's tunnel       iperf3 ──┐   two connections of TCP, made under the
                         h3  worker      tunnel in user space  <────────┘   older version: the other is x1 ─ h2 ─ h3,
                                                                            through the routing mesh

While hosts differ, each is asked in the other version's words (API), their containers find each other by name (gossip
and rows), the manager's store is read and written by both, and services are scaled and updated.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import pytest

from tests.system import versions
from tests.system.flow import Stream
from tests.system.operator import Session, eventually
from tests.system.versions import Version
from vxnet.host import uvxlan
from vxnet.lab import Lab, daemons
from vxnet.model.errors import UnavailableError

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

OLDER = os.environ.get("VXNET_OLDER", "576777ee615c")
"""The first commit with all that is exchanged here: services, routing mesh, tunnels in user space, several managers."""
DEADLINE_S = 30.0
HOSTS = ("h1", "h2", "h3")
Age = Literal["older", "newer"]

SERVER = "python3 -m http.server 8080"
UPDATE = "vxnet service update --force --update-parallelism 0 --update-monitor 100ms"


class Cluster:
    def __init__(self, lab: Lab, older: Version) -> None:
        self.lab, self.session = lab, Session(lab)
        self.versions: dict[Age, Version] = {"older": older, "newer": versions.checkout()}
        self.ages: dict[str, Age] = dict.fromkeys(HOSTS, "older")
        self._checks = 0

    def say(self, age: Age, host: str, command: str) -> str:
        """What the command line of this version says there."""
        return self.lab.run(host, self.versions[age].argv("sh", "-c", command), check=True).stdout

    def other(self, host: str) -> Age:
        return "older" if self.ages[host] == "newer" else "newer"

    def exchange(self, to: Age, host: str) -> None:
        versions.exchange(self.lab, host, self.versions[to])
        self.ages[host] = to
        self.wait_there()

    def wait_there(self) -> None:
        """Until all hosts are there in every host's eyes, and known to run what they run."""
        eventually(self._all_there, DEADLINE_S)

    def _all_there(self) -> bool:
        wanted = {host: ("alive", self.versions[age].name) for host, age in self.ages.items()}
        try:
            for host in HOSTS:
                members = self.lab.client(host).gossip().members
                if {one.name: (one.status, one.tags["version"]) for one in members} != wanted:
                    return False
            nodes = [one for one in self.lab.client("h1").nodes() if one.status == "ready"]
        except UnavailableError:  # its way to the store has just begun
            return False
        return {one.node.name: one.node.version for one in nodes} == {name: said[1] for name, said in wanted.items()}

    def check(self) -> None:
        """All that hosts do with each other, asked for in the words of the other version."""
        self._checks += 1
        number = self._checks
        self._everywhere(lambda host: f"vxnet run -d --name c{number}-{host} --network net -- sleep infinity")
        reached = [
            f"until getent hosts c{number}-{one}; do sleep 0.1; done; ping -c 1 -W 5 c{number}-{one}" for one in HOSTS
        ]
        self._everywhere(
            lambda host: f"timeout {DEADLINE_S} vxnet exec c{number}-{host} sh -e -c '{'; '.join(reached)}'"
        )
        self._everywhere(lambda host: f"vxnet rm -f c{number}-{host}")
        for age in self.versions:
            count = 2 + (number + (age == "newer")) % 2
            assert self.say(age, "h1", f"vxnet service scale web={count}") == f"web scaled to {count}\n"
        self.say(self.other("h1"), "h1", f"{UPDATE} --env-add CHECK={number} web")
        task, *others = self.session.tasks("web")
        assert len(others) == count - 1
        shown = self.say(self.other(task["node"]), task["node"], f"vxnet exec {task['name']} sh -c 'echo $CHECK'")
        assert shown == f"{number}\n"
        for host in HOSTS:
            fetch = f"curl -sf -o /dev/null --max-time 5 http://{self.lab[host].address}:8080"
            eventually(lambda fetch=fetch: self.session.run("x1", fetch).returncode == 0, DEADLINE_S)  # type: ignore[misc]

    def _everywhere(self, command: Callable[[str], str]) -> None:
        """On all hosts at once, in the other version's words."""
        with ExitStack() as stack:
            running = {
                host: stack.enter_context(
                    self.lab.popen(
                        host, self.versions[self.other(host)].argv("sh", "-c", command(host)),
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    )
                )
                for host in HOSTS
            }  # fmt: skip
            for host, child in running.items():
                out, _ = child.communicate(timeout=2 * DEADLINE_S)
                assert child.returncode == 0, f"{host}, {self.ages}: {out}"

    def tunnel(self) -> str:
        """Process id of h3's forwarder, which has a user of its own; empty: there is none."""
        return self.session.run("h3", f"pgrep -u {uvxlan.UID}").stdout.strip()

    def standing(self) -> dict[str, Any]:
        """What an exchange of daemons is to leave as it is: processes, and a service's task."""
        found: dict[str, Any] = {name: self.session.pid(host, name) for host, name in (("h2", "a"), ("h3", "b"))}
        found["tunnel"] = self.tunnel()
        found["kept"] = [task["id"] for task in self.session.tasks("kept")]
        return found


@pytest.fixture
def make_cluster(make_lab: Callable[..., Lab]) -> Callable[..., Cluster]:
    """All of the older version."""

    def make(**options: Any) -> Cluster:
        older = versions.build(OLDER)
        return Cluster(make_lab(hosts=3, outside=1, daemon_argv=older.argv(*daemons.ARGV), **options), older)

    return make


def test_host_by_host_there_and_back_and_there_again(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(datapath=["h3=userspace"])
    session = cluster.session
    session.network("net")
    session.container("h2", "a", "net")
    server = session.container("h3", "b", "net", "iperf3 -s")
    session.service("kept", "--network net -p 5201:5201 --constraint node.hostname==h3", "iperf3 -s")
    session.service("web", "--network net --replicas 3 -p 8080:8080", SERVER)
    with ExitStack() as stack:
        streams = [
            Stream(cluster.lab, "h2", ["vxnet", "exec", "a"], server),
            Stream(cluster.lab, "x1", [], str(cluster.lab["h2"].address)),
        ]
        for stream in streams:
            stack.callback(stream.kill)
        before = cluster.standing()
        # Workers first, the manager last.
        cluster.exchange("newer", "h2")
        cluster.check()
        cluster.exchange("newer", "h3")
        cluster.exchange("newer", "h1")
        assert cluster.standing() == before
        # What is the newer one's now is to be the older one's again.
        session.network("of-newer")
        session.container("h2", "young", "net", "sh -c 'echo born; exec sleep infinity'")
        # And back: the manager first.
        cluster.exchange("older", "h1")
        cluster.check()
        assert "of-newer" in session.say("h1", "vxnet network ls")
        cluster.exchange("older", "h3")
        cluster.exchange("older", "h2")
        assert cluster.standing() == before
        assert cluster.say("older", "h2", "vxnet logs young") == "born\n"
        for host, name, target in (("h2", "young", "b"), ("h3", "b", "young")):
            assert session.inside(host, name, f"ping -c 1 -W 5 {target}").returncode == 0
        # Once more, the manager first.
        cluster.exchange("newer", "h1")
        cluster.check()
        cluster.exchange("newer", "h2")
        cluster.exchange("newer", "h3")
        assert cluster.standing() == before
        for host in HOSTS:
            assert "mended: 0" in session.say(host, "vxnet info")
        for stream in streams:
            assert all(octets := stream.end()), octets


def test_two_managers_of_two_versions(make_cluster: Callable[..., Cluster]) -> None:
    """Both write to one etcd, which neither ends, and which shuts nobody out for what the older one did not know. The
    older one takes over a tunnel in user space that the newer one started.
    """
    cluster = make_cluster(managers=2, datapath=["h3=userspace"])
    session = cluster.session
    session.network("net")
    session.service("web", "--network net --replicas 3 -p 8080:8080", SERVER)
    # Upgraded while the hosts were off. The older version has no list of certificates that are revoked.
    managers = HOSTS[:2]
    for host in managers:
        versions.stop(cluster.lab, host)
    for host in managers:
        session.say(host, "kill -KILL $(cat /var/lib/vxnet/etcd/pid)")
    for host in managers:
        versions.start(cluster.lab, host, cluster.versions["newer"])
        cluster.ages[host] = "newer"
    cluster.wait_there()
    # As soon as there is a list, etcd looks at it.
    for host in managers:
        eventually(lambda host=host: session.run(host, "pgrep -f 'etcd .*client-crl-fil[e]'").returncode == 0)  # type: ignore[misc]
    etcd = {host: session.say(host, "cat /var/lib/vxnet/etcd/pid") for host in managers}
    cluster.exchange("newer", "h3")
    started = cluster.tunnel()
    session.say("h3", f"kill -KILL {started}")
    eventually(lambda: cluster.tunnel() not in ("", started))
    started = cluster.tunnel()
    cluster.exchange("older", "h3")
    for host in ("h2", "h1"):
        cluster.exchange("older", host)
        for one in managers:
            session.network(f"by-{one}-beside-{host}", host=one)
        for one in managers:
            shown = session.say(one, "vxnet network ls")
            assert all(f"by-{other}-beside-{host}" in shown for other in managers)
        if host == "h2":
            cluster.check()
        cluster.exchange("newer", host)
    assert {host: session.say(host, "cat /var/lib/vxnet/etcd/pid") for host in managers} == etcd
    assert cluster.tunnel() == started

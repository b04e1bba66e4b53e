"""Several managers: each answers, one leads, any may fail, and which nodes are managers can be changed."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.system.managers import client, make_network, members, until
from vxnet.model.api import NetworkCreate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import ConflictError, UnavailableError
from vxnet.model.service import ServiceSpec, TaskSpec

pytestmark = [pytest.mark.lab, pytest.mark.slow]
ETCD = "var/lib/vxnet/etcd"
COPY = "tmp/copy"


def managing(host):
    """Names of the managers by their own status, and the leader's, as this host tells."""
    views = client(host).nodes()
    return {view.node.name for view in views if view.node.role == "manager"}, [
        view.node.name for view in views if view.leader and view.status == "ready"
    ]


def status_of(host, name):
    return next(view.status for view in client(host).nodes() if view.node.name == name)


def service(name, network, replicas):
    task = TaskSpec(container=ContainerSpec(argv=("sleep", "1000"), networks=(NetworkWish(network=network),)))
    return ServiceSpec(name=name, replicas=replicas, task=task)


def running(host, name):
    """Where its tasks run, by id."""
    views = client(host).tasks_of_service(name)
    return {view.id: view.node for view in views if view.state == "running" and view.desired == "running"}


def opens(lab, host, directory, other):
    """How many ports of the etcd on ``other`` these files, used on ``host``, open."""
    names = {"cacert": "ca.crt", "cert": "member.crt", "key": "member.key"}
    files = [part for option, name in names.items() for part in (f"--{option}", f"/{directory}/{name}")]
    places = [f"https://{lab[other].address}:{port}/version" for port in (2379, 2380)]
    found = [lab.run(host, ["curl", "-sS", "--http1.1", "-m", "5", *files, place], check=False) for place in places]
    return sum(one.returncode == 0 for one in found)


@pytest.fixture(scope="module")
def managers():
    from vxnet.lab import Lab

    with Lab(hosts=4, managers=3) as lab:
        until(lambda: len(members(lab["h1"])) == 3, "etcd has three members")
        yield lab


def test_each_manager_answers_and_what_one_writes_all_know(managers):
    for number, host in enumerate(("h1", "h2", "h3")):
        make_network(managers[host], f"n{number}")
    for host in ("h1", "h2", "h3", "h4"):
        until(
            lambda host=host: {f"n{n}" for n in range(3)} <= {net.name for net in client(managers[host]).networks()},
            f"{host} knows the networks",
        )
    names, leaders = managing(managers["h2"])
    assert names == {"h1", "h2", "h3"} and len(leaders) == 1
    with pytest.raises(ConflictError, match="this node is a worker"):
        client(managers["h4"]).nodes()
    with pytest.raises(ConflictError, match="without it there are 2 of 3 managers"):
        client(managers["h1"]).leave()


def test_doctor_names_a_closed_port_of_etcd(managers):
    """On both sides of it."""
    told = managers.run("h1", ["vxnet", "doctor"], check=False).stdout
    assert "2379/tcp and 2380/tcp are open both ways, to 2 managers" in told
    rule = "add rule inet closed in tcp dport 2380 drop"
    hook = "add chain inet closed in { type filter hook input priority 0; }"
    managers.run("h2", ["nft", f"add table inet closed; {hook}; {rule}"], check=True)
    try:
        told = managers.run("h1", ["vxnet", "doctor"], check=False).stdout
        assert "2380/tcp of the manager h2 (192.168.56.12) takes no connection from here" in told
        there = managers.run("h2", ["vxnet", "doctor"], check=False).stdout
        assert "2380/tcp of this manager takes no connection from h1 (192.168.56.11)" in there
    finally:
        managers.run("h2", ["nft", "delete table inet closed"], check=True)


def test_each_manager_reads_every_nodes_logs(managers):
    """Also of nodes that follow another one: managers follow themselves."""
    asked = client(managers["h1"])
    script = ("sh", "-c", "hostname; exec sleep 1000")
    container = ContainerSpec(argv=script, hostname="{{.Node.Hostname}}")
    asked.create_service(ServiceSpec(name="talk", mode="global", task=TaskSpec(container=container)))
    until(lambda: set(running(managers["h1"], "talk").values()) == {"h1", "h2", "h3", "h4"}, "it runs everywhere")
    for host in ("h1", "h2", "h3"):

        def said(host=host):
            lines = b"".join(client(managers[host]).logs_of_service("talk", follow=False, tail=-1, since=""))
            return {line.split()[-1].decode() for line in lines.splitlines()} == {"h1", "h2", "h3", "h4"}

        until(said, f"{host} reads what all of them wrote")
    asked.remove_service("talk")


def test_the_leaders_host_dies(managers):
    """The others go on within seconds, and no task but its own is started anew."""
    make_network(managers["h1"], "blue")
    client(managers["h1"]).create_service(service("web", "blue", 4))
    until(lambda: len(running(managers["h2"], "web")) == 4, "the service runs")
    before = running(managers["h2"], "web")
    (leader,) = managing(managers["h2"])[1]
    others = [name for name in ("h1", "h2", "h3") if name != leader]
    managers.kill(leader)
    make_network(managers[others[0]], "after")
    until(lambda: managing(managers[others[0]])[1] not in ([], [leader]), "another one leads")
    healed = until(
        lambda: len(now := running(managers[others[1]], "web")) == 4 and leader not in now.values() and now,
        "the lost task is replaced",
    )
    kept = {task for task, node in before.items() if node != leader}
    assert kept <= healed.keys()
    managers.start(leader)
    until(lambda: "after" in {net.name for net in client(managers[leader]).networks()}, "it is back")
    until(lambda: managing(managers[leader])[0] == {"h1", "h2", "h3"}, "it answers as a manager")


def test_without_a_quorum_reads_and_traffic_go_on(managers):
    for name in ("h1", "h2"):
        managers.kill(name)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no quorum: of its 3 etcd members h1 .*, h2 .* do not answer"):
        client(managers["h3"]).create_network(NetworkCreate(name="never"))
    assert time.monotonic() - began < 10  # 5 s on a quiet machine: docs/performance.md
    assert client(managers["h3"]).nodes() and client(managers["h3"]).services()
    # An attachable network takes containers without a manager.
    spec = ContainerSpec(name="c", argv=("sleep", "1000"), networks=(NetworkWish(network="blue"),))
    assert client(managers["h4"]).create_container(spec, start=True).state == "running"
    client(managers["h4"]).remove("c", force=True)
    for name in ("h1", "h2"):
        managers.start(name)
    make_network(managers["h3"], "back")
    until(lambda: len(running(managers["h3"], "web")) == 4, "the service is whole")


def test_promote_demote_and_leave(managers):
    """The members of etcd follow."""
    until(lambda: client(managers["h1"]).set_role("h4", "manager"), "h4 is promoted")
    until(lambda: members(managers["h4"]) == {"h1", "h2", "h3", "h4"}, "h4 has a member")
    make_network(managers["h4"], "by-h4")
    (leader,) = until(lambda: managing(managers["h4"])[1], "somebody leads")
    root = managers[leader].root
    shutil.copytree(root / ETCD, root / COPY, ignore=shutil.ignore_patterns("data"))
    assert opens(managers, leader, COPY, "h4") == 2
    until(lambda: client(managers["h4"]).set_role(leader, "worker"), "the leader is demoted")
    others = sorted({"h1", "h2", "h3", "h4"} - {leader})
    until(lambda: members(managers[others[0]]) == {*others}, "the demoted one has left etcd")
    until(
        lambda: not sum(opens(managers, leader, COPY, host) for host in others), "its copy of before opens none of them"
    )
    assert [opens(managers, host, ETCD, host) for host in others] == [2, 2, 2]
    until(lambda: not (managers[leader].root / "var/lib/vxnet/etcd").exists(), "nothing of it stays")
    with pytest.raises(ConflictError, match="this node is a worker"):
        client(managers[leader]).nodes()
    client(managers[others[1]]).leave(force=True)
    rest = [others[0], others[2]]
    until(lambda: members(managers[rest[0]]) == {*rest}, "who left is no member")
    make_network(managers[rest[1]], "of-two")
    # Of two, neither can be spared while the other is away.
    managers.kill(rest[1])
    until(lambda: status_of(managers[rest[0]], rest[1]) == "down", "its host is known to be dead")
    # By the managers' own count, or by etcd's where a commit has just been waited for in vain.
    with pytest.raises((ConflictError, UnavailableError), match=f"no quorum: .*{rest[1]}"):
        client(managers[rest[0]]).set_role(rest[0], "worker")

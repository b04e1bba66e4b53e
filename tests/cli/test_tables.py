"""What people read: the tables, word for word. And what scripts read."""

from __future__ import annotations

import json
from ipaddress import ip_address

import msgspec
import pytest
from msgspec.structs import replace

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import CREATED_AT, Daemon, make_id
from vxnet.cli import output
from vxnet.model.container import Container, ContainerSpec, NetworkWish

WEB, NET = make_id("web")[:12], make_id("my-net")[:12]


def put(server: Daemon, name: str, **fields: object) -> None:
    argv = ("python3", "-m", "http.server", "8080")
    wishes = (NetworkWish(network="my-net", ip=ip_address("10.0.16.9")), NetworkWish(network="b"))
    spec = ContainerSpec(name=name, argv=argv, networks=wishes)
    container = Container(id=make_id(name), spec=spec, created_at=CREATED_AT)
    server.agent.container_table[container.id] = replace(container, **fields)


def test_node_ls(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init", "--advertise-addr", "192.168.56.11")
    server.agent.add_node("a-very-long-host-name", "worker", "fd00::12")
    server.agent.add_node("h3", "manager", "192.168.56.13")
    h1, long, h3 = (make_id(name)[:12] for name in ("h1", "a-very-long-host-name", "h3"))
    assert vxnet_("node", "ls").stdout == (
        "ID               HOSTNAME                STATUS    AVAILABILITY   MANAGER STATUS   ADDRESS         VERSION\n"
        f"{h1} *   h1                      Ready     Active         Leader           192.168.56.11   0.1.0\n"
        f"{long}     a-very-long-host-name   Down      Active                          fd00::12        0.1.0\n"
        f"{h3}     h3                      Down      Active         Unreachable      192.168.56.13   0.1.0\n"
    )
    assert vxnet_("node", "ls", "-q", "--filter", "role=manager").stdout == f"{h1}\n{h3}\n"
    assert vxnet_("node", "list", "-q", "--no-trunc", "-f", "name=h3").stdout == f"{make_id('h3')}\n"
    assert vxnet_("node", "ls", "-q", "-f", "status=Down", "-f", "role=worker").stdout == f"{long}\n"
    assert vxnet_("node", "ls", "-q", "-f", "name=^h[13]$", "-f", "membership=accepted").stdout == f"{h1}\n{h3}\n"
    assert vxnet_("node", "ls", "-q", "-f", "membership=pending").stdout == ""
    node = server.agent.cluster_nodes[make_id("h3")]
    server.agent.cluster_nodes[node.id] = replace(node, labels={"zone": "a"})
    for filter in ("label=zone", "node.label=zone=a"):
        assert vxnet_("node", "ls", "-q", "-f", filter).stdout == f"{h3}\n"
    assert vxnet_("node", "ls", "-q", "-f", "label=zone=b").stdout == ""


def test_network_ls(vxnet_: Vxnet) -> None:
    assert vxnet_("network", "ls").stdout == "NETWORK ID   NAME      DRIVER    SCOPE\n"
    vxnet_("network", "create", "my-net", "--attachable", "--label", "team=a", "--label", "prod")
    vxnet_("network", "create", "b", "-d", "none")
    b = make_id("b")[:12]
    assert vxnet_("network", "ls").stdout == (
        "NETWORK ID     NAME      DRIVER    SCOPE\n"
        f"{NET}   my-net    overlay   swarm\n"
        f"{b}   b         null      swarm\n"
    )
    for words, expected in [
        (["driver=overlay"], [NET]),
        (["driver=overlay", "driver=null"], [NET, b]),
        (["driver=overlay", "name=b"], []),
        (["label=team"], [NET]),
        (["label=team=a"], [NET]),
        (["label=team=b"], []),
        ([f"id={b[:3]}"], [b]),
        (["scope=local"], []),
        (["name=^b$"], [b]),
        (["name=("], []),
        (["type=custom", "driver=overlay"], [NET]),
        (["type=builtin"], []),
    ]:
        filters = [word for text in words for word in ("-f", text)]
        assert vxnet_("network", "ls", "-q", *filters).stdout.split() == expected, words


def test_ps(server: Daemon, vxnet_: Vxnet) -> None:
    put(server, "web", state="running", started_at=CREATED_AT + 85)
    put(server, "ended", state="exited", exit_status=3, finished_at=CREATED_AT + 89)
    put(server, "new")
    put(server, "lost", state="dead")
    ids = {name: make_id(name)[:12] for name in ("ended", "new", "lost")}
    assert vxnet_("ps").stdout == (
        "CONTAINER ID   COMMAND                  CREATED              STATUS         "
        "NETWORKS   ADDRESSES   PORTS     NAMES\n"
        f'{WEB}   "python3 -m http.ser…"   About a minute ago   Up 5 seconds   my-net,b   10.0.16.9             web\n'
    )
    states = {"ended": "Exited (3) 1 second ago", "new": "Created", "lost": "Dead"}
    assert vxnet_("ps", "-a").stdout.splitlines()[2:] == [
        f'{ids[name]}   "python3 -m http.ser…"   About a minute ago   {state:<26}my-net,b   10.0.16.9   {"":10}{name}'
        for name, state in states.items()
    ]
    assert vxnet_("ps", "-q").stdout == f"{WEB}\n"
    assert vxnet_("ps", "-aq").stdout.split() == [WEB, *ids.values()]
    assert vxnet_("ps", "-q", "-f", "status=exited").stdout.split() == [ids["ended"]]
    assert vxnet_("ps", "-aq", "-f", "name=e", "-f", "status=created").stdout.split() == [ids["new"]]
    assert vxnet_("ps", "-q", "-f", "network=b").stdout.split() == [WEB]
    assert vxnet_("ps", "-q", "-f", "exited=3", "-f", "name=^ended$").stdout.split() == [ids["ended"]]
    assert vxnet_("ps", "-aq", "-f", "name=^end$").stdout == vxnet_("ps", "-q", "-f", "exited=0").stdout == ""
    put(server, "newest", created_at=CREATED_AT + 1)
    assert vxnet_("ps", "-q", "-n", "2").stdout.split() == [make_id("newest")[:12], WEB]
    assert vxnet_("ps", "-lq").stdout.split() == [make_id("newest")[:12]]
    whole = vxnet_("ps", "--no-trunc").stdout
    assert make_id("web") in whole and '"python3 -m http.server 8080"' in whole


def test_a_command_cannot_paint_the_terminal(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("run", "-d", "--name", "evil", "--", "sh", "-c", "\x1b[2J\na\tb")
    assert '"sh -c \\x1b[2J\\na\\tb"' in vxnet_("ps").stdout


def test_json_lines_have_every_field(server: Daemon, vxnet_: Vxnet) -> None:
    put(server, "web", state="running", started_at=CREATED_AT)
    put(server, "new")
    lines = [json.loads(line) for line in vxnet_("ps", "-a", "--format", "json").stdout.splitlines()]
    assert [line["name"] for line in lines] == ["web", "new"]
    assert lines[0] == {
        "id": make_id("web"),
        "name": "web",
        "argv": ["python3", "-m", "http.server", "8080"],
        "state": "running",
        "exit_status": None,
        "restarts": 0,
        "created_at": CREATED_AT,
        "started_at": CREATED_AT,
        "finished_at": None,
        "networks": ["my-net", "b"],
        "addresses": ["10.0.16.9"],
        "ports": [],
        "labels": {},
    }
    vxnet_("network", "create", "my-net")
    assert json.loads(vxnet_("network", "ls", "--format", "json").stdout)["internal"] is False
    vxnet_("init")
    assert json.loads(vxnet_("node", "ls", "--format", "json").stdout)["node"]["routes"] == []
    assert json.loads(vxnet_("info", "--format", "json").stdout)["rows_refused"] == {"lease": 2}


def test_inspect(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    vxnet_("network", "create", "my-net")
    put(server, "web", state="running", pid=4711)
    vxnet_("service", "create", "-d", "--name", "app", "true")
    result = vxnet_("inspect", "web", "my-net", "h1", "app", "nobody")
    container, network, node, service = json.loads(result.stdout)
    assert (container["pid"], container["spec"]["name"]) == (4711, "web")
    assert network["network"]["subnets"] == [
        {"prefix": "10.0.16.0/20", "gateway": "10.0.16.1", "range": None, "auxiliary": {}}
    ]
    assert node["leader"] is True
    assert service == json.loads(vxnet_("service", "inspect", "app").stdout)[0]
    assert result.stderr == "vxnet: no such container, guest, network, node or service: 'nobody'\n"
    assert result.exit_code == 1
    assert result.stdout.startswith('[\n    {\n        "id"')
    assert vxnet_("inspect", "--type", "network", "web").stdout == "[]\n"
    (again,) = json.loads(vxnet_("node", "inspect", "self", "--format", "json").stdout)
    assert again == node


def test_network_inspect_verbose(vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "my-net")
    vxnet_("run", "-d", "--name", "web", "--network", "my-net", "sleep", "9")
    (brief,) = json.loads(vxnet_("network", "inspect", "my-net").stdout)
    (verbose,) = json.loads(vxnet_("network", "inspect", "-v", NET).stdout)
    assert brief["endpoints"] == []
    assert verbose["endpoints"][0]["mac"] == "02:00:0a:00:10:03"


def test_info(server: Daemon, vxnet_: Vxnet) -> None:
    assert vxnet_("info").stdout == (
        "Version: 0.1.0\n"
        "Name: h1\n"
        "Cluster: none; `vxnet init` makes one, `vxnet join` joins one\n"
        "Networks: 0 (0 live on this host)\n"
        "Containers: 0 (0 running)\n"
        "Tunnels: the kernel's\n"
        "Kernel state mended: 0\n"
        "Drains cut short: 0\n"
    )
    vxnet_("init", "--advertise-addr", "192.168.56.11")
    server.agent.info_warnings = ("the clock of h2 is 90 s ahead",)
    result = vxnet_("info")
    assert " Managers: h1 (192.168.56.11:2377)\n Manager reachable: yes\n" in result.stdout
    assert " Rows refused, lease: 2\n" in result.stdout
    assert result.stderr == "WARNING: the clock of h2 is 90 s ahead\n"


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert output.duration(seconds) == words


def test_a_clock_that_went_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "now", lambda: 100.0)
    assert output.since(500.0) == "Less than a second"
    assert output.since(None) == ""


def test_table_pads_as_docker_does(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "LONGER THAN TEN", "C"), [("1", "2", ""), ("abcdefgh", "2", "x")])
    assert capsys.readouterr().out == (
        "A          LONGER THAN TEN   C\n"  #
        "1          2\n"
        "abcdefgh   2                 x\n"
    )


def test_complete_takes_all_that_json_does() -> None:
    class Inner(msgspec.Struct, omit_defaults=True):
        addresses: tuple[object, ...] = ()

    value = {"a": [Inner(addresses=(ip_address("fd00::1"),)), None, True, 1.5]}
    assert output.complete(value) == {"a": [{"addresses": ["fd00::1"]}, None, True, 1.5]}


def test_guests(vxnet_: Vxnet) -> None:
    assert vxnet_("network", "guests").stdout.split() == [
        *("NAME", "NAMESPACE", "NETWORKS", "ADDRESSES", "INTERFACES", "RESOLVER")
    ]
    vxnet_("network", "create", "my-net")
    done = vxnet_("network", "connect", "--pid", "77", "--ip", "10.0.16.9", "--ifname", "vx0", "my-net")
    assert done.stdout == "pid-77\n"
    assert done.stderr == "For names its /etc/resolv.conf must say: nameserver 127.0.0.11\n"
    assert vxnet_("network", "connect", "--netns", "/run/netns/vm", "my-net").stdout == "vm\n"
    assert vxnet_("network", "guests").stdout.splitlines()[1].split() == [
        *("pid-77", "pid", "77", "my-net", "10.0.16.9", "vx0", "127.0.0.11", "(not", "asked)")
    ]
    assert vxnet_("network", "guests", "-q").stdout.split() == ["pid-77", "vm"]
    assert json.loads(vxnet_("inspect", "vm").stdout)[0]["netns"] == "/run/netns/vm"
    vxnet_("network", "disconnect", "--netns", "vm", "my-net")
    assert json.loads(vxnet_("network", "guests", "--format", "json").stdout)["name"] == "pid-77"


def test_network_peers(vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "my-net")
    assert vxnet_("network", "peer", "add", "--name", "switch", "my-net", "192.0.2.7").stdout == "192.0.2.7\n"
    vxnet_("network", "peer", "add", "my-net", "192.0.2.8")
    assert vxnet_("network", "peer", "ls", "my-net").stdout.split() == [
        *("ADDRESS", "NAME", "192.0.2.7", "switch", "192.0.2.8")
    ]
    vxnet_("network", "peer", "rm", "my-net", "switch", "192.0.2.8")
    assert vxnet_("network", "peer", "ls", "-q", "my-net").stdout == ""

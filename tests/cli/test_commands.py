"""What each command does, says, and ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Vxnet
from tests.cli.test_run import Sessions
from tests.daemon.memory_agent import TOKEN, Daemon, make_id
from vxnet.cli.group import Section
from vxnet.cli.root import TABLE
from vxnet.model.api import InitRequest
from vxnet.model.cluster import Node


def commands() -> list[list[str]]:
    """Every command of the table, sections too."""
    found: list[list[str]] = [[]]
    for name, entry in TABLE.items():
        if isinstance(entry, Section):
            found += [[name], *([name, inner] for inner, below in entry.table.items())]
        else:
            found.append([name])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself(vxnet_: Vxnet, words: list[str]) -> None:
    result = vxnet_(*words, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(" ".join(["Usage: vxnet", *words]))
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in commands()
        if len(words) < 2 and (not words or words[0] in ("node", "network", "gossip", "lab"))
    ],
    ids=str,
)
def test_summaries_are_not_cut(vxnet_: Vxnet, words: list[str]) -> None:
    assert "..." not in vxnet_(*words, "--help", env={"COLUMNS": "80"}).stdout.split("Commands:")[1]


# ------------------------------------------------------------------------------------------------------------ cluster


def test_init_passes_on_how_the_gossip_shall_be(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[InitRequest] = []
    init = server.agent.init

    async def note(request: InitRequest) -> Node:
        asked.append(request)
        return await init(request)

    monkeypatch.setattr(server.agent, "init", note)
    done = vxnet_("init", "--gossip-profile", "moon")
    assert done.exit_code and "'moon' is not one of 'lan', 'wan'" in done.stderr and not asked
    vxnet_("init", "--gossip-profile", "wan", "--gossip-label", "blue")
    assert [(one.gossip_profile, one.gossip_label) for one in asked] == [("wan", "blue")]


def test_init_join_and_leave(server: Daemon, vxnet_: Vxnet) -> None:
    node = make_id("h1")[:12]
    assert vxnet_("init", "--advertise-addr", "192.168.56.11", "--default-addr-pool", "10.0.0.0/8").stdout == (
        f"Cluster initialized: current node ({node}) is now a manager.\n"
        "\n"
        "To add a worker to this cluster, run the following command:\n"
        "\n"
        f"    vxnet join --token {TOKEN} 192.168.56.11:2377\n"
        "\n"
    )
    assert vxnet_("leave").stdout == "Node left the cluster.\n"
    assert vxnet_("join", "--token", TOKEN, "192.168.56.11").stdout == "This node joined the cluster as a worker.\n"


def test_join_token(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init", "--advertise-addr", "fd00::11")
    assert vxnet_("join-token", "-q", "worker").stdout == f"{TOKEN}\n"
    assert vxnet_("join-token", "manager").stdout == (
        "To add a manager to this cluster, run the following command:\n"
        "\n"
        f"    vxnet join --token {TOKEN} [fd00::11]:2377\n"
        "\n"
    )
    assert vxnet_("join-token", "--rotate", "worker").stdout.startswith(
        "Successfully rotated worker join token.\n\nTo add"
    )
    assert server.agent.rotations == 1
    assert vxnet_("join-token", "--rotate", "-q", "worker").stdout == f"{TOKEN}2\n"


def test_node_rm(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    server.agent.add_node("h2", "worker", "192.168.56.12")
    result = vxnet_("node", "rm", "h1", "h9", "h2")
    assert (result.exit_code, result.stdout) == (1, "h2\n")
    assert result.stderr == (
        "vxnet: node h1 is alive; `--force` removes it all the same\n"  #
        "vxnet: no such node: h9\n"
    )
    assert vxnet_("node", "remove", "-f", "h1").stdout == "h1\n"
    assert "vxnet: this host" not in vxnet_("node", "inspect", "self").stdout


# ----------------------------------------------------------------------------------------------------------- networks


def test_network_create(server: Daemon, vxnet_: Vxnet) -> None:
    words = "-d overlay --attachable --internal --ipv6 --opt mtu=1400 -o a --label x=1=2".split()
    nets = "--subnet 10.9.0.0/24 --gateway 10.9.0.1 --subnet fd00:9::/64".split()
    result = vxnet_("network", "create", *words, *nets, "my-net")
    assert result.stdout == f"{make_id('my-net')}\n"
    (network,) = server.agent.network_table.values()
    assert (network.attachable, network.internal) == (True, True)
    assert network.options == {"mtu": "1400", "a": ""}
    assert network.labels == {"x": "1=2"}
    assert [str(subnet.prefix) for subnet in network.subnets] == ["10.9.0.0/24", "fd00:9::/64"]


def test_network_rm_names_who_uses_it(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "my-net")
    vxnet_("network", "create", "b")
    vxnet_("run", "-d", "--name", "web", "--network", "my-net", "sleep", "9")
    result = vxnet_("network", "rm", "my-net", "b")
    assert (result.exit_code, result.stdout) == (1, "b\n")
    assert result.stderr == "vxnet: network my-net is in use by web; remove them first\n"
    result = vxnet_("network", "rm", "-f", "b")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "vxnet: no such network: b\n")


def test_network_connect(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "my-net")
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    assert (
        vxnet_("network", "connect", "--ip", "10.0.16.9", "--alias", "a", "--alias", "b", "my-net", "web").output == ""
    )
    (wish,) = server.agent.members.values()
    assert (str(wish.ip), wish.aliases) == ("10.0.16.9", ("a", "b"))
    assert vxnet_("network", "disconnect", "my-net", "web").output == ""
    result = vxnet_("network", "disconnect", "my-net", "web")
    assert (result.exit_code, result.stderr) == (1, "vxnet: web is not connected to my-net\n")
    forced = vxnet_("network", "disconnect", "-f", "my-net", "web")
    assert (forced.exit_code, forced.stderr) == (0, result.stderr)
    assert vxnet_("network", "disconnect", "-f", "my-net", "gone").exit_code == 0


# --------------------------------------------------------------------------------------------------------- containers


def test_stop_kill_rm_wait(server: Daemon, vxnet_: Vxnet) -> None:
    for name in ("a", "b", "c"):
        vxnet_("run", "-d", "--name", name, "sleep", "9")
    assert vxnet_("kill", "-s", "SIGHUP", "a", make_id("b")[:7]).stdout == f"a\n{make_id('b')[:7]}\n"
    assert vxnet_("kill", "c").exit_code == 0
    assert server.agent.signals == [("a", 1), ("b", 1), ("c", 9)]
    assert vxnet_("stop", "-t", "0", "a", "b").stdout == "a\nb\n"
    result = vxnet_("wait", "a", "nobody", "b")
    assert (result.exit_code, result.stdout) == (1, "143\n143\n")
    assert result.stderr == "vxnet: no such container: nobody\n"
    result = vxnet_("rm", "a", "c", "b")
    assert (result.exit_code, result.stdout) == (1, "a\nb\n")
    assert result.stderr == "vxnet: container c runs; stop it first, or use --force\n"
    assert vxnet_("rm", "-fv", "c").stdout == "c\n"
    result = vxnet_("rm", "-f", "c")  # as Docker's: what is not there need not go
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "vxnet: no such container: c\n")
    assert not server.agent.container_table


def test_logs(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    # cut anywhere, with a line in two parts, an empty one, and the torn end of a crash
    server.agent.log = [
        b"2026-01-01T00:00:00.1Z stdout F one\n2026-01-01T00:00:01Z std",
        b"err F two words\n",
        b"2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:03Z stderr F x\n",
        b"2026-01-01T00:00:04Z stdout F ee\n2026-01-01T00:00:05Z stdout F \nnonsense\n2026-01-01T0",
    ]
    result = vxnet_("logs", "web")
    assert result.stdout == "one\nthree\n\nnonsense\n"
    assert result.stderr == "two words\nx\n"
    stamped = vxnet_("logs", "-t", "web").stdout
    assert stamped == ("2026-01-01T00:00:00.1Z one\n2026-01-01T00:00:02Z three\n2026-01-01T00:00:05Z \n- nonsense\n")
    server.finish("web", 0)
    assert vxnet_("logs", "-f", "web").stdout == result.stdout


# ------------------------------------------------------------------------------------------------------------ program


def test_version(server: Daemon, vxnet_: Vxnet) -> None:
    assert vxnet_("--version").stdout == "vxnet 0.1.0\n"
    assert vxnet_("version").stdout.startswith("Client: 0.1.0\nDaemon: 0.1.0\nPython: 3.")
    result = vxnet_("--socket", "/none", "version")
    assert result.exit_code == 0
    assert "Daemon: cannot reach the vxnet daemon at /none: No such file or directory\n" in result.stdout


@pytest.mark.parametrize(
    "shell, word", [("bash", "complete -o nosort"), ("zsh", "#compdef vxnet"), ("fish", "complete")]
)
def test_completion(vxnet_: Vxnet, shell: str, word: str) -> None:
    result = vxnet_("completion", shell)
    assert result.exit_code == 0
    assert word in result.stdout and "_VXNET_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            "vxnet network ",
            ["create", "ls", "inspect", "rm", "connect", "disconnect", "guests", "update", "peer", "prune"],
        ),
        ("vxnet rm w", ["web"]),
        ("vxnet network rm ", ["my-net"]),
        ("vxnet run --network my", ["my-net"]),
        ("vxnet node rm h", ["h1"]),
        ("vxnet stop ", ["web"]),
    ],
)
def test_completion_knows_names(server: Daemon, vxnet_: Vxnet, words: str, expected: list[str]) -> None:
    vxnet_("init")
    vxnet_("network", "create", "my-net")
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    typed = words.split(" ")
    env = {"_VXNET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(typed) - 1)}
    assert [line.split(",")[1] for line in vxnet_(env=env).stdout.split()] == expected


def test_completion_without_a_daemon_is_silent(vxnet_: Vxnet) -> None:
    env = {"_VXNET_COMPLETE": "bash_complete", "COMP_WORDS": "vxnet rm w", "COMP_CWORD": "2", "VXNET_SOCKET": "/none"}
    assert vxnet_(env=env).output.strip() == ""


def test_start_restart_and_rename(server: Daemon, vxnet_: Vxnet, sessions: Sessions) -> None:
    for name in ("a", "b"):
        vxnet_("run", "-d", "--name", name, "sleep", "9")
    vxnet_("stop", "a", "b")
    result = vxnet_("start", "a", "nobody", "b")
    assert (result.exit_code, result.stdout) == (1, "a\nb\n")
    assert result.stderr == "vxnet: no such container: nobody\n"
    assert vxnet_("restart", "-t", "3", "a").stdout == "a\n"
    assert server.agent.patience == [None, None, 3.0]
    assert vxnet_("rename", "a", "b").stderr == "vxnet: the name b is taken\n"
    assert vxnet_("rename", "a", "c").exit_code == 0
    assert vxnet_("ps", "-q", "--filter", "name=c").stdout.split() == [make_id("a")[:12]]


def test_start_attached(server: Daemon, vxnet_: Vxnet, sessions: Sessions) -> None:
    vxnet_("run", "-d", "--name", "a", "sleep", "9")
    assert vxnet_("start", "-a", "a").stderr == "vxnet: container a runs\n"
    vxnet_("stop", "a")
    assert vxnet_("start", "-a", "--detach-keys", "q", "a").exit_code == 7
    (call,) = sessions
    assert (call[1]["stdin"], call[1]["detach_keys"]) == (False, "q")
    assert server.client.container("a").state == "running"
    assert "only one container" in vxnet_("start", "-a", "a", "b").stderr


def test_cp(server: Daemon, vxnet_: Vxnet, tmp_path: Path) -> None:
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    (tmp_path / "file").write_text("hello\n")
    assert vxnet_("cp", str(tmp_path / "file"), "web:/there").exit_code == 0
    assert vxnet_("cp", "web:/there", str(tmp_path / "back")).exit_code == 0
    assert (tmp_path / "back").read_text() == "hello\n"
    assert vxnet_("cp", "web:/there", "-").stdout_bytes == server.agent.files["/there"]
    for words, said in (
        (("/a", "/b"), "one of the two must be in a container"),
        (("web:/a", "web:/b"), "copying between containers"),
        (("web:", "/b"), "expected CONTAINER:PATH"),
        (("web:/none", "/b"), "no /none"),
        (("/no/such", "web:/b"), "/no/such: No such file"),
        ((str(tmp_path / "file"), "web:/refused"), "not there"),
    ):
        result = vxnet_("cp", *words)
        assert result.exit_code == 1 and said in result.stderr, (words, result.stderr)

"""``vxnet run``, exec and attach: what becomes of the words, and the exit statuses."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon, make_id
from vxnet.cli.run import environment, network_wishes
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError

Sessions = list[tuple[str, dict[str, Any]]]


def spec_of(server: Daemon) -> ContainerSpec:
    (container,) = server.agent.container_table.values()
    return container.spec


def test_every_flag_arrives(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "a")
    vxnet_("network", "create", "b")
    words = (
        "-dit --rm --name web --network a --network name=b,ip=10.0.32.9,alias=x,alias=y --ip 10.0.16.9 --alias www "
        "--network-alias w2 -h host -e A=1 -e B -e HOME= -w /srv --label k=v --label flag -- sh -c"
    )
    result = vxnet_("run", *words.split(), "echo -e", "--rm", env={"B": "2"})
    assert result.stdout == f"{make_id('web')}\n"
    assert spec_of(server) == ContainerSpec(
        name="web",
        argv=("sh", "-c", "echo -e", "--rm"),
        env=("A=1", "B=2", "HOME="),
        workdir="/srv",
        hostname="host",
        terminal=True,
        stdin=True,
        remove=True,
        networks=(
            NetworkWish(network="a", ip=ip_address("10.0.16.9"), aliases=("www", "w2")),
            NetworkWish(network="b", ip=ip_address("10.0.32.9"), aliases=("x", "y")),
        ),
        labels={"k": "v", "flag": ""},
    )


@pytest.mark.parametrize(
    "words, argv",
    [
        (["ls", "--color", "-la"], ("ls", "--color", "-la")),
        (["--", "ls", "-d"], ("ls", "-d")),
        (["--", "--", "ls"], ("ls",)),
        (["ls", "--", "-x"], ("ls", "--", "-x")),
        (["sh", "-c", ""], ("sh", "-c", "")),
    ],
)
def test_options_end_where_the_command_begins(
    server: Daemon, vxnet_: Vxnet, words: list[str], argv: tuple[str]
) -> None:
    assert vxnet_("run", "-d", *words).exit_code == 0
    assert spec_of(server).argv == argv


def test_foreground(server: Daemon, vxnet_: Vxnet, sessions: Sessions) -> None:
    result = vxnet_("run", "-i", "--name", "web", "cat")
    assert (result.exit_code, result.output) == (7, "")
    socket_path = f"/run/vxnet/c/{make_id('web')[:12]}.sock"
    asked = {"socket_path": socket_path, "stdin": True, "sig_proxy": True, "detach_keys": "ctrl-p,ctrl-q"}
    assert sessions == [("attach", asked)]
    assert server.agent.container_table[make_id("web")].state == "running"


def test_foreground_options(vxnet_: Vxnet, sessions: Sessions) -> None:
    vxnet_("run", "-t", "--no-sig-proxy", "--detach-keys", "ctrl-x", "--name", "web", "sh")
    ((_, asked),) = sessions
    assert (asked["stdin"], asked["sig_proxy"], asked["detach_keys"]) == (False, False, "ctrl-x")


@pytest.mark.parametrize("flags", [[], ["-d"]])
@pytest.mark.parametrize("command, status", [("no-such-command", 127), ("broken", 125)])
@pytest.mark.parametrize("remove", [True, False])
def test_a_command_that_does_not_start(
    server: Daemon, vxnet_: Vxnet, sessions: Sessions, flags: list[str], command: str, status: int, remove: bool
) -> None:
    result = vxnet_("run", *flags, *(["--rm"] if remove else []), "--name", "web", command)
    assert result.exit_code == status
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert len(server.agent.container_table) == (0 if remove else 1)


def test_exec(vxnet_: Vxnet, sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nC=3\n")
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    words = ["-i", "-w", "/srv", "-e", "A=1", "--env-file", str(tmp_path / "env"), "web", "ls", "-la", "--", "x"]
    assert vxnet_("exec", *words).exit_code == 7
    assert vxnet_("exec", "-t", "-u", "anna", "web", "--", "ls").exit_code == 7
    socket_path = f"/run/vxnet/c/{make_id('web')[:12]}.sock"
    assert sessions == [
        (
            "execute",
            {
                "socket_path": socket_path,
                "argv": ("ls", "-la", "--", "x"),
                "env": ("A=1", "C=3"),
                "workdir": "/srv",
                "user": "",
                "terminal": False,
                "stdin": True,
                "detach": False,
            },
        ),
        (
            "execute",
            {
                "socket_path": socket_path,
                "argv": ("ls",),
                "env": (),
                "workdir": "",
                "user": "anna",
                "terminal": True,
                "stdin": False,
                "detach": False,
            },
        ),
    ]


def test_attach(vxnet_: Vxnet, sessions: Sessions) -> None:
    vxnet_("run", "-d", "--name", "web", "sleep", "9")
    assert vxnet_("attach", "web").exit_code == 7
    assert vxnet_("attach", "--no-stdin", "--no-sig-proxy", "--detach-keys", "", "web").exit_code == 7
    first, second = (asked for _, asked in sessions)
    assert (first["stdin"], first["sig_proxy"], first["detach_keys"]) == (True, True, "ctrl-p,ctrl-q")
    assert (second["stdin"], second["sig_proxy"], second["detach_keys"]) == (False, False, "")


# -------------------------------------------------------------------------------------------------------------- parts


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\n  A=1\nB=x=y # kept\nHOME\nMISSING\nÄ=ü\n")
    own = {"HOME": "/root", "C": "3"}
    assert environment(["C", "A=2", "MISSING", "E="], [str(file)], own) == (
        "A=2",
        "B=x=y # kept",
        "HOME=/root",
        "Ä=ü",
        "C=3",
        "E=",
    )


@pytest.mark.parametrize("line", ["=x", "", "A B=1", "A=\0"])
def test_no_environment(line: str) -> None:
    with pytest.raises(CallerError, match="an environment variable is"):
        environment([line], [], {})


def test_an_env_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "env").write_bytes(b"A=\xff\n")
    with pytest.raises(CallerError, match="expected text in UTF-8"):
        environment([], [str(tmp_path / "env")], {})


def test_network_wishes() -> None:
    address = ip_address("10.0.16.9")
    assert network_wishes([], None, ()) == ()
    assert network_wishes(["a", "b"], address, ("x",)) == (
        NetworkWish(network="a", ip=address, aliases=("x",)),
        NetworkWish(network="b"),
    )
    assert network_wishes(["name=a,alias=x"], address, ()) == (NetworkWish(network="a", ip=address, aliases=("x",)),)


@pytest.mark.parametrize("networks", [[""], ["name="], ["a", "name=a"], ["name=a,ip=10.0.0.1"]])
def test_no_network_wishes(networks: list[str]) -> None:
    with pytest.raises(CallerError):
        network_wishes(networks, ip_address("10.0.16.9"), ())

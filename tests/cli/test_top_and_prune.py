"""``top`` and ``prune``."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon, make_id
from vxnet.cli.root import root


def test_top(vxnet_: Vxnet) -> None:
    vxnet_("run", "-d", "--name", "web", "--", "sleep", "9")
    header, row = vxnet_("top", "web").stdout.splitlines()
    assert header.split() == ["UID", "PID", "PPID", "STATE", "TIME", "MEMORY", "COMMAND"]
    assert row.split() == ["0", "71", "70", "S", "1:15", "1.5M", "sleep", "9"]
    assert json.loads(vxnet_("top", "--format", "json", "web").stdout)["pid"] == 71
    assert vxnet_("top", "nobody").exit_code == 1


def names(server: Daemon) -> set[str]:
    return {container.spec.name for container in server.agent.container_table.values()}


def make_three(vxnet_: Vxnet) -> None:
    for name in ("lives", "ended", "labelled"):
        vxnet_("run", "-d", "--name", name, *(["--label", "a=b"] if name == "labelled" else []), "--", "sleep", "9")
    vxnet_("stop", "ended", "labelled")


def test_prune(server: Daemon, vxnet_: Vxnet) -> None:
    make_three(vxnet_)
    assert vxnet_("prune", "-f", "--filter", "label=a").stdout == make_id("labelled") + "\n"
    assert vxnet_("prune", "-f").stdout == make_id("ended") + "\n"
    assert vxnet_("prune").stdout == ""
    assert names(server) == {"lives"}


def test_prune_asks(server: Daemon, vxnet_: Vxnet) -> None:
    make_three(vxnet_)
    environment = {"VXNET_SOCKET": str(server.path)}
    refused = CliRunner().invoke(root, ["prune"], prog_name="vxnet", env=environment, input="n\n")
    assert "ended" in refused.output and names(server) == {"lives", "ended", "labelled"}
    assert (refused.exit_code, refused.stderr) == (1, "Nothing was removed.\n")
    for words in (["prune"], ["network", "prune"]):
        nobody = CliRunner().invoke(root, words, prog_name="vxnet", env=environment)
        assert nobody.exit_code == 1
        assert nobody.stderr == "vxnet: nobody answered, so nothing was removed; --force does not ask\n"
    CliRunner().invoke(root, ["prune"], prog_name="vxnet", env=environment, input="y\n")
    assert names(server) == {"lives"}

"""``stats`` and ``update``."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon, make_id
from vxnet.cli import stats
from vxnet.model.container import RestartPolicy


@pytest.fixture(autouse=True)
def web(vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "INTERVAL_S", 0.01)
    vxnet_("run", "-d", "--name", "web", "--", "sleep", "9")


def test_one_look(vxnet_: Vxnet) -> None:
    header, row = vxnet_("stats", "--no-stream").stdout.splitlines()
    assert header.split("  ")[0] == "CONTAINER ID"
    assert row.split() == (f"{make_id('web')[:12]} web 125.00% 3MiB / 12MiB 25.00% 1.5kB / 70B 0B / 2MB 2".split())


def test_json(vxnet_: Vxnet) -> None:
    found = json.loads(vxnet_("stats", "--no-stream", "--format", "json", "web").stdout)
    assert found["cpu_percent"] == 125.0 and found["memory_percent"] == 25.0 and found["pids"] == 2
    assert vxnet_("stats", "--no-stream", "nobody").exit_code == 1


def test_goes_on_until_the_container_is_gone(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            vxnet_("rm", "-f", "web")

    monkeypatch.setattr(stats.time, "sleep", sleep)
    result = vxnet_("stats", "--format", "json", "web")
    assert len(result.stdout.splitlines()) == 2
    assert (result.exit_code, result.stderr) == (1, "vxnet: no such container: web\n")


@pytest.mark.parametrize(
    ("number", "binary", "decimal"),
    [(0, "0B", "0B"), (1000, "1000B", "1kB"), (1536, "1.5KiB", "1.536kB"), (3 << 50, "3072TiB", "3378TB")],
)
def test_sizes(number: int, binary: str, decimal: str) -> None:
    assert (stats._binary(number), stats._decimal(number)) == (binary, decimal)


def test_update(server: Daemon, vxnet_: Vxnet) -> None:
    assert vxnet_("update", "--restart", "always", "-m", "64m", "web").stdout == "web\n"
    spec = server.client.container("web").spec
    assert (spec.restart, spec.memory) == (RestartPolicy(name="always"), 64 << 20)
    assert vxnet_("update", "web").stderr.startswith("vxnet: nothing to change")
    assert vxnet_("update", "--restart", "never", "web").exit_code == 2

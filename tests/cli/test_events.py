"""`vxnet events`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import CREATED_AT, Daemon
from vxnet.core.history import Look
from vxnet.model.cluster import Network


@pytest.fixture
def happenings(server: Daemon) -> None:
    """Half a minute before "now", which is 90 s after everything: a network and a node come, the node falls silent."""
    history = server.agent.history
    history._clock = lambda: CREATED_AT + 60
    blue = {"n1": Network(id="n1", name="blue")}
    for look in (
        Look(),
        Look(networks=blue),
        Look(networks=blue, nodes={"i2": ("h2", "ready")}),
        Look(networks=blue, nodes={"i2": ("h2", "down")}),
    ):
        history.observe(look)
    history._clock = lambda: CREATED_AT + 90


@pytest.mark.parametrize(
    "words, told",
    [
        ([], ["network create", "node create", "node update"]),
        (["-f", "type=node"], ["node create", "node update"]),
        (["-f", "event=create"], ["network create", "node create"]),
        (["-f", "event=create", "-f", "type=node"], ["node create"]),
        (["-f", "node=h2", "-f", "event=update"], ["node update"]),
        (["-f", "network=n1"], ["network create"]),
        (["-f", "label=driver=overlay"], ["network create"]),
        (["-f", "container=web"], []),
        (["--since", "10s"], []),
        (["--since", "40s"], ["network create", "node create", "node update"]),
    ],
)
def test_the_past(server: Daemon, vxnet_: Vxnet, happenings: None, words: list[str], told: list[str]) -> None:
    done = vxnet_("events", "--until", "1s", *words)
    assert done.exit_code == 0, done.stderr
    assert [" ".join(line.split()[1:3]) for line in done.stdout.splitlines()] == told


def test_its_two_forms(server: Daemon, vxnet_: Vxnet, happenings: None) -> None:
    lines = vxnet_("events", "--until", "1s").stdout.splitlines()
    assert lines[0] == "2023-11-14T22:14:20.000000Z network create n1 (driver=overlay, name=blue)"
    assert lines[2] == "2023-11-14T22:14:20.000000Z node update i2 (name=h2, state.new=down, state.old=ready)"
    documents = vxnet_("events", "--until", "1s", "--format", "json").stdout.splitlines()
    assert json.loads(documents[2]) == {
        "time": CREATED_AT + 60,
        "type": "node",
        "action": "update",
        "id": "i2",
        "name": "h2",
        "attributes": {"state.old": "ready", "state.new": "down"},
    }


def test_wrong_filters(vxnet_: Vxnet) -> None:
    done = vxnet_("events", "-f", "colour=red")
    assert done.exit_code == 2 and "container, event, label, network, node, service, type" in done.stderr

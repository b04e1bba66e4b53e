"""``vxnet ca``: what nodes trust, and its change."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon


def test_a_change_is_shown_and_waited_for(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    assert vxnet_("ca").stdout == "old\n"
    assert vxnet_("ca", "rotate", "-d").stdout == "CA 2 is on its way to all nodes.\n"
    assert vxnet_("ca").stdout == "new\nold\n"
    found = json.loads(vxnet_("ca", "--format", "json").stdout)
    assert [one["use"] for one in found["authorities"]] == ["signs"]
    assert vxnet_("ca", "--format", "table").stdout.split()[:7] == [
        "NUMBER",
        "USE",
        "SHA-256",
        "ENDS",
        "2",
        "signs",
        "1" * 64,
    ]
    done = vxnet_("ca", "rotate")
    assert done.stdout == "CA 2 is the only one now.\n" and "join-token worker" in done.stderr
    assert vxnet_("ca", "rotate", "-q").stdout == ""


def test_only_root_changes_it(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    vxnet_("init")
    monkeypatch.setattr("vxnet.daemon.local_api.peer_uid", lambda request: 1000)
    done = vxnet_("ca", "rotate")
    assert done.exit_code == 1 and "only root may change the CA" in done.stderr
    assert vxnet_("ca").exit_code == 0

"""`vxnet gossip`: what it shows, and how a key is changed with it."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon


def test_the_gossip_is_shown(server: Daemon, vxnet_: Vxnet) -> None:
    assert vxnet_("gossip").stderr == (
        "vxnet: this host is in no cluster; `vxnet init` makes one, `vxnet join` joins one\n"
    )
    vxnet_("init")
    lines = [" ".join(line.split()) for line in vxnet_("gossip").stdout.splitlines()]
    assert lines == [
        "Node: h1",
        "Members: 2 (1 present)",
        "Health: 0 (0 is healthy)",
        "Queue: 0",
        "Encryption: AES-GCM, key epoch 1",
        "Dropped, no key opens it: 3",
        "",
        "MEMBER ADDRESS STATUS SINCE INCARNATION ROLE VTEP DATAPATH VERSION",
        "h1 192.168.56.11:7946 alive About a minute 2 manager 192.168.56.11 kernel 0.1.0",
        "s1 [fd00::9]:7946 dead 5 seconds 1 - - - -",
        "",
        "OWNER NETWORK ROWS NEWEST",
        "h1 - 2 1.2",
        "h1 blue 1 1.3",
        "",
        "NETWORK ROWS DIGEST",
        "blue 1 00c0ffee00c0ffee",
    ]
    found = json.loads(vxnet_("gossip", "--format", "json").stdout)
    assert found["members"][0]["tags"]["datapath"] == "kernel"
    assert found["digests"] == [{"network": "blue", "rows": 1, "digest": "00c0ffee00c0ffee"}]


def test_the_ring_is_listed_as_serf_takes_it(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    assert vxnet_("gossip", "keys").stdout == (
        "EPOCH     USE       CIPHER    KEY\n1         in use    AES-128   AAAAAAAAAAAAAAAAAAAAAA==\n"
    )
    assert vxnet_("gossip", "keys", "-q").stdout == "AAAAAAAAAAAAAAAAAAAAAA==\n"
    assert json.loads(vxnet_("gossip", "keys", "--format", "json").stdout)["use"] == "in use"


def test_only_root_sees_and_changes_keys(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group vxnet may use the socket; who has the key can speak as any host."""
    vxnet_("init")
    monkeypatch.setattr("vxnet.daemon.local_api.peer_uid", lambda request: 1000)
    for words in (["keys"], ["rotate-keys"]):
        done = vxnet_("gossip", *words)
        assert done.exit_code == 1 and "only root may" in done.stderr
    assert vxnet_("gossip").exit_code == 0


def test_the_peer_of_a_socket_is_known(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    from vxnet.cluster import api

    seen: list[int | None] = []

    def note(request: object) -> int | None:
        seen.append(api.peer_uid(request))  # type: ignore[arg-type]
        return 0

    monkeypatch.setattr("vxnet.daemon.local_api.peer_uid", note)
    vxnet_("init")
    vxnet_("gossip", "keys")
    assert seen == [os.geteuid()]


def test_a_key_change_is_waited_for(server: Daemon, vxnet_: Vxnet, tmp_path: Path) -> None:
    vxnet_("init")
    assert vxnet_("gossip", "rotate-keys").stdout == "Key 2 is in use.\n"
    assert vxnet_("gossip", "rotate-keys", "-d", "--bits", "128").stdout == "Key 3 is on its way to all nodes.\n"
    assert vxnet_("gossip", "rotate-keys", "-q", "--force").stdout == ""
    key = tmp_path / "key"
    key.write_text(base64.b64encode(b"k" * 24).decode() + "\n")
    assert vxnet_("gossip", "rotate-keys", "-d", "--key-file", str(key)).exit_code == 0
    asked = [(one.key, one.bits, one.force) for one in server.agent.rotate_requests]
    assert asked == [(b"", 256, False), (b"", 128, False), (b"", 256, True), (b"k" * 24, 256, False)]


@pytest.mark.parametrize(
    "text, error",
    [
        ("!!", "expected a key in base64; `serf keygen` makes one"),
        ("", "expected a key in base64; `serf keygen` makes one"),
        ("AAAA", "a gossip key has 16, 24 or 32 octets, not 3"),
    ],
)
def test_keys_that_cannot_be(server: Daemon, vxnet_: Vxnet, tmp_path: Path, text: str, error: str) -> None:
    vxnet_("init")
    (tmp_path / "key").write_text(text)
    done = vxnet_("gossip", "rotate-keys", "--key-file", str(tmp_path / "key"))
    assert done.exit_code == 1 and error in done.stderr and done.stderr.count("\n") == 1

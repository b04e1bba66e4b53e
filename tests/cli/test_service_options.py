"""What `service create` and `service update` make of their options: what is added, changed, taken away."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon


@pytest.fixture(autouse=True)
def _cluster(vxnet_: Vxnet) -> None:
    vxnet_("init")


def container(vxnet_: Vxnet) -> dict[str, Any]:
    (found,) = json.loads(vxnet_("service", "inspect", "web").stdout)
    container: dict[str, Any] = found["service"]["spec"]["task"]["container"]
    return container


def test_what_a_container_may_be_given(vxnet_: Vxnet, tmp_path: Path) -> None:
    """As `run` takes it; `update` changes it piece by piece."""
    lines = tmp_path / "env"
    lines.write_text("A=file\nB=file\n")
    made = vxnet_(
        *("service", "create", "-q", "--name", "web", "--env-file", str(lines), "-e", "A=given"),
        *("--dns", "10.9.9.9", "--dns-search", "example.org", "--dns-option", "ndots:2", "--host", "db=[fd00::1]"),
        *("--sysctl", "net.ipv4.ip_forward=1", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN", "--", "true"),
    )
    assert made.exit_code == 0, made.stderr
    found = container(vxnet_)
    assert (found["env"], found["dns"], found["dns_search"]) == (["A=given", "B=file"], ["10.9.9.9"], ["example.org"])
    assert (found["dns_options"], found["hosts"]) == (["ndots:2"], ["db:fd00::1"])
    assert (found["sysctls"], found["cap_add"]) == ({"net.ipv4.ip_forward": "1"}, ["NET_ADMIN"])
    changed = vxnet_(
        *("service", "update", "-q", "--dns-rm", "10.9.9.9", "--dns-add", "fd00::53", "--cap-add", "CHOWN"),
        *("--cap-drop", "NET_ADMIN", "--host-rm", "db:fd00::1", "--sysctl-rm", "net.ipv4.ip_forward", "web"),
    )
    assert changed.exit_code == 0, changed.stderr
    found = container(vxnet_)
    assert (found["dns"], found["cap_add"], found["cap_drop"]) == (["fd00::53"], ["CHOWN"], ["NET_ADMIN"])
    assert not found["hosts"] and not found["sysctls"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dns", "nobody"], "--dns takes an address, found 'nobody'"),
        (["--cap-add", "FLY"], "FLY"),
        (["--sysctl", "kernel.hostname=a"], 'a container has no sysctl "kernel.hostname" of its own'),
        (["--host", "db"], "a host is NAME:ADDRESS or NAME:host-gateway, found 'db'"),
        (["--reserve-cpu", "nan"], "expected a number such as 1.5, found 'nan'"),
        (["--limit-cpu", "inf"], "expected a number such as 1.5, found 'inf'"),
        (["--limit-cpu", "0.001"], "0.001 processors are too little"),
        (["--limit-memory", f"{'9' * 400}t"], "expected a size"),
        (["--restart-delay", "9" * 400], "expected a number"),
        (["--update-max-failure-ratio", "nan"], "expected a number"),
        (["--rollback-max-failure-ratio", "1.01"], "expected a number from 0 to 1"),
        (["--mode", "global", "--replicas-max-per-node", "2"], "--replicas-max-per-node is for replicated services"),
        (["--expose", "99999"], "'99999:99999/tcp' is no port"),
        (["--expose", "http:0"], "'http:0/tcp' is no port"),
        (["--hostname", "bad_name!"], '"bad_name!" cannot be a hostname'),
        (["--hostname", "{{.Task.Slot}}_a"], '"x_a" cannot be a hostname'),
        (["--hostname", "{{.Task.Slot"], "in '{{.Task.Slot' a template has no end"),
        (["-e", "A={{.Node.Colour}}"], "there is no template"),
        (["-p", "published=80,target=80,mode=host", "-p", "published=80,target=81,mode=host"], "published twice"),
        (["--network", "name=blue,alias=a", "--network", "blue"], "a network is given twice"),
    ],
)
def test_refusals(vxnet_: Vxnet, options: list[str], words: str) -> None:
    refused = vxnet_("service", "create", "--name", "web", *options, "--", "true")
    assert refused.exit_code and words in refused.stderr and refused.stderr.count("\n") == 1
    assert vxnet_("service", "ls", "-q").stdout == ""


def test_progress_on_a_terminal(vxnet_: Vxnet, server: Daemon) -> None:
    """A line that is written over; nothing of it where standard error is no terminal."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "vxnet", "service", "create", "--name", "web", "--replicas", "3", "--", "true"]
    try:
        env = {**os.environ, "VXNET_SOCKET": str(server.path)}
        made = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, env=env, check=True)
        told = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert made.stdout.decode().strip() == json.loads(vxnet_("service", "inspect", "web").stdout)[0]["service"]["id"]
    assert told.endswith("\r\x1b[Koverall progress: 3 out of 3 tasks\r\n")
    assert vxnet_("service", "create", "--name", "other", "--", "true").stderr == ""


def test_a_page_for_people(vxnet_: Vxnet) -> None:
    vxnet_("network", "create", "blue")
    made = vxnet_(
        *("service", "create", "-q", "--name", "web", "--replicas", "2", "--network", "name=blue,alias=www"),
        *("--constraint", "node.role==manager", "--limit-memory", "64m", "--label", "team=a", "--", "sleep", "9"),
    )
    assert made.exit_code == 0, made.stderr
    shown = vxnet_("service", "inspect", "--pretty", "web", "none")
    assert shown.exit_code == 1 and shown.stderr.startswith("vxnet: there is no service 'none'")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert lines[:8] == [
        f"ID: {made.stdout.strip()}",
        "Name: web",
        "Labels:",
        "team: a",
        "Service Mode: Replicated",
        "Replicas: 2 (2 running)",
        "Placement:",
        "Constraints: node.role==manager",
    ]
    assert {"Args: sleep 9", "Resources:", "Limits: 64 MiB", "Update order: stop-first"} < {*lines}
    (blue,) = [line for line in lines if line.startswith("blue: ")]
    assert blue.endswith("; aliases www")

"""How ``run`` reads what bounds a container."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon
from vxnet.model.container import ContainerSpec, Mount, RestartPolicy


def spec(server: Daemon, vxnet_: Vxnet, *words: str) -> ContainerSpec:
    """What the daemon is asked for."""
    vxnet_("init")
    result = vxnet_("run", "-d", "--name", "c", *words, "--", "true")
    assert result.exit_code == 0, result.stderr
    return next(one.spec for one in server.agent.container_table.values() if one.spec.name == "c")


def refusal(vxnet_: Vxnet, *words: str) -> str:
    result = vxnet_("run", "-d", *words, "--", "true")
    assert result.exit_code == 125 and result.stderr.count("\n") == 1, (result.exit_code, result.stderr)
    return result.stderr


def test_powers(server: Daemon, vxnet_: Vxnet) -> None:
    wanted = spec(server, vxnet_, "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "seccomp=unconfined")
    assert (wanted.cap_add, wanted.cap_drop, wanted.seccomp) == (("NET_ADMIN",), ("ALL",), False)


def test_powers_are_bounded_by_themselves(server: Daemon, vxnet_: Vxnet) -> None:
    wanted = spec(server, vxnet_, "--security-opt", "no-new-privileges")
    assert (wanted.cap_add, wanted.cap_drop, wanted.seccomp) == ((), (), True)


@pytest.mark.parametrize("text", ["seccomp=/profile.json", "apparmor=unconfined"])
def test_security_options_that_are_not_built(vxnet_: Vxnet, text: str) -> None:
    assert "not built yet" in refusal(vxnet_, "--security-opt", text)


def test_security_options_that_are_none(vxnet_: Vxnet) -> None:
    assert "seccomp=unconfined" in refusal(vxnet_, "--security-opt", "nonsense")


def test_files(server: Daemon, vxnet_: Vxnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr/bin")
    wanted = spec(
        server, vxnet_, "-v", "/a:/b", "-v", "../c:/d:ro", "--tmpfs", "/e:size=1m,exec,nosuid,mode=700",
        "--tmpfs", "/f:ro", "--read-only", "--rootfs", "root",
    )  # fmt: skip
    assert wanted.mounts == (
        Mount(kind="bind", source="/a", target="/b"),
        Mount(kind="bind", source="/usr/c", target="/d", read_only=True),
        Mount(kind="tmpfs", target="/e", options="size=1m,mode=700", executable=True),
        Mount(kind="tmpfs", target="/f", read_only=True),
    )
    assert (wanted.read_only, wanted.rootfs) == (True, "/usr/bin/root")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name:/b", "named volume"),
        ("/b", "SOURCE:TARGET"),
        (":/b", "SOURCE:TARGET"),
        ("/a:", "SOURCE:TARGET"),
        ("/a:/b:x", "'x'"),
    ],
)
def test_volumes_that_are_none(vxnet_: Vxnet, text: str, words: str) -> None:
    assert words in refusal(vxnet_, "-v", text)


def test_user_and_names(server: Daemon, vxnet_: Vxnet) -> None:
    wanted = spec(
        server, vxnet_, "-u", "anna:staff", "--dns", "192.0.2.1", "--dns-search", "a.org", "--dns-option", "rotate",
        "--add-host", "db:10.1.1.1", "--add-host", "six=[fd00::6]", "--sysctl", "net.ipv4.ip_forward=1",
    )  # fmt: skip
    assert (wanted.user, wanted.dns, wanted.dns_search) == ("anna:staff", (ip_address("192.0.2.1"),), ("a.org",))
    assert (wanted.dns_options, wanted.hosts) == (("rotate",), ("db:10.1.1.1", "six:fd00::6"))
    assert wanted.sysctls == {"net.ipv4.ip_forward": "1"}


def test_ps_by_label(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    for name, label in (("a", "tier=web"), ("b", "tier=db"), ("c", "other")):
        vxnet_("run", "-d", "--name", name, "--label", label, "--", "true")
    for wanted, names in (("tier", ["a", "b"]), ("tier=db", ["b"]), ("other=", ["c"]), ("nothing", [])):
        result = vxnet_("ps", "-a", "--format", "json", "--filter", f"label={wanted}")
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == names


def test_limits(server: Daemon, vxnet_: Vxnet) -> None:
    wanted = spec(server, vxnet_, "-m", "64m", "--cpus", "1.5", "--pids-limit", "100")
    assert (wanted.memory, wanted.cpus, wanted.pids_limit) == (64 << 20, 1.5, 100)


@pytest.mark.parametrize(
    ("text", "size"), [("7000000", 7000000), ("7000k", 7168000), ("1.5g", 3 << 29), ("2GiB", 2 << 30)]
)
def test_sizes(server: Daemon, vxnet_: Vxnet, text: str, size: int) -> None:
    assert spec(server, vxnet_, "--memory", text).memory == size


def test_sizes_that_are_none(vxnet_: Vxnet) -> None:
    for text in ("much", "-5m", "5x"):
        assert "such as 64m" in refusal(vxnet_, f"--memory={text}")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("no", RestartPolicy()),
        ("always", RestartPolicy(name="always")),
        ("unless-stopped", RestartPolicy(name="unless-stopped")),
        ("on-failure", RestartPolicy(name="on-failure")),
        ("on-failure:3", RestartPolicy(name="on-failure", retries=3)),
    ],
)
def test_restart_policies(server: Daemon, vxnet_: Vxnet, text: str, policy: RestartPolicy) -> None:
    wanted = spec(server, vxnet_, f"--restart={text}", "--stop-signal", "sigint", "--stop-timeout", "2.5")
    assert (wanted.restart, wanted.stop_signal, wanted.stop_timeout_s) == (policy, 2, 2.5)


@pytest.mark.parametrize(
    "words", ["--restart never", "--restart on-failure:x", "--restart always:2", "--stop-signal X"]
)
def test_restart_policies_that_are_none(vxnet_: Vxnet, words: str) -> None:
    assert "expected" in refusal(vxnet_, *words.split())

"""vxnet lab …: what the words become; what the lab does with it has tests of its own."""

from __future__ import annotations

import inspect
from ipaddress import ip_address
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vxnet import lab
from vxnet.cli.root import root
from vxnet.lab import HostView, LabView
from vxnet.model.errors import NotFoundError

VIEW = LabView(
    name="a",
    hosts=(
        HostView(name="h1", addresses=(ip_address("192.168.56.11"), ip_address("fd00::11")), status="up", pid=71),
        HostView(name="h2", addresses=(ip_address("192.168.56.12"),), status="down", link="cut"),
        HostView(
            name="x1", addresses=(ip_address("192.168.56.101"),), status="up", outside=True, parted_from=("h1",), pid=73
        ),
    ),
)
TABLE = (
    "LAB       HOST      STATUS        LINK            PID       ADDRESSES\n"
    "a         h1        up            up              71        192.168.56.11, fd00::11\n"
    "a         h2        down          cut                       192.168.56.12\n"
    "a         x1        up, outside   up, not to h1   73        192.168.56.101\n"
)


def vxnet(*words: str) -> Result:
    return CliRunner().invoke(root, ["lab", *words], prog_name="vxnet")


@pytest.mark.parametrize(
    "words, function, given, returned, status, shown",
    [
        (
            "up --name a --hosts 2 --outside 1 --mtu 9000 --ipv6 --no-join --datapath userspace --datapath h1=kernel",
            "up",
            {
                "name": "a",
                "hosts": 2,
                "outside": 1,
                "mtu": 9000,
                "ipv6": True,
                "join": False,
                "managers": 1,
                "datapath": ("userspace", "h1=kernel"),
            },
            VIEW,
            0,
            f"{TABLE}\nTry: vxnet lab exec --name a h1 -- vxnet info\n",
        ),
        (
            "up",
            "up",
            {
                "name": "lab",
                "hosts": 3,
                "outside": 0,
                "mtu": 1500,
                "ipv6": False,
                "join": True,
                "managers": 1,
                "datapath": (),
            },
            VIEW,
            0,
            f"{TABLE}\nTry: vxnet lab exec h1 -- vxnet node ls\n",
        ),
        ("ls", "ls", {}, (VIEW,), 0, TABLE),
        ("ls -q", "ls", {}, (VIEW,), 0, "a\n"),
        ("exec h1 -- ls -l", "exec_", {"name": "lab", "host": "h1", "argv": ("ls", "-l")}, 5, 5, ""),
        ("exec --name a h1 ls --", "exec_", {"name": "a", "host": "h1", "argv": ("ls", "--")}, 0, 0, ""),
        ("shell h2", "shell", {"name": "lab", "host": "h2"}, 3, 3, ""),
        ("cut h1 h2", "cut", {"name": "lab", "host": "h1", "other": "h2"}, None, 0, ""),
        ("cut --name a h1", "cut", {"name": "a", "host": "h1", "other": None}, None, 0, ""),
        ("heal", "heal", {"name": "lab", "host": None, "other": None}, None, 0, ""),
        ("heal h1 h2", "heal", {"name": "lab", "host": "h1", "other": "h2"}, None, 0, ""),
        ("kill h1", "kill", {"name": "lab", "host": "h1", "daemon": False}, None, 0, ""),
        ("kill --daemon h1", "kill", {"name": "lab", "host": "h1", "daemon": True}, None, 0, ""),
        ("start h1", "start", {"name": "lab", "host": "h1"}, None, 0, ""),
        ("down --all", "down", {"name": "lab", "all": True}, ("a", "b"), 0, "a\nb\n"),
    ],
)
def test_words(
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    function: str,
    given: dict[str, Any],
    returned: object,
    status: int,
    shown: str,
) -> None:
    real = inspect.signature(getattr(lab, function))
    calls: list[dict[str, Any]] = []

    def stand_in(**options: Any) -> object:
        real.bind(**options)  # as strict as the real one
        options.pop("progress", None)
        calls.append(options)
        return returned

    monkeypatch.setattr(lab, function, stand_in)
    result = vxnet(*words.split())
    assert (result.stderr, result.exit_code, result.stdout) == ("", status, shown)
    assert calls == [given]


def test_to_remove_no_lab_is_no_failure_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "down", lambda **_: ())
    result = vxnet("down", "--name", "gone")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "there is no lab 'gone'\n")
    assert vxnet("down", "--all").stderr == "there is no lab\n"


def test_a_lab_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise NotFoundError("there is no lab 'a'", hint="make one with `vxnet lab up`")

    monkeypatch.setattr(lab, "exec_", missing)
    result = vxnet("exec", "--name", "a", "h1", "ls")
    assert (result.exit_code, result.stderr) == (1, "vxnet: there is no lab 'a'; make one with `vxnet lab up`\n")

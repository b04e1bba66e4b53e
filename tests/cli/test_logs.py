"""``logs --tail --since``: what the daemon is asked for."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon
from vxnet.cli import output
from vxnet.cli.options import moment
from vxnet.model.api import LogRequest


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], LogRequest()),
        (["--tail", "all"], LogRequest()),
        (["-n", "0"], LogRequest(tail=0)),
        (
            ["--tail", "20", "--since", "2026-01-31T12:00:00Z"],
            LogRequest(tail=20, since="2026-01-31T12:00:00.000000000Z"),
        ),
    ],
)
def test_requests(server: Daemon, vxnet_: Vxnet, words: list[str], wanted: LogRequest) -> None:
    vxnet_("run", "-d", "--name", "web", "--", "true")
    assert vxnet_("logs", *words, "web").exit_code == 0
    assert server.agent.log_requests == [wanted]


def test_until(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("run", "-d", "--name", "web", "--", "true")
    server.agent.log = [f"2026-01-31T12:00:0{second}.000000000Z stdout F {second}\n".encode() for second in range(5)]
    assert vxnet_("logs", "--until", "2026-01-31T12:00:02Z", "web").stdout == "0\n1\n2\n"
    assert vxnet_("logs", "--until", "2026-01-31T12:00:02Z", "-n", "2", "web").stdout == "1\n2\n"
    assert vxnet_("logs", "--until", "2026-01-31T11:59:59Z", "web").stdout == ""
    assert [request.tail for request in server.agent.log_requests] == [-1, -1, -1], "the last before then are wanted"
    result = vxnet_("logs", "-f", "--until", "10m", "web")
    assert (result.exit_code, result.stderr) == (
        1, "vxnet: --follow goes on and --until ends; leave one of them out\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-31T12:00:00.25Z", "2026-01-31T12:00:00.250000000Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000000000Z"),
        ("1769860800", "2026-01-31T12:00:00.000000000Z"),
        ("90s", "2026-01-31T11:58:30.000000000Z"),
        ("1h30m", "2026-01-31T10:30:00.000000000Z"),
        ("1d", "2026-01-30T12:00:00.000000000Z"),
    ],
)
def test_times(monkeypatch: pytest.MonkeyPatch, text: str, wanted: str) -> None:
    monkeypatch.setattr(output, "now", lambda: 1769860800.0)
    assert moment(text) == wanted


@pytest.mark.parametrize(
    "words", [["--tail", "-1"], ["--tail", "some"], ["--since", "yesterday"], ["--since", "99999999999999999"]]
)
def test_wrong_ones(vxnet_: Vxnet, words: list[str]) -> None:
    result = vxnet_("logs", *words, "web")
    assert result.exit_code == 2 and "expected a" in result.stderr and result.stderr.count("\n") == 1

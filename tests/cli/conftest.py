"""The command line on the real local API, served by an agent in memory; the terminal's session is written down only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import vxnet.cluster
from tests.daemon.memory_agent import CREATED_AT, Daemon, daemon
from vxnet.cli import output
from vxnet.cli.root import root
from vxnet.cluster import terminal

Vxnet = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[Daemon]:
    with daemon() as running:
        yield running


@pytest.fixture
def vxnet_(server: Daemon, monkeypatch: pytest.MonkeyPatch) -> Vxnet:
    """``vxnet_("ps", "-a")``; the clock stands 90 s after everything that the agent makes."""
    monkeypatch.setattr(output, "now", lambda: CREATED_AT + 90)

    def call(*words: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(
            root, words, prog_name="vxnet", env={"VXNET_SOCKET": str(server.path), "COLUMNS": "100", **(env or {})}
        )

    return call


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the command line asked of the container's session: calls of ``attach`` and ``execute``, which return 7."""
    made: list[tuple[str, dict[str, Any]]] = []

    def attach(socket_path: str, **options: Any) -> int:
        start = options.pop("start", None)
        made.append(("attach", {"socket_path": socket_path, **options}))
        if start is not None:
            start()
        return 7

    def execute(socket_path: str, argv: Any, **options: Any) -> int:
        made.append(("execute", {"socket_path": socket_path, "argv": argv, **options}))
        return 7

    stand_in = SimpleNamespace(attach=attach, execute=execute, parse_keys=terminal.parse_keys)
    monkeypatch.setattr(vxnet.cluster, "terminal", stand_in)
    return made

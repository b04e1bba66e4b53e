"""The daemon's first look at what it shall be, and its last words."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vxnet.daemon import main as daemon
from vxnet.daemon.config import Config
from vxnet.model.errors import HostError


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    yield


def end_with(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a daemon in one of whose tasks ``error`` was raised."""

    async def fail() -> None:
        raise error

    async def serve(_config: Config, _socket: Path) -> None:
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            outer.create_task(asyncio.sleep(60))
            inner.create_task(fail())

    serve_as(serve, monkeypatch)
    return daemon.main(config_path=tmp_path / "none.toml")


def serve_as(serve: Callable[[Config, Path], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(daemon, "_serve", serve)
    monkeypatch.setattr(daemon, "_only_one", _alone)
    monkeypatch.setattr(daemon, "_set_up_logging", lambda level: None)


def test_a_refusal_out_of_any_task_is_one_line(tmp_path, monkeypatch, capsys):
    error = HostError("/var/lib/vxnet/node.json is damaged", hint="move it away")
    assert end_with(error, tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == "vxnet: /var/lib/vxnet/node.json is damaged; move it away\n"


def test_a_bug_is_a_traceback(tmp_path, monkeypatch):
    with pytest.raises(ExceptionGroup):
        end_with(RuntimeError("a bug"), tmp_path, monkeypatch)


def test_it_has_as_many_descriptors_as_it_may(tmp_path, monkeypatch):
    seen = []

    async def serve(config: Config, _socket: Path) -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    serve_as(serve, monkeypatch)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        assert daemon.main(config_path=tmp_path / "none.toml") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert seen == [(min(before[1], 1 << 20), before[1])]


async def test_what_blocks_needs_no_further_thread(monkeypatch):
    """A container's fork bomb leaves none, and a daemon that needed one for its disk ended."""
    await daemon._make_threads()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as bomb:
        bomb.setattr(threading.Thread, "start", refuse)
        found = await asyncio.gather(*(asyncio.to_thread(threading.get_ident) for _ in range(100)))
    assert len(found) == 100


def test_what_the_tunnels_are_is_said_in_the_file_or_when_called(tmp_path, monkeypatch):
    seen = []

    async def serve(config: Config, _socket: Path) -> None:
        seen.append((config.datapath, config.log_level))

    serve_as(serve, monkeypatch)
    file = tmp_path / "vxnet.toml"
    file.write_text('datapath = "kernel"\nlog-level = "debug"\n')
    assert daemon.main(config_path=file) == 0
    assert daemon.main(config_path=file, datapath="userspace") == 0
    assert seen == [("kernel", "debug"), ("userspace", "debug")]

"""An end of a measurement that does not end when it is told to: it is killed, and what it started with it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from pathlib import Path

import pytest

from vxnet.daemon import benches
from vxnet.daemon.config import UserspaceConfig
from vxnet.model.bench import BenchWish
from vxnet.tools.bench import Options

STUBBORN = """
import os, subprocess, time
server = subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
os.write(1, b"%d\\n" % server.pid)
time.sleep(300)
"""
WISH = BenchWish(number=1, local=ipaddress.ip_address("192.0.2.1"), peer=ipaddress.ip_address("192.0.2.2"), mtu=1500)


def runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def test_an_end_that_is_killed_takes_its_servers_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(benches, "MODULE", "stubborn")
    monkeypatch.setattr(benches, "END_S", 0.1)

    async def child() -> int:
        async with contextlib.aclosing(benches.end(WISH, UserspaceConfig())) as lines:
            pid = int(await anext(lines))
            assert runs(pid)
            return pid

    pid = asyncio.run(child())
    deadline = time.monotonic() + 5
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_ends_live_as_long_as_what_was_asked_for() -> None:
    longest = Options(seconds=60, rounds=50)
    assert longest.longest_s > 3 * 50 * 2 * 60

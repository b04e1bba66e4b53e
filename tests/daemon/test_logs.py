"""Logs read back: which lines, and also while they are turned over."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from vxnet.daemon import logs
from vxnet.model.api import LogRequest


def entry(number: int, tag: str = "F") -> bytes:
    """One line a second."""
    return b"2026-01-31T12:%02d:%02d.000000000Z stdout %s line %d\n" % (number // 60, number % 60, tag.encode(), number)


def turn_over(directory: Path) -> None:
    for number in (1, 0):
        path = directory / (f"log.{number}" if number else "log")
        if path.exists():
            path.rename(directory / f"log.{number + 1}")
    (directory / "log").write_bytes(b"")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Lines 0–99, 100–199 and 200–249."""
    for start, end in ((0, 100), (100, 200), (200, 250)):
        if start:
            turn_over(tmp_path)
        (tmp_path / "log").write_bytes(b"".join(map(entry, range(start, end))))
    return tmp_path


async def numbers(directory: Path, **request: object) -> list[int]:
    over: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    pieces = [piece async for piece in logs.read_log(directory, LogRequest(**request), over)]  # type: ignore[arg-type]
    return [int(line.rsplit(b" ", 1)[1]) for line in b"".join(pieces).splitlines()]


async def test_all(directory: Path) -> None:
    assert await numbers(directory) == list(range(250))


async def test_of_a_shim_that_was_killed_while_it_turned_them_over(directory: Path) -> None:
    """It was looked for without end."""
    (directory / "log").rename(directory / "log.3")
    async with asyncio.timeout(20):
        assert sorted(await numbers(directory)) == list(range(250))


@pytest.mark.parametrize("tail", [0, 1, 49, 50, 51, 150, 249, 250, 1000])
async def test_tail(directory: Path, tail: int) -> None:
    assert await numbers(directory, tail=tail) == list(range(250))[max(0, 250 - tail) :]


@pytest.mark.parametrize("number", [0, 1, 42, 99, 100, 101, 200, 249, 250])
async def test_since(directory: Path, number: int) -> None:
    since = entry(number).split()[0].decode()
    assert await numbers(directory, since=since) == list(range(number, 250))
    assert await numbers(directory, since=since, tail=5) == list(range(max(number, 245), 250))
    between = since.replace(".000000000Z", ".500000000Z")
    assert await numbers(directory, since=between) == list(range(number + 1, 250))


async def test_a_cut_line_is_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(entry(1) + entry(2, "P") + entry(3, "P") + entry(4) + entry(5))
    assert await numbers(tmp_path, tail=2) == [2, 3, 4, 5]
    assert await numbers(tmp_path, tail=1) == [5]


async def test_follow_over_many_turns(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing twice, nothing missing; it ends with the container."""
    monkeypatch.setattr(logs, "POLL_S", 0.005)
    over: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    seen: list[int] = []

    async def follow() -> None:
        rest = b""
        async for piece in logs.read_log(directory, LogRequest(follow=True, tail=10), over):  # type: ignore[arg-type]
            *lines, rest = (rest + piece).split(b"\n")
            seen.extend(int(line.rsplit(b" ", 1)[1]) for line in lines)

    async def reached(number: int) -> None:
        async with asyncio.timeout(10):
            while not seen or seen[-1] < number:
                await asyncio.sleep(0.001)

    reader = asyncio.create_task(follow())
    number = 250
    await reached(249)
    for turn in range(20):
        for _ in range(7):
            with (directory / "log").open("ab") as file:
                file.write(entry(number))
            number += 1
        if turn % 3 == 0:
            await reached(number - 1)
        if turn % 2 == 0:
            turn_over(directory)
            await reached(number - 1)
    over.set_result(None)
    await asyncio.wait_for(reader, 10)
    assert seen == list(range(240, number))


async def test_nothing_is_left_open(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for tail in (-1, 0, 60):
        await numbers(directory, tail=tail)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_removed_container(tmp_path: Path) -> None:
    assert await numbers(tmp_path / "gone") == []

"""The log: CRI's form, nothing added, nothing lost."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from tests.mounts import small_disk
from tests.shim.conftest import Boxes, eventually
from vxnet.host import creation

pytestmark = pytest.mark.host

ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)", re.DOTALL)


async def entries(boxes: Boxes, script: str, **spec: object) -> list[tuple[str, str, str]]:
    box = boxes("sh", "-c", script, **spec)
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0
    assert (await box.adopt()) is None
    assert box.log.endswith("\n") or not box.log
    found = []
    for line in box.log.split("\n")[:-1]:
        entry = ENTRY.fullmatch(line)
        assert entry, line
        found.append((entry[1], entry[2], entry[3]))
    return found


async def test_lines_of_both_streams(boxes: Boxes) -> None:
    found = await entries(boxes, "echo one; sleep 0.05; echo two >&2; sleep 0.05; printf 'three\\n\\nfour\\n'")
    assert found == [
        ("stdout", "F", "one"),
        ("stderr", "F", "two"),
        ("stdout", "F", "three"),
        ("stdout", "F", ""),
        ("stdout", "F", "four"),
    ]


async def test_line_that_comes_in_pieces(boxes: Boxes) -> None:
    found = await entries(boxes, "printf one; sleep 0.1; echo err >&2; sleep 0.1; printf 'two\\nrest'")
    assert found == [("stderr", "F", "err"), ("stdout", "F", "onetwo"), ("stdout", "P", "rest")]


@pytest.mark.parametrize("length", [16383, 16384, 16385, 32768, 50000])
async def test_long_lines(boxes: Boxes, length: int) -> None:
    found = await entries(boxes, f"head -c {length} /dev/zero | tr '\\0' x; echo; echo after")
    assert found[-1] == ("stdout", "F", "after")
    assert "".join(text for _, _, text in found[:-1]) == "x" * length
    assert [tag for _, tag, _ in found[:-1]] == ["P"] * (len(found) - 2) + ["F"]
    assert max(len(text) for _, _, text in found) <= 16384


async def test_octets_stay_as_they_are(boxes: Boxes) -> None:
    found = await entries(boxes, "printf 'a\\000b\\377\\r\\n'")
    assert found == [("stdout", "F", "a\0b\udcff\r")]


async def test_much_at_once(boxes: Boxes) -> None:
    """More than the pipes hold, both streams interleaved, and the last words before the end."""
    found = await entries(boxes, "seq 1 30000 & seq 1 30000 >&2; wait; echo last")
    numbers = [str(n) for n in range(1, 30001)]
    assert [text for stream, _, text in found if stream == "stderr"] == numbers
    assert [text for stream, _, text in found if stream == "stdout"] == [*numbers, "last"]


async def test_terminal_has_one_stream(boxes: Boxes) -> None:
    found = await entries(boxes, "echo out; echo err >&2", terminal=True)
    assert found == [("stdout", "F", "out\r"), ("stdout", "F", "err\r")]


async def test_full_disk(boxes: Boxes, tmp_path: Path) -> None:
    """The container goes on; what is lost is counted, and no entry is torn."""
    with small_disk(tmp_path / "disk", "300k") as disk:
        box = boxes("sh", "-c", "seq -w 1 99999; echo $? >/proc/1/fd/2; read wait; exit 3", stdin=True)
        box.directory = disk / "box"
        task = await box.start()
        await task.start_main()
        # 99,999 entries of 47 octets are fifteen times what fits.
        async with asyncio.timeout(20):
            while int((await task.status())["log_lost"]) < 4_000_000:
                await asyncio.sleep(0.02)
        assert all(ENTRY.fullmatch(line) for line in box.log.split("\n")[:-1])
        assert box.log.endswith("\n")
        status, _, _ = await box.run_client("terminal.attach(S, sig_proxy=False)", b"go\n")
        assert status == 3
        assert (await task.wait()).status == 3
        await eventually(lambda: (box.directory / "exit").exists(), "the exit file, for which room was kept")
        await task.destroy()


def kept(directory: Path) -> list[Path]:
    """Oldest first."""
    return [path for name in ("log.2", "log.1", "log") if (path := directory / name).exists()]


async def test_size_is_bounded(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are turned over between entries; what is kept is the end, without a gap."""
    monkeypatch.setattr(creation, "LOG_MAX", 50_000)
    box = boxes("seq", "-w", "1", "10000")
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0
    assert [path.name for path in kept(box.directory)] == ["log.2", "log.1", "log"]
    assert sorted(path.name for path in box.directory.glob("log*")) == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 50_000 for path in kept(box.directory))
    lines = b"".join(path.read_bytes() for path in kept(box.directory)).decode().splitlines()
    assert all(ENTRY.fullmatch(line) for line in lines)
    numbers = [int(line.rsplit(" ", 1)[1]) for line in lines]
    assert numbers == list(range(numbers[0], 10001)) and len(numbers) > 1000


@pytest.mark.slow
async def test_ten_megabytes_a_second(boxes: Boxes) -> None:
    """Three seconds' worth and more as fast as it goes: the disk keeps 30 MB, the shim its megabyte."""
    box = boxes("sh", "-c", "yes 'a line of the log that is neither long nor short, as they are' | head -c 60000000")
    task = await box.start()
    shim = (await task.status())["shim"]
    begun = time.monotonic()
    await task.start_main()
    most = 0
    while not task.ended:
        most = max(most, sum(path.stat().st_size for path in kept(box.directory)))
        if smaps := [line for line in _smaps(shim) if line.startswith("Rss:")]:
            assert sum(int(line.split()[1]) for line in smaps) <= 1024
        await asyncio.sleep(0.02)
    assert (await task.wait()).status == 0
    assert time.monotonic() - begun < 6, "10 MB/s at the least"
    assert 20 << 20 < most <= 30 << 20


def _smaps(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return []

"""What containers are seen to use, and other limits while they run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.shim.conftest import Box, Boxes, eventually
from tests.shim.test_limits import need
from vxnet.host import cgroups, tasks
from vxnet.host.usage import usage_of
from vxnet.model.api import UsageView
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import ConflictError

HUNGRY = """
import sys, threading, time
x = bytearray(b"x" * (64 << 20))
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("up", flush=True)
while True: pass
"""


async def look(box: Box) -> UsageView:
    container = replace(box.container, pid=box.task.pid, state="running")
    found = await asyncio.to_thread(usage_of, container, tasks.groups_of(box.directory))
    assert found is not None
    return found


@pytest.mark.host
@pytest.mark.parametrize("grouped", [True, False])
async def test_usage(boxes: Boxes, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its groups, and where there are none, from its processes."""
    if not grouped:
        monkeypatch.setattr(tasks, "groups_of", lambda directory: [])
    box = boxes("python3", "-c", HUNGRY)
    await (await box.start()).start_main()
    await eventually(lambda: "up" in box.log, "it to have its memory")
    first = await look(box)
    await asyncio.sleep(0.3)
    second = await look(box)
    assert 64 << 20 <= second.memory <= 128 << 20
    assert second.memory_limit > 1 << 30
    assert second.pids == 2
    assert second.at_s > first.at_s and 0 < second.cpu_s - first.cpu_s <= 1.5 * (second.at_s - first.at_s)
    assert (second.received, second.sent) == (0, 0), "it has no network but lo"


def test_processes_in_groups_below_its_own_are_its(tmp_path: Path) -> None:
    """As systemd makes them in a container that may: it counted as ended."""
    group = tmp_path / "vxnet" / "0123456789ab"
    (group / "init.scope").mkdir(parents=True)
    (group / "cgroup.kill").write_text("")
    (group / "cgroup.procs").write_text("")
    (group / "init.scope" / "cgroup.procs").write_text(f"{os.getpid()}\n")
    container = Container(id="0" * 64, spec=ContainerSpec(argv=("true",)), pid=os.getpid(), created_at=0.0)
    found = usage_of(container, [group])
    assert found is not None and found.pids >= 1


@pytest.mark.host
async def test_of_one_that_has_ended(boxes: Boxes) -> None:
    box = boxes("true")
    await (await box.start()).start_main()
    await box.task.wait()
    groups = tasks.groups_of(box.directory)
    assert await asyncio.to_thread(usage_of, replace(box.container, pid=box.task.pid), groups) is None


@pytest.mark.host
async def test_other_limits(boxes: Boxes) -> None:
    need("pids")
    box = boxes("sleep", "1000", pids_limit=30)
    await (await box.start()).start_main()
    groups = tasks.groups_of(box.directory)
    cgroups.update(groups, cgroups.wanted(replace(box.container.spec, pids_limit=40)))
    assert [path.read_text() for group in groups if (path := group / "pids.max").exists()] == ["40\n"]


def test_no_group_for_it(tmp_path: Path) -> None:
    """Nothing is changed then, not even what could be."""
    group = tmp_path / "group"
    group.mkdir()
    (group / "pids.max").write_text("30")
    with pytest.raises(ConflictError, match="without a limit for memory"):
        cgroups.update([group], {"pids": {2: {"pids.max": "40"}}, "memory": {2: {"memory.max": "1"}}})
    assert (group / "pids.max").read_text() == "30"

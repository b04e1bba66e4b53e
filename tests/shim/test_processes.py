"""What runs in a container, as the host sees it."""

from __future__ import annotations

import pytest

from tests.shim.conftest import Boxes, eventually
from vxnet.host.processes import processes_beside


@pytest.mark.host
async def test_all_processes_and_no_others(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "sleep 4711 & sleep 4712 & wait", user="65534")
    task = await box.start()
    await task.start_main()
    # A child is still its shell by name between fork and exec.
    await eventually(
        lambda: sorted(one.command for one in processes_beside(task.pid)[1:]) == ["sleep 4711", "sleep 4712"],
        "both children",
    )
    first, *others = processes_beside(task.pid)
    assert first.pid == task.pid and first.command.startswith("sh -c") and first.uid == 65534 and first.rss > 0
    assert {one.ppid for one in others} == {task.pid}
    await task.destroy()
    await eventually(lambda: processes_beside(task.pid) == (), "none")

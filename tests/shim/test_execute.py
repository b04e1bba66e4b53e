"""Commands that the daemon itself runs in a container, beside the first."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.shim.conftest import Box, Boxes, eventually
from vxnet.host.tasks import OUTPUT_MAX
from vxnet.model.errors import CallerError, ConflictError

pytestmark = pytest.mark.host


@pytest.fixture
async def box(boxes: Boxes) -> Box:
    made = boxes("sleep", "1000", env=("A=1",))
    await (await made.start()).start_main()
    return made


async def test_status_and_output_of_both_streams(box: Box) -> None:
    found = await box.task.execute(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=20)
    assert found == (3, b"out\nerr\n")
    assert await box.task.execute(["sh", "-c", "id -u; pwd"], user="nobody", workdir="/tmp", timeout_s=20) == (
        0,
        b"65534\n/tmp\n",
    )


async def test_much_output_is_cut_and_the_command_goes_on(box: Box) -> None:
    status, output = await box.task.execute(["sh", "-c", "head -c 1000000 /dev/zero; exit 4"], timeout_s=20)
    assert (status, output) == (4, bytes(OUTPUT_MAX))


async def test_what_takes_too_long_is_killed(box: Box) -> None:
    with pytest.raises(TimeoutError):
        await box.task.execute(["sleep", "777"], timeout_s=0.2)

    async def alone() -> bool:
        return (await box.task.status())["execs"] == "0"

    while not await alone():
        await asyncio.sleep(0.01)


async def test_what_cannot_run(box: Box) -> None:
    with pytest.raises(CallerError, match="cannot run no-such-program"):
        await box.task.execute(["no-such-program"], timeout_s=20)


async def test_end_of_the_container_meanwhile(box: Box) -> None:
    before = len(os.listdir("/proc/self/fd"))
    asking = asyncio.create_task(box.task.execute(["sleep", "777"], timeout_s=20))
    await asyncio.sleep(0)
    await box.task.signal(9)
    try:
        status, _ = await asking
        assert status == 137
    except ConflictError:
        pass
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor is left open")


async def test_many_side_by_side(box: Box) -> None:
    found = await asyncio.gather(
        *(box.task.execute(["sh", "-c", f"echo {number}; exit {number}"], timeout_s=20) for number in range(20))
    )
    assert found == [(number, f"{number}\n".encode()) for number in range(20)]


async def test_nothing_is_remembered_of_one_that_took_too_long(box: Box) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await box.task.execute(["sleep", "777"], timeout_s=0.05)
    while (await box.task.status())["execs"] != "0":
        await asyncio.sleep(0.01)
    await box.task.status()  # its answer comes behind the news of their ends
    assert not box.task._executions

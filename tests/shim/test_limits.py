"""What a container may take of its host."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes, eventually
from vxnet.core.containers import check_spec
from vxnet.host import cgroups, tasks
from vxnet.host.cgroups import Tree
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError, UnsupportedError


def controllers() -> set[str]:
    """Those that this host's root can give to a container."""
    present = cgroups.trees(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    found = set()
    for tree in present:
        found |= tree.controllers
        if tree.version == 2:
            found |= set((tree.own / "cgroup.controllers").read_text().split())
    return found


def need(controller: str) -> None:
    if controller not in controllers():
        pytest.skip(f"this host's cgroups have no controller {controller}; tests/vm/test_one.py has one that has")


@pytest.mark.host
async def test_fork_bomb(boxes: Boxes) -> None:
    """In the container as in an exec; the host goes on, and nothing of it is left."""
    need("pids")
    box = boxes("sh", "-c", "bomb() { bomb | bomb & }; echo up; bomb 2>/dev/null; sleep 1000", pids_limit=30)
    task = await box.start()
    await task.start_main()
    groups = [Path(line) for line in (box.directory / "cgroup").read_text().splitlines()]
    count = next(group / "pids.current" for group in groups if (group / "pids.current").exists())
    await eventually(lambda: "up" in box.log, "the bomb")
    seen = 0
    until = time.monotonic() + 1
    while time.monotonic() < until:
        seen = max(seen, int(count.read_text()))
        await asyncio.sleep(0.02)
    assert 2 <= seen <= 30
    await task.destroy()
    await asyncio.to_thread(tasks.remove, box.container.id, box.directory, box.run_directory)
    assert not any(group.exists() for group in groups)


@pytest.mark.host
async def test_groups_that_a_container_made_below_its_own_are_nobodys(boxes: Boxes) -> None:
    """As systemd does in one that may: it could not be removed, and with v2 had no limits at its next start."""
    need("pids")
    box = boxes("sleep", "1000", pids_limit=30)
    task = await box.start()
    groups = [Path(line) for line in (box.directory / "cgroup").read_text().splitlines()]
    limited = next(group for group in groups if (group / "pids.max").exists())
    (limited / "its own" / "and another").mkdir(parents=True)
    await task.destroy()
    again = await box.start()
    assert limited.exists() and not (limited / "its own").exists()
    (limited / "its own" / "and another").mkdir(parents=True)
    await again.destroy()
    await asyncio.to_thread(tasks.remove, box.container.id, box.directory, box.run_directory)
    assert not any(group.exists() for group in groups)


@pytest.mark.host
async def test_memory(boxes: Boxes) -> None:
    need("memory")
    hungry = ["python3", "-c", "x = bytearray(200 << 20); print(len(x))"]
    box = boxes(*hungry, memory=64 << 20)
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 137
    box = boxes(*hungry, memory=400 << 20)
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0


@pytest.mark.host
async def test_memory_of_an_exec_counts(boxes: Boxes) -> None:
    need("memory")
    box = boxes("sleep", "1000", memory=64 << 20)
    task = await box.start()
    await task.start_main()
    status, _, _ = await box.run_client("terminal.execute(S, ['python3', '-c', 'bytearray(200 << 20)'])")
    assert status == 137
    assert (await task.status())["state"] == "running"


@pytest.mark.host
async def test_processors(boxes: Boxes) -> None:
    need("cpu")
    box = boxes(
        "python3",
        "-c",
        "import time\nend = time.time() + 2\nwhile time.time() < end: pass\nprint(time.process_time())",
        cpus=0.25,
    )
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0
    assert 0.05 < float(box.output) < 1.0, "a quarter of two seconds, and what the period's edges add"


PLAIN = """\
24 1 0:22 / / rw - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
"""
HYBRID = """\
30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""


def test_where_the_trees_are() -> None:
    assert cgroups.trees(PLAIN, "0::/system.slice/vxnetd.service\n") == [
        Tree(2, frozenset(), Path("/sys/fs/cgroup/system.slice/vxnetd.service"))
    ]
    assert cgroups.trees(HYBRID, "4:name=systemd:/x\n3:memory:/docker/1/a\n2:cpu,cpuacct:/b\n0::/\n") == [
        Tree(2, frozenset(), Path("/sys/fs/cgroup/unified")),
        Tree(1, frozenset({"cpu", "cpuacct"}), Path("/sys/fs/cgroup/cpu,cpuacct/b")),
        Tree(1, frozenset({"memory"}), Path("/sys/fs/cgroup/memory/a")),
        Tree(1, frozenset({"name=systemd"}), Path("/sys/fs/cgroup/systemd/x")),
    ]


def fake_group(path: Path, *files: str, controllers: str = "", procs: str = "") -> None:
    """A kernel's group, as far as files go: what is not there cannot be written to."""
    path.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.subtree_control", *files):
        (path / name).write_text("")
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.procs").write_text(procs)


def test_limits_of_cgroup_2(tmp_path: Path) -> None:
    """The daemon steps aside first: a group with controllers for its children holds no process."""
    own = tmp_path / "vxnetd.service"
    fake_group(own, controllers="cpu memory pids", procs="4711\n")
    fake_group(own / "daemon")
    fake_group(own / "vxnet")
    fake_group(own / "vxnet" / "0123456789ab", "memory.max", "cpu.max")
    limits = cgroups.wanted(ContainerSpec(argv=("true",), memory=64 << 20, cpus=1.5))
    for tree in (Tree(2, frozenset(), own), Tree(2, frozenset(), own / "daemon")):
        groups = cgroups.place("0123456789abcdef", limits, [tree])
        assert groups == (own / "vxnet" / "0123456789ab", ())
    assert (groups.unified / "memory.max").read_text() == str(64 << 20)  # type: ignore[operator]
    assert (groups.unified / "cpu.max").read_text() == "150000 100000"  # type: ignore[operator]
    assert (own / "daemon" / "cgroup.procs").read_text() == "4711"
    assert "+" in (own / "cgroup.subtree_control").read_text()


def test_no_controller(tmp_path: Path) -> None:
    fake_group(tmp_path / "own")
    limits = cgroups.wanted(ContainerSpec(argv=("true",), pids_limit=5))
    with pytest.raises(UnsupportedError, match="no control group for pids"):
        cgroups.place("0123456789abcdef", limits, [Tree(2, frozenset(), tmp_path / "own")])


@pytest.mark.parametrize(
    ("spec", "words"), [({"memory": 1000}, "6m"), ({"cpus": 0.001}, "0.01"), ({"cpus": -1.0}, "0.01")]
)
def test_wrong_limits(spec: dict[str, object], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        check_spec(ContainerSpec(argv=("true",), **spec))  # type: ignore[arg-type]

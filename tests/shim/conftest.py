"""Real containers in directories of their own. Whatever a test does, nothing of them may be left."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vxnet.host import tasks
from vxnet.model.container import Container, ContainerSpec

DEADLINE_S = 20.0


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Waits until ``condition`` holds; what it waited for is in the failure."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


class Box:
    """A container under test."""

    def __init__(self, container: Container, directory: Path, run_directory: Path) -> None:
        self.container = container
        self.directory = directory
        self.run_directory = run_directory
        self.task: tasks.Task

    @property
    def socket(self) -> str:
        return str(tasks.socket_path(self.container.id, self.run_directory))

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""

    @property
    def output(self) -> str:
        """What it wrote, put together from the log."""
        parts = [line.split(" ", 3) for line in self.log.split("\n")[:-1]]
        return "".join(text + ("\n" if tag == "F" else "") for _, _, tag, text in parts)

    async def start(self) -> tasks.Task:
        files = {"resolv.conf": "nameserver 127.0.0.11\n", "hosts": "127.0.0.1 localhost\n", "hostname": "box\n"}
        self.task = await tasks.start(self.container, self.directory, files, self.run_directory)
        return self.task

    async def adopt(self) -> tasks.Task | None:
        return await tasks.adopt(self.container.id, self.directory, self.run_directory)

    def client(self, call: str, **streams: object) -> subprocess.Popen[bytes]:
        """The command line's part in a process of its own: ``call`` is an expression over ``terminal``."""
        code = f"import sys; from vxnet.cluster import terminal; S = {self.socket!r}; sys.exit({call})"
        return subprocess.Popen([sys.executable, "-c", code], **streams)  # type: ignore[call-overload,no-any-return]

    async def run_client(self, call: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
        """Exit status, standard output, standard error."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.client(call, **pipes)
        out, err = await asyncio.to_thread(process.communicate, given, DEADLINE_S)
        return process.returncode, out, err


Boxes = Callable[..., Box]


def traces(box: Box) -> list[str]:
    """What is left of a container on this machine."""
    short = box.container.id[:12]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"vxnet-shim") and words[1] == short.encode():
            found.append(f"process {process.name}")
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if box.container.id in line]
    cgroups = Path("/sys/fs/cgroup")
    found += [str(path) for pattern in ("vxnet/", "unified/vxnet/") for path in cgroups.glob(pattern + short)]
    found += [str(path) for path in (box.directory, Path(box.socket)) if path.exists()]
    return found


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[Boxes]:
    """Makes a container that runs ``argv``; the keywords are :class:`ContainerSpec`'s. Not started yet."""
    run_directory = Path(f"/run/vxnet-test-{os.getpid()}")
    made: list[Box] = []

    def make(*argv: str, **spec: object) -> Box:
        container = Container(
            id=secrets.token_hex(32),
            spec=ContainerSpec(argv=argv, **spec),  # type: ignore[arg-type]
            created_at=time.time(),
        )
        made.append(Box(container, tmp_path / container.id, run_directory))
        return made[-1]

    yield make

    for box in made:
        task = getattr(box, "task", None)
        if task is not None:
            task.close()
        task = await box.adopt()
        if task is not None:
            await task.destroy()
        tasks.remove(box.container.id, box.directory, run_directory)
    for box in made:
        await eventually(lambda box=box: not traces(box), f"nothing of {box.container.spec.argv}: {traces(box)}")
    shutil.rmtree(run_directory, ignore_errors=True)

"""run, exec and attach as real processes: command line, local API, shim and a command on this machine's kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.daemon.memory_agent import Daemon, MemoryAgent, daemon
from vxnet.host import tasks
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import ConflictError

pytestmark = pytest.mark.host

DEADLINE_S = 30.0


class ShimAgent(MemoryAgent):
    """Containers are real, without a network."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._tasks: dict[str, tasks.Task] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def create_container(self, spec: ContainerSpec, /) -> Container:
        container = await super().create_container(spec)
        task = await tasks.start(container, self._folder / container.id[:12], {}, self._folder)
        self._tasks[container.id] = task
        self._watches.append(asyncio.create_task(self._watch(task)))
        return container

    async def _watch(self, task: tasks.Task) -> None:
        ended = await task.wait()
        if task.id in self.container_table:  # else `rm -f` ended it
            await self.finish(task.id, -1 if ended.status is None else ended.status)
            if self.container_table[task.id].spec.remove:
                await self.remove(task.id, True)

    async def start(self, ref: str, /) -> Container:
        container = self._container(ref)
        await self._tasks[container.id].start_main()
        return self._put(replace(container, state="running", pid=self._tasks[container.id].pid))

    async def kill(self, ref: str, signal: int, /) -> None:
        await self._tasks[self._container(ref).id].signal(signal)

    async def remove(self, ref: str, force: bool, /) -> None:
        container = self._container(ref)
        if container.state == "running" and not force:
            raise ConflictError(f"container {container.spec.name} runs")
        await super().remove(ref, True)
        task = self._tasks.pop(container.id)
        if not task.ended:
            await task.destroy()
        task.close()
        await asyncio.to_thread(tasks.remove, container.id, self._folder / container.id[:12], self._folder)

    async def shim(self, ref: str, /) -> str:
        return str(tasks.socket_path(self._container(ref).id, self._folder))

    async def close(self) -> None:
        for container_id in tuple(self._tasks):
            await self.remove(container_id, True)
        await asyncio.gather(*self._watches)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(ShimAgent(tmp_path)) as running:
        yield running


def command(server: Daemon, *words: str) -> list[str]:
    return [sys.executable, "-m", "vxnet", "--socket", str(server.path), *words]


def vxnet(server: Daemon, *words: str, typed: str = "") -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    done = subprocess.run(command(server, *words), input=typed, capture_output=True, text=True, timeout=DEADLINE_S)
    return done.returncode, done.stdout, done.stderr


def test_without_standard_streams(server: Daemon) -> None:
    words = " ".join(command(server, "run", "--rm", "sh", "-c", "'echo out; echo err >&2; exit 4'"))
    for closed, shown in ((">&-", "err\n"), ("<&- >&- 2>&-", "")):
        done = subprocess.run(["bash", "-c", f"{words} {closed}"], capture_output=True, text=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stdout, done.stderr) == (4, "", shown)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_run_has_the_streams_and_the_status_of_its_command(server: Daemon) -> None:
    script = "read line; echo got $line; echo oops >&2; exit 42"
    assert vxnet(server, "run", "-i", "--rm", "sh", "-c", script, typed="a word\n") == (42, "got a word\n", "oops\n")
    until(lambda: not server.agent.container_table)


def test_nothing_of_a_short_command_is_lost(server: Daemon) -> None:
    for _ in range(5):
        assert vxnet(server, "run", "--rm", "echo", "hello") == (0, "hello\n", "")
        until(lambda: not server.agent.container_table)
    status, out, _ = vxnet(server, "run", "--rm", "head", "-c", "3000000", "/dev/zero")
    assert (status, len(out)) == (0, 3_000_000)


@pytest.mark.parametrize("flags", [[], ["-d"], ["--rm"], ["-d", "--rm"]])
def test_statuses_of_docker(server: Daemon, flags: list[str]) -> None:
    for argv, expected in ((["no-such-command"], 127), (["/etc/hostname"], 126), (["/etc"], 126)):
        status, out, err = vxnet(server, "run", *flags, "--name", "c", *argv)
        assert (status, out, err.count("\n")) == (expected, "", 1), err
        assert err.startswith("vxnet: ") and argv[0] in err
        if "--rm" not in flags:
            assert vxnet(server, "rm", "-f", "c")[0] == 0
        until(lambda: not server.agent.container_table)


def test_a_signal_goes_to_the_command(server: Daemon) -> None:
    script = "trap 'echo heard; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(command(server, "run", "sh", "-c", script), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "heard\n"
        assert child.wait(DEADLINE_S) == 9


def test_without_proxying_an_interrupt_ends_only_the_client(server: Daemon) -> None:
    script = "echo ready; sleep 60"
    words = ("run", "--no-sig-proxy", "--name", "c", "sh", "-c", script)
    with subprocess.Popen(command(server, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE_S) == 130
        assert "Traceback" not in child.stderr.read()
    assert server.client.container("c").state == "running"


def test_exec_and_attach(server: Daemon) -> None:
    script = "trap 'exit 3' TERM; while read line; do echo main $line; done; while :; do sleep 0.05; done"
    assert vxnet(server, "run", "-d", "-i", "--name", "c", "sh", "-c", script)[0] == 0
    assert vxnet(server, "exec", "-e", "A=1", "-w", "/tmp", "c", "sh", "-c", "echo $A $PWD; exit 5") == (
        5,
        "1 /tmp\n",
        "",
    )
    assert vxnet(server, "exec", "-i", "c", "cat", typed="fed\n") == (0, "fed\n", "")
    assert vxnet(server, "exec", "c", "cat", typed="not fed\n") == (0, "", "")
    # In the background: it goes on when the client is gone, and says nothing.
    file = f"/tmp/gone-{os.getpid()}"
    went_on = f"sleep 0.2; cat; echo said; echo gone >{file}"
    assert vxnet(server, "exec", "-d", "c", "sh", "-c", went_on, typed="not fed\n") == (0, "", "")
    waiting = f"until [ -s {file} ]; do sleep 0.02; done; cat {file}; rm {file}"
    assert vxnet(server, "exec", "c", "timeout", "20", "sh", "-c", waiting) == (0, "gone\n", "")
    assert vxnet(server, "exec", "-d", "c", "no-such-command")[0] == 127
    status, _, err = vxnet(server, "exec", "c", "no-such-command")
    assert (status, err.count("\n")) == (127, 1)
    attached = subprocess.Popen(
        command(server, "attach", "c"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with attached:
        assert attached.stdin is not None and attached.stdout is not None
        attached.stdin.write("to attach\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == "main to attach\n"
        assert vxnet(server, "kill", "-s", "TERM", "c")[0] == 0
        assert attached.wait(DEADLINE_S) == 3
    status, _, err = vxnet(server, "exec", "c", "true")
    assert (status, err) == (1, "vxnet: the container is not running; `vxnet ps -a` shows how it ended\n")


class Typist:
    """A process on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], argv)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            assert select.select([self._master], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self._master, 4096).decode()

    def status(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the other side closed
            while data := os.read(self._master, 4096):
                self.shown += data.decode()
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_on_a_terminal(server: Daemon) -> None:
    typist = Typist(command(server, "run", "-it", "--rm", "--name", "c", "sh"))
    typist.wait_for("# ")
    typist.type("test -t 0 && echo ter''minal; stty size\r")
    typist.wait_for("terminal\r\n")
    inner = Typist(command(server, "exec", "-it", "c", "sh", "-c", "tty; exit 6"))
    assert inner.status() == 6
    assert "/dev/pts/" in inner.shown
    typist.type("\x10\x11")  # the detach keys: the client ends, the container does not
    assert typist.status() == 0
    assert server.client.container("c").state == "running"
    again = Typist(command(server, "attach", "c"))
    again.type("exit 8\r")
    assert again.status() == 8
    until(lambda: not server.agent.container_table)

"""Containers' processes, by way of their shims: the daemon's end of the control protocol.

::

     start() ── spawns ──> vxnet-shim ── clone3 ──> first process (waits)     directory/  upper work root
       Task.start_main() ── START ──> ............. becomes the command                   log exit
     daemon dies: the shim, its container, logs, exec and attach go on
     adopt() ── HELLO ──> the same shim: pid, namespace and name server's sockets come back

Coroutines here never block the event loop but for a few small files; functions that say *blocks* belong in a thread.
One :class:`Task` serves one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vxnet.host import cgroups, creation, systemd
from vxnet.model import shim as protocol
from vxnet.model.container import Container
from vxnet.model.errors import ConflictError, HostError
from vxnet.model.shim import Kind, Message

RUN_DIRECTORY = Path("/run/vxnet")
ANSWER_TIMEOUT_S = 30.0
"""Setting up a root takes milliseconds; this long only on a machine whose disk stands still."""
REMOVE_TIMEOUT_S = 10.0
LINGER_S = 2.0
"""For a container's end behind its shim's. It has none where nobody reaps execs: in a Docker container without init."""

OUTPUT_MAX = 4096
"""Octets kept of what a command says that the daemon itself runs in a container."""
_ANSWER_MAX = 8192


class Exit(NamedTuple):
    """How a container ended."""

    status: int | None
    """0–255, 128 + n after signal n, 126 or 127 when the command could not run; None: its shim was killed and nobody
    knows."""
    error: str = ""
    """Why the command could not run."""
    started_at: float | None = None
    finished_at: float | None = None


def shim_path() -> Path:
    """The shim's executable, beside the package."""
    return Path(__file__).parent.parent / "bin" / "vxnet-shim"


def socket_path(container_id: str, run_directory: Path = RUN_DIRECTORY) -> Path:
    """Where the shim of a container listens, as long as the container has not ended."""
    return run_directory / "c" / f"{container_id[:12]}.sock"


class Task:
    """One container's shim, reached. Made by :func:`start` and :func:`adopt`."""

    id: str
    pid: int
    """Of the container's first process, as this process counts."""
    root: str
    """``overlay``, or ``tmpfs``: what the container writes is in memory and ends with it, because the file system of
    its directory cannot be an overlay's upper layer (it is an overlay itself)."""
    dns_port: int
    udp: socket.socket | None
    tcp: socket.socket | None
    """The name server's, bound in the container to ``127.0.0.11:dns_port``; TCP listens. The shim holds them too."""

    def __init__(self, container_id: str, directory: Path, connection: socket.socket) -> None:
        self.id = container_id
        self._directory = directory
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._executions: dict[int, asyncio.Future[int | None]] = {}
        """Exit statuses that somebody waits for, of the commands beside the first, by the tag of their EXEC; None: the
        container has ended."""
        self._tag = 0
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._shim = -1
        self.udp = self.tcp = None
        connection.setblocking(False)
        self._loop.add_reader(connection, self._receive)

    @property
    def netns(self) -> str:
        """Path of the container's network namespace; good while it lives."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def ended(self) -> bool:
        """Has the container ended (or its shim)?"""
        return self._exit.done()

    async def start_main(self) -> None:
        """Let the command run. Raises :class:`CallerError` when it cannot be executed: then :meth:`wait` tells the
        exit status; and :class:`ConflictError` when it runs already.
        """
        await self._ask(Kind.START)

    async def signal(self, number: int) -> None:
        """Send a signal to the command. One that it neither handles nor ignores ends it, also where the kernel would
        drop it because the command is its pid namespace's first process: the exit status is 128 + ``number``.
        """
        await self._ask(Kind.SIGNAL, [("signal", str(number))])

    async def execute(
        self, argv: Sequence[str], *, env: Sequence[str] = (), user: str = "", workdir: str = "", timeout_s: float
    ) -> tuple[int, bytes]:
        """Run a command beside the first: its exit status and the first ``OUTPUT_MAX`` octets that it wrote, on both
        streams. Raises :class:`CallerError` when it cannot be run, :class:`TimeoutError` after ``timeout_s`` (it is
        killed then), and :class:`ConflictError` when the container has ended.
        """
        fields = [("arg", one) for one in argv] + [("env", one) for one in env]
        fields += [("user", user)] if user else []
        fields += [("workdir", workdir)] if workdir else []
        with contextlib.ExitStack() as held:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            held.callback(os.close, reader)
            tag = self._next_tag()
            ended = self._executions[tag] = self._loop.create_future()
            held.callback(self._executions.pop, tag)
            with contextlib.ExitStack() as given:
                given.callback(os.close, writer)
                nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                given.callback(os.close, nothing)
                answer, _ = await self._ask(Kind.EXEC, fields, (nothing, writer, writer), tag)
            os.set_blocking(reader, False)
            output = bytearray()
            self._loop.add_reader(reader, self._collect, reader, output)
            held.callback(self._loop.remove_reader, reader)
            try:
                async with asyncio.timeout(timeout_s):
                    status = await ended
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(answer.fields["pid"]), signal.SIGKILL)
                raise
            if status is None:
                raise self._ended()
            while len(output) < OUTPUT_MAX and self._collect(reader, output):
                pass
            return status, bytes(output)

    def _collect(self, reader: int, output: bytearray) -> bool:
        """One piece, as some never cease; beyond ``OUTPUT_MAX`` it is thrown away. False: there is none now."""
        try:
            piece = os.read(reader, _ANSWER_MAX)
        except BlockingIOError:
            return False
        output += piece[: OUTPUT_MAX - len(output)]
        if not piece:
            self._loop.remove_reader(reader)
        return bool(piece)

    async def status(self) -> dict[str, str]:
        """The fields of STATUS: ``state``, ``pid``, ``execs``, ``log_lost`` (octets that a full disk refused) …"""
        return (await self._ask(Kind.STATUS))[0].fields

    async def open_mounts(self) -> int:
        """A descriptor of its mount namespace; the caller closes it. Raises :class:`ConflictError` when the container
        has ended.
        """
        try:
            mounts = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self._ended() from None
        try:
            # Its number is nobody else's before the shim has taken note of its end: what was opened is not the host's.
            if (await self.status())["state"] == "exited":
                raise self._ended()
        except BaseException:
            os.close(mounts)
            raise
        return mounts

    async def wait(self) -> Exit:
        """Until the container ends. Any number of callers may wait, each may be cancelled."""
        return await asyncio.shield(self._exit)

    async def destroy(self) -> None:
        """End container and shim at once, and wait until both are gone, with all that they held. Raises
        :class:`HostError` if the shim will not.
        """
        dying: list[int] = []
        if self._shim >= 0:
            dying.append(os.dup(self._shim))  # somebody may close ours meanwhile
            with contextlib.suppress(ProcessLookupError):
                if not self.ended:
                    dying.append(os.pidfd_open(self.pid))
                signal.pidfd_send_signal(self._shim, signal.SIGKILL)
        try:
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await self._gone.wait()
                await self.wait()
                for shim in dying[:1]:
                    await readable(shim)
            with contextlib.suppress(TimeoutError):
                for first in dying[1:]:
                    await asyncio.wait_for(readable(first), LINGER_S)
        except TimeoutError:
            raise HostError(
                f"the shim of container {self.id[:12]} did not end within {REMOVE_TIMEOUT_S:.0f} s of SIGKILL",
                hint=f"see /proc/{self.pid}/stack: the kernel holds it",
            ) from None
        finally:
            for one in dying:
                os.close(one)
            self.close()

    def close(self) -> None:
        """Let go: the container goes on, for :func:`adopt`. Also closes ``udp`` and ``tcp`` unless they were taken
        (set to None). Harmless twice.
        """
        self._hang_up()
        for name_server in (self.udp, self.tcp):
            if name_server is not None:
                name_server.close()
        self.udp = self.tcp = None
        if self._shim >= 0:
            os.close(self._shim)
            self._shim = -1

    # Conversation

    async def greet(self, kind: Kind, fields: Iterable[tuple[str, str]] = (), descriptors: Sequence[int] = ()) -> None:
        """CREATE or HELLO: both are answered with what the container is, and its descriptors. Raises
        :class:`HostError` where this process can have no more of them.
        """
        self.udp = self.tcp = None
        answer, received = await self._ask(kind, fields, descriptors)
        self.pid = int(answer.fields["pid"])
        self.root = answer.fields["root"]
        self.dns_port = int(answer.fields["dns_port"])
        # /proc/PID/ns/net names it as well, and ends with the container; a descriptor would keep it alive.
        for netns in received[:1]:
            os.close(netns)
        name_server = [socket.socket(fileno=one) for one in received[1:]]
        if len(received) != (3 if self.dns_port else 1):
            for one in name_server:
                one.close()
            raise HostError(f"this process has no descriptor left for container {self.id[:12]}", hint="`ulimit -n`")
        if name_server:
            self.udp, self.tcp = name_server
        try:
            self._shim = os.pidfd_open(int(answer.fields["shim"]))
        except ProcessLookupError:
            raise self._ended() from None
        except OSError as error:
            raise HostError(f"cannot watch the shim of container {self.id[:12]}: {error.strerror}") from error

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag

    async def _ask(
        self, kind: Kind, fields: Iterable[tuple[str, str]] = (), given: Sequence[int] = (), tag: int = 0
    ) -> tuple[Message, list[int]]:
        """``tag``: 0: the next."""
        tag = tag or self._next_tag()
        packet = protocol.encode(kind, tag, fields)
        answer = self._answers[tag] = self._loop.create_future()
        try:
            if self._gone.is_set():
                raise self._ended()
            socket.send_fds(self._connection, [packet], given)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                message, descriptors = await answer
        except ConnectionError:
            raise self._ended() from None
        except (OSError, TimeoutError) as error:
            why = str(error) or f"nothing within {ANSWER_TIMEOUT_S:.0f} s"
            raise HostError(f"the shim of container {self.id[:12]} does not answer: {why}") from None
        finally:
            self._answers.pop(tag, None)
        if message.kind != Kind.OK:
            raise protocol.refusal(message.fields)
        return message, descriptors

    def _ended(self) -> ConflictError:
        return ConflictError(f"container {self.id[:12]} has exited")

    def _receive(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._connection, _ANSWER_MAX, protocol.FDS_MAX)
        except BlockingIOError:
            return
        except ConnectionError:
            packet, descriptors = b"", []
        if not packet:
            self._hang_up()
            return
        message = protocol.decode(packet)
        answer = self._answers.pop(message.tag, None)
        if answer is not None and not answer.done():
            answer.set_result((message, descriptors))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if message.kind == Kind.EXIT and message.tag != 0:
            ended = self._executions.get(message.tag)
            if ended is not None and not ended.done():
                ended.set_result(int(message.fields["status"]))
        elif message.kind == Kind.EXIT and not self._exit.done():
            told = Exit(int(message.fields["status"]), message.fields.get("error", ""), None, time.time())
            self._exit.set_result(exit_of(self._directory) or told)

    def _hang_up(self) -> None:
        """The connection is over: the shim has ended, or we have let go."""
        if self._gone.is_set():
            return
        self._gone.set()
        self._loop.remove_reader(self._connection)
        self._connection.close()
        if not self._exit.done():
            self._exit.set_result(exit_of(self._directory) or Exit(None, finished_at=time.time()))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._ended())
        for ended in self._executions.values():
            if not ended.done():
                ended.set_result(None)


async def readable(descriptor: int) -> None:
    """Until it is; a pidfd, that its process has ended."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(descriptor, heard.set)
    try:
        await heard.wait()
    finally:
        loop.remove_reader(descriptor)


async def start(
    container: Container, directory: Path, files: Mapping[str, str], run_directory: Path = RUN_DIRECTORY
) -> Task:
    """Everything but the command: namespaces (``lo`` up), root, the name server's sockets. Then wire its network, and
    :meth:`Task.start_main`.

    ``directory`` is the container's own; its writable layer lives there, and a log that is there is continued.
    ``files`` are the texts of files that appear in its /etc: ``resolv.conf``, ``hosts``, ``hostname``. Raises
    :class:`HostError` or :class:`CallerError`; then nothing runs.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task = Task(container.id, directory, ours)
    try:
        try:
            told = await asyncio.to_thread(_prepare, container, directory, files, run_directory, theirs)
        except OSError as error:
            raise HostError(f"cannot prepare container {container.id[:12]}: {error}") from error
        try:
            await task.greet(Kind.CREATE, told.fields, told.descriptors)
        except ConflictError:
            raise HostError(
                f"the shim of container {container.id[:12]} ended without a word",
                hint=f"does this machine let root mount? Run `{shim_path()} --version`",
            ) from None
    except BaseException:
        task.close()
        raise
    return task


async def adopt(container_id: str, directory: Path, run_directory: Path = RUN_DIRECTORY) -> Task | None:
    """The task of a container that an earlier daemon started; None when its shim is gone: see :func:`exit_of`."""
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise HostError(f"cannot reach the shim of container {container_id[:12]}: {error.strerror}") from None
    try:
        connection.connect(str(socket_path(container_id, run_directory)))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise HostError(f"cannot reach the shim of container {container_id[:12]}: {error}") from None
    task = Task(container_id, directory, connection)
    try:
        await task.greet(Kind.HELLO)
    except ConflictError:  # it has just ended
        task.close()
        return None
    except BaseException:
        task.close()
        raise
    return task


def exit_of(directory: Path) -> Exit | None:
    """How the container ended, as its shim wrote down; None if it did not (it runs, or its shim was killed)."""
    try:
        lines = (directory / "exit").read_text(errors="replace").splitlines()
        # Backwards, as the first of a name counts: the error is the last, and may quote a command of several lines.
        fields = dict(line.split("=", 1) for line in reversed(lines) if "=" in line)
        started = float(fields["started_at"])
        return Exit(int(fields["status"]), fields["error"], started or None, float(fields["finished_at"]))
    except (FileNotFoundError, KeyError, ValueError):
        return None


def remove(container_id: str, directory: Path, run_directory: Path = RUN_DIRECTORY) -> None:
    """What an ended container left: files, socket, cgroup. Harmless twice. Blocks. Raises :class:`HostError`."""
    sweep(container_id, directory, run_directory)
    while directory.exists():
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue  # somebody else is at it, too, and gives up like us when he misses something
        except OSError as error:
            raise HostError(f"cannot remove {directory}: {error}") from None


def sweep(container_id: str, directory: Path, run_directory: Path = RUN_DIRECTORY) -> None:
    """As :func:`remove`, but its files stay: what a shim that was killed could not take away itself."""
    socket_path(container_id, run_directory).unlink(missing_ok=True)
    cgroups.remove(groups_of(directory))


def groups_of(directory: Path) -> list[Path]:
    """The control groups of the container, as :func:`start` noted them down."""
    try:
        return [Path(line) for line in (directory / "cgroup").read_text().splitlines()]
    except FileNotFoundError:
        return []


# Parts of start(), in a thread


def _check_free(container: Container, run_directory: Path, group: int | None) -> None:
    path = socket_path(container.id, run_directory)
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if group is not None:  # who may use the API may reach the sockets behind it
        os.chown(path.parent, -1, group)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ConflictError(f"container {container.id[:12]} has a living shim already")


def _prepare(
    container: Container, directory: Path, files: Mapping[str, str], run_directory: Path, control: socket.socket
) -> creation.Creation:
    """All that blocks, in one go: each change of threads waits for whoever else is at work. Closes ``control``."""
    group = _api_group()
    path = socket_path(container.id, run_directory)
    with control:
        _check_free(container, run_directory, group)
        cgroups.remove(groups_of(directory))  # of its life before this one, with what it may have made there
        if systemd.runs_daemon():
            systemd.start_shim(container.id, container.spec.name, shim_path(), control.fileno())
            home = cgroups.home(systemd.SLICE, systemd.unit_name(container.id))
            return creation.prepare(container, directory, files, path, group, home)
        spawned = _spawn(container, control)
    try:
        told = creation.prepare(container, directory, files, path, group)
    finally:
        status = spawned.wait()  # it ends at once: the shim is its orphan
    if status != 0:
        raise HostError(f"{shim_path()} ended with {status}: no memory or no process left?")
    return told


def _api_group() -> int | None:
    """Who may use the API beside root."""
    try:
        return grp.getgrnam("vxnet").gr_gid
    except KeyError:
        return None


def _spawn(container: Container, control: socket.socket) -> subprocess.Popen[bytes]:
    """What starts the shim, with ``control`` as its descriptor 0."""
    try:
        return subprocess.Popen(
            [str(shim_path()), container.id[:12]],
            stdin=control.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        hint = "" if shim_path().exists() else "install vxnet again"
        raise HostError(f"cannot run {shim_path()}: {error.strerror}", hint=hint) from None

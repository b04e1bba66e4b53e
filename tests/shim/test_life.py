"""A container from start to end, and what outlives whom."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.shim.conftest import Boxes, eventually, traces
from vxnet.daemon.copying import read_files
from vxnet.host import tasks
from vxnet.host.tasks import Exit
from vxnet.model import shim
from vxnet.model.codec import to_json
from vxnet.model.errors import CallerError, ConflictError, HostError

pytestmark = pytest.mark.host


@pytest.mark.parametrize("status", [0, 1, 125, 255])
async def test_command_decides_exit_status(boxes: Boxes, status: int) -> None:
    box = boxes("sh", "-c", f"exit {status}")
    task = await box.start()
    await task.start_main()
    end = await task.wait()
    assert (end.status, end.error) == (status, "")
    assert end.started_at is not None and end.finished_at is not None and end.started_at <= end.finished_at


@pytest.mark.parametrize(
    ("command", "status"),
    [("no-such-program", 127), ("/no/such/program", 127), ("/etc/hostname", 126), ("/etc", 126), ("", 127)],
)
async def test_command_that_cannot_run(boxes: Boxes, command: str, status: int) -> None:
    box = boxes(command, "argument")
    task = await box.start()
    with pytest.raises(CallerError, match="cannot run"):
        await task.start_main()
    end = await task.wait()
    assert end.status == status
    assert end.error.startswith(f"cannot run {command}: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1])
async def test_signal_ends_a_command_that_does_not_handle_it(boxes: Boxes, number: signal.Signals) -> None:
    """Although the kernel drops all but SIGKILL: it is process 1 of its namespace."""
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    await task.signal(number)
    assert (await task.wait()).status == 128 + number


async def test_signal_is_the_commands_if_it_handles_it(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "trap 'exit 7' TERM; trap '' USR1; echo up; while :; do sleep 0.02; done")
    task = await box.start()
    await task.start_main()
    await eventually(lambda: "up" in box.log, "the traps")
    await task.signal(signal.SIGUSR1)
    await task.signal(signal.SIGWINCH)
    await task.signal(signal.SIGTERM)
    assert (await task.wait()).status == 7


async def test_command_waits_for_start(boxes: Boxes) -> None:
    """Its namespaces are there before, so that the network can be."""
    box = boxes("cat", "/proc/net/dev", hostname="elsewhere")
    task = await box.start()
    assert (await task.status())["state"] == "created"
    subprocess.run(
        ["nsenter", f"--net={task.netns}", "ip", "link", "add", "wired", "type", "veth", "peer", "name", "far"],
        check=True,
    )
    assert box.log == ""
    await task.start_main()
    assert (await task.wait()).status == 0
    assert "wired:" in box.output
    with pytest.raises(ConflictError):
        await task.start_main()


async def test_killed_before_start(boxes: Boxes) -> None:
    box = boxes("true")
    task = await box.start()
    await task.signal(signal.SIGTERM)
    assert (await task.wait()).status == 143


async def test_environment_directory_and_names(boxes: Boxes) -> None:
    box = boxes(
        "sh", "-c", 'echo "$A|$B|$HOME|$HOSTNAME|$(pwd)|$(hostname)|$(cat /etc/hostname)|$$|$#"', "sh", "",
        env=("A=1", "B=x=y z", "A=2"), workdir="/made/for this", hostname="here",
    )  # fmt: skip
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 0
    assert box.output == "2|x=y z|/root|here|/made/for this|here|box|1|1\n"


async def test_failed_start_leaves_nothing(boxes: Boxes) -> None:
    box = boxes("true", hostname="h" * 65)
    with pytest.raises(HostError, match="cannot set the hostname"):
        await box.start()
    tasks.remove(box.container.id, box.directory, box.run_directory)
    await eventually(lambda: not traces(box), "nothing left")


async def test_what_the_host_refuses_is_said_as_the_hosts(boxes: Boxes) -> None:
    """An OSError went past all who wait for a HostError; by way of a restart's policy it ended the daemon."""
    box = boxes("true")
    (box.directory / "hosts").mkdir(parents=True)
    with pytest.raises(HostError, match="hosts"):
        await box.start()


async def test_a_commands_name_does_not_speak_for_its_exit_status(boxes: Boxes) -> None:
    box = boxes("no\nstatus=0\nstarted_at=1\nfinished_at=2\nerror=\nsuch")
    task = await box.start()
    with pytest.raises(CallerError):
        await task.start_main()
    end = await task.wait()
    assert (end.status, end.error) == (127, "cannot run no") and (end.finished_at or 0) > 2


async def test_files_are_copied_of_this_container_whoever_has_its_pid(boxes: Boxes) -> None:
    """The copying process was told a pid, and entered the mounts of whoever had that by then."""
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    mounts = await task.open_mounts()
    try:
        await task.destroy()
        with pytest.raises(ConflictError):
            await task.open_mounts()
        tar = b"".join([piece async for piece in read_files(mounts, "/etc/hostname", follow=False)])
    finally:
        os.close(mounts)
    with tarfile.open(fileobj=io.BytesIO(tar)) as found:
        member = found.extractfile("hostname")
        assert member is not None and member.read() == b"box\n"


def test_who_has_removed_it_leaves_nothing_to_another(tmp_path: Path) -> None:
    """As `rm -f` and --rm at once: who missed what the other had just taken said that all was gone."""

    def remove(directory: Path) -> bool:
        tasks.remove("0" * 64, directory, tmp_path)
        return directory.exists()

    for number in range(20):
        directory = tmp_path / str(number)
        for name in range(40):
            (directory / "upper" / str(name) / "deep").mkdir(parents=True)
        with ThreadPoolExecutor(3) as pool:
            assert not any(pool.map(remove, [directory] * 3))


async def test_same_container_twice(boxes: Boxes) -> None:
    box = boxes("sleep", "1000")
    task = await box.start()
    with pytest.raises(ConflictError, match="living shim"):
        await box.start()
    box.task = task
    assert (await task.status())["state"] == "created"


async def test_command_too_long(boxes: Boxes) -> None:
    box = boxes("echo", "x" * 200_000)
    with pytest.raises(CallerError, match="octets long"):
        await box.start()


async def test_writes_survive_a_restart_of_the_container(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "cat /kept; echo again >/kept")
    for _ in range(2):
        task = await box.start()
        await task.start_main()
        await task.wait()
        await task.destroy()
    assert box.output.endswith("again\n")


async def test_processes_end_with_the_first(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "setsid sleep 4711.25 & setsid sleep 4711.25 & sleep 0.05; exit 5")
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 5
    assert subprocess.run(["pgrep", "-f", "sleep 4711.25"], stdout=subprocess.DEVNULL, check=False).returncode == 1


async def test_many_in_parallel(boxes: Boxes) -> None:
    many = [boxes("sh", "-c", f"echo {n}; exit {n}") for n in range(20)]

    async def live(n: int) -> None:
        task = await many[n].start()
        await task.start_main()
        assert (await task.wait()).status == n
        assert many[n].output == f"{n}\n"

    await asyncio.gather(*map(live, range(len(many))))


# Who outlives whom


async def test_next_daemon_takes_over(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "read line; echo $line; exit 3", stdin=True)
    first = await box.start()
    await first.start_main()
    pid, port = first.pid, first.dns_port
    first.close()
    second = box.task = await box.adopt()
    assert second is not None
    assert (second.pid, second.dns_port) == (pid, port)
    assert not second.ended
    status, _, _ = await box.run_client("terminal.attach(S, sig_proxy=False)", b"words\n")
    assert status == 3
    assert (await second.wait()).status == 3
    assert box.output == "words\n"


@pytest.mark.parametrize("free", [1, 2, 3])
async def test_a_daemon_without_descriptors_takes_over_nothing(boxes: Boxes, free: int) -> None:
    """The kernel leaves out what it cannot hand over: the container went on without its name server."""
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    task.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(held.pop())
        with pytest.raises(HostError, match=r"descriptor|Too many open files"):
            await box.adopt()
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    adopted = await box.adopt()
    assert adopted is not None and adopted.udp is not None
    adopted.close()


async def test_name_servers_sockets_are_held_over(boxes: Boxes) -> None:
    """A query that comes while there is no daemon is answered by the next one."""
    box = boxes("sleep", "1000")
    first = await box.start()
    await first.start_main()
    port = first.dns_port
    first.close()
    ask = f"""
import socket
s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("127.0.0.11", {port})); s.send(b"where?")
t = socket.create_connection(("127.0.0.11", {port})); t.send(b"where?")
print(s.recv(100), t.recv(100))
"""
    asker = subprocess.Popen(
        ["nsenter", f"--net={first.netns}", sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True
    )
    second = box.task = await box.adopt()
    assert second is not None and second.udp is not None and second.tcp is not None
    assert second.udp.getsockname() == second.tcp.getsockname() == ("127.0.0.11", port)
    loop = asyncio.get_running_loop()
    second.udp.setblocking(False)
    query, sender = await asyncio.wait_for(loop.sock_recvfrom(second.udp, 100), 20)
    assert query == b"where?"
    second.udp.sendto(b"here", sender)
    second.tcp.setblocking(False)
    connection, _ = await asyncio.wait_for(loop.sock_accept(second.tcp), 20)
    with connection:
        await loop.sock_sendall(connection, b"there")
        output, _ = await asyncio.to_thread(asker.communicate, None, 20)
    assert output == "b'here' b'there'\n"


async def test_end_without_a_daemon_is_written_down(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "sleep 0.1; exit 9")
    task = await box.start()
    await task.start_main()
    task.close()
    await eventually(lambda: tasks.exit_of(box.directory) is not None, "the exit file")
    end = tasks.exit_of(box.directory)
    assert end is not None and end.status == 9
    assert await box.adopt() is None


DAEMON = """
import asyncio, pathlib, sys
from vxnet.host import tasks
from vxnet.model.codec import from_json
from vxnet.model.container import Container

async def main(record, directory, run_directory):
    task = await tasks.start(from_json(record, Container), pathlib.Path(directory), {}, pathlib.Path(run_directory))
    await task.start_main()
    print(task.pid, flush=True)
    await task.wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_container_outlives_a_killed_daemon(boxes: Boxes) -> None:
    box = boxes("sleep", "1000")
    arguments = [to_json(box.container).decode(), str(box.directory), str(box.run_directory)]
    with subprocess.Popen([sys.executable, "-c", DAEMON, *arguments], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pid = int(await asyncio.to_thread(daemon.stdout.readline))
        daemon.kill()
    task = box.task = await box.adopt()
    assert task is not None and task.pid == pid
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\x00"
    await task.signal(signal.SIGTERM)
    assert (await task.wait()).status == 143


async def test_shims_death_is_the_containers(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "sleep 4712.25 & wait")
    task = await box.start()
    await task.start_main()
    os.kill(int((await task.status())["shim"]), signal.SIGKILL)
    assert (await task.wait())._replace(finished_at=None) == Exit(None)
    await eventually(lambda: not Path(f"/proc/{task.pid}").exists(), "the container's end")
    assert Path(box.socket).exists()
    assert await box.adopt() is None
    await asyncio.to_thread(tasks.remove, box.container.id, box.directory, box.run_directory)
    assert traces(box) == []


async def test_terminated_shim_passes_it_on(boxes: Boxes) -> None:
    """As at a host's shutdown, when everything gets SIGTERM."""
    box = boxes("sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done")
    task = await box.start()
    await task.start_main()
    await eventually(lambda: "up" in box.log, "the trap")
    os.kill(int((await task.status())["shim"]), signal.SIGTERM)
    assert (await task.wait()).status == 6


async def test_the_group_reaches_the_socket(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may use the API may exec and attach: the directory around the sockets lets the group through, nobody else."""
    group = 65533
    entry = grp.struct_group(("vxnet", "x", group, []))
    monkeypatch.setattr(grp, "getgrnam", lambda name: entry)
    box = boxes("sleep", "1000")
    await box.start()
    code = f"""
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); print(s.connect_ex({box.socket!r}))
"""
    for gid, error in ((group, 0), (65534, errno.EACCES)):
        done = subprocess.run([sys.executable, "-c", code, str(gid)], stdout=subprocess.PIPE, text=True, check=True)
        assert int(done.stdout) == error


async def test_only_root_takes_over(boxes: Boxes) -> None:
    """Whoever may attach (group vxnet) is not given the name server's sockets."""
    box = boxes("sleep", "1000")
    await box.start()
    Path(box.socket).chmod(0o666)
    Path(box.socket).parent.chmod(0o755)
    code = f"""
import os, socket
from vxnet.model import shim
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({box.socket!r})
s.send(shim.encode(shim.Kind.HELLO, 1)); packet, fds, _, _ = socket.recv_fds(s, 8192, 4)
print(shim.decode(packet).fields["kind"], len(fds))
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "forbidden 0\n"


async def test_many_clients_do_not_keep_the_daemon_out(boxes: Boxes) -> None:
    """It took its containers for ended, as they closed its connection: they are let in beside all others."""
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    task.close()

    os.chmod(box.socket, 0o666)
    os.chmod(Path(box.socket).parent, 0o755)
    code = f"""
import os, socket, sys
os.setresuid(65534, 65534, 65534)
held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(300)]
for one in held:
    one.connect({box.socket!r})
print("all", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clients:
        assert clients.stdout is not None
        assert await asyncio.to_thread(clients.stdout.readline) == b"all\n"
        adopted = await box.adopt()
        assert adopted is not None and adopted.pid == task.pid
        adopted.close()
        clients.communicate()


async def test_refuses_what_it_does_not_know(boxes: Boxes) -> None:
    """A field could be a limit or a mask that somebody relies on."""
    box = boxes("sleep", "1000")
    task = await box.start()
    await task.start_main()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(box.socket)

        def ask(packet: bytes) -> shim.Message:
            connection.send(packet)
            return shim.decode(connection.recv(8192))

        newer = ask(shim.encode(shim.Kind.EXEC, 7, [("arg", "true"), ("seccomp", "strict")]))
        assert (newer.kind, newer.tag) == (shim.Kind.ERROR, 7)
        assert "seccomp" in newer.fields["message"]
        assert ask(b"\x02\x07\0\0\x01\0\0\0").kind == shim.Kind.ERROR
        assert ask(b"\x01\x63\0\0\x01\0\0\0").kind == shim.Kind.ERROR
        assert ask(b"\x01\x05\0\0\x01\0\0\0arg=no end").kind == shim.Kind.ERROR
        assert ask(shim.encode(shim.Kind.SIGNAL, 1, [("signal", "99")])).kind == shim.Kind.ERROR
        assert ask(shim.encode(shim.Kind.STATUS, 8)).fields["state"] == "running"
        connection.send(b"\x01")
        assert connection.recv(8192) == b"", "a packet without a header ends the connection"
    assert (await task.status())["state"] == "running"

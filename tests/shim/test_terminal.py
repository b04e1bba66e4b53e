"""attach, exec and the foreground ``run`` as the command line does them: in a process of its own, on pipes or a pty."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shim.conftest import DEADLINE_S, Box, Boxes, eventually
from vxnet.cluster import terminal
from vxnet.cluster.terminal import KeyWatch, parse_keys
from vxnet.host import tasks
from vxnet.model.errors import CallerError, NotFoundError


async def attached(box: Box, arguments: str = "", **streams: object) -> subprocess.Popen[bytes]:
    """A client that is attached before the command starts, as ``vxnet run`` is."""
    sign = box.directory / "attached"
    start = f"start=lambda: open({str(sign)!r}, 'w').close()"
    client = box.client(f"terminal.attach(S, {arguments}{start})", **streams)
    await eventually(sign.exists, "the client attached")
    return client


async def run_attached(box: Box, arguments: str = "", given: bytes = b"") -> tuple[int, bytes, bytes]:
    """``vxnet run``: exit status, standard output, standard error."""
    task = await box.start()
    client = await attached(box, arguments, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE))
    await task.start_main()
    out, err = await asyncio.to_thread(client.communicate, given, DEADLINE_S)
    return client.returncode, out, err


class Screen:
    """A terminal with a client in it."""

    def __init__(self, box: Box, call: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.size(rows, columns)
        self.before = termios.tcgetattr(self.master)
        self.process = box.client(call, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = b""

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read(self) -> bytes:
        os.set_blocking(self.master, False)
        try:
            self.shown += os.read(self.master, 65536)
        except (BlockingIOError, OSError):
            pass
        return self.shown

    async def sees(self, text: bytes) -> None:
        await eventually(lambda: text in self.read(), f"{text!r} on the screen: {self.shown!r}")
        self.shown = self.shown.partition(text)[2]

    async def close(self) -> int:
        status = await asyncio.to_thread(self.process.wait, 20)
        assert termios.tcgetattr(self.master) == self.before, "the terminal is as it was"
        os.close(self.master)
        return status


# Foreground run


@pytest.mark.host
async def test_nothing_is_lost_and_streams_stay_apart(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "seq 1 50000; seq 1 20000 >&2; printf end; exit 4")
    status, out, err = await run_attached(box, "stdin=False, ")
    assert status == 4
    assert out.decode().split("\n") == [str(n) for n in range(1, 50001)] + ["end"]
    assert err.decode().split() == [str(n) for n in range(1, 20001)]
    assert " stdout P end\n" in box.log


@pytest.mark.host
async def test_standard_input_and_its_end(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "cat; echo over", stdin=True)
    text = b"words\n" * 50_000
    status, out, _ = await run_attached(box, "", text)
    assert status == 0
    assert out == text + b"over\n"


@pytest.mark.host
async def test_command_that_cannot_run(boxes: Boxes) -> None:
    box = boxes("no-such-program")
    task = await box.start()
    client = await attached(box)
    with pytest.raises(CallerError):
        await task.start_main()
    assert await asyncio.to_thread(client.wait, DEADLINE_S) == 127


@pytest.mark.host
async def test_failure_of_start_passes_through(boxes: Boxes) -> None:
    box = boxes("true")
    await box.start()

    def start() -> None:
        raise CallerError("not today")

    with pytest.raises(CallerError, match="not today"):
        await asyncio.to_thread(terminal.attach, box.socket, stdin=False, sig_proxy=False, start=start)


@pytest.mark.host
async def test_signals_go_to_the_command(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.02; done")
    task = await box.start()
    client = await attached(box, "stdin=False, ", stdout=subprocess.PIPE)
    await task.start_main()
    assert client.stdout is not None
    assert await asyncio.to_thread(client.stdout.readline) == b"up\n"
    client.send_signal(signal.SIGTERM)
    out, _ = await asyncio.to_thread(client.communicate, None, 20)
    assert (client.returncode, out) == (9, b"caught\n")


@pytest.mark.host
async def test_slow_reader_slows_the_command_and_nobody_else(boxes: Boxes) -> None:
    box = boxes("sh", "-c", "seq 1 200000; echo done >&2; sleep 1000")
    task = await box.start()
    client = await attached(box, "stdin=False, ", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    await task.start_main()
    await eventually(lambda: box.log.count("\n") > 1000, "the first lines")
    await asyncio.sleep(0.2)
    assert "done" not in box.log
    assert (await box.run_client("terminal.execute(S, ['echo', 'here'])"))[:2] == (0, b"here\n")
    assert (await task.status())["state"] == "running"
    client.kill()
    client.communicate()
    await eventually(lambda: "done" in box.log, "the command goes on without its reader")
    assert box.output.count("\n") == 200_001


@pytest.mark.host
async def test_reader_that_goes_away(boxes: Boxes) -> None:
    """``vxnet run … | head``: the command is not hurt."""
    box = boxes("sh", "-c", "trap '' TERM; seq 1 100000; exit 3")
    task = await box.start()
    pipe = await attached(box, "stdin=False, ", stdout=subprocess.PIPE)
    await task.start_main()
    assert pipe.stdout is not None
    await asyncio.to_thread(pipe.stdout.readline)
    pipe.stdout.close()
    assert await asyncio.to_thread(pipe.wait, 20) == 3
    assert box.output.endswith("\n100000\n")


# exec


@pytest.fixture
async def box(boxes: Boxes) -> Box:
    """One that sleeps."""
    sleeper = boxes("sleep", "1000", env=("FROM=container",), workdir="/srv", hostname="sleeper")
    task = await sleeper.start()
    await task.start_main()
    return sleeper


@pytest.mark.host
@pytest.mark.parametrize(
    ("argv", "status"),
    [(["true"], 0), (["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -KILL $$"], 137), (["sh", "-c", "exit 125"], 125)],
)
async def test_exec_ends_with_the_commands_status(box: Box, argv: list[str], status: int) -> None:
    assert await box.run_client(f"terminal.execute(S, {argv!r})") == (status, b"", b"")


@pytest.mark.host
@pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("/etc", 126)])
async def test_exec_that_cannot_run(box: Box, command: str, status: int) -> None:
    found, out, err = await box.run_client(f"terminal.execute(S, [{command!r}])")
    assert (found, out) == (status, b"")
    assert err.startswith(f"vxnet: cannot run {command}: ".encode())
    assert err.count(b"\n") == 1


@pytest.mark.host
async def test_exec_is_inside(box: Box) -> None:
    script = 'echo "$FROM|$OWN|$(pwd)|$(hostname)"; cat /proc/1/cmdline'
    status, out, _ = await box.run_client(f"terminal.execute(S, ['sh', '-c', {script!r}], env=['OWN=exec'])")
    assert status == 0
    assert out.startswith(b"container|exec|/srv|sleeper\nsleep\x001000\x00")
    for kind in ("net", "mnt", "pid", "uts", "ipc", "cgroup"):
        inside = await box.run_client(f"terminal.execute(S, ['readlink', '/proc/self/ns/{kind}'])")
        assert inside[1].decode().strip() == os.readlink(f"/proc/{box.task.pid}/ns/{kind}")
    _, caps, _ = await box.run_client("terminal.execute(S, ['grep', '-E', 'CapEff|NoNew', '/proc/self/status'])")
    assert caps == b"CapEff:\t00000000a00425fb\nNoNewPrivs:\t1\n"


@pytest.mark.host
async def test_exec_workdir(box: Box) -> None:
    assert (await box.run_client("terminal.execute(S, ['pwd'], workdir='/usr/lib')"))[1] == b"/usr/lib\n"
    status, _, err = await box.run_client("terminal.execute(S, ['pwd'], workdir='/no/such')")
    assert status == 126
    assert b"working directory /no/such" in err


@pytest.mark.host
async def test_exec_streams(box: Box) -> None:
    text = b"x" * 300_000
    script = "cat; echo out; echo err >&2"
    assert await box.run_client(f"terminal.execute(S, ['sh', '-c', {script!r}], stdin=True)", text) == (
        0,
        text + b"out\n",
        b"err\n",
    )
    assert await box.run_client("terminal.execute(S, ['cat'])", b"not wanted") == (0, b"", b"")
    assert box.log == "", "an exec's output is nobody's but the caller's"


@pytest.mark.host
async def test_exec_leaves_children_behind(box: Box) -> None:
    """They hold the pipes open; the command is over all the same."""
    script = "sleep 1000 & echo started"
    assert (await box.run_client(f"terminal.execute(S, ['sh', '-c', {script!r}])"))[:2] == (0, b"started\n")


@pytest.mark.host
async def test_many_execs_side_by_side(box: Box) -> None:
    calls = [box.run_client(f"terminal.execute(S, ['sh', '-c', 'echo {n}; exit {n}'])") for n in range(12)]
    assert [(status, out) for status, out, _ in await asyncio.gather(*calls)] == [
        (n, f"{n}\n".encode()) for n in range(12)
    ]


@pytest.mark.host
async def test_exec_ends_with_the_container(box: Box) -> None:
    client = box.client("terminal.execute(S, ['sh', '-c', 'echo up; sleep 1000'])", stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert await asyncio.to_thread(client.stdout.readline) == b"up\n"
    await box.task.signal(signal.SIGKILL)
    await asyncio.to_thread(client.communicate, None, 20)
    assert client.returncode == 137


@pytest.mark.host
async def test_exec_where_nothing_runs(boxes: Boxes) -> None:
    box = boxes("true")
    with pytest.raises(NotFoundError, match="not running"):
        terminal.execute(box.socket, ["true"])
    task = await box.start()
    with pytest.raises(Exception, match="not running"):
        await asyncio.to_thread(terminal.execute, box.socket, ["true"])
    await task.start_main()
    await task.wait()


@pytest.mark.host
async def test_exec_with_a_terminal(box: Box) -> None:
    screen = Screen(box, "terminal.execute(S, ['sh'], terminal=True, stdin=True)", rows=33, columns=99)
    screen.type(b"tty; stty size; echo $TERM-$((1+1))\r")
    await screen.sees(b"/dev/pts/")
    await screen.sees(b"33 99\r\n")
    await screen.sees(b"-2\r\n")
    screen.size(44, 111)
    os.kill(screen.process.pid, signal.SIGWINCH)
    await eventually(lambda: _says(screen, b"stty size\r", b"44 111\r\n"), "the new size")
    # Its own word that it runs: between fork and exec an interrupt is lost.
    screen.type(b"sh -c 'echo be''gun; exec sleep 1000'\r")
    await screen.sees(b"begun\r\n")
    screen.type(b"\x03")  # Ctrl-C is the container's
    screen.type(b"echo still-$((2+2)); exit 5\r")
    await screen.sees(b"still-4\r\n")
    assert await screen.close() == 5


def _says(screen: Screen, question: bytes, answer: bytes) -> bool:
    screen.type(question)
    return answer in screen.read()


@pytest.mark.host
@pytest.mark.parametrize(("env", "expected"), [([], b"vt220"), (["TERM=dumb"], b"dumb")])
async def test_kind_of_terminal(box: Box, env: list[str], expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "vt220")
    _, out, _ = await box.run_client(f"terminal.execute(S, ['sh', '-c', 'echo $TERM'], env={env!r}, terminal=True)")
    assert out == expected + b"\r\n"


@pytest.mark.host
async def test_killed_client_hangs_the_terminal_up(box: Box) -> None:
    screen = Screen(box, "terminal.execute(S, ['sh', '-c', 'sleep 4713.25'], terminal=True, stdin=True)")
    await eventually(lambda: _running("sleep 4713.25"), "the command")
    screen.process.kill()
    screen.process.wait()
    os.close(screen.master)
    await eventually(lambda: not _running("sleep 4713.25"), "SIGHUP ends it")


def _running(words: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"^{words}"], stdout=subprocess.DEVNULL, check=False).returncode == 0


# attach


@pytest.mark.host
async def test_run_with_a_terminal_detach_and_attach_again(boxes: Boxes) -> None:
    box = boxes("sh", terminal=True, stdin=True)
    task = await box.start()
    sign = box.directory / "attached"
    first = Screen(box, f"terminal.attach(S, start=lambda: open({str(sign)!r}, 'w').close())", rows=30, columns=90)
    await eventually(sign.exists, "attached")
    await task.start_main()
    first.type(b"stty size; tty; cd /usr; ls -l /dev/console\r")
    await first.sees(b"30 90\r\n")
    await first.sees(b"/dev/pts/0\r\n")
    await first.sees(b"/dev/console\r\n")
    first.type(b"\x10")
    await asyncio.sleep(0.05)
    first.type(b"\x11")
    assert await first.close() == 0
    assert not task.ended

    second = Screen(box, "terminal.attach(S)")
    await asyncio.sleep(0.1)
    second.type(b"pwd; exit 6\r")
    await second.sees(b"/usr\r\n")
    assert await second.close() == 6
    assert (await task.wait()).status == 6
    assert "/usr\r" in box.output, "the log has the terminal's output too"


@pytest.mark.host
async def test_two_watch_one_terminal(boxes: Boxes) -> None:
    box = boxes("sh", terminal=True, stdin=True)
    task = await box.start()
    await task.start_main()
    one, two = Screen(box, "terminal.attach(S)"), Screen(box, "terminal.attach(S)")
    await eventually(lambda: _says(one, b"echo $((3+4))-\r", b"7-\r\n") and b"7-\r\n" in two.read(), "one's words")
    two.type(b"exit 2\r")
    assert (await one.close(), await two.close()) == (2, 2)


@pytest.mark.host
async def test_command_may_close_its_terminal(boxes: Boxes) -> None:
    script = "exec </dev/null >/dev/null 2>&1; sleep 0.2; exec >/dev/console; echo back; exit 3"
    box = boxes("sh", "-c", script, terminal=True)
    task = await box.start()
    await task.start_main()
    assert (await task.wait()).status == 3
    assert box.output == "back\r\n"


@pytest.mark.host
async def test_terminal_is_restored_when_the_client_is_terminated(boxes: Boxes) -> None:
    box = boxes("sh", terminal=True, stdin=True)
    task = await box.start()
    await task.start_main()
    screen = Screen(box, "terminal.attach(S)")
    await eventually(lambda: _says(screen, b"echo $((3+4))-\r", b"7-\r\n"), "attached")
    screen.process.terminate()
    assert await screen.close() == 143
    assert not task.ended


@pytest.mark.host
async def test_last_words_of_a_terminal(boxes: Boxes) -> None:
    for _ in range(5):
        box = boxes("sh", "-c", "seq 1 3000; exit 2", terminal=True)
        status, out, _ = await run_attached(box, "stdin=False, ")
        assert status == 2
        assert out.split(b"\r\n") == [str(n).encode() for n in range(1, 3001)] + [b""]


# The detach keys alone


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-a,d", b"\x01d"), ("ctrl-[", b"\x1b"), ("", b"")],
)
def test_keys_in_dockers_notation(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", ",", "é", "ctrl-pq"])
def test_wrong_keys(text: str) -> None:
    with pytest.raises(CallerError, match="detach key"):
        parse_keys(text)


@given(st.lists(st.binary(max_size=4).map(lambda some: bytes(b"\x10\x11ab"[one % 4] for one in some))), st.booleans())
def test_keys_are_found_in_any_pieces(pieces: list[bytes], twice: bool) -> None:
    keys = b"\x10\x10\x11" if twice else b"\x10\x11"
    watch, passed, detached = KeyWatch(keys), b"", False
    for piece in pieces:
        some, detached = watch.feed(piece)
        passed += some
        if detached:
            break
    whole = b"".join(pieces)
    assert detached == (keys in whole)
    if detached:
        assert passed == whole.partition(keys)[0]
    else:
        assert whole.startswith(passed)
        assert keys.startswith(whole[len(passed) :]), "only what may be the beginning of the keys is held back"


@pytest.mark.host
async def test_shim_path_is_beside_the_package() -> None:
    assert os.access(tasks.shim_path(), os.X_OK)

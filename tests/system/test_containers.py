"""The life of containers on a host, as a person runs, looks at and ends them; with Docker's words, Docker's meaning."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.operator import DEADLINE_S, eventually
from tests.system.typed import networks, refused, run, typed
from vxnet.lab import Lab
from vxnet.model.api import NetworkCreate
from vxnet.model.container import Container, ContainerSpec, NetworkWish
from vxnet.model.errors import NotFoundError

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def plain(shared_lab: Lab) -> Iterator[None]:
    with networks(shared_lab, NetworkCreate(name="plain", attachable=True)):
        yield


@pytest.fixture(autouse=True)
def clean(lab: Lab, plain: None) -> Iterator[None]:
    """What a test leaves is taken away."""
    yield
    client = lab.client("h2")
    for container in client.containers(all=True):
        with contextlib.suppress(NotFoundError):  # --rm was faster
            client.remove(container.id, force=True)


def sleeper(lab: Lab, host: str, name: str, *networks: str, argv: tuple[str, ...] = ("sleep", "infinity")) -> Container:
    wishes = tuple(NetworkWish(network=network) for network in networks)
    return lab.client(host).create_container(ContainerSpec(name=name, argv=argv, networks=wishes), start=True)


def trapper(lab: Lab, host: str, name: str, trap: str) -> None:
    """A container whose shell has set ``trap`` when this returns."""
    sleeper(lab, host, name, argv=("sh", "-c", f"{trap}; echo up; while :; do sleep 0.05; done"))
    eventually(lambda: "up" in typed(lab, host, f"vxnet logs {name}"))


def inspected(lab: Lab, host: str, name: str) -> Container:
    return lab.client(host).container(name)


# Exit statuses


def test_run_ends_as_its_command_does(lab: Lab) -> None:
    for command, status in {
        "true": 0,
        "false": 1,
        "sh -c 'exit 42'": 42,
        "/etc/passwd": 126,
        "/no/such/program": 127,
        "nosuchprogram": 127,
        # The first process of a pid namespace cannot end itself so; its child can.
        "sh -c 'sh -c \"kill -9 \\$\\$\"; exit $?'": 137,
    }.items():
        typed(lab, "h2", f"vxnet run --rm --network plain -- {command}", status)
    for wrong in ("--nosuch -- true", "--network nosuch -- true", "--name 'a b' -- true", "", "-w etc -- true"):
        refused(lab, "h2", f"vxnet run --rm {wrong}", 125)
    assert lab.client("h2").containers(all=True) == (), "--rm of a command that failed left something"


def test_a_detached_command_that_cannot_run_is_told_at_once(lab: Lab) -> None:
    assert "/no/such" in refused(lab, "h2", "vxnet run -d --rm --name missing -- /no/such", 127)
    assert typed(lab, "h2", "vxnet ps -aq") == ""
    assert "/no/such" in refused(lab, "h2", "vxnet run -d --name missing -- /no/such", 127)
    assert inspected(lab, "h2", "missing").exit_status == 127


def test_stop_and_kill(lab: Lab) -> None:
    sleeper(lab, "h2", "plain-sleep", "plain")
    sleeper(lab, "h2", "killed", "plain")
    trapper(lab, "h2", "polite", "trap 'echo bye; exit 7' TERM")
    trapper(lab, "h2", "stubborn", "trap '' TERM")
    assert typed(lab, "h2", "vxnet stop plain-sleep polite; vxnet kill killed") == "plain-sleep\npolite\nkilled\n"
    before = time.monotonic()
    typed(lab, "h2", "vxnet stop -t 1 stubborn")
    assert 1 <= time.monotonic() - before < 1 + DEADLINE_S
    assert typed(lab, "h2", "vxnet wait plain-sleep polite killed stubborn").split() == ["143", "7", "137", "137"]
    assert typed(lab, "h2", "vxnet logs polite") == "up\nbye\n"
    assert typed(lab, "h2", "vxnet stop polite") == "polite\n", "stopping twice is no error"
    assert "not running" in refused(lab, "h2", "vxnet kill polite")
    assert "not running" in refused(lab, "h2", "vxnet exec polite true")
    listed = typed(lab, "h2", "vxnet ps -a")
    assert re.search(r"Exited \(143\).*plain-sleep\n", listed) and re.search(r"Exited \(7\).*polite\n", listed)
    assert typed(lab, "h2", "vxnet ps -q") == ""


def test_a_signal_of_ones_choice(lab: Lab) -> None:
    trapper(lab, "h2", "catcher", "trap 'exit 3' USR1")
    for wrong in ("NOSUCH", "99", "0"):
        assert wrong in refused(lab, "h2", f"vxnet kill -s {wrong} catcher")
    typed(lab, "h2", "vxnet kill -s SIGUSR1 catcher")
    assert typed(lab, "h2", "vxnet wait catcher") == "3\n"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_foreground_run_passes_signals_on(lab: Lab, number: signal.Signals, status: int) -> None:
    argv = ["vxnet", "run", "--rm", "--name", "front", "--network", "plain", "--", "sleep", "infinity"]
    with lab.popen("h2", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as front:
        eventually(lambda: lab.client("h2").containers())
        front.send_signal(number)
        stdout, stderr = front.communicate(timeout=DEADLINE_S)
    assert (front.returncode, stdout, stderr) == (status, b"", b"")
    assert lab.client("h2").containers(all=True) == (), "--rm keeps its promise before run comes back"


def test_a_killed_client_takes_nothing_with_it(lab: Lab) -> None:
    argv = ["vxnet", "run", "--rm", "--name", "front", "--network", "plain", "--", "sleep", "infinity"]
    with lab.popen("h2", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as front:
        eventually(lambda: lab.client("h2").containers())
        front.kill()
    assert typed(lab, "h2", "vxnet exec front echo alive") == "alive\n"


# Names, rm


def test_names_and_the_beginnings_of_ids(lab: Lab) -> None:
    id = typed(lab, "h2", "vxnet run -d --name first --network plain -- sleep infinity").strip()
    assert re.fullmatch("[0-9a-f]{64}", id)
    line = refused(lab, "h2", "vxnet run -d --name first -- true", 125)
    assert "first" in line and id[:12] in line
    for ref in (id, id[:12], id[:5], "first"):
        assert typed(lab, "h2", f"vxnet exec {ref} echo there") == "there\n"
    assert "no" in refused(lab, "h2", "vxnet exec fir true"), "the beginning of a name is no name"
    typed(lab, "h2", f"vxnet stop -t 0 {id[:6]}")
    assert "first" in refused(lab, "h2", "vxnet run -d --name first -- true", 125), "an ended container keeps its name"
    typed(lab, "h2", "vxnet rm first && vxnet run --rm --name first -- true")


def test_rm(lab: Lab) -> None:
    for name in ("one", "two", "three"):
        sleeper(lab, "h2", name, "plain")
    line = refused(lab, "h2", "vxnet rm one")
    assert "one" in line and "-f" in line
    assert "nobody" in refused(lab, "h2", "vxnet rm nobody")
    done = run(lab, "h2", "vxnet rm -f one nobody two")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), "what is gone need not go"
    assert done.stderr.count("\n") == 1 and "nobody" in done.stderr
    assert typed(lab, "h2", 'vxnet ps -a --format json | grep -o \'"name":"[a-z]*"\'') == '"name":"three"\n'


def test_wait_waits(lab: Lab) -> None:
    # Long enough for `wait` to be there before the end, also where an interpreter takes a second to start.
    script = "vxnet run -d --rm --name w -- sh -c 'sleep 4; exit 9' >/dev/null; vxnet wait w"
    assert typed(lab, "h2", script) == "9\n"
    assert lab.client("h2").containers(all=True) == ()
    assert "nobody" in refused(lab, "h2", "vxnet wait nobody")


# Streams, environment, log


def test_standard_input_only_with_i(lab: Lab) -> None:
    assert typed(lab, "h2", "echo said | vxnet run --rm -i -- cat") == "said\n"
    assert typed(lab, "h2", "echo said | vxnet run --rm -- cat") == ""
    refused(lab, "h2", "echo said | vxnet run --rm -it -- cat", 125)
    octets = typed(
        lab, "h2", "head -c 3000000 /dev/zero | vxnet run --rm -i -- sh -c 'cat; echo err >&2' 2>/dev/null | wc -c"
    )
    assert octets.strip() == "3000000"


def test_environment_directory_and_hostname(lab: Lab) -> None:
    script = "OWN=mine vxnet run --rm --hostname web-1 -e A=1 -e B= -e OWN -e UNSET -e A=2 -w /made/here -- sh -c "
    inside = "'echo $A,$B,$OWN,${UNSET-unset}; pwd; hostname; cat /etc/hostname; getent hosts web-1 | wc -l'"
    assert typed(lab, "h2", script + inside).split() == ["2,,mine,unset", "/made/here", "web-1", "web-1", "1"]
    assert "relative" in refused(lab, "h2", "vxnet run --rm -w relative -- pwd", 125)
    for name in ("'a b'", "x" * 65, "-a", "a..b"):
        assert "hostname" in refused(lab, "h2", f"vxnet run --rm --hostname={name} -- true", 125)


def test_what_a_container_writes_is_its_own(lab: Lab) -> None:
    sleeper(lab, "h2", "writer")
    typed(
        lab, "h2", "vxnet exec writer sh -c 'echo x > /root/written; rm /etc/passwd; test ! -e /var/lib/vxnet/node.key'"
    )
    typed(lab, "h2", "test ! -e /root/written && test -e /etc/passwd && test -e /var/lib/vxnet/node.key")


def test_exec(lab: Lab) -> None:
    sleeper(lab, "h2", "box", "plain")
    assert typed(lab, "h2", "echo in | vxnet exec -i box cat") == "in\n"
    assert typed(lab, "h2", "vxnet exec -w /usr -e A=5 box sh -c 'pwd; echo $A'") == "/usr\n5\n"
    for command, status in {"sh -c 'exit 3'": 3, "nosuch": 127, "/etc/passwd": 126, "sh -c 'kill -9 $$'": 137}.items():
        typed(lab, "h2", f"vxnet exec box {command}", status)
    assert "ends here" in typed(lab, "h2", "vxnet exec box -- sh -c 'sleep 300 >/dev/null 2>&1 & echo ends here'")
    assert "nobody" in refused(lab, "h2", "vxnet exec nobody true")


def test_logs(lab: Lab) -> None:
    argv = (
        "sh",
        "-c",
        "echo out; echo err >&2; printf 'no end'; until test -e /go; do sleep 0.02; done; echo; echo last",
    )
    sleeper(lab, "h2", "talker", argv=argv)
    eventually(lambda: run(lab, "h2", "vxnet logs talker 2>&1").stdout.count("\n") >= 2)
    with lab.popen("h2", ["vxnet", "logs", "-f", "talker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"out\n"
        typed(lab, "h2", "vxnet exec talker touch /go")
        rest, errors = follower.communicate(timeout=DEADLINE_S)
    assert (follower.returncode, rest, errors) == (0, b"no end\nlast\n", b"err\n")
    assert typed(lab, "h2", "vxnet logs talker 2>/dev/null") == "out\nno end\nlast\n"
    assert typed(lab, "h2", "vxnet logs talker 2>&1 >/dev/null") == "err\n"


# A terminal


def test_run_it_detach_and_attach(lab: Lab) -> None:
    with terminal(lab, "h2", "vxnet run -it --name shell --network plain -- sh") as master:
        converse(master, "stty size; tty; echo $((6 * 7)), of $TERM\n", r"33 99\r\n/dev/pts/\d+\r\n42, of \w+\r\n")
        # Its own word that it runs: between fork and exec an interrupt is lost.
        converse(master, "sh -c 'echo be''gun; exec sleep 300'\n", "begun\r\n")
        converse(master, "\x03", r"\^C\r\n")
        converse(master, "echo $? is interrupted\n", "130 is interrupted\r\n")
        converse(master, "kept=this\n", "kept=this\r\n")
        os.write(master, b"\x10\x11")
        assert ended(master) == 0
    with terminal(lab, "h2", "vxnet attach shell") as master:
        converse(master, "echo $kept\n", "this\r\n")
        os.write(master, b"exit 5\n")
        assert ended(master) == 5
    assert inspected(lab, "h2", "shell").exit_status == 5


def test_exec_it(lab: Lab) -> None:
    sleeper(lab, "h2", "box", "plain")
    with terminal(lab, "h2", "vxnet exec -it box sh") as master:
        converse(master, "stty size; hostname\n", r"33 99\r\n[0-9a-f]{12}\r\n")
        os.write(master, b"\x04")
        assert ended(master) == 0


@contextlib.contextmanager
def terminal(lab: Lab, host: str, command: str) -> Iterator[int]:
    """A terminal of 33 lines of 99 columns on which ``command`` runs; then it says its status."""
    pid, master = pty.fork()
    if pid == 0:  # pragma: no cover
        words = [sys.executable, "-m", "vxnet", "lab", "exec", "--name", lab.name, host, "--", "sh", "-c"]
        os.execv(sys.executable, [*words, f"{command}; echo status=$?."])
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        yield master
    finally:
        os.close(master)
        os.waitpid(pid, 0)


def converse(master: int, said: str, answer: str) -> str:
    """Types, and reads until ``answer`` has come."""
    os.write(master, said.encode())
    return heard(master, answer)


def heard(master: int, answer: str) -> str:
    text = ""
    deadline = time.monotonic() + DEADLINE_S
    while not re.search(answer, text):
        ready, _, _ = select.select([master], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{answer!r} did not come; this did: {text!r}"
        text += os.read(master, 65536).decode(errors="replace")
    return text


def ended(master: int) -> int:
    found = re.search(r"status=(\d+)\.", heard(master, r"status=\d+\."))
    assert found
    return int(found[1])


# Many at once


def test_of_five_that_want_one_name_one_gets_it(lab: Lab) -> None:
    one = "(vxnet run -d --name same --network plain -- sleep infinity 2>&1; echo $?) &"
    done = typed(lab, "h2", f"for i in 1 2 3 4 5; do {one} done; wait")
    assert sorted(re.findall(r"^\d{1,3}$", done, re.MULTILINE)) == ["0", "125", "125", "125", "125"], done
    (view,) = lab.client("h2").containers(all=True)
    assert view.name == "same"


def test_many_at_once_have_addresses_of_their_own(lab: Lab) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            sleeper(lab, "h2", "", "plain")
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    views = lab.client("h2").containers()
    assert len({address for view in views for address in view.addresses}) == len({view.name for view in views}) == 20
    # All of them taken away at once, some twice.
    typed(lab, "h2", "vxnet ps -q | xargs -P 4 -n 5 vxnet rm -f >/dev/null")
    assert lab.client("h2").containers(all=True) == ()


def test_ended_and_removed_at_the_same_moment(lab: Lab) -> None:
    """--rm and `rm -f`, `stop` and the command's own end: whoever comes second finds it done."""
    for _ in range(10):
        id = lab.client("h2").create_container(ContainerSpec(argv=("sleep", "0.02"), remove=True), start=True).id
        done = run(lab, "h2", f"vxnet stop {id} & vxnet rm -f {id} & wait")
        assert all("no container" in line for line in done.stderr.splitlines()), done.stderr
        eventually(lambda: lab.client("h2").containers(all=True) == ())

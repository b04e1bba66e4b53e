"""``down`` and a failed ``up`` leave a machine as it was: namespaces, links, mounts, tables, cgroups, processes, files.

The machine is a host of another lab, so that the comparison is exact whatever else runs here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import killed, picture, stand_in
from vxnet.lab import Lab

pytestmark = pytest.mark.lab

PYTHON = sys.executable
ROOT = str(Path(__file__).parent.parent.parent)
STAND_IN = json.dumps([PYTHON, stand_in.__file__])

UP = """
import json, sys
from vxnet.lab import operations
name, argv = sys.argv[1], json.loads(sys.argv[2])
operations.create(name, hosts=2, outside=1, join=False, daemon_argv=argv)
"""
DOWN = "import sys; from vxnet.lab import down; print(*down(name=sys.argv[1]))"


class Computer:
    """A machine to itself, on which labs are made."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def picture(self) -> dict[str, list[str]]:
        done = self.lab.run("h1", [PYTHON, picture.__file__], check=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def python(self, code: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.lab.run("h1", [PYTHON, "-c", code, *argv], check=check, cwd=ROOT)

    def popen(self, code: str, *argv: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return self.lab.popen("h1", [PYTHON, "-c", code, *argv], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def wait_as(self, before: dict[str, list[str]]) -> None:
        """The kernel takes namespaces apart in its own time."""
        deadline = time.monotonic() + 10
        while (after := self.picture()) != before and time.monotonic() < deadline:
            time.sleep(0.05)
        changed = {what: sorted(set(after[what]) ^ set(before[what])) for what in before if after[what] != before[what]}
        assert changed == {}


@pytest.fixture(scope="module")
def computer() -> Iterator[Computer]:
    with Lab(hosts=1, daemon_argv=()) as outer:
        # Its link-local address comes by itself, a moment after the link.
        outer.run(
            "h1", ["sh", "-c", "until ip -6 address show dev eth1 -tentative | grep -q fe80; do :; done"], check=True
        )
        yield Computer(outer)


def test_up_and_down(computer: Computer) -> None:
    before = computer.picture()
    computer.python(UP, "one", STAND_IN)
    during = computer.picture()
    for what in ("namespaces", "named namespaces", "cgroups", "processes", "files"):
        assert during[what] != before[what], f"{what} shows no lab"
    for what in ("links", "addresses", "routes", "nft", "mounts"):
        assert during[what] == before[what], f"a lab shows in the machine's own {what}"
    assert computer.python(DOWN, "one").stdout == "one\n"
    computer.wait_as(before)
    assert computer.python(DOWN, "one").stdout == "\n", "`down` of nothing is no failure"
    computer.wait_as(before)


def test_down_after_every_daemon_was_killed(computer: Computer) -> None:
    before = computer.picture()
    computer.python(UP, "one", STAND_IN)
    computer.lab.run("h1", ["pkill", "-KILL", "-f", "stand_in.py"], check=True)
    computer.python(DOWN, "one")
    computer.wait_as(before)


@pytest.mark.slow
def test_down_of_a_lab_at_work(computer: Computer) -> None:
    """Real daemons with a network and containers on it, and SIGKILL of all daemons before ``down``."""
    before = computer.picture()
    code = """
from vxnet.lab import Lab
lab = Lab("one", hosts=2).up()
lab.run("h1", ["vxnet", "network", "create", "-d", "overlay", "--attachable", "net"], check=True)
lab.run("h1", ["vxnet", "run", "-d", "--name", "one", "--network", "net", "--", "sleep", "1000"], check=True)
lab.run("h2", ["vxnet", "run", "--rm", "--network", "net", "--", "ping", "-c1", "-W5", "one"], check=True)
lab.run("h2", ["vxnet", "run", "-d", "--name", "two", "--network", "net", "--", "sleep", "1000"], check=True)
for host in lab.hosts:
    lab.kill(host, daemon=True)
"""
    computer.python(code)
    computer.python(DOWN, "one")
    computer.wait_as(before)


def test_labs_side_by_side_and_one_down(computer: Computer) -> None:
    before = computer.picture()
    computer.python(UP, "one", "[]")
    with_one = computer.picture()
    computer.python(UP, "two", STAND_IN)
    computer.python(DOWN, "two")
    computer.wait_as(with_one)
    computer.python("from vxnet.lab import Lab; Lab('one').run('h1', ['ping', '-c1', '-W2', 'h2'], check=True)")
    computer.python("from vxnet.lab import down; down(all=True)")
    computer.wait_as(before)


def test_up_that_fails(computer: Computer) -> None:
    before = computer.picture()
    failing = json.dumps([PYTHON, stand_in.__file__, "--fail"])
    done = computer.python(UP, "one", failing, check=False)
    assert "the daemon of h" in done.stderr
    assert "no such luck" in done.stderr
    computer.wait_as(before)


def test_up_refuses_a_name_that_is_taken(computer: Computer) -> None:
    computer.python(UP, "one", "[]")
    with_one = computer.picture()
    done = computer.python(UP, "one", "[]", check=False)
    assert "ConflictError: there is a lab 'one' already" in done.stderr
    computer.wait_as(with_one)
    computer.python(DOWN, "one")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("join", ["join", "no-join"])
def test_up_that_is_interrupted(computer: Computer, number: signal.Signals, join: str) -> None:
    before = computer.picture()
    code = """
import functools, sys
from vxnet.lab import operations, up
operations.create.__kwdefaults__["daemon_argv"] = ("sleep", "1000")
up(name="one", hosts=2, join=sys.argv[1] == "join", progress=functools.partial(print, flush=True))
"""
    with computer.popen(code, join) as child:
        assert child.stdout
        assert child.stdout.readline() == "starting h1, h2\n"
        if join == "join":
            assert child.stdout.readline() == "h1 makes a cluster, the others join\n"
        child.send_signal(number)
        child.communicate(timeout=10)
    assert child.returncode != 0
    computer.wait_as(before)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_up_that_was_killed_anywhere(computer: Computer, rng: random.Random) -> None:
    """SIGKILL of ``lab up`` at calls of its functions all over its course; then ``down``."""
    before = computer.picture()
    argv = [PYTHON, killed.__file__]

    def up(last: int) -> subprocess.CompletedProcess[str]:
        return computer.lab.run("h1", [*argv, str(last), "one"], cwd=ROOT, env={"PYTHONPATH": ROOT})

    whole = up(0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout.split()[0])
    computer.python(DOWN, "one")
    computer.wait_as(before)

    points = int(os.environ.get("VXNET_KILL_POINTS", "24"))
    step = calls / points
    whole_again = 0
    for point in range(points):
        last = int(point * step + rng.random() * step) + 1
        done = up(last)
        computer.python(DOWN, "one")
        if done.returncode == 0:  # waiting makes more calls or fewer, as the machine is busy or not
            assert last > int(done.stdout.split()[0]), f"call {last} was made, and nobody was killed"
            whole_again += 1
        try:
            computer.wait_as(before)
        except AssertionError as error:
            error.add_note(f"killed at call {last} of {calls}")
            raise
    assert whole_again < points / 2


# Private, or unmounting what hangs below would unmount it in its first place too.
_CHROOT = """
mount -t tmpfs none /mnt
mkdir /mnt/deep /mnt/deep/mnt
for path in /*; do
    if [ ! -d $path ] || [ -L $path ]; then cp -d $path /mnt/deep
    elif [ $path != /mnt ]; then mkdir -p /mnt/deep$path; mount --rbind --make-rprivate $path /mnt/deep$path
    fi
done
echo chroot >/mnt/deep/here
"""


def test_in_a_chroot(computer: Computer) -> None:
    """There, / is no mount point, and whoever enters a namespace of mounts would land outside."""
    before = computer.picture()
    computer.lab.run("h1", ["sh", "-euc", _CHROOT], check=True)
    code = """
import sys
from vxnet.lab import Lab
with Lab("one", hosts=2, join=False, daemon_argv=sys.argv[1:]) as lab:
    print(lab.client("h2").info().name, lab.run("h2", ["cat", "/here", "/etc/hostname"], check=True).stdout.split())
    lab.run("h1", ["ping", "-c1", "-W2", "h2"], check=True)
"""
    argv = ["chroot", "/mnt/deep", PYTHON, "-c", code, PYTHON, stand_in.__file__]
    done = computer.lab.run("h1", argv, check=True, cwd=ROOT, env={"PYTHONPATH": ROOT})
    assert done.stdout == "h2 ['chroot', 'h2']\n"
    computer.lab.run("h1", ["umount", "-R", "/mnt"], check=True)
    computer.wait_as(before)


def test_many_at_once(computer: Computer) -> None:
    """Labs come and go beside each other, and two that want one name do not get it both."""
    before = computer.picture()
    code = """
import sys
from vxnet.lab import Lab
from vxnet.model.errors import ConflictError
for turn in range(6):
    for name in (sys.argv[1], "contested"):
        try:
            with Lab(name, hosts=2, daemon_argv=()) as lab:
                lab.run("h1", ["ping", "-c1", "-W5", "h2"], check=True)
        except ConflictError:
            assert name == "contested"
"""
    children = [computer.popen(code, f"lab{number}") for number in range(4)]
    for child in children:
        assert (child.communicate(timeout=60)[1], child.returncode) == ("", 0)
    computer.wait_as(before)


def test_nothing_on_this_very_machine(make_lab: Callable[..., Lab]) -> None:
    """The same without a machine around it, as far as it can be told from others' doings: by the lab's name."""
    lab = make_lab(hosts=2, daemon_argv=[PYTHON, stand_in.__file__], join=False)
    assert _traces(lab.name)
    lab.down()
    assert _traces(lab.name) == []


def _traces(name: str) -> list[str]:
    places = {
        "/run/vxnet-lab": f"{name}*",
        "/var/lib/vxnet-lab": name,
        "/run/netns": f"vxnet-lab-{name}*",
        "/sys/fs/cgroup": f"**/vxnet-lab-{name}",
    }
    found = [str(path) for place, pattern in places.items() for path in Path(place).glob(pattern)]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"vxnet-lab-{name}/" in (path / "cgroup").read_text() or name in (path / "mountinfo").read_text():
                found.append(f"process {path.name}")
        except OSError:  # it ended
            continue
    return found

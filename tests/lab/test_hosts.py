"""What a host of a lab is, and what can be done to it. Without a real daemon: a stand-in where one is wanted."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from tests.lab import stand_in
from vxnet.lab import Lab, Machine, ls, operations, process, state
from vxnet.lab.boot import SYSTEM_PATH
from vxnet.model.errors import CallerError, ConflictError, ForbiddenError, HostError, NotFoundError, UnavailableError

pytestmark = pytest.mark.lab

STAND_IN = [sys.executable, stand_in.__file__]
VXNET = [sys.executable, "-m", "vxnet"]


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    """Two hosts and an outside machine, with nothing running on them."""
    with Lab(hosts=2, outside=1, daemon_argv=()) as lab:
        yield lab


def sh(lab: Lab, host: str, script: str) -> str:
    return lab.run(host, ["sh", "-euc", script], check=True).stdout.strip()


def reaches(lab: Lab, host: str, other: str) -> bool:
    """Within ten seconds: the machine may be busy, and ARP that has asked in vain gives up on what waits for it."""
    deadline = time.monotonic() + 10
    while (cut_off := is_cut_off(lab, host, other)) and time.monotonic() < deadline:
        pass
    return not cut_off


def is_cut_off(lab: Lab, host: str, other: str) -> bool:
    return lab.run(host, ["ping", "-n", "-c1", "-W1", other]).returncode != 0


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------------- what it is


def test_names_and_addresses(plain: Lab) -> None:
    assert [sh(plain, host, "hostname; cat /etc/hostname") for host in ("h1", "x1")] == ["h1\nh1", "x1\nx1"]
    links = json.loads(sh(plain, "h2", "ip -j -d link"))
    assert [link["ifname"] for link in links] == ["lo", "eth1"]
    assert links[1]["mtu"] == 1500
    assert sh(plain, "h2", "ls /sys/class/net").split() == ["eth1", "lo"]
    assert "192.168.56.12/24" in sh(plain, "h2", "ip -br address show dev eth1")
    assert sh(plain, "h2", "ip route") == "192.168.56.0/24 dev eth1 proto kernel scope link src 192.168.56.12"
    for host in ("h1", "x1", "h2"):
        assert reaches(plain, "h2", host)
    assert str(plain["x1"].address) == "192.168.56.101"


def test_ipv6_and_mtu() -> None:
    with Lab(hosts=2, daemon_argv=(), ipv6=True, mtu=9000) as lab:
        assert [str(address) for address in lab["h2"].addresses] == ["192.168.56.12", "fd56::12"]
        assert reaches(lab, "h1", "h2")
        whole = ["ping", "-n", "-c3", "-i0.3", "-w10", "-Mdo", "-s8952", "fd56::12"]
        lab.run("h1", whole, check=True)
        assert lab.run("h1", ["ping", "-n", "-c1", "-W1", "-Mdo", "-s8953", "fd56::12"]).returncode != 0


def test_a_host_has_its_own_files_and_not_the_labs(plain: Lab) -> None:
    for path in ("/var/lib/vxnet", "/etc/vxnet", "/run", "/tmp", "/dev/shm"):
        sh(plain, "h1", f"echo mine >{path}/probe")
        assert sh(plain, "h1", f"cat {path}/probe") == "mine"
        assert not os.path.exists(f"{path}/probe")
        assert plain.run("h2", ["test", "-e", f"{path}/probe"]).returncode == 1
    assert sh(plain, "h1", "ls -A /var/lib/vxnet-lab") == "", "a host sees the disks of others"


def test_cgroup_is_a_root_of_its_own(plain: Lab) -> None:
    assert "\n0::/init" in sh(plain, "h1", "cat /proc/self/cgroup")
    assert sh(plain, "h1", "stat -f -c %T /sys/fs/cgroup") == "cgroup2fs"
    sh(
        plain,
        "h1",
        "mkdir /sys/fs/cgroup/mine; sh -c 'echo 0 >/sys/fs/cgroup/mine/cgroup.procs; cat /proc/self/cgroup'",
    )
    assert plain.run("h2", ["test", "-e", "/sys/fs/cgroup/mine"]).returncode == 1


def test_orphans_are_reaped(plain: Lab) -> None:
    sh(plain, "h1", "for i in 1 2 3; do setsid -f sleep 0.01; done; sleep 0.1")
    assert "Z" not in sh(plain, "h1", "ps -eo stat=")


def test_mounts_made_on_a_host_are_there_for_all_of_it(plain: Lab) -> None:
    sh(plain, "h1", "ip netns add apart; ip -n apart link set lo up")
    assert sh(plain, "h1", "ip netns list") == "apart"
    assert "LOOPBACK,UP" in sh(plain, "h1", "ip -n apart -br link show lo")
    assert "apart" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_names_for_ip_n(plain: Lab) -> None:
    def ports(name: str) -> str:
        return subprocess.run(["ip", "-n", name, "-br", "link"], capture_output=True, text=True, check=True).stdout

    assert "underlay" in ports(f"vxnet-lab-{plain.name}")
    assert "eth1" in ports(f"vxnet-lab-{plain.name}.h1")


# ------------------------------------------------------------------------------------------------- running commands


def test_exit_status_and_streams(plain: Lab) -> None:
    done = plain.run("h1", ["sh", "-c", "cat; echo wrong >&2; exit 7"], input="hello")
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "wrong\n", 7)
    assert plain.run("h1", ["sh", "-c", "kill -9 $$"]).returncode == -signal.SIGKILL


def test_check_says_what_was_said(plain: Lab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        plain.run("h1", ["sh", "-c", "echo the reason >&2; exit 3"], check=True)
    assert "the reason" in caught.value.__notes__[0]


def test_environment(plain: Lab) -> None:
    variables = dict(line.split("=", 1) for line in plain.run("h1", ["env"], env={"MINE": "1"}).stdout.splitlines())
    assert variables["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert set(SYSTEM_PATH.split(":")) <= set(variables["PATH"].split(":"))
    assert variables["MINE"] == "1"
    assert "VXNET_SOCKET" not in variables
    assert plain.run("h1", ["vxnet", "version"]).returncode == 0


def test_names_of_programs(plain: Lab) -> None:
    sh(plain, "h1", "printf '#!/bin/sh\\necho $0' >/tmp/program; chmod +x /tmp/program")
    assert plain.run("h1", ["./program"], cwd="/tmp").stdout == "./program\n"
    assert plain.run("h1", ["/tmp/program"]).stdout == "/tmp/program\n"
    assert plain.run("h1", ["program"], env={"PATH": "/tmp:/usr/bin:/bin"}).stdout == "/tmp/program\n"
    assert plain.run("h1", ["sh", "-c", "cat /proc/$$/cmdline"]).stdout.startswith("sh\0")


def test_working_directory_is_kept_if_it_is_there(plain: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr/share")
    assert sh(plain, "h1", "pwd") == "/usr/share"
    sh(plain, "h1", "mkdir -p /tmp/only-there")
    assert plain.run("h1", ["pwd"], cwd="/tmp/only-there").stdout == "/tmp/only-there\n"
    monkeypatch.chdir("/proc/self")
    assert sh(plain, "h1", "pwd") == "/"


def test_no_such_program(plain: Lab) -> None:
    with pytest.raises(NotFoundError, match="no such program on h1: surely-not"):
        plain.run("h1", ["surely-not"])
    with pytest.raises(CallerError, match="nothing to run"):
        plain.run("h1", [])


def test_timeout_kills_the_program(plain: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        plain.run("h1", ["sleep", "1001"], timeout_s=0.2)
    assert plain.run("h1", ["pgrep", "-f", "sleep 1001"]).returncode == 1


def test_interrupt_ends_the_program(plain: Lab) -> None:
    """And nobody is left unreaped: the host could not be ended before that."""

    def interrupt() -> None:
        wait_until(lambda: bool(plain.run("h1", ["pgrep", "-x", "tail"]).stdout))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        plain.run("h1", ["tail", "-f", "/dev/null"])
    thread.join()
    assert plain.run("h1", ["ps", "-C", "tail", "-o", "stat="]).stdout == ""


def test_what_popen_starts_is_the_program_itself(plain: Lab) -> None:
    with plain.popen(
        "h1",
        ["sh", "-c", "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.terminate()
        assert child.stdout.read() == "caught\n"
    assert child.returncode == 5


class Typist:
    """A person at a terminal in which a program runs."""

    def __init__(self, *argv: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="dumb", PS1="$ ", SHELL="/bin/sh", ENV="")
            os.execvp(argv[0], argv)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.terminal], [], [], left)[0], f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.terminal, 4096).decode().replace("\r", "")
        self.seen = self.seen[found.end() :]
        return found

    def status(self) -> int:
        try:
            while os.read(self.terminal, 4096):
                pass
        except OSError:  # EIO: the other side is closed
            pass
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_works_in_exec(plain: Lab) -> None:
    typist = Typist(
        *VXNET, "lab", "exec", "--name", plain.name, "h1", "--", "sh", "-c", "tty; read line; echo got $line; exit 4"
    )
    typist.wait_for("/dev/pts/")
    typist.type("something\n")
    typist.wait_for("got something")
    assert typist.status() == 4


def test_interrupt_reaches_the_command_and_its_status_comes_back(plain: Lab) -> None:
    script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.01; done"
    typist = Typist(*VXNET, "lab", "exec", "--name", plain.name, "h1", "--", "sh", "-c", script)
    typist.wait_for("ready")
    typist.type("\x03")
    typist.wait_for("interrupted")
    assert typist.status() == 9
    typist = Typist(*VXNET, "lab", "exec", "--name", plain.name, "h1", "--", "sleep", "1000")
    wait_until(lambda: plain.run("h1", ["pgrep", "-x", "-f", "sleep 1000"]).returncode == 0)
    typist.type("\x03")
    assert typist.status() == 128 + signal.SIGINT


def test_shell_has_job_control(plain: Lab) -> None:
    typist = Typist(*VXNET, "lab", "shell", "--name", plain.name, "h2")
    typist.type("hostname; set -o | grep monitor\n")
    typist.wait_for(r"\bh2\n")
    typist.wait_for(r"monitor +on")
    typist.type("sleep 1000\n")
    wait_until(lambda: plain.run("h2", ["pgrep", "-x", "-f", "sleep 1000"]).returncode == 0)
    typist.type("\x03echo still here\n")
    typist.wait_for(r"(?<!echo )still here\n")
    typist.type("exit 6\n")
    assert typist.status() == 6


def test_suspended_and_continued(plain: Lab) -> None:
    """Ctrl-Z in a shell with job control, as a person's: the command stops, and goes on in the foreground."""
    typist = Typist("sh", "-i")
    script = "echo ready; read a; echo got $a; read b; exit 3"
    typist.type(f"{' '.join(VXNET)} lab exec --name {plain.name} h1 -- sh -c '{script}'\n")
    typist.wait_for(r"\bready\n")
    typist.type("\x1a")
    typist.wait_for(r"(?i)stopped")
    typist.type("fg\n")
    typist.wait_for("exec")
    typist.type("one\n")
    typist.wait_for(r"\bgot one\n")
    typist.type("two\n")
    typist.type("echo status $?; exit\n")
    typist.wait_for("status 3")
    assert typist.status() == 0


def test_termination_is_handed_on(plain: Lab) -> None:
    script = "trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done"
    argv = [*VXNET, "lab", "exec", "--name", plain.name, "h1", "--", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.terminate()
    assert child.returncode == 8


# -------------------------------------------------------------------------------------------------------- the links


def test_cut_and_heal(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, daemon_argv=())
    lab.cut("h1")
    assert "NO-CARRIER" in sh(lab, "h1", "ip -br link show dev eth1")
    assert is_cut_off(lab, "h2", "h1")
    assert reaches(lab, "h2", "h3")
    assert lab.view().hosts[0].link == "cut"
    lab.heal("h1")
    assert "LOWER_UP" in sh(lab, "h1", "ip -br link show dev eth1")
    assert reaches(lab, "h2", "h1")


def test_cut_of_a_pair_is_silent_and_both_ways(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, daemon_argv=())
    assert reaches(lab, "h1", "h2")
    lab.cut("h2", "h1")
    lab.cut("h1", "h2")  # the same again
    assert is_cut_off(lab, "h1", "h2")
    assert is_cut_off(lab, "h2", "h1")
    assert reaches(lab, "h1", "h3")
    assert reaches(lab, "h3", "h2")
    assert "LOWER_UP" in sh(lab, "h1", "ip -br link show dev eth1")
    # Broadcast is cut too: nobody answers whom nobody hears.
    sh(lab, "h1", "ip neigh flush dev eth1")
    assert is_cut_off(lab, "h1", "h2")
    assert sh(lab, "h1", "ip neigh show 192.168.56.12").endswith(("FAILED", "INCOMPLETE"))
    assert lab.view().hosts[0].parted_from == ("h2",)
    lab.heal("h1", "h2")
    assert reaches(lab, "h1", "h2")
    lab.cut("h1", "h2")
    lab.cut("h1", "h3")
    lab.cut("h3")
    lab.heal()
    assert all(reaches(lab, "h1", other) for other in ("h2", "h3"))


def test_a_cut_outlives_the_host(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, daemon_argv=())
    lab.cut("h2")
    lab.kill("h2")
    lab.heal("h1")  # with a port missing
    lab.start("h2")
    assert is_cut_off(lab, "h1", "h2")
    lab.heal("h2")
    assert reaches(lab, "h1", "h2")


# ------------------------------------------------------------------------------------------------- death and return


def test_kill_takes_every_process_and_the_link(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, daemon_argv=STAND_IN, join=False)
    sh(lab, "h2", "setsid -f unshare --net --mount --pid --fork sleep 1002 >/dev/null 2>&1; ip netns add pinned")
    sh(lab, "h2", "echo kept >/var/lib/vxnet/k")
    sh(lab, "h2", "mkdir /sys/fs/cgroup/a; mount -t tmpfs none /mnt; echo volatile >/run/volatile")
    mac = sh(lab, "h2", "cat /sys/class/net/eth1/address")
    assert subprocess.run(["pgrep", "-f", "sleep 1002"], stdout=subprocess.DEVNULL, check=False).returncode == 0

    lab.kill("h2")
    assert subprocess.run(["pgrep", "-f", "sleep 1002"], check=False).returncode == 1
    ports = subprocess.run(
        ["ip", "-n", f"vxnet-lab-{lab.name}", "-br", "link"], capture_output=True, text=True, check=True
    ).stdout
    assert "h1@" in ports and "h2@" not in ports
    assert [host.status for host in lab.view().hosts] == ["up", "down"]
    with pytest.raises(UnavailableError, match="host 'h2' is down; start it with `vxnet lab start h2`"):
        lab.run("h2", ["true"])
    assert is_cut_off(lab, "h1", "h2")
    lab.kill("h2")  # dead is dead

    lab.start("h2")
    assert [host.status for host in lab.view().hosts] == ["up", "up"]
    assert reaches(lab, "h1", "h2")
    assert sh(lab, "h2", "cat /var/lib/vxnet/k") == "kept"
    assert not {"volatile", "pinned"} & set(sh(lab, "h2", "ls /run; ip netns list").split())
    assert lab.run("h2", ["mountpoint", "-q", "/mnt"]).returncode != 0
    assert sh(lab, "h2", "cat /sys/class/net/eth1/address") == mac


def test_kill_of_the_daemon_alone(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, daemon_argv=STAND_IN, join=False)
    host = lab["h1"]
    init, first = host.pid, host.daemon_pid
    assert first
    lab.kill("h1", daemon=True)
    assert lab.view().hosts[0].status == "daemon down"
    assert (host.pid, host.daemon_pid) == (init, 0)
    assert sh(lab, "h1", "pgrep -c -x sleep") == "2", "init and what the daemon had started"
    lab.start("h1")
    assert lab.view().hosts[0].status == "up"
    assert host.daemon_pid not in (0, first)
    assert lab.client("h1").info().name == "h1"
    assert host.log.read_text().count("stand-in starts") == 2
    again = host.daemon_pid
    lab.start("h1")  # it runs: nothing to do
    assert host.daemon_pid == again


def test_start_says_what_a_failing_daemon_said(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, daemon_argv=STAND_IN, join=False)
    lab.kill("h1", daemon=True)
    state.save(replace(state.load(lab.name), daemon_argv=(*STAND_IN, "--fail")))
    with pytest.raises(HostError, match=r"the daemon of h1 ended at its start: .*no such luck"):
        lab.start("h1")


def test_a_recycled_pid_is_never_signalled() -> None:
    with subprocess.Popen(["sleep", "1003"]) as bystander:
        now = process.process(bystander.pid)
        assert now and now.alive
        before = process.Process(pid=bystander.pid, started=now.started - 1)
        assert not before.alive
        assert process.kill(before)
        assert bystander.poll() is None
        assert process.kill(now)
        assert bystander.wait() == -signal.SIGKILL
    assert not now.alive


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hosts": 0}, "a lab has 1 to 90 hosts, not 0"),
        ({"hosts": 91}, "a lab has 1 to 90 hosts, not 91"),
        ({"outside": -1}, "a lab has 0 to 154 outside machines, not -1"),
        ({"mtu": 500}, "an underlay's MTU is 576 to 65535, not 500"),
        ({"mtu": 1000, "ipv6": True}, "an underlay's MTU is 1280 to 65535, not 1000"),
        ({"name": "a/b"}, "a lab cannot be named 'a/b'"),
        ({"name": "../b"}, "a lab cannot be named '../b'"),
        ({"name": "a" * 33}, "a lab cannot be named"),
        ({"name": "-x"}, "a lab cannot be named '-x'"),
    ],
)
def test_refusals(options: dict[str, object], words: str) -> None:
    with pytest.raises(CallerError, match=re.escape(words)):
        Lab(**options).up()  # type: ignore[arg-type]


def test_refusals_by_name(plain: Lab) -> None:
    with pytest.raises(NotFoundError, match=f"lab '{plain.name}' has no host 'h9'; it has h1, h2, x1"):
        plain.run("h9", ["true"])
    with pytest.raises(CallerError, match="'h1' and 'h1' are one host"):
        plain.cut("h1", "h1")
    with pytest.raises(NotFoundError, match="has no host 'h9'"):
        plain.cut("h1", "h9")
    with pytest.raises(ConflictError, match=f"there is a lab '{plain.name}' already"):
        Lab(plain.name).up()
    with pytest.raises(NotFoundError, match="there is no lab 'none-such'"):
        Lab("none-such").run("h1", ["true"])
    assert not (state.RUN / "none-such.lock").exists()
    assert plain.name in [view.name for view in ls()]


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ForbiddenError, match="a lab needs root"):
        Lab().up()
    with pytest.raises(ForbiddenError, match="a lab needs root"):
        Lab().down()


def test_without_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations.shutil, "which", lambda name, path: None if name in ("ip", "nft") else name)  # type: ignore[attr-defined]
    with pytest.raises(HostError, match="a lab needs ip, nft; apt-get install iproute2 nftables"):
        Lab().up()


def test_a_machine_is_asked_anew(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, daemon_argv=())
    host: Machine = lab["h1"]
    first = host.pid
    lab.kill("h1")
    with pytest.raises(UnavailableError):
        _ = host.pid
    lab.start("h1")
    assert host.pid != first
    assert host.netns.exists() and (host.root / "etc/hostname").read_text() == "h1\n"


def test_a_daemon_that_waits_to_be_reaped_is_none() -> None:
    """Else `lab start`, just after `lab kill --daemon`, finds one and starts none."""
    own = process.process(os.getpid())
    assert own is not None
    with subprocess.Popen(["sleep", "60"]) as child:
        assert process.inside(own, child.pid) == process.process(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.inside(own, child.pid) is None

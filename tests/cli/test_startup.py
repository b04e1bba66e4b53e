"""The command line starts in a moment, and leaves quietly when its reader does."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon, daemon

HEAVY = [
    "pyroute2",
    "aiohttp",
    "cryptography",
    "asyncio",
    "ssl",
    "http.client",
    "rich",
    "structlog",
    "dnslib",
    "vxnet.daemon",
    "vxnet.lab",
    "vxnet.core",
]
VXNET = [sys.executable, "-m", "vxnet"]


@pytest.mark.parametrize(
    "code",
    [
        "import vxnet.cli",
        "import vxnet.cli.root",
        "import vxnet.cli.cluster, vxnet.cli.network, vxnet.cli.container, vxnet.cli.run, vxnet.cli.stream",
        "import vxnet.cli.lab, vxnet.cli.program, vxnet.cluster.terminal",
    ],
)
def test_importing_brings_in_nothing_heavy(code: str) -> None:
    probe = f"import sys; {code}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert found.strip() == ""


def test_calling_a_command_loads_only_its_own_module(server: Daemon, vxnet_: Vxnet) -> None:
    probe = (
        "import sys; from vxnet.cli.root import root\n"
        "try: root.main(['ps'], 'vxnet')\n"
        "except SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('vxnet.cli.')))"
    )
    env = {**os.environ, "VXNET_SOCKET": str(server.path)}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=env)
    loaded = {name.removeprefix("vxnet.cli.") for name in done.stdout.splitlines()[-1].split()}
    assert loaded == {"root", "group", "container", "output", "complete", "options"}


def test_ps_starts_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """The least of several: other work on the machine only ever adds. Processor time, as children wait for a core."""
    # With compiled modules, as an installed vxnet has them, whatever this environment says.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    walls, works = [], []
    with daemon() as server:
        for _ in range(11):
            begin = time.monotonic()
            child = subprocess.Popen([*VXNET, "--socket", str(server.path), "ps"], stdout=subprocess.DEVNULL, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = status
            walls.append(time.monotonic() - begin)
            works.append(usage.ru_utime + usage.ru_stime)
            assert status == 0
    for what, times in (("wall", walls), ("processor", works)):
        print(f"vxnet ps, {what}: median {statistics.median(times) * 1e3:.0f} ms, least {min(times) * 1e3:.0f} ms")
    assert min(works) < 0.1


def run(words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = f"{' '.join(VXNET)} {words}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def test_the_real_process() -> None:
    with daemon() as server:
        socket = f"--socket {server.path}"
        assert run(f"{socket} info").stdout.startswith("Version: ")
        failed = run(f"{socket} rm nobody")
        assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "vxnet: no such container: nobody\n")
        assert run(f"{socket} run -d no-such-command").returncode == 127
        assert run("--help").returncode == 0


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = run("--help | true; echo ${PIPESTATUS[0]}")
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")
    with daemon() as server:
        for number in range(3):
            run(f"--socket {server.path} run -d --name c{number} sleep 9")
        done = run(f"--socket {server.path} ps | head -c 1")
        assert (done.stdout, done.stderr) == ("C", "")


def test_a_full_disk_is_one() -> None:
    done = run("--help >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "vxnet: No space left on device\n"


def test_closed_standard_streams_are_as_devnull() -> None:
    with daemon() as server:
        socket = f"--socket {server.path}"
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            done = run(f"{socket} ps {closed}")
            assert (done.returncode, done.stderr) == (0, ""), closed
            assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", "")), closed
        assert run(f"{socket} rm nobody <&- >&- 2>&-").returncode == 1
        run(f"{socket} run -d --name ended true")
        run(f"{socket} stop ended")
        assert run(f"{socket} prune <&-").stderr.startswith("vxnet: nobody answered")

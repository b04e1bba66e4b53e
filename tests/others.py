"""Other people's programs on a host of a lab: firewalls and Docker, unpacked from Debian's packages and not installed,
so that nothing of them ever runs on the machine itself.
"""

from __future__ import annotations

import fcntl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vxnet.lab import Lab

PLACE = Path("build/others").absolute()
STARTS_S = 60.0
LOOK_S = 0.05


class NotToBeHadError(Exception):
    """The packages, and why."""


def unpacked(*packages: str) -> Path:
    """A directory with what is in these packages, and in those that they need and this machine does not have."""
    root = PLACE / "-".join(packages)
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            _unpack(packages, root)
    return root


def _unpack(packages: Sequence[str], root: Path) -> None:
    (root / "packages").mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "sbin"):  # as Debian merges them: packages still say /lib
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    plan = _apt("-s", "install", "--no-install-recommends", *packages, cwd=root)
    needed = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _apt("download", *{*packages, *needed}, cwd=root / "packages")
    for package in (root / "packages").glob("*.deb"):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-C", root, "--keep-directory-symlink", "-x"], stdin=tar.stdout, check=True)
    (root / "complete").touch()


def _apt(*argv: str, cwd: Path) -> str:
    try:
        done = subprocess.run(["apt-get", "-qq", *argv], cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotToBeHadError("there is no apt-get") from error
    if done.returncode:
        raise NotToBeHadError(f"apt-get {argv[0]}: {done.stderr.strip()}")
    return done.stdout


def until(condition: Callable[[], object], what: str, deadline_s: float = STARTS_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(LOOK_S)


class Installed:
    """A host of a lab, as seen by whoever comes in here, on which the packages are installed. What they write to /etc
    is in memory; the host itself, and vxnet's daemon there, see nothing of it but what reaches the kernel."""

    def __init__(self, lab: Lab, host: str, root: Path) -> None:
        self._lab, self._host = lab, host
        state = f"/run/others/{root.name}"
        layers = [
            f"mount -t overlay others -o lowerdir={root}/usr/{name}:/usr/{name} /usr/{name}"
            for name in ("bin", "lib", "sbin", "share")
        ]
        own = f"lowerdir={root}/etc:/etc,upperdir={state}/etc,workdir={state}/work"
        script = (
            f"mount --make-rprivate /; mkdir -p {state}; mount -t tmpfs others {state}; mkdir {state}/etc {state}/work",
            *layers,
            f"mount -t overlay others -o {own} /etc; echo $$; exec sleep infinity",
        )
        argv = ["unshare", "-m", "sh", "-ec", "; ".join(script)]
        self._holder = lab.popen(host, argv, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        self._pid = self._holder.stdout.readline().strip()
        assert self._pid, f"{root.name} cannot be laid over {host}"

    def popen(self, command: str, **options: Any) -> subprocess.Popen[str]:
        argv = ["nsenter", "-t", self._pid, "-m", "sh", "-ec", command]
        return self._lab.popen(self._host, argv, text=True, **options)

    def say(self, command: str) -> str:
        """What a command prints that must succeed."""
        return self._lab.run(self._host, ["nsenter", "-t", self._pid, "-m", "sh", "-ec", command], check=True).stdout

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


# Docker

DOCKER = ("docker.io", "containerd", "runc", "tini")
_STATE = "/run/others/docker"


class Docker:
    """A dockerd on a host of a lab. All that it has is in memory, and gone with the host."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._lab, self._host = lab, host
        self._root = unpacked(*DOCKER)

    def docker(self, *argv: str) -> str:
        return self._ask(argv, check=True).stdout.strip()

    def start(self) -> None:
        self._sh(f"mkdir -p {_STATE}; mountpoint -q {_STATE} || mount -t tmpfs docker {_STATE}; mkdir -p {_STATE}/data")
        daemon = (
            f"dockerd --data-root {_STATE}/data --exec-root {_STATE}/exec --pidfile {_STATE}/pid -H unix://{_STATE}/sock"
            f" --storage-driver vfs --containerd-namespace {self._host}"
            f" --containerd-plugins-namespace plugins-{self._host}"
            f" --cgroup-parent /docker-{self._host} >>{_STATE}/log 2>&1 </dev/null"
        )
        path = ":".join(str(self._root / "usr" / name) for name in ("bin", "sbin"))
        self._sh(f"PATH={path}:$PATH; setsid {daemon} &")
        until(lambda: "Server Version" in self._ask(["info"]).stdout, f"dockerd answers on {self._host}")

    def stop(self) -> None:
        self._sh(f"test ! -e {_STATE}/pid || kill $(cat {_STATE}/pid)")
        until(lambda: self._lab.run(self._host, ["test", "-e", f"{_STATE}/pid"]).returncode, "dockerd ends")

    def close(self) -> None:
        """It has never been there."""
        self.stop()
        self._sh(f"ip link del docker0 || true; umount -l {_STATE}")

    def image(self) -> None:
        """``server:1``, with nothing in it but the program ``/backends`` (tests/perf/backends.c)."""
        source, archive = Path(__file__).parent / "perf/backends.c", self._root / "image.tar"
        if not archive.exists() or archive.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-static", "-o", self._root / "backends", source], check=True)
            subprocess.run(["tar", "-C", self._root, "-cf", archive, "backends"], check=True)
        self.docker("import", str(archive), "server:1")

    def _ask(self, argv: Sequence[str], *, check: bool = False) -> subprocess.CompletedProcess[str]:
        client = ("env", f"DOCKER_HOST=unix://{_STATE}/sock", str(self._root / "usr/bin/docker"))
        return self._lab.run(self._host, [*client, *argv], check=check)

    def _sh(self, script: str) -> None:
        self._lab.run(self._host, ["sh", "-euc", script], check=True)

"""Powers a host on: its namespaces, its mounts and its pid 1.

::

    lab up (or start)                        the host
      thread: unshare net mnt uts ipc pid
              mounts                    ->   its files
              subprocess: sh            ->   pid 1: joins the host's cgroup, makes the cgroup namespace, mounts /proc
      "ready"                          <-
      writes lab.json
      "go"                              ->   sleeps for ever

Until "go" pid 1 lives only as long as the pipe to it, so a killed ``lab up`` leaves no process that nobody knows of.
Killing pid 1 kills all of the host's processes, and with them everything that the kernel held for them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import vxnet
from vxnet.host.netns import MS_BIND, MS_REC, MS_SHARED, mount, umount
from vxnet.lab import cgroups, namespaces
from vxnet.lab.process import Process, process
from vxnet.lab.state import DISKS, disk
from vxnet.model.errors import HostError

MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_MOVE: Final = 0x2000

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FOLDERS: Final = {"/var/lib/vxnet": "var-lib-vxnet", "/etc/vxnet": "etc-vxnet"}
FILES: Final = {
    "/etc/hosts": "hosts",
    "/etc/hostname": "hostname",
    "/etc/machine-id": "machine-id",
    "/etc/resolv.conf": "resolv.conf",
}
"""Of a host's own, by their names on its disk."""

# Ignoring SIGCHLD, which survives exec, makes the kernel reap every orphan of the host.
_INIT: Final = """
set -e
umount -l /proc
mount -t proc -o nosuid,nodev,noexec proc /proc
echo ready
read -r go
exec env --ignore-signal=CHLD sleep infinity </dev/null >/dev/null 2>&1
"""
# The root of a cgroup namespace is the group of whoever makes it; only then does init go to its leaf.
_IN_CGROUP: Final = f"""
set -e
echo 0 >"$1/cgroup.procs"
exec unshare --cgroup sh -c 'echo 0 >"$1/{cgroups.LEAF}/cgroup.procs"; eval "$2"' sh "$1" "$2"
"""


@dataclass
class Booting:
    """A host whose pid 1 waits for the word. It is all there, and dies with whoever has begun it."""

    init: Process
    child: subprocess.Popen[bytes]

    def go(self) -> None:
        assert self.child.stdin
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(b"go\n")
            self.child.stdin.flush()

    def close(self) -> None:
        """Without :meth:`go` before it: the host ends."""
        assert self.child.stdin and self.child.stdout
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        self.child.stdout.close()
        # Somebody else may wait for this child's end (`lab down` in another process), so nobody here waits for it:
        # subprocess reaps it when the next child is started.
        _children.append(self.child)


_children: list[subprocess.Popen[bytes]] = []
"""Pids 1 that are this process's children."""


def reap() -> None:
    """Takes note of the ended ones among the pids 1 that were started here, so that they stay no zombies."""
    _children[:] = [child for child in _children if child.poll() is None]


def boot_host(lab: str, host: str) -> Booting:
    """A host with all that is its own; its disk has been laid before (:func:`lay_disk`)."""
    group = cgroups.create(lab, host)

    def start() -> subprocess.Popen[bytes]:
        _furnish(disk(lab, host), group)
        socket.sethostname(host)
        return _start_init(Path("/sys/fs/cgroup") if group else None)

    return _boot(host, start)


def boot_underlay(lab: str) -> Booting:
    """Only a network namespace is wanted of it; the others make its end as sure as a host's."""
    group = cgroups.create(lab, "underlay")

    def start() -> subprocess.Popen[bytes]:
        namespaces.own_mounts()
        return _start_init(group)

    return _boot("underlay", start)


def lay_disk(lab: str, host: str, hosts_file: str, datapath: str) -> None:
    """What the host finds at its first start, and keeps over ``kill`` and ``start``."""
    top = disk(lab, host)
    for name in FOLDERS.values():
        (top / name).mkdir(parents=True, mode=0o700)
    top.chmod(0o700)
    configuration = f'datapath = "{datapath}"\n\n[userspace]\nvirtual-underlay = true\n'
    (top / FOLDERS["/etc/vxnet"] / "vxnet.toml").write_text(configuration)
    (top / "hosts").write_text(hosts_file)
    (top / "hostname").write_text(f"{host}\n")
    (top / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (top / "resolv.conf").write_text("# A lab has no way out: there is nobody to ask.\n")


def _boot(what: str, start: Callable[[], subprocess.Popen[bytes]]) -> Booting:
    try:
        child = namespaces.in_new(start)
    except OSError as error:
        raise HostError(f"cannot make {what}: {error}", hint="a lab needs root and a kernel with namespaces") from None
    assert child.stdin and child.stdout
    answer = child.stdout.readline()
    init = process(child.pid)
    if answer != b"ready\n" or init is None:
        child.stdin.close()
        said = (answer + child.stdout.read()).decode(errors="replace").strip()
        child.stdout.close()
        raise HostError(f"cannot make {what}: its init ended with status {child.wait()}: {said}")
    return Booting(init, child)


def _start_init(group: Path | None) -> subprocess.Popen[bytes]:
    argv = ["sh", "-c", _IN_CGROUP, "sh", str(group), _INIT] if group else ["sh", "-c", _INIT]
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": SYSTEM_PATH},
        start_new_session=True,  # out of the reach of the terminal's Ctrl-C and hang-up
    )


def _furnish(own: Path, group: Path | None) -> None:
    """The host's mounts. Runs in its mount namespace, with the machine's mounts still in it."""
    namespaces.own_mounts()
    needed = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _needed("/tmp", "/run")}
    disk_fd = os.open(own, os.O_PATH | os.O_CLOEXEC)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if group is not None:
        os.mkdir("/tmp/cgroup")
        mount(str(group), "/tmp/cgroup", None, MS_BIND)
    with contextlib.suppress(OSError):
        umount("/sys")
    # A sysfs shows the network devices of the namespace that it is mounted from.
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if group is not None:
        mount("/tmp/cgroup", "/sys/fs/cgroup", None, MS_MOVE)
        os.rmdir("/tmp/cgroup")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir("/run/netns", 0o755)
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    # What the hosts own on the machine's disk is hidden from them, and so from their containers.
    mount("tmpfs", str(DISKS), "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
    for target, name in {**FOLDERS, **FILES}.items():
        mount(f"/proc/thread-self/fd/{disk_fd}/{name}", _mount_point(target), None, MS_BIND)
    for path, descriptor in needed.items():
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/thread-self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
        os.close(descriptor)
    os.close(disk_fd)
    # As systemd leaves a real machine's: who wants its mounts to itself has to say so here too.
    mount("none", "/", None, MS_REC | MS_SHARED)


def _needed(*below: str) -> list[str]:
    """Folders that vxnet itself runs from and that a host's private mount at ``below`` would hide."""
    package = Path(vxnet.__file__).parent.parent
    wanted = {
        str(Path(path).absolute()) for path in (sys.prefix, sys.base_prefix, package, Path(sys.executable).parent)
    }
    return sorted(path for path in wanted if path.startswith(tuple(f"{top}/" for top in below)))


def _mount_point(path: str) -> str:
    """``path``, or where it leads if it is a link: into the new /run, on machines with systemd-resolved."""
    real = os.path.realpath(path)
    if real != path and not os.path.exists(real):
        os.makedirs(os.path.dirname(real), exist_ok=True)
        Path(real).touch()
    return real

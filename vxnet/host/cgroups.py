"""Control groups of containers: one in the v2 tree for each, to find and end its processes, and limits where asked for.

::

     v2   <home>/vxnet/<id>                memory.max cpu.max pids.max, where the tree has these controllers
     v1   <controller>/<daemon's group>/vxnet/<id>     for each limit whose controller is in a v1 tree (hybrid hosts)

Home is the group of the unit that systemd runs the shim in, or the daemon's own where there is no systemd. A group that
has controllers for its children may hold no process itself, so who is in it is moved to
``<home>/shim`` or ``<home>/daemon`` when the first limit is wanted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vxnet.model.container import ContainerSpec
from vxnet.model.errors import ConflictError, HostError, UnsupportedError

REMOVE_TIMEOUT_S = 10.0
START_TIMEOUT_S = 20.0
"""Until systemd, which may be busy with others, has a shim running."""
PERIOD_US = 100_000
"""Of the scheduler's bandwidth control; the kernel's own default."""
_DAEMON, _SHIM = "daemon", "shim"
"""Leaves for whoever is in a home itself."""


class Groups(NamedTuple):
    unified: Path | None
    """In the v2 tree; None where there is none to write to."""
    limits: tuple[Path, ...]
    """In v1 trees; made already."""

    @property
    def all(self) -> tuple[Path, ...]:
        return (*((self.unified,) if self.unified else ()), *self.limits)


class Tree(NamedTuple):
    """A mounted hierarchy, and where this process is in it."""

    version: int
    controllers: frozenset[str]
    own: Path


def trees(mountinfo: str, memberships: str) -> list[Tree]:
    """From the texts of /proc/self/mountinfo and /proc/self/cgroup. A v2 tree's controllers are in its files."""
    paths = {}
    for line in memberships.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, point = before.split()[3:5]
        known: frozenset[str] = frozenset()
        if kind == "cgroup":
            known = frozenset(options.split(",")) & paths.keys()
        name = next(iter(known), "")  # of v2 it is empty
        if name not in paths or (kind == "cgroup" and not known):
            continue
        path = paths[name]
        inside = path.removeprefix(root) if root != "/" else path
        found.append(Tree(2 if kind == "cgroup2" else 1, known, Path(point + "/" + inside.strip("/"))))
    return found


def home(*units: str) -> Path | None:
    """The v2 group of a unit of systemd's (below its slices), once somebody is in it; None: there is no v2 tree.
    Blocks. Raises :class:`HostError` if nobody comes.
    """
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    root = next((tree.own for tree in trees(mounts, "0::/\n") if tree.version == 2), None)
    if root is None:
        return None
    group = root.joinpath(*units)
    deadline = time.monotonic() + START_TIMEOUT_S
    # Before that systemd could not put it there any more if the group had controllers for its children.
    while not _read(group / "cgroup.procs"):
        if time.monotonic() > deadline:
            raise HostError(f"nothing runs in {group}", hint=f"see `systemctl status {units[-1]}` and the journal")
        time.sleep(0.001)
    return group


def make(container_id: str, spec: ContainerSpec, home: Path | None = None) -> Groups:
    """The groups of a container with its limits set, in the v2 tree below ``home``. The v2 group itself the shim
    makes, if it has none. Blocks. Raises :class:`UnsupportedError` if a limit's controller is in no tree that can be
    written to.
    """
    present = trees(
        Path("/proc/self/mountinfo").read_text(errors="surrogateescape"),
        Path("/proc/self/cgroup").read_text(errors="surrogateescape"),
    )
    if home is None:
        return place(container_id, wanted(spec), present)
    there = [tree._replace(own=home) if tree.version == 2 else tree for tree in present]
    return place(container_id, wanted(spec), there, _SHIM)


def wanted(spec: ContainerSpec) -> dict[str, dict[int, dict[str, str]]]:
    """Controller -> version -> file -> value. As Docker, as much swap again as memory."""
    limits: dict[str, dict[int, dict[str, str]]] = {}
    if spec.memory:
        v1 = {"memory.limit_in_bytes": str(spec.memory), "memory.memsw.limit_in_bytes": str(2 * spec.memory)}
        limits["memory"] = {2: {"memory.max": str(spec.memory), "memory.swap.max": str(spec.memory)}, 1: v1}
    if spec.cpus:
        quota = max(1000, round(spec.cpus * PERIOD_US))
        v1 = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota)}
        limits["cpu"] = {2: {"cpu.max": f"{quota} {PERIOD_US}"}, 1: v1}
    if spec.pids_limit > 0:
        limits["pids"] = {version: {"pids.max": str(spec.pids_limit)} for version in (1, 2)}
    return limits


def place(
    container_id: str, limits: dict[str, dict[int, dict[str, str]]], present: Iterable[Tree], leaf: str = _DAEMON
) -> Groups:
    """:func:`make` on given trees."""
    present = list(present)
    unified = next((tree.own for tree in present if tree.version == 2), None)
    if unified is not None:
        if unified.name == leaf:
            unified = unified.parent
        if not os.access(unified / "cgroup.procs", os.W_OK):
            unified = None
    made: list[Path] = []
    group = None if unified is None else unified / "vxnet" / container_id[:12]
    for controller, files in limits.items():
        v1 = next((tree.own for tree in present if controller in tree.controllers), None)
        if group is not None and unified is not None and controller in _read(unified / "cgroup.controllers").split():
            _switch_on(unified, controller, leaf)
            _write(group, files[2])
        elif v1 is not None:
            _write(v1 / "vxnet" / container_id[:12], files[1])
            made.append(v1 / "vxnet" / container_id[:12])
        else:
            raise UnsupportedError(
                f"this host has no control group for {controller} that vxnet can use",
                hint="mount cgroup v2 with that controller, or leave the limit out",
            )
    return Groups(group, tuple(dict.fromkeys(made)))


def update(paths: Iterable[Path], limits: dict[str, dict[int, dict[str, str]]]) -> None:
    """Other limits for a container that runs, whose groups these are. Blocks. Raises :class:`ConflictError`, and
    changes nothing, if it was started in no group that could bear one of them.
    """
    paths = list(paths)
    writes = []
    for controller, versions in limits.items():
        found = next(
            (
                (path, files)
                for files in versions.values()
                for path in paths
                if all((path / name).exists() for name in files if "sw" not in name)
            ),
            None,
        )
        if found is None:
            raise ConflictError(
                f"it was started without a limit for {controller}, in no group that could have one",
                hint="stop it, update it, and start it again",
            )
        writes.append(found)
    for path, files in writes:
        _write(path, files)


def remove(paths: Iterable[Path]) -> None:
    """What an ended container's shim left of them, with those that the container made below, and the directory above
    with the last. Blocks. Raises :class:`HostError`.
    """
    for path in paths:
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                (path / "cgroup.kill").write_text("1")
            try:
                for group, _, _ in os.walk(path, topdown=False):
                    os.rmdir(group)
                break
            except FileNotFoundError:
                continue  # its shim is at it, too
            except OSError as error:  # its last processes are on their way
                if time.monotonic() > deadline:
                    raise HostError(f"cannot remove the cgroup {path}: {error.strerror}") from None
                time.sleep(0.005)
        with contextlib.suppress(OSError):  # not the last container's, or its shim was here first
            path.parent.rmdir()


def _switch_on(unified: Path, controller: str, leaf: str) -> None:
    """For the containers' groups: in the home, and in ``vxnet`` below it."""
    (unified / "vxnet").mkdir(exist_ok=True)
    for group in (unified, unified / "vxnet"):
        if controller in _read(group / "cgroup.subtree_control").split():
            continue
        if group == unified:
            (unified / leaf).mkdir(exist_ok=True)
            moved: set[str] = set()
            # Again while there are others: somebody may start a process in the meantime.
            while pids := {*_read(unified / "cgroup.procs").split()} - moved:
                for pid in sorted(pids):
                    with contextlib.suppress(ProcessLookupError):
                        _set(unified / leaf / "cgroup.procs", pid)
                moved |= pids
        _set(group / "cgroup.subtree_control", f"+{controller}")


def _write(group: Path, files: dict[str, str]) -> None:
    try:
        group.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make the cgroup {group}: {error.strerror}") from None
    for name, value in files.items():
        if "swap" in name or "memsw" in name:
            with contextlib.suppress(HostError):  # a kernel that does not account for swap
                _set(group / name, value)
        else:
            _set(group / name, value)


def _set(path: Path, value: str) -> None:
    try:
        with path.open("r+") as file:
            file.write(value)
    except ProcessLookupError:
        raise
    except OSError as error:
        raise HostError(f"cannot write {value} to {path}: {error.strerror}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

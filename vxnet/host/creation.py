"""From a container's record to what its shim is told: the fields of CREATE (csrc/shim/config.h)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vxnet.host import cgroups
from vxnet.host.seccomp import filter_file
from vxnet.model.capability import capabilities, mask
from vxnet.model.container import Container, Mount
from vxnet.model.errors import HostError

LOG_MAX, LOG_FILES = 10 << 20, 3
"""Octets of a log file, and how many are kept of a container."""
NAME_SERVER = "127.0.0.11"
MASKS = ("/var/lib/vxnet", "/etc/vxnet", "/run/vxnet", "/var/lib/vxnet-lab", "/run/vxnet-lab")
"""vxnet's secrets, hidden from containers; also the directories under the mounts of a lab's hosts."""


class Creation(NamedTuple):
    fields: list[tuple[str, str]]
    descriptors: list[int]
    """That go with them; not ours to close."""


def prepare(
    container: Container,
    directory: Path,
    files: Mapping[str, str],
    socket: Path,
    group: int | None = None,
    home: Path | None = None,
) -> Creation:
    """The directory made ready, and what to tell the shim. ``group``: whose ``socket`` is to be. ``home``: the cgroup
    v2 that the shim is alone in; None: the daemon's. Blocks. Raises :class:`HostError`, :class:`CallerError`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "exit").unlink(missing_ok=True)
    # A volatile overlay's mark, which keeps it from being mounted again.
    shutil.rmtree(directory / "work", ignore_errors=True)
    for name, text in files.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
    spec = container.spec
    power = capabilities(spec.cap_add, spec.cap_drop)
    fields = [
        ("id", container.id[:12]),
        ("dir", str(directory)),
        ("socket", str(socket)),
        ("hostname", spec.hostname or (os.uname().nodename if spec.shares_host_network else container.id[:12])),
        ("netns", "host") if spec.shares_host_network else ("dns", NAME_SERVER),
        ("terminal", str(int(spec.terminal))),
        ("stdin", str(int(spec.stdin))),
        ("log_max", str(LOG_MAX)),
        ("log_files", str(LOG_FILES)),
        ("volatile", str(int(spec.remove))),
        ("caps", f"{mask(power):x}"),
        *(("arg", argument) for argument in spec.argv),
        *(("env", variable) for variable in spec.env),
        *(("mask", path) for path in _masks(spec.mounts)),
        ("read_only", str(int(spec.read_only))),
    ]
    if spec.rootfs:
        fields.append(("rootfs", spec.rootfs))
    descriptors = []
    if spec.seccomp:
        fields.append(("seccomp", "1"))
        descriptors.append(filter_file(power))
    if spec.user:
        fields.append(("user", spec.user))
    fields += [("sysctl", f"{name}={value}") for name, value in spec.sysctls.items()]
    if spec.workdir:
        fields.append(("workdir", spec.workdir))
    for name in files:
        fields += [("mount", "bind"), ("source", str(directory / name)), ("target", f"/etc/{name}")]
    for mount in spec.mounts:
        fields += _mount_fields(mount)
    groups = cgroups.make(container.id, spec, home)
    (directory / "cgroup").write_text("".join(f"{path}\n" for path in groups.all))
    if groups.unified is not None:
        fields.append(("cgroup", str(groups.unified)))
    fields += [("join", str(path)) for path in groups.limits]
    if group is not None:
        fields.append(("socket_gid", str(group)))
    return Creation(fields, descriptors)


def _mount_fields(mount: Mount) -> list[tuple[str, str]]:
    if mount.kind == "tmpfs":
        words = ["tmpfs", *("ro" for _ in range(mount.read_only)), *("exec" for _ in range(mount.executable))]
        return [("mount", ",".join([*words, *([mount.options] if mount.options else [])])), ("target", mount.target)]
    try:
        # As Docker's -v does.
        if not os.path.lexists(mount.source):
            os.makedirs(mount.source)
    except OSError as error:
        raise HostError(f"cannot make {mount.source}, which the container is to see: {error.strerror}") from None
    kind = "bind,ro" if mount.read_only else "bind"
    return [("mount", kind), ("source", mount.source), ("target", mount.target)]


def _masks(mounts: Sequence[Mount]) -> list[str]:
    """Where vxnet's secrets would be seen: at their own place, and wherever a directory above them is bound, also by
    another name: /var/run is /run. What was mounted into them on purpose stays.
    """
    bound = [(Path(mount.target), Path(os.path.realpath(mount.source))) for mount in mounts if mount.kind == "bind"]
    secrets = {Path(os.path.realpath(secret)) for secret in MASKS}
    seen = [
        str(target / secret.relative_to(source))
        for target, source in bound
        for secret in sorted(secrets)
        if source in secret.parents
    ]
    targets = [Path(mount.target) for mount in mounts]
    return [
        place for place in (*MASKS, *seen) if not any(Path(place) in (target, *target.parents) for target in targets)
    ]

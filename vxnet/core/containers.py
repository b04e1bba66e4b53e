"""What a container may be asked to be."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import Final

from vxnet.core import ports
from vxnet.model.capability import capabilities
from vxnet.model.container import HOST_GATEWAY, ContainerSpec, Mount
from vxnet.model.errors import CallerError
from vxnet.model.row import ALIASES_MAX

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
"""Docker's rule, cut to the length of a DNS label (RFC 1035)."""
_LABEL: Final = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{1,63}}$){_LABEL}(\.{_LABEL})*")
"""RFC 1123, and Docker's length; the kernel would take 64."""

_USER: Final = re.compile(r"[^:\s\0]{1,100}(:[^:\s\0]{1,100})?")
_WORD: Final = re.compile(r"[^\s\0#]{1,253}")
_SYSCTL: Final = re.compile(r"net\.[a-zA-Z0-9_.-]{1,100}")
MEMORY_MIN: Final = 6 << 20
"""Docker's; a shell and its libraries take about so much."""
CPUS_MIN: Final = 0.01
"""1 ms of each 100 ms: the kernel's smallest quota."""
_KERNELS: Final = ("/proc", "/sys")
_TMPFS_OPTIONS: Final = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks")


def check_spec(spec: ContainerSpec) -> None:
    """Raises :class:`CallerError` naming what no container can be, :class:`UnsupportedError` what vxnet's cannot yet.

    An empty name is right: one is made.
    """
    if not spec.argv:
        raise CallerError("no command given", hint="put it behind `--`: vxnet run … -- sleep 60")
    for alone in ("host", "none"):
        if len(spec.networks) > 1 and any(wish.network == alone for wish in spec.networks):
            raise CallerError(f"--network {alone} goes with no other network", hint=f"leave {alone} or the others out")
    if spec.shares_host_network:
        _check_host_network(spec)
    if spec.name:
        check_name(spec.name)
    for wish in spec.networks:
        check_aliases(wish.aliases)
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise CallerError(
            f'"{spec.hostname}" cannot be a hostname',
            hint="use up to 63 letters, digits, hyphens and dots, a letter or digit at both ends of each part",
        )
    if spec.workdir and not spec.workdir.startswith("/"):
        raise CallerError(f'working directory "{spec.workdir}" is relative', hint="begin it with a slash")
    if spec.rootfs and not spec.rootfs.startswith("/"):
        raise CallerError(f'--rootfs "{spec.rootfs}" is relative', hint="begin it with a slash")
    if spec.user and not _USER.fullmatch(spec.user):
        raise CallerError(f'"{spec.user}" cannot be a user', hint="use NAME, UID, or either with :GROUP behind it")
    for text in spec.hosts:
        _check_host(text)
    for word in (*spec.dns_search, *spec.dns_options):
        if not _WORD.fullmatch(word):
            raise CallerError(f'"{word}" cannot stand in resolv.conf')
    for name, value in spec.sysctls.items():
        if not _SYSCTL.fullmatch(name) or "\0" in value:
            raise CallerError(f'a container has no sysctl "{name}" of its own', hint="those that begin with net. are")
    _check_mounts(spec.mounts)
    if spec.memory and spec.memory < MEMORY_MIN:
        raise CallerError(f"a container cannot live on {spec.memory} octets", hint="give it 6m or more")
    if spec.remove and spec.restart.name != "no":
        raise CallerError("--rm and --restart contradict each other", hint="leave one of them out")
    if spec.cpus < 0 or 0 < spec.cpus < CPUS_MIN:
        raise CallerError(f"{spec.cpus:g} processors are too little", hint=f"give it {CPUS_MIN} or more")
    capabilities(spec.cap_add, spec.cap_drop)
    ports.check(spec.ports)
    if spec.ports and any(wish.network == "none" for wish in spec.networks):
        raise CallerError("--network none has no way in: -p leads nowhere", hint="leave one of them out")


def _check_host_network(spec: ContainerSpec) -> None:
    if spec.ports:
        raise CallerError(
            "with --network host a container has the host's ports themselves", hint="leave -p out, or --network host"
        )
    if spec.sysctls:
        raise CallerError("--sysctl with --network host would set the host's own", hint="set it on the host")
    if any(wish.ip or wish.ip6 or wish.aliases for wish in spec.networks):
        raise CallerError("with --network host a container has the host's addresses and name", hint="leave --ip out")


def _check_host(text: str) -> None:
    name, _, address = text.partition(":")
    try:
        if address != HOST_GATEWAY:
            ipaddress.ip_address(address)
        if "%" in address:
            raise ValueError("ipaddress takes anything for a zone, line ends too")
    except ValueError:
        raise CallerError(f"a host is NAME:ADDRESS or NAME:{HOST_GATEWAY}, found {text!r}") from None
    if not _WORD.fullmatch(name):
        raise CallerError(f'"{name}" cannot be the name of a host')


def _check_mounts(mounts: tuple[Mount, ...]) -> None:
    targets: set[str] = set()
    for mount in mounts:
        target = posixpath.normpath(mount.target)
        if not mount.target.startswith("/") or target.strip("/") == "":
            raise CallerError(f'cannot mount on "{mount.target}" in a container', hint="give a path below /")
        if any(target == place or target.startswith(place + "/") for place in _KERNELS):
            raise CallerError(f'cannot mount on "{mount.target}": it is the kernel\'s')
        if target in targets:
            raise CallerError(f'"{mount.target}" is mounted on twice')
        targets.add(target)
        if mount.kind == "bind" and not mount.source.startswith("/"):
            raise CallerError(f'"{mount.source}" cannot be bound into a container: it is relative')
        for option in mount.options.split(",") if mount.options else ():
            if option.partition("=")[0] not in _TMPFS_OPTIONS:
                raise CallerError(f'a tmpfs has no option "{option}"', hint=f"use {', '.join(_TMPFS_OPTIONS)}")


def check_name(name: str) -> None:
    """Raises :class:`CallerError`."""
    if not _NAME.fullmatch(name):
        raise CallerError(
            f'"{name}" cannot be a container\'s name',
            hint="use up to 63 letters, digits, dots, hyphens and underscores, a letter or digit first",
        )


def check_aliases(aliases: tuple[str, ...]) -> None:
    """Raises :class:`CallerError`."""
    if len(aliases) > ALIASES_MAX:
        raise CallerError(f"{len(aliases)} aliases are too many: {ALIASES_MAX} is the most")
    for alias in aliases:
        if not _NAME.fullmatch(alias):
            raise CallerError(f'"{alias}" cannot be an alias', hint="use letters, digits, dots and hyphens")

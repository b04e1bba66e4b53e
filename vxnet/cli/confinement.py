"""What ``run`` takes to bound a container: user, names, files, limits, powers, as fields of :class:`ContainerSpec`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from vxnet.cli.complete import words
from vxnet.cli.options import address, amount, octets, pairs, restart_policy, seconds, signal_name
from vxnet.model.capability import NAMES
from vxnet.model.container import Mount
from vxnet.model.errors import CallerError, UnsupportedError

F = TypeVar("F", bound=Callable[..., Any])


def confinement_options(command: F) -> F:
    """Their values are what :func:`confinement` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "-u", "--user", default="", metavar="USER[:GROUP]", help="Names as the container has them, or numbers."
    ),
    click.option("--dns", multiple=True, type=address, metavar="ADDRESS", help="Ask for names outside there."),
    click.option("--dns-search", multiple=True, metavar="DOMAIN", help="Try names in there too."),
    click.option("--dns-option", "dns_options", multiple=True, metavar="OPTION", help="For its resolv.conf."),
    click.option(
        "--add-host",
        "hosts",
        multiple=True,
        metavar="NAME:ADDRESS",
        help="For its /etc/hosts; host-gateway: this host.",
    ),
    click.option("--sysctl", "sysctls", multiple=True, callback=pairs, metavar="NAME=VALUE", help="One of net.*"),
    click.option(
        *("-v", "--volume", "volumes"),
        multiple=True,
        metavar="SOURCE:TARGET[:ro]",
        help="Show a directory or file of this host.",
    ),
    click.option(
        "--tmpfs", multiple=True, metavar="TARGET[:OPTION,...]", help="Memory as a directory; size=64m,mode=1777,exec…"
    ),
    click.option("--read-only", is_flag=True, help="No writes but to /tmp, /run and what is mounted."),
    click.option("--rootfs", default="", metavar="DIRECTORY", help="Instead of this host's root; stays as it is."),
    click.option(
        "-m", "--memory", type=octets, default="0", metavar="SIZE", help="With b, k, m or g; default: no limit."
    ),
    click.option("--cpus", type=amount, default=0.0, metavar="NUMBER", help="Processors' worth of time, such as 1.5."),
    click.option("--pids-limit", type=int, default=0, metavar="NUMBER", help="Processes and threads."),
    click.option(
        "--restart",
        default="",
        type=restart_policy,
        metavar="POLICY",
        help="When it has ended: no, on-failure[:TIMES], unless-stopped, always.",
    ),
    click.option("--stop-signal", default="", type=signal_name, metavar="NAME|NUMBER", help="What `stop` sends first."),
    click.option(
        "--stop-timeout",
        type=seconds,
        metavar="SECONDS",
        help="From that to SIGKILL; default 10.",
    ),
    click.option(
        "--cap-add",
        multiple=True,
        metavar="NAME",
        shell_complete=words("ALL", *NAMES),
        help="Give a capability, or ALL.",
    ),
    click.option(
        "--cap-drop",
        multiple=True,
        metavar="NAME",
        shell_complete=words("ALL", *NAMES),
        help="Take a capability, or ALL.",
    ),
    click.option(
        "--security-opt",
        "security",
        multiple=True,
        metavar="OPTION",
        help="seccomp=unconfined: all system calls.",
    ),
)


def confinement(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`ContainerSpec` that the options ask for. Raises :class:`CallerError`."""
    return {
        "user": options["user"],
        "dns": options["dns"],
        "dns_search": options["dns_search"],
        "dns_options": options["dns_options"],
        "hosts": tuple(map(host_line, options["hosts"])),
        "sysctls": options["sysctls"],
        "mounts": (*map(volume, options["volumes"]), *map(_tmpfs, options["tmpfs"])),
        "read_only": options["read_only"],
        "rootfs": os.path.abspath(options["rootfs"]) if options["rootfs"] else "",
        "memory": options["memory"],
        "cpus": options["cpus"],
        "pids_limit": options["pids_limit"],
        "restart": options["restart"],
        "stop_signal": options["stop_signal"],
        "stop_timeout_s": options["stop_timeout"],
        "cap_add": options["cap_add"],
        "cap_drop": options["cap_drop"],
        "seccomp": _seccomp(options["security"]),
    }


def host_line(text: str) -> str:
    """``NAME:ADDRESS``; Docker takes ``=`` too, and an IPv6 address may stand in brackets."""
    return text.replace("=", ":", 1).replace("[", "").rstrip("]")


def volume(text: str) -> Mount:
    """``/here:/there:ro``; a source that begins with a dot is below the working directory."""
    source, sign, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not sign or not source or not target:
        hint = "a volume without a source is not built yet" if source and not sign else ""
        raise CallerError(f"-v takes SOURCE:TARGET[:ro], found {text!r}", hint=hint)
    if not source.startswith(("/", ".", "~")):
        raise UnsupportedError(f"`-v {source}:…` would be a named volume, which is not built yet; give a path")
    read_only = False
    for word in words.split(",") if words else ():
        if word not in ("ro", "rw", "z", "Z", "rprivate"):  # z and Z are SELinux', which vxnet leaves alone
            raise CallerError(f"-v knows ro and rw, found {word!r} in {text!r}")
        read_only = read_only or word == "ro"
    source = os.path.abspath(os.path.expanduser(source))
    return Mount(kind="bind", source=source, target=target, read_only=read_only)


def _tmpfs(text: str) -> Mount:
    """``/there:size=64m,exec``; as Docker's, no programs run on it otherwise."""
    target, _, options = text.partition(":")
    kept = []
    flags = {"ro": False, "exec": False}
    for option in options.split(",") if options else ():
        if option in ("ro", "rw", "exec", "noexec"):
            flags[{"rw": "ro", "noexec": "exec"}.get(option, option)] = option in flags
        elif option not in ("nosuid", "nodev"):  # as it is anyway
            kept.append(option)
    return Mount(kind="tmpfs", target=target, read_only=flags["ro"], executable=flags["exec"], options=",".join(kept))


def _seccomp(texts: Sequence[str]) -> bool:
    filtered = True
    for text in texts:
        key, _, value = text.replace(":", "=", 1).partition("=")
        match key, value:
            case "seccomp", "unconfined":
                filtered = False
            case "no-new-privileges", "" | "true":  # as it is anyway
                pass
            case "seccomp" | "apparmor" | "label" | "systempaths" | "no-new-privileges", _:
                raise UnsupportedError(f"`--security-opt {text}` is not built yet")
            case _:
                raise CallerError(f"--security-opt takes seccomp=unconfined or no-new-privileges, found {text!r}")
    return filtered

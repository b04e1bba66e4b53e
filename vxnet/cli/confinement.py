"""What ``run`` takes to bound a container: its powers, and with them the fields of :class:`ContainerSpec`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from vxnet.cli.complete import words
from vxnet.model.capability import NAMES
from vxnet.model.errors import CallerError, UnsupportedError

F = TypeVar("F", bound=Callable[..., Any])


def confinement_options(command: F) -> F:
    """Their values are what :func:`confinement` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
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
        "cap_add": options["cap_add"],
        "cap_drop": options["cap_drop"],
        "seccomp": _seccomp(options["security"]),
    }


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

"""What a container may be asked to be."""

from __future__ import annotations

import re
from typing import Final

from vxnet.model.capability import capabilities
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError, UnsupportedError

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
"""Docker's rule, cut to the length of a DNS label (RFC 1035)."""
_LABEL: Final = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{1,63}}$){_LABEL}(\.{_LABEL})*")
"""RFC 1123, and Docker's length; the kernel would take 64."""


def check_spec(spec: ContainerSpec) -> None:
    """Raises :class:`CallerError` naming what no container can be, :class:`UnsupportedError` what vxnet's cannot yet.

    An empty name is right: one is made.
    """
    if not spec.argv:
        raise CallerError("no command given", hint="put it behind `--`: vxnet run … -- sleep 60")
    if any(wish.network == "host" for wish in spec.networks):
        raise UnsupportedError("--network host is not built yet", hint="leave it out: the way out goes by NAT")
    if spec.name and not _NAME.fullmatch(spec.name):
        raise CallerError(
            f'"{spec.name}" cannot be a container\'s name',
            hint="use up to 63 letters, digits, dots, hyphens and underscores, a letter or digit first",
        )
    for wish in spec.networks:
        check_aliases(wish.aliases)
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise CallerError(
            f'"{spec.hostname}" cannot be a hostname',
            hint="use up to 63 letters, digits, hyphens and dots, a letter or digit at both ends of each part",
        )
    if spec.workdir and not spec.workdir.startswith("/"):
        raise CallerError(f'working directory "{spec.workdir}" is relative', hint="begin it with a slash")
    capabilities(spec.cap_add, spec.cap_drop)


def check_aliases(aliases: tuple[str, ...]) -> None:
    """Raises :class:`CallerError`."""
    for alias in aliases:
        if not _NAME.fullmatch(alias):
            raise CallerError(f'"{alias}" cannot be an alias', hint="use letters, digits, dots and hyphens")

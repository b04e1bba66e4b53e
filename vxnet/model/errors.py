"""Whose fault it is.

A message says what was wanted and what was found; ``hint`` is the next step. All of them travel over the API as
``{"error": {"kind": …, "message": …, "hint": …}}`` and come out of the client as the class they went in as.
"""

from __future__ import annotations

from typing import ClassVar


class VxnetError(Exception):
    """Abstract: raise one of the classes below. Anything else that escapes is a bug of vxnet's."""

    kind: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", exit_status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_status = exit_status
        """Of a command that could not be run, as the shell counts: 126 not executable, 127 not found. 0: not that."""

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class CallerError(VxnetError):
    """What was asked makes no sense: a wrong flag, a bad CIDR, a torn record."""

    kind = "invalid"
    http_status = 400


class NotFoundError(CallerError):
    """What was named does not exist."""

    kind = "not-found"
    http_status = 404


class ConflictError(CallerError):
    """It is taken, still in use, or changed meanwhile."""

    kind = "conflict"
    http_status = 409


class ForbiddenError(CallerError):
    """The caller has not shown that it may."""

    kind = "forbidden"
    http_status = 403


class UnsupportedError(CallerError):
    """A thing that vxnet knows of and does not do (here, or yet)."""

    kind = "unsupported"
    http_status = 501


class ExhaustedError(CallerError):
    """Nothing left to give: addresses, VNIs, ports."""

    kind = "exhausted"
    http_status = 507


class PeerError(VxnetError):
    """Another node lied, was silent, or is not who it should be."""

    kind = "peer"
    http_status = 502


class UnavailableError(VxnetError):
    """Not now: no manager in reach, the daemon is stopping or not there."""

    kind = "unavailable"
    http_status = 503


class HostError(VxnetError):
    """This machine refused: kernel, disk, a missing program."""

    kind = "host"
    http_status = 500


BY_KIND: dict[str, type[VxnetError]] = {
    error.kind: error
    for error in (
        CallerError,
        NotFoundError,
        ConflictError,
        ForbiddenError,
        UnsupportedError,
        ExhaustedError,
        PeerError,
        UnavailableError,
        HostError,
    )
}

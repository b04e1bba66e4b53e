"""Errors on their way over HTTP, ``{"error": {"kind": …, "message": …, "hint": …}}``, and back into their class.

Apart from :mod:`vxnet.cluster.api` because the command line's client reads them too and must not import aiohttp.
"""

from __future__ import annotations

from vxnet.model import codec
from vxnet.model.cluster import Record
from vxnet.model.errors import BY_KIND, HostError, PeerError, VxnetError

_SHOWN = 200
"""Characters of an unreadable answer that its error quotes."""


class Failure(Record, frozen=True, kw_only=True):
    kind: str
    message: str
    hint: str = ""
    exit_status: int = 0


class FailureBody(Record, frozen=True, kw_only=True):
    error: Failure


def failure_to_json(error: VxnetError) -> bytes:
    failure = Failure(kind=error.kind, message=error.message, hint=error.hint, exit_status=error.exit_status)
    return codec.to_json(FailureBody(error=failure))


def failure_from_json(status: int, body: bytes) -> VxnetError:
    """The error that an answer with HTTP status ``status`` (≥ 400) carries; never raises.

    A kind from a newer vxnet becomes a :class:`HostError` with the same words, an answer that is not ours a
    :class:`PeerError` that quotes its start.
    """
    try:
        failure = codec.from_json(body, FailureBody).error
    except (ValueError, RecursionError):
        text = " ".join(body[:_SHOWN].decode("utf-8", "replace").split())
        return PeerError(f"expected an error of vxnet's, found HTTP status {status} with: {text or '(nothing)'}")
    kind = BY_KIND.get(failure.kind, HostError)
    return kind(failure.message, hint=failure.hint, exit_status=failure.exit_status)

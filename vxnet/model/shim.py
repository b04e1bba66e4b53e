"""The words that daemon, command line and ``vxnet-shim`` speak: version 1 of its control protocol.

One SOCK_SEQPACKET packet is one message: a header (version, type, reserved, tag; little endian) and fields, each
``key=value`` and a NUL. csrc/shim/protocol.h says what each message holds and csrc/shim/config.h what the fields mean.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

from vxnet.model.errors import BY_KIND, CallerError, HostError, VxnetError

VERSION = 1
MESSAGE_MAX = 192 * 1024
"""Octets of one message: the longest command and environment."""
FDS_MAX = 4
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Docker's exit statuses for what was not the command's own doing."""

_HEADER = struct.Struct("<BBHI")


class Kind(enum.IntEnum):
    CREATE = 1
    HELLO = 2
    START = 3
    SIGNAL = 4
    EXEC = 5
    ATTACH = 6
    STATUS = 7
    OK = 64
    ERROR = 65
    EXIT = 66


class Message(NamedTuple):
    kind: int
    """A :class:`Kind`, or a newer shim's number."""
    tag: int
    """An answer repeats its request's; 0 is the container itself."""
    fields: dict[str, str]
    """Of several with one key the last; answers have none such."""


def encode(kind: Kind, tag: int, fields: Iterable[tuple[str, str]] = ()) -> bytes:
    """One packet. Raises :class:`CallerError` for a NUL in a value and when it is longer than ``MESSAGE_MAX``."""
    parts = [_HEADER.pack(VERSION, kind, 0, tag)]
    for key, value in fields:
        if "\0" in value:
            raise CallerError(f"{key} {value!r} has a NUL in it, which no program can be given")
        parts.append(f"{key}={value}\0".encode(errors="surrogateescape"))
    packet = b"".join(parts)
    if len(packet) > MESSAGE_MAX:
        raise CallerError(
            f"command and environment are {len(packet)} octets long; a container takes {MESSAGE_MAX}",
            hint="put them into a file",
        )
    return packet


def decode(packet: bytes) -> Message:
    """The message in ``packet``; raises :class:`ValueError` when it is none of this version."""
    if len(packet) < _HEADER.size:
        raise ValueError(f"a packet of {len(packet)} octets")
    version, kind, _, tag = _HEADER.unpack_from(packet)
    if version != VERSION:
        raise ValueError(f"protocol version {version}, expected {VERSION}")
    fields = {}
    for field in packet[_HEADER.size :].split(b"\0")[:-1]:
        key, _, value = field.decode(errors="surrogateescape").partition("=")
        fields[key] = value
    return Message(kind, tag, fields)


def refusal(fields: dict[str, str]) -> VxnetError:
    """The exception for the fields of an ERROR."""
    kind = BY_KIND.get(fields.get("kind", ""), HostError)
    message = fields.get("message", "the container's shim refused without saying why")
    return kind(message, exit_status=int(fields.get("status") or 0))

"""systemd, where it is what runs the daemon: told how the daemon is, and asked to start the containers' shims.

::

    vxnetd.service (system.slice)      sandboxed; stopped, killed, replaced as an operator likes
         |  StartTransientUnit, with one end of a socket pair as the shim's standard input
         v
    systemd ──> vxnet.slice / vxnet-<id>.service      delegated: shim/ the shim, vxnet/<id>/ the container

A shim is not the daemon's child then, for two reasons. What the daemon's unit forbids the daemon (system calls,
capabilities, namespaces) it would forbid the containers as well. And control group v2 lets no process into a group
whose children have limits: systemd could not start the next daemon beside the containers of the one before.

The messages are D-Bus, over systemd's own socket for root: no bus need run. Of the protocol this has what one call
needs (dbus.freedesktop.org/doc/dbus-specification.html).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from vxnet.model.errors import HostError

SOCKET = Path("/run/systemd/private")
SLICE = "vxnet.slice"
TIMEOUT_S = 20.0
_POLL_S = 0.02

STOP_TIMEOUT_S = 10
"""Between SIGTERM and SIGKILL when the host shuts down; Docker's."""
FILES = 1 << 20
"""Descriptors that a container's process may have; Docker's."""
_INFINITY = (1 << 64) - 1

_LITTLE, _VERSION = ord("l"), 1
"""The order of octets, which systemd's answers have too: it is this machine's."""
_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_HEAD = struct.Struct("<BBBBIII")
"""order, type, flags, version, length of the body, serial, length of the fields"""
_ERROR_NAME = b"\x04\x01s\0"
"""Header field 4, a variant of a string; what follows is aligned as it stands."""
_EXISTS = "org.freedesktop.systemd1.UnitExists"

T = TypeVar("T")


def runs_daemon() -> bool:
    """Whether this process is a service of systemd's that may ask it for units."""
    return "NOTIFY_SOCKET" in os.environ and SOCKET.exists()


# ------------------------------------------------------------------------------------------------------ how it is


def notify(*states: str) -> None:
    """``READY=1``, ``STATUS=…``, ``WATCHDOG=1``, ``STOPPING=1``: sd_notify(3). Nothing without systemd."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    address = "\0" + place[1:] if place.startswith("@") else place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.setblocking(False)
        try:
            notifier.sendto("\n".join(states).encode(), address)
        except OSError:
            pass  # systemd is being replaced, or drowns; the watchdog's next word comes soon


def watchdog_s() -> float | None:
    """How often systemd wants to hear ``WATCHDOG=1``, in seconds, half its patience; None: not at all."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / 2e6


def activated() -> socket.socket | None:
    """The listening socket that systemd holds for this service (sd_listen_fds(3)); None: it holds none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(3, False)
    return socket.socket(fileno=3)


# ------------------------------------------------------------------------------------------------------ the shims


def unit_name(container_id: str) -> str:
    return f"vxnet-{container_id[:12]}.service"


def start_shim(container_id: str, name: str, path: Path, control: int) -> None:
    """Start the shim at ``path`` in a unit of its own, with ``control`` as descriptor 0. Blocks. Raises
    :class:`HostError`.

    A unit of that name that is just ending (the container's life before this one) is waited for.
    """
    argv = [str(path), "--stay", container_id[:12]]
    body = _start_transient_unit(unit_name(container_id), f"vxnet container {name}", argv)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        refusal = _call("StartTransientUnit", "ssa(sv)a(sa(sv))", body, [control])
        if refusal is None:
            return
        if refusal.name != _EXISTS or time.monotonic() > deadline:
            raise HostError(
                f"systemd does not start {unit_name(container_id)}: {refusal.text or refusal.name}",
                hint=f"see `systemctl status {unit_name(container_id)}`",
            )
        time.sleep(_POLL_S)


def _start_transient_unit(unit: str, description: str, argv: Sequence[str]) -> bytes:
    """The call's arguments: name, mode, properties, further units."""
    out = _Marshal()
    out.string(unit)
    out.string("fail")
    with out.array(8):
        out.property("Description", "s", out.string, description)
        out.property("Slice", "s", out.string, SLICE)
        # At the host's shutdown the daemon goes first: what ends after it was not its to start again.
        out.property("Before", "as", out.strings, ["vxnetd.service"])
        out.property("ExecStart", "a(sasb)", out.command, argv)
        out.property("StandardInputFileDescriptor", "h", out.u32, 0)
        # To have limits for the container below it (host/cgroups.py).
        out.property("Delegate", "b", out.u32, 1)
        # An ended one is forgotten, also one that failed: the daemon keeps what there is to know.
        out.property("CollectMode", "s", out.string, "inactive-or-failed")
        # The shim hands SIGTERM to the container.
        out.property("KillMode", "s", out.string, "mixed")
        out.property("TimeoutStopUSec", "t", out.u64, STOP_TIMEOUT_S * 1_000_000)
        # The kernel ends whom it chose; that is no reason to end the others in the container.
        out.property("OOMPolicy", "s", out.string, "continue")
        # As Docker's containers have them; systemd's defaults are for services.
        out.property("TasksMax", "t", out.u64, _INFINITY)
        out.property("LimitNOFILE", "t", out.u64, FILES)
        out.property("LimitNOFILESoft", "t", out.u64, FILES)
        out.property("LimitCORE", "t", out.u64, _INFINITY)
        out.property("LimitNPROC", "t", out.u64, _INFINITY)
    with out.array(8):
        pass
    return bytes(out.data)


# ---------------------------------------------------------------------------------------------------------- D-Bus


class _Refusal(NamedTuple):
    name: str
    text: str


class _Marshal:
    """Values one after the other, each aligned as its type is from where the message began."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, to: int) -> None:
        self.data += bytes(-len(self.data) % to)

    def octet(self, value: int) -> None:
        self.data.append(value)

    def u32(self, value: int) -> None:
        self.align(4)
        self.data += struct.pack("<I", value)

    def u64(self, value: int) -> None:
        self.align(8)
        self.data += struct.pack("<Q", value)

    def string(self, text: str) -> None:
        raw = text.encode()
        self.u32(len(raw))
        self.data += raw + b"\0"

    def strings(self, words: Sequence[str]) -> None:
        with self.array(4):
            for word in words:
                self.string(word)

    def signature(self, text: str) -> None:
        self.data += bytes((len(text),)) + text.encode() + b"\0"

    @contextlib.contextmanager
    def array(self, alignment: int) -> Iterator[None]:
        """Of what is written meanwhile; its length does not count the gap before the first element."""
        self.u32(0)
        place = len(self.data) - 4
        self.align(alignment)
        start = len(self.data)
        yield
        struct.pack_into("<I", self.data, place, len(self.data) - start)

    def property(self, name: str, signature: str, write: Callable[[T], None], value: T) -> None:
        """A struct of a name and a variant."""
        self.align(8)
        self.string(name)
        self.signature(signature)
        write(value)

    def command(self, argv: Sequence[str]) -> None:
        """``a(sasb)``: one command, whose failure counts."""
        with self.array(8):
            self.string(argv[0])
            self.strings(argv)
            self.u32(0)

    def field(self, code: int, signature: str, write: Callable[[T], None], value: T) -> None:
        """Of a message's header."""
        self.align(8)
        self.octet(code)
        self.signature(signature)
        write(value)


def _message(member: str, signature: str, body: bytes, descriptors: int) -> bytes:
    out = _Marshal()
    for octet in (_LITTLE, _METHOD_CALL, 0, _VERSION):
        out.octet(octet)
    out.u32(len(body))
    out.u32(1)  # serial
    with out.array(8):
        out.field(1, "o", out.string, "/org/freedesktop/systemd1")
        out.field(2, "s", out.string, "org.freedesktop.systemd1.Manager")
        out.field(3, "s", out.string, member)
        out.field(6, "s", out.string, "org.freedesktop.systemd1")
        out.field(8, "g", out.signature, signature)
        out.field(9, "u", out.u32, descriptors)
    out.align(8)
    return bytes(out.data) + body


def _call(member: str, signature: str, body: bytes, descriptors: Sequence[int]) -> _Refusal | None:
    """One call on a connection of its own; None: it was carried out. Raises :class:`HostError`."""
    who = str(os.geteuid()).encode().hex()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as bus:
            bus.settimeout(TIMEOUT_S)
            bus.connect(str(SOCKET))
            bus.sendall(f"\0AUTH EXTERNAL {who}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".encode())
            said = b""
            while said.count(b"\r\n") < 2:
                said += _some(bus)
            first, second, rest = said.split(b"\r\n", 2)
            if not first.startswith(b"OK") or second != b"AGREE_UNIX_FD":
                raise HostError(f"systemd does not let vxnetd speak to it: {said.decode(errors='replace').strip()}")
            message = _message(member, signature, body, len(descriptors))
            sent = socket.send_fds(bus, [message], descriptors)
            if sent < len(message):
                bus.sendall(message[sent:])
            return _answer(bus, rest)
    except OSError as error:
        raise HostError(f"cannot ask systemd for a unit over {SOCKET}: {error.strerror or error}") from None


def _some(bus: socket.socket) -> bytes:
    got = bus.recv(4096)
    if not got:
        raise ConnectionResetError(errno.ECONNRESET, "it hung up")
    return got


def _answer(bus: socket.socket, held: bytes) -> _Refusal | None:
    """The reply to the one call made; signals before it are passed over."""
    while True:
        while len(held) < _HEAD.size:
            held += _some(bus)
        _, kind, _, _, body_length, _, fields_length = _HEAD.unpack_from(held)
        start = _HEAD.size + fields_length + -fields_length % 8
        while len(held) < start + body_length:
            held += _some(bus)
        fields, body = held[_HEAD.size : _HEAD.size + fields_length], held[start : start + body_length]
        held = held[start + body_length :]
        if kind == _METHOD_RETURN:
            return None
        if kind == _ERROR:
            return _Refusal(_text_at(fields, fields.find(_ERROR_NAME) + len(_ERROR_NAME)), _text_at(body, 0))


def _text_at(data: bytes, at: int) -> str:
    if len(data) < at + 4:
        return ""
    (length,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + length].decode(errors="replace")

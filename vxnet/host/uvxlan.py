"""The user-space tunnel's process, where the kernel has no vxlan or is not to be used.

::

    daemon ── SOCK_SEQPACKET (host/forwarder) ──> python -m vxnet.host.uvxlan    one a host, under its own uid
                                                    └── lib.vxlan_run            blocks; csrc/vxlan/vxlan.h
                                                          UDP sockets of the host's namespace, TAPs of namespace vxnet

It outlives the daemon, so that a crash, restart or upgrade loses no packet, and ends when it is told to. Its socket is
named after its setting: whoever finds it knows what it was started with.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from vxnet.host.forwarder import CURE, Forwarder
from vxnet.model.errors import HostError

UID: Final = 4789789
"""Of the forwarder: the one user whose sockets may send to the VXLAN port (host/gateway)."""
LANES: Final = 4
"""Source ports a queue: VXLAN_LANES."""
QUEUES_MAX: Final = 8
"""csrc/vxlan/vxlan.h, VXLAN_QUEUES_MAX."""
DIRECTORY: Final = Path("/run/vxnet")
"""Where the control socket lies, unless the caller says otherwise."""
_PREFIX = "uvxlan-"

_UDP_GRO = 104
_IP_RECVTOS, _IPV6_RECVTCLASS = 13, 66
_IP_MTU_DISCOVER, _IP_RECVERR = 10, 11
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_RECEIVE_BUFFER = 16 << 20
_SEND_BUFFER = 64 << 20
"""Nobody waits for room in it: what is bounded is what the card's queue and each neighbour's hold."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a forwarder is started with; with another it is another process."""

    protocol: int = 1
    """Of csrc/vxlan/command.h: a daemon of another version goes on with a forwarder that it understands."""
    local: str
    """This host's VTEP."""
    port: int
    queues: int = 1
    """Pairs of threads."""
    spin_us: int = 50
    """Longest busy wait for the next packet."""
    virtual_underlay: bool = False
    """The hosts are namespaces of one machine: what a kernel left to its network card, no card has done (join.h)."""


def ensure(directory: Path, setting: Setting) -> Forwarder:
    """The forwarder with this setting: the one that runs, or a new one in the caller's network namespace. One with
    another setting is ended first. The caller closes the connection. Raises HostError, also as :func:`stop` does.
    """
    path = _path(directory, setting)
    with contextlib.suppress(HostError):
        return Forwarder(str(path))
    stop(directory)
    directory.mkdir(parents=True, exist_ok=True)
    argument = msgspec.json.encode(setting).decode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(str(path))
        path.chmod(0o600)
        control.listen()
        command = [sys.executable, "-m", "vxnet.host.uvxlan", str(control.fileno()), argument]
        done = subprocess.run(
            command, pass_fds=[control.fileno()], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode:
        path.unlink(missing_ok=True)
        reason = done.stderr.strip().rpartition("\n")[2]
        raise HostError(f"cannot start the user-space tunnel: {reason}", hint="is another program on its port?")
    return Forwarder(str(path))


def stop(directory: Path) -> bool:
    """End every forwarder whose socket is here, and with it its TAPs; whether there was one. Raises HostError if one
    does not end: its socket stays, as without it nobody could tell it anything again, and it would keep the port.
    """
    found = False
    for path in directory.glob(f"{_PREFIX}*.sock"):
        try:
            with Forwarder(str(path)) as running:
                running.stop()
            found = True
        except HostError as error:
            if _listens(path):
                raise HostError(f"the user-space tunnel at {path} does not end", hint=CURE) from error
        path.unlink(missing_ok=True)
    return found


def _listens(path: Path) -> bool:
    """Whether there is a process at this socket, whatever it does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def _path(directory: Path, setting: Setting) -> Path:
    digest = hashlib.sha256(msgspec.json.encode(setting)).hexdigest()[:12]
    return directory / f"{_PREFIX}{digest}.sock"


def main(argv: list[str]) -> int:
    """``uvxlan CONTROL SETTING``: descriptor of the listening control socket, and a :class:`Setting` in JSON. Ends once
    the sockets are there; a child goes on, in a session of its own, until it is told to stop.
    """
    from vxnet.host._vxlan import ffi, lib

    setting = msgspec.json.decode(argv[1], type=Setting)
    local = ip_address(setting.local)
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    options = ffi.new("struct vxlan_options *")
    options.control, options.family, options.port = int(argv[0]), family, setting.port
    options.queues, options.spin_us = setting.queues, setting.spin_us
    options.virtual_underlay = setting.virtual_underlay
    sockets: list[socket.socket] = []
    for queue in range(setting.queues):
        sockets.append(_receiving(family, setting))
        options.receive[queue] = sockets[-1].fileno()
        for lane in range(LANES):
            sockets.append(_sending(family, setting, _PMTUDISC_DO))
            options.send[queue * LANES + lane] = sockets[-1].fileno()
        sockets.append(_sending(family, setting, _PMTUDISC_DONT))
        options.loose[queue] = sockets[-1].fileno()
    # A TAP is a descriptor, and there may be more networks than a program is usually let have files.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if os.fork():
        return 0
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # whoever reads these is to see the parent's end
    os.dup2(nothing, 2)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    return -lib.vxlan_run(options)


def _socket(family: int) -> socket.socket:
    """Whose it is, to netfilter, is settled when it is opened; what its buffers may be, by who sets them."""
    os.seteuid(UID)
    try:
        return socket.socket(family, socket.SOCK_DGRAM)
    finally:
        os.seteuid(0)


def _receiving(family: int, setting: Setting) -> socket.socket:
    """Not connected: the others send from many ports. Who may send is said by the peers."""
    made = _socket(family)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if setting.queues > 1:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
    # For the underlay's marks of congestion (RFC 6040).
    if family == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    made.setblocking(False)
    made.bind((setting.local, setting.port))
    return made


def _sending(family: int, setting: Setting, discovery: int) -> socket.socket:
    """Bound to the VTEP; its port is the kernel's choice, and what networks tell its flows apart by."""
    made = _socket(family)
    four = family == socket.AF_INET
    level = socket.IPPROTO_IP if four else socket.IPPROTO_IPV6
    made.setsockopt(level, _IP_MTU_DISCOVER if four else _IPV6_MTU_DISCOVER, discovery)
    if discovery == _PMTUDISC_DO:
        # The path's MTU comes with the error (csrc/vxlan/outbox.c).
        made.setsockopt(level, _IP_RECVERR if four else _IPV6_RECVERR, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    made.bind((setting.local, 0))
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

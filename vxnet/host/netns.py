"""Network namespaces: making them, naming them, and doing something inside one.

A namespace is held by a descriptor, never by a number or a path alone: pids and paths are reused. To act in one, a
short-lived thread enters it; sockets opened and processes started there stay in it, wherever they are used later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vxnet.host._syscalls import ffi, lib
from vxnet.model.errors import HostError

T = TypeVar("T")

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2

_thread = threading.local()

NAMED = Path("/run/netns")
"""Where ``ip netns`` keeps its names."""
LAYERS = 8
"""Mounts of that directory upon itself."""


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    _check(lib.vxnet_setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    _check(lib.vxnet_unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(
        lib.vxnet_mount(
            os.fsencode(source),
            os.fsencode(target),
            ffi.NULL if kind is None else kind.encode(),
            flags,
            ffi.NULL if data is None else data.encode(),
        ),
        f"mount {target}",
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _check(lib.vxnet_umount(os.fsencode(target), flags), f"umount {target}")


def kernel_has_filesystem(kind: str) -> bool:
    """Whether the kernel knows this file system; loads its module if there is one."""
    fd = lib.vxnet_fsopen(kind.encode())
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, which may change its namespaces as it ends afterwards. Raises OSError
    (EAGAIN) if there can be none.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"{error}: too many processes") from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def inside(fd: int, function: Callable[[], T]) -> T:
    """Run ``function`` in the namespace ``fd``. Processes that it starts are born there too."""

    def run() -> T:
        setns(fd)
        return function()

    return run() if getattr(_thread, "travels", False) else in_thread(run)


def travelling(function: Callable[[], T]) -> T:
    """Run ``function`` in one thread that enters namespaces itself, wherever it calls :func:`inside`: for many of them
    in a row, as a thread for each costs more than what is done there. It starts in the caller's namespace and may be in
    any after that."""

    def run() -> T:
        _thread.travels = True
        return function()

    return in_thread(run)


def current() -> int:
    """A descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def create() -> int:
    """A new network namespace without a name; the caller closes the descriptor, and with the last one it is gone."""

    def run() -> int:
        unshare(CLONE_NEWNET)
        return current()

    return in_thread(run)


def open_path(path: str) -> int | None:
    """A descriptor of the namespace at ``path``; None if it (or the process it belongs to) is gone."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None


def identity(fd: int) -> tuple[int, int]:
    """What tells two living namespaces apart."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def netlink_socket(fd: int | None, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """A netlink socket of the namespace ``fd``; None: of the calling thread's. It keeps the namespace alive."""

    def open_socket() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)

    return open_socket() if fd is None else inside(fd, open_socket)


def set_sysctls(settings: dict[str, str]) -> list[str]:
    """Write those of ``/proc/sys/net`` that differ, in the calling thread's namespace; the names of those written.

    A setting that this kernel does not have is left out: it belongs to a feature that is not there.
    """
    written = []
    for name, value in settings.items():
        try:
            with open(f"/proc/sys/net/{name}", "r+b", buffering=0) as setting:
                if setting.read().strip() != value.encode():
                    setting.seek(0)  # elsewhere a write is ignored in silence
                    setting.write(value.encode())
                    written.append(name)
        except FileNotFoundError:
            continue
    return written


def adopt_named(name: str) -> int | None:
    """A descriptor of the namespace called ``name``; None if there is none, or only a leftover file."""
    fd = open_path(str(NAMED / name))
    if fd is None:
        return None
    if os.fstat(fd).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        os.close(fd)
        return None
    return fd


def bind_name(fd: int, name: str) -> None:
    """Give the namespace ``fd`` a name, as ``ip netns`` does. Raises HostError if that cannot be."""
    path = NAMED / name
    try:
        NAMED.mkdir(mode=0o755, parents=True, exist_ok=True)
        _share_directory()
        path.touch(mode=0o444)
        mount(f"/proc/self/fd/{fd}", str(path), None, MS_BIND)
    except OSError as error:
        raise HostError(
            f"cannot make the network namespace {name} at {path}: {error.strerror}",
            hint="vxnetd needs root, and a /run that it may mount in",
        ) from error


def _share_directory() -> None:
    # As ip-netns(8): so that the name, once taken away, is gone from every copy of this mount namespace too.
    try:
        mount("", str(NAMED), None, MS_SHARED | MS_REC)
    except OSError:
        mount(str(NAMED), str(NAMED), None, MS_BIND | MS_REC)
        mount("", str(NAMED), None, MS_SHARED | MS_REC)


def hidden_from_host() -> bool:
    """Whether names given here are seen by nobody else: under a mount namespace that gets the host's mounts and passes
    none back (systemd's PrivateMounts=, ProtectSystem= and the like)."""
    place = next(path for path in (NAMED, *NAMED.parents) if path.is_dir())
    descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        # Asked of the directory itself: a mount may lie in the list and beneath another, out of reach.
        about = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    finally:
        os.close(descriptor)
    mounted = about["mnt_id"].strip()
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        number, *_, optional = line.split(" - ")[0].split(maxsplit=6)
        if number == mounted:
            return "master:" in optional
    return False


def _unlink(path: Path) -> bool:
    """Whether it is gone; False: it is mounted where nobody sees it, and a new name may well be mounted upon it."""
    with contextlib.suppress(OSError):  # not mounted: a leftover file
        while True:
            umount(str(path))
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def remove_name(name: str) -> bool:
    """Take the name away; whether there was one. The namespace dies with its last process, socket and descriptor.

    The directory goes too once it is empty: vxnet leaves nothing, and ``ip netns`` makes it anew when it needs it.
    """
    path = NAMED / name
    if not path.exists():
        return False
    layers = 0
    while not _unlink(path) and layers < LAYERS and [*NAMED.iterdir()] == [path]:
        # Whoever mounts the directory upon itself, as ip-netns(8) does, may leave it mounted beneath, out of sight.
        layers += 1
        umount(str(NAMED))
    if NAMED.exists() and not any(NAMED.iterdir()):
        with contextlib.suppress(OSError):  # not a mount of its own, or somebody is in it
            umount(str(NAMED), 0)
            NAMED.rmdir()
    return True

"""A whole lab: made, changed, taken away.

Every function that changes a lab holds its lock, reads its state, brings the kernel to what is wanted, and writes the
state down; whatever is half done can be done again, and :func:`down` takes away any half.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

from msgspec.structs import replace

from vxnet.lab import boot, build, cgroups, daemons, state, underlay
from vxnet.lab import process as processes
from vxnet.lab.state import LabState
from vxnet.model.errors import CallerError, ConflictError, ForbiddenError, HostError, UnavailableError

_PROGRAMS: Final = {
    **dict.fromkeys(("ip",), "iproute2"),
    **dict.fromkeys(("nft",), "nftables"),
    **dict.fromkeys(("mount", "umount"), "mount"),
    **dict.fromkeys(("unshare", "nsenter", "setsid"), "util-linux"),
    **dict.fromkeys(("env", "sleep"), "coreutils"),
}
"""What is run, and Debian's package that has it."""


def create(
    name: str,
    *,
    hosts: int,
    outside: int = 0,
    mtu: int = 1500,
    ipv6: bool = False,
    join: bool = True,
    managers: int = 1,
    daemon_argv: Sequence[str] = daemons.ARGV,
    datapath: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> LabState:
    """Makes a lab, or leaves nothing and raises. ``daemon_argv``: what hosts run; empty for hosts without a
    daemon. ``datapath``: ``KIND`` and ``HOST=KIND``.
    """
    if not 1 <= managers <= max(hosts, 1):
        raise CallerError(f"of {hosts} hosts, {managers} cannot be managers", hint="there is at least one")
    plan = build.plan(name, hosts, outside, mtu, ipv6, tuple(daemon_argv), datapath)
    _check_machine()
    with state.locked(name):
        if state.folder(name).exists():
            raise ConflictError(f"there is a lab {name!r} already", hint=f"`vxnet lab down --name {name}` removes it")
        builder = build.Builder(plan, join=join, managers=managers, progress=progress)
        with _signals_wait(builder.give_up):
            try:
                state.folder(name).mkdir(mode=0o755)
                return builder.run()
            except BaseException:
                progress("taking it all away again")
                build.remove(name)
                raise


def destroy(name: str) -> bool:
    """Removes a lab, whole or not. False: there was none."""
    _check_root()
    found = state.folder(state.check_name(name)).exists()
    if not state.RUN.is_dir():
        return False
    with state.locked(name):
        build.remove(name)
    return found


def kill_host(name: str, host_name: str) -> None:
    """Power off: every process of the host, and its link. Its disk stays."""
    with _changing(name) as lab:
        host = lab.host(host_name)
        if not processes.kill(host.init):
            raise HostError(f"the init of {host_name} does not die")
        boot.reap()
        underlay.unplug(lab, host_name)
        cgroups.remove(name, host_name)
        state.save(lab.with_host(replace(host, init=None, daemon=None)))


def kill_daemon(name: str, host_name: str) -> None:
    """SIGKILL of the daemon alone."""
    with _changing(name) as lab:
        host = lab.host(host_name)
        if host.init is None or not host.init.alive:
            raise UnavailableError(f"host {host_name!r} is down", hint=f"start it with `vxnet lab start {host_name}`")
        if not processes.kill(daemons.find(host)):
            raise HostError(f"the daemon of {host_name} does not die")
        state.save(lab.with_host(replace(host, daemon=None)))


def start_host(name: str, host_name: str) -> None:
    """Power on, or just the daemon if that is what is missing. Waits until the daemon answers."""
    _check_machine()
    with _changing(name) as lab:
        host = lab.host(host_name)
        if host.init is None or not host.init.alive:
            cgroups.remove(name, host_name)
            with contextlib.closing(boot.boot_host(name, host_name)) as booting:
                host = replace(host, init=booting.init, daemon=None)
                lab = lab.with_host(host)
                underlay.unplug(lab, host_name)
                underlay.plug_in(lab, [host])
                underlay.configure(host)
                build.link_netns(lab, host)
                state.save(lab)
                booting.go()
        if lab.daemon_argv and host.kind == "host" and not daemons.find(host):
            daemons.launch(name, host, lab.daemon_argv)
            host = replace(host, daemon=daemons.wait_answering(name, host))
            state.save(lab.with_host(host))


def cut(name: str, host: str, other: str | None = None) -> None:
    """Takes down a host's link or, with ``other``, parts just this pair."""
    with _changing(name) as lab:
        pair = _pair(lab, host, other)
        if pair:
            lab = replace(lab, parted=tuple(sorted({*lab.parted, pair})))
        else:
            lab = replace(lab, unplugged=tuple(sorted({*lab.unplugged, host})))
        underlay.apply_cuts(lab)
        state.save(lab)


def heal(name: str, host: str | None = None, other: str | None = None) -> None:
    """Undoes :func:`cut`: of a pair; of a host (its link and all its pairs); of all."""
    with _changing(name) as lab:
        pair = _pair(lab, host, other) if host else None
        if pair:
            lab = replace(lab, parted=tuple(sorted({*lab.parted} - {pair})))
        elif host:
            lab = replace(
                lab,
                unplugged=tuple(sorted({*lab.unplugged} - {host})),
                parted=tuple(found for found in lab.parted if host not in found),
            )
        else:
            lab = replace(lab, unplugged=(), parted=())
        underlay.apply_cuts(lab)
        state.save(lab)


@contextlib.contextmanager
def _changing(name: str) -> Iterator[LabState]:
    _check_root()
    state.load(name)  # says that there is none without leaving a lock behind
    with state.locked(name):
        yield state.load(name)


@contextlib.contextmanager
def _signals_wait(give_up: Callable[[], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call ``give_up``, and are a KeyboardInterrupt at the end.

    A KeyboardInterrupt in the middle could leave a thread at work that nobody waits for; SIGTERM would leave all.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        give_up()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if threading.current_thread() is not threading.main_thread():
        before = {}  # no other thread is ever interrupted
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, note)
    try:
        yield
    except BaseException:
        if not came:
            raise
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _pair(lab: LabState, host: str, other: str | None) -> tuple[str, str] | None:
    """The two, if there are two, in one order."""
    lab.host(host)
    if other is None:
        return None
    lab.host(other)
    if host == other:
        raise CallerError(f"{host!r} and {other!r} are one host", hint="name two, or one to cut its link")
    return (host, other) if host < other else (other, host)


def _check_root() -> None:
    if os.geteuid() != 0:
        raise ForbiddenError("a lab needs root: it makes namespaces and links", hint="use sudo")


def _check_machine() -> None:
    _check_root()
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=boot.SYSTEM_PATH)]
    if missing:
        packages = sorted({_PROGRAMS[program] for program in missing})
        raise HostError(f"a lab needs {', '.join(missing)}", hint=f"apt-get install {' '.join(packages)}")

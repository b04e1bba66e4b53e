"""A whole lab: made, changed, taken away.

Every function that changes a lab holds its lock, reads its state, brings the kernel to what is wanted, and writes the
state down; whatever is half done can be done again, and :func:`down` takes away any half.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Literal

from msgspec.structs import replace

from vxnet.lab import boot, cgroups, daemons, mountpoints, state, underlay
from vxnet.lab import process as processes
from vxnet.lab.daemons import in_parallel
from vxnet.lab.state import LabHost, LabState
from vxnet.model.errors import CallerError, ConflictError, ForbiddenError, HostError, NotFoundError

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
    daemon_argv: Sequence[str] = daemons.ARGV,
    progress: Callable[[str], None] = lambda text: None,
) -> LabState:
    """Makes a lab, or leaves nothing and raises. ``daemon_argv``: what hosts run; empty for hosts without a daemon."""
    plan = _plan(name, hosts, outside, mtu, ipv6, tuple(daemon_argv))
    _check_machine()
    with state.locked(name):
        if state.folder(name).exists():
            raise ConflictError(f"there is a lab {name!r} already", hint=f"`vxnet lab down --name {name}` removes it")
        try:
            state.folder(name).mkdir(mode=0o755)
            return _build(plan, join=join, progress=progress)
        except BaseException:  # Ctrl-C too
            progress("taking it all away again")
            _remove(name)
            raise


def destroy(name: str) -> bool:
    """Removes a lab, whole or not. False: there was none."""
    _check_root()
    found = state.folder(state.check_name(name)).exists()
    if not state.RUN.is_dir():
        return False
    with state.locked(name):
        _remove(name)
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
        state.save(_with(lab, replace(host, init=None, daemon=None)))


def kill_daemon(name: str, host_name: str) -> None:
    """SIGKILL of the daemon alone."""
    with _changing(name) as lab:
        host = lab.host(host_name)
        if not processes.kill(daemons.find(host)):
            raise HostError(f"the daemon of {host_name} does not die")
        state.save(_with(lab, replace(host, daemon=None)))


def start_host(name: str, host_name: str) -> None:
    """Power on, or just the daemon if that is what is missing. Waits until the daemon answers."""
    _check_machine()
    with _changing(name) as lab:
        host = lab.host(host_name)
        if host.init is None or not host.init.alive:
            cgroups.remove(name, host_name)
            booting = boot.boot_host(name, host_name)
            host = replace(host, init=booting.init, daemon=None)
            lab = _with(lab, host)
            state.save(lab)
            booting.go()
            _link_netns(lab, host)
            underlay.unplug(lab, host_name)
            underlay.plug_in(lab, [host])
            underlay.configure(host)
        if lab.daemon_argv and host.kind == "host" and not daemons.find(host):
            daemons.launch(name, host, lab.daemon_argv)
            host = replace(host, daemon=daemons.wait_answering(name, host))
            state.save(_with(lab, host))


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


def _plan(name: str, hosts: int, outside: int, mtu: int, ipv6: bool, daemon_argv: tuple[str, ...]) -> LabState:
    state.check_name(name)
    if not 1 <= hosts <= underlay.MOST_HOSTS:
        raise CallerError(f"a lab has 1 to {underlay.MOST_HOSTS} hosts, not {hosts}")
    if not 0 <= outside <= underlay.MOST_OUTSIDE:
        raise CallerError(f"a lab has 0 to {underlay.MOST_OUTSIDE} outside machines, not {outside}")
    least = 1280 if ipv6 else 576  # RFC 8200, RFC 791
    if not least <= mtu <= 65535:
        raise CallerError(f"an underlay's MTU is {least} to 65535, not {mtu}")
    machines: list[tuple[Literal["host", "outside"], str, int]] = [
        *(("host", f"h{i + 1}", underlay.FIRST_HOST + i) for i in range(hosts)),
        *(("outside", f"x{i + 1}", underlay.FIRST_OUTSIDE + i) for i in range(outside)),
    ]
    return LabState(
        name=name,
        mtu=mtu,
        daemon_argv=daemon_argv,
        hosts=tuple(
            LabHost(name=host, kind=kind, interfaces=underlay.interfaces(number, ipv6=ipv6))
            for kind, host, number in machines
        ),
    )


def _build(lab: LabState, *, join: bool, progress: Callable[[str], None]) -> LabState:
    mountpoints.ensure()
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{interface.ip} {host.name}" for host in lab.hosts for interface in host.interfaces]
    for host in lab.hosts:
        boot.lay_disk(lab.name, host.name, "\n".join(lines) + "\n")
    state.save(lab)
    progress(f"starting {', '.join(host.name for host in lab.hosts)}")
    lab = _boot_all(lab)
    _link_netns(lab, *lab.hosts)
    underlay.create(lab)
    underlay.plug_in(lab, lab.hosts)

    with_daemon = [host for host in lab.hosts if lab.daemon_argv and host.kind == "host"]

    def bring_up(host: LabHost) -> None:
        underlay.configure(host)
        if host in with_daemon:
            daemons.launch(lab.name, host, lab.daemon_argv)

    in_parallel(bring_up, lab.hosts)
    if with_daemon and join:
        progress(f"{with_daemon[0].name} makes a cluster, the others join")
        daemons.make_cluster(lab.name, with_daemon)
    found = in_parallel(
        partial(daemons.wait_answering, lab.name), with_daemon, give_up=partial(daemons.power_off, lab.hosts)
    )
    for host, daemon in zip(with_daemon, found, strict=True):
        lab = _with(lab, replace(host, daemon=daemon))
    state.save(lab)
    return lab


def _boot_all(lab: LabState) -> LabState:
    """The underlay and all hosts, in parallel. Their inits are let go when they stand in the file, all at once."""
    booted: dict[str, boot.Booting] = {}

    def boot_one(host: LabHost | None) -> None:
        if host is None:
            booted[""] = boot.boot_underlay(lab.name)
        else:
            booted[host.name] = boot.boot_host(lab.name, host.name)

    try:
        in_parallel(boot_one, [None, *lab.hosts])
        lab = replace(
            lab,
            underlay=booted[""].init,
            hosts=tuple(replace(host, init=booted[host.name].init) for host in lab.hosts),
        )
        state.save(lab)
    except BaseException:
        for booting in booted.values():
            booting.close()
        raise
    for booting in booted.values():
        booting.go()
    return lab


def _link_netns(lab: LabState, *hosts: LabHost) -> None:
    """Names for ``ip -n``: links to where the kernel has the namespaces, so a name keeps nothing alive."""
    named = {state.netns_link(lab.name, host.name): host.init for host in hosts}
    for path, init in {state.netns_link(lab.name): lab.underlay, **named}.items():
        assert init
        path.unlink(missing_ok=True)
        path.symlink_to(f"/proc/{init.pid}/ns/net")


def _remove(name: str) -> None:
    try:
        lab = state.load(name)
    except (HostError, NotFoundError):  # its cgroup knows the processes, too
        lab = LabState(name=name)
    cgroups.kill(name)
    inits = [init for init in (lab.underlay, *(host.init for host in lab.hosts)) if init]
    alive = [init for init, ended in zip(inits, in_parallel(processes.kill, inits), strict=True) if not ended]
    boot.reap()
    for link in state.netns_links(name):
        link.unlink(missing_ok=True)
    cgroups.remove(name)
    state.forget(name)
    mountpoints.release()
    if alive:
        raise HostError(f"these do not die: {', '.join(str(init.pid) for init in alive)}")


@contextlib.contextmanager
def _changing(name: str) -> Iterator[LabState]:
    _check_root()
    state.load(name)  # says that there is none without leaving a lock behind
    with state.locked(name):
        yield state.load(name)


def _pair(lab: LabState, host: str, other: str | None) -> tuple[str, str] | None:
    """The two, if there are two, in one order."""
    lab.host(host)
    if other is None:
        return None
    lab.host(other)
    if host == other:
        raise CallerError(f"{host!r} and {other!r} are one host", hint="name two, or one to cut its link")
    return (host, other) if host < other else (other, host)


def _with(lab: LabState, changed: LabHost) -> LabState:
    return replace(lab, hosts=tuple(changed if host.name == changed.name else host for host in lab.hosts))


def _check_root() -> None:
    if os.geteuid() != 0:
        raise ForbiddenError("a lab needs root: it makes namespaces and links", hint="use sudo")


def _check_machine() -> None:
    _check_root()
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=boot.SYSTEM_PATH)]
    if missing:
        packages = sorted({_PROGRAMS[program] for program in missing})
        raise HostError(f"a lab needs {', '.join(missing)}", hint=f"apt-get install {' '.join(packages)}")

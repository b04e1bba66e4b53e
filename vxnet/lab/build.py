"""How a lab comes to be, and how it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from msgspec.structs import replace

from vxnet.lab import boot, cgroups, daemons, mountpoints, state, underlay
from vxnet.lab import process as processes
from vxnet.lab.daemons import in_parallel
from vxnet.lab.state import LabHost, LabState
from vxnet.model.errors import CallerError, HostError, NotFoundError


def plan(
    name: str,
    hosts: int,
    outside: int,
    mtu: int,
    ipv6: bool,
    daemon_argv: tuple[str, ...],
    datapath: Sequence[str] = (),
) -> LabState:
    state.check_name(name)
    if not 1 <= hosts <= underlay.MOST_HOSTS:
        raise CallerError(f"a lab has 1 to {underlay.MOST_HOSTS} hosts, not {hosts}")
    if not 0 <= outside <= underlay.MOST_OUTSIDE:
        raise CallerError(f"a lab has 0 to {underlay.MOST_OUTSIDE} outside machines, not {outside}")
    least = 1280 if ipv6 else 576  # RFC 8200, RFC 791
    if not least <= mtu <= 65535:
        raise CallerError(f"an underlay's MTU is {least} to 65535, not {mtu}")
    chosen = _datapaths(datapath, hosts)
    machines: list[tuple[Literal["host", "outside"], str, int]] = [
        *(("host", f"h{i + 1}", underlay.FIRST_HOST + i) for i in range(hosts)),
        *(("outside", f"x{i + 1}", underlay.FIRST_OUTSIDE + i) for i in range(outside)),
    ]
    return LabState(
        name=name,
        mtu=mtu,
        daemon_argv=daemon_argv,
        hosts=tuple(
            LabHost(
                name=host,
                kind=kind,
                interfaces=underlay.interfaces(number, ipv6=ipv6),
                datapath=chosen.get(host, chosen.get("", "auto")),
            )
            for kind, host, number in machines
        ),
    )


def _datapaths(wishes: Sequence[str], hosts: int) -> dict[str, str]:
    """``KIND`` for all (by the name ``""``) and ``HOST=KIND`` for one."""
    chosen = {}
    for wish in wishes:
        host, equals, kind = wish.rpartition("=")
        if kind not in ("auto", "kernel", "userspace"):
            raise CallerError(f'"{kind}" is no data path', hint="KIND or HOST=KIND, of auto, kernel and userspace")
        if equals and host not in {f"h{number + 1}" for number in range(hosts)}:
            raise CallerError(f'"{wish}": the lab has no host "{host}"', hint=f"its hosts are h1 to h{hosts}")
        chosen[host] = kind
    return chosen


class GivenUpError(Exception):
    """Somebody wants no lab any more."""


class Builder:
    def __init__(self, lab: LabState, *, join: bool, managers: int, progress: Callable[[str], None]) -> None:
        self._lab = lab
        self._join = join
        self._managers = managers
        self._progress = progress
        self._given_up = False

    def run(self) -> LabState:
        """Raises when it fails or is given up: half of the lab may stand then, but nothing works on it any more."""
        self._build()
        self._go_on()
        return self._lab

    def give_up(self) -> None:
        """Makes :meth:`run` end soon, from another thread or a signal handler."""
        self._given_up = True
        daemons.power_off(self._lab.hosts)  # who waits for a host that is dead waits no longer

    def _build(self) -> None:
        mountpoints.ensure()
        self._lay_disks()
        state.save(self._lab)
        self._step(f"starting {', '.join(host.name for host in self._lab.hosts)}")
        with contextlib.ExitStack() as stack:
            booted = self._boot(stack)
            underlay.create(self._lab)
            underlay.plug_in(self._lab, self._lab.hosts)
            in_parallel(underlay.configure, self._lab.hosts)
            link_netns(self._lab, *self._lab.hosts)
            state.save(self._lab)
            self._go_on()
            for booting in booted:
                booting.go()
        if self._lab.daemon_argv:
            self._start_daemons([host for host in self._lab.hosts if host.kind == "host"])

    def _step(self, what: str) -> None:
        self._go_on()
        self._progress(what)

    def _go_on(self) -> None:
        if self._given_up:
            raise GivenUpError

    def _lay_disks(self) -> None:
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        lines += [f"{interface.ip} {host.name}" for host in self._lab.hosts for interface in host.interfaces]
        for host in self._lab.hosts:
            boot.lay_disk(self._lab.name, host.name, "\n".join(lines) + "\n", host.datapath)

    def _boot(self, stack: contextlib.ExitStack) -> list[boot.Booting]:
        """All at once. What has booted ends with ``stack`` if it has not been let go."""
        name = self._lab.name

        def boot_one(host: str | None) -> boot.Booting:
            booting = boot.boot_host(name, host) if host else boot.boot_underlay(name)
            stack.callback(booting.close)
            return booting

        first, *others = booted = in_parallel(boot_one, [None, *(host.name for host in self._lab.hosts)])
        hosts = zip(self._lab.hosts, others, strict=True)
        self._lab = replace(
            self._lab,
            underlay=first.init,
            hosts=tuple(replace(host, init=booting.init) for host, booting in hosts),
        )
        return booted

    def _start_daemons(self, hosts: list[LabHost]) -> None:
        name = self._lab.name
        give_up = partial(daemons.power_off, self._lab.hosts)
        in_parallel(lambda host: daemons.launch(name, host, self._lab.daemon_argv), hosts)
        if self._join:
            self._step(f"{hosts[0].name} makes a cluster, the others join")
            daemons.make_cluster(name, hosts, managers=self._managers)
        found = in_parallel(partial(daemons.wait_answering, name), hosts, give_up=give_up)
        for host, daemon in zip(hosts, found, strict=True):
            self._lab = self._lab.with_host(replace(host, daemon=daemon))
        state.save(self._lab)


def link_netns(lab: LabState, *hosts: LabHost) -> None:
    """Names for ``ip -n``: links to where the kernel has the namespaces, so a name keeps nothing alive."""
    named = {state.netns_link(lab.name, host.name): host.init for host in hosts}
    for path, init in {state.netns_link(lab.name): lab.underlay, **named}.items():
        assert init
        path.unlink(missing_ok=True)
        path.symlink_to(f"/proc/{init.pid}/ns/net")


def remove(name: str) -> None:
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

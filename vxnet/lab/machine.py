"""A lab as a Python object: what tests use.

::

    with Lab(hosts=3, outside=1) as lab:
        lab.run("h1", ["vxnet", "node", "ls"], check=True).stdout
        lab.cut("h1", "h2")
        lab.client("h3").nodes()
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from vxnet.cluster.client import Client
from vxnet.lab import daemons, operations, programs, state
from vxnet.lab.process import Process
from vxnet.lab.state import LabHost
from vxnet.lab.views import LabView, view
from vxnet.model.address import IPAddress
from vxnet.model.errors import UnavailableError

_counter: Final = itertools.count(1)


class Machine:
    """One host of a lab, as it is now: asked anew each time, as hosts die and start."""

    def __init__(self, lab_name: str, name: str) -> None:
        self.lab = lab_name
        self.name = name

    @property
    def record(self) -> LabHost:
        return state.load(self.lab).host(self.name)

    @property
    def init(self) -> Process:
        init = self.record.init
        if init is None or not init.alive:
            raise UnavailableError(f"host {self.name!r} is down", hint=f"start it with `vxnet lab start {self.name}`")
        return init

    @property
    def pid(self) -> int:
        """Of its init, as this machine counts."""
        return self.init.pid

    @property
    def daemon_pid(self) -> int:
        """0 when it does not run."""
        daemon = daemons.find(self.record)
        return daemon.pid if daemon else 0

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    @property
    def root(self) -> Path:
        """Its files, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def log(self) -> Path:
        """What its daemons have written to stdout and stderr."""
        return state.log_file(self.lab, self.name)

    @property
    def address(self) -> IPAddress:
        return self.record.address

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return tuple(interface.ip for interface in self.record.interfaces)


class Lab:
    """Made on entering, removed on leaving, however it is left. Without a name it gets one that no other has."""

    def __init__(
        self,
        name: str = "",
        *,
        hosts: int = 3,
        outside: int = 0,
        mtu: int = 1500,
        ipv6: bool = False,
        join: bool = True,
        managers: int = 1,
        daemon_argv: Sequence[str] = daemons.ARGV,
        datapath: Sequence[str] = (),
    ) -> None:
        self.name = name or f"py{os.getpid()}-{next(_counter)}"
        self._options: dict[str, Any] = {
            "hosts": hosts,
            "outside": outside,
            "mtu": mtu,
            "ipv6": ipv6,
            "join": join,
            "managers": managers,
            "daemon_argv": daemon_argv,
            "datapath": datapath,
        }

    def up(self) -> Lab:
        operations.create(self.name, **self._options)
        return self

    def down(self) -> None:
        operations.destroy(self.name)

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.down()

    def __getitem__(self, host: str) -> Machine:
        state.load(self.name).host(host)
        return Machine(self.name, host)

    def view(self) -> LabView:
        return view(state.load(self.name))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those with a daemon; not the outside machines."""
        return tuple(host.name for host in state.load(self.name).hosts if host.kind == "host")

    def client(self, host: str = "h1") -> Client:
        return daemons.client(state.load(self.name).host(host))

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Options are :class:`subprocess.Popen`'s; ``env`` adds to the environment."""
        return programs.popen(self[host].init, host, argv, **options)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout_s: float | None = 60.0,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run` with captured text; its errors carry what the program said in their notes."""
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        streams.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        with self.popen(host, argv, **streams) as child:
            try:
                stdout, stderr = child.communicate(input, timeout=timeout_s)
            except BaseException:
                child.kill()
                child.wait()  # on Ctrl-C, `with` alone does not; a host ends only when all of its own are reaped
                raise
        if check and child.returncode:
            error = subprocess.CalledProcessError(child.returncode, list(argv), stdout, stderr)
            error.add_note(f"on {host}; stdout: {stdout!r}; stderr: {stderr!r}")
            raise error
        return subprocess.CompletedProcess(list(argv), child.returncode, stdout, stderr)

    def cut(self, host: str, other: str | None = None) -> None:
        operations.cut(self.name, host, other)

    def heal(self, host: str | None = None, other: str | None = None) -> None:
        operations.heal(self.name, host, other)

    def kill(self, host: str, *, daemon: bool = False) -> None:
        operations.kill_daemon(self.name, host) if daemon else operations.kill_host(self.name, host)

    def start(self, host: str) -> None:
        operations.start_host(self.name, host)

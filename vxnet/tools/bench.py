"""`vxnet bench`: what the ways to other hosts carry, by iperf3 and ping, over underlay and overlay.

::

    this host's end ── "underlay", "kernel", "user space" ── the other host's end      (tools/bench_end, both sides)
      nsenter … iperf3 -c, ping, connect              iperf3 -s, a listener

Both ends are started by their daemons, the far one at the managers' word, and end with the connection to them: so
nothing is left when this is interrupted. Rounds are interleaved, as no machine is equally busy all the time; each
figure is the median of its rounds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vxnet.cluster.client import Client
from vxnet.host import netns
from vxnet.host.neighbourhood import ways_to
from vxnet.model.address import IPAddress
from vxnet.model.api import NodeView
from vxnet.model.bench import BenchEnd, BenchPlace, BenchWish, HostFigures, PathFigures
from vxnet.model.errors import CallerError, HostError
from vxnet.tools.bench_end import CONNECT_PORT, IPERF_PORT

PATHS = ("underlay", "kernel", "user space")
PINGS = 100
PING_S = 5
"""For all of them."""
CONNECT_S = 1.0
UDP_OCTETS = 64
READY_S = 10.0


class Options(NamedTuple):
    seconds: int = 2
    """Of one measurement of TCP, and of UDP; iperf3 counts whole ones."""
    rounds: int = 3

    @property
    def longest_s(self) -> float:
        """Of all paths to one host, each measurement as slow as it may be."""
        return len(PATHS) * (READY_S + self.rounds * (2 * (READY_S + 2 * self.seconds) + PING_S + CONNECT_S))


def bench(
    client: Client, hosts: Sequence[str], options: Options, progress: Callable[[str], None]
) -> Iterator[HostFigures]:
    """To each of these, or all others. Raises what the daemon refuses, :class:`HostError` without root or iperf3."""
    if os.geteuid() != 0:
        raise HostError("a measurement makes network devices", hint="use sudo")
    nodes = client.nodes()
    own = next(view for view in nodes if view.self)
    others = [view for view in nodes if not view.self and (not hosts or {view.node.name, view.node.id} & {*hosts})]
    if unknown := [name for name in hosts if name not in {n for v in others for n in (v.node.name, v.node.id)}]:
        raise CallerError(f"no other node is called {', '.join(unknown)}", hint="`vxnet node ls` lists them")
    if not others:
        raise CallerError("there is no other node to measure to", hint="`vxnet join-token worker` tells how one joins")
    for view in others:
        yield _to(client, own, view, options, progress)


def _to(
    client: Client, own: NodeView, other: NodeView, options: Options, progress: Callable[[str], None]
) -> HostFigures:
    here, there = own.node.data_path_addr, other.node.data_path_addr
    way = ways_to([there]).get(there)
    if way is None:
        raise HostError(f"there is no route to {other.node.name} ({there})", hint="`ip route`")
    progress(f"{other.node.name}: building")
    port, longest_s = client.info().data_port, options.longest_s
    with contextlib.ExitStack() as stack:
        wishes = [
            (own, BenchWish(number=1, local=here, peer=there, mtu=way.mtu, data_port=port, longest_s=longest_s)),
            (other, BenchWish(number=2, local=there, peer=here, mtu=way.mtu, data_port=port, longest_s=longest_s)),
        ]
        near, far = (stack.enter_context(client.bench_end(view.node.id, wish)) for view, wish in wishes)
        paths = [_Path(name, near, far) for name in PATHS]
        live = [path for path in paths if path.ready()]
        for number in range(options.rounds):
            for path in live if number % 2 == 0 else reversed(live):
                progress(f"{other.node.name}: {path.name}, round {number + 1} of {options.rounds}")
                path.measure(options.seconds)
    base = paths[0].median(paths[0].bits)
    return HostFigures(
        host=other.node.name, address=there, rounds=options.rounds, paths=tuple(path.figures(base) for path in paths)
    )


class _Path:
    def __init__(self, name: str, near: BenchEnd, far: BenchEnd) -> None:
        self.name = name
        self.problem = near.missing.get(name, "") or far.missing.get(name, "")
        self.bits: list[float] = []
        self._rtts: list[float] = []
        self._packets: list[float] = []
        self._connections: list[float] = []
        self._pid = near.pid
        self._patience_s = READY_S
        self._near: BenchPlace | None = near.places.get(name)
        self._far: BenchPlace | None = far.places.get(name)

    @property
    def _namespace(self) -> str:
        assert self._near is not None
        return f"/proc/{self._pid}/fd/{self._near.descriptor}"

    @property
    def _target(self) -> IPAddress:
        assert self._far is not None
        return self._far.address

    def ready(self) -> bool:
        if self._near is None or self._far is None:
            self.problem = self.problem or "it is not there"
            return False
        until = time.monotonic() + READY_S
        while (said := self._iperf("-n", "1K")) is None or "error" in said:
            if time.monotonic() > until:
                reason = said["error"] if said else "iperf3 is not there"
                self.problem = f"no server answers at {self._target}:{IPERF_PORT}/tcp ({reason}): a closed port?"
                return False
            time.sleep(0.1)
        return True

    def measure(self, seconds: int) -> None:
        self._patience_s = READY_S + 2 * seconds
        said = self._iperf("-t", str(seconds), "-O", "1" if seconds > 1 else "0") or {}
        with contextlib.suppress(KeyError):
            self.bits.append(float(said["end"]["sum_received"]["bits_per_second"]))
        self._rtts += self._ping()
        said = self._iperf("-u", "-b", "0", "-l", str(UDP_OCTETS), "-t", str(seconds)) or {}
        with contextlib.suppress(KeyError, ZeroDivisionError):
            sums = said["end"]["sum_received"] if "sum_received" in said["end"] else said["end"]["sum"]
            self._packets.append((sums["packets"] - sums["lost_packets"]) / sums["seconds"])
        self._connections.append(self._connect())

    def _iperf(self, *flags: str) -> dict[str, dict[str, dict[str, float]]] | None:
        argv = ["nsenter", f"--net={self._namespace}", "iperf3", "-c", str(self._target), "-p", str(IPERF_PORT), "-J"]
        try:
            done = subprocess.run(
                [*argv, "--connect-timeout", "2000", *flags],
                capture_output=True,
                text=True,
                timeout=self._patience_s,
                check=False,
            )
            return json.loads(done.stdout)  # type: ignore[no-any-return]
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def _ping(self) -> list[float]:
        argv = ["nsenter", f"--net={self._namespace}", "ping", "-n", "-i", "0.002", "-w", str(PING_S), "-c", str(PINGS)]
        done = subprocess.run([*argv, str(self._target)], capture_output=True, text=True, timeout=60, check=False)
        times = [float(found) * 1000 for found in re.findall(r"time=([\d.]+) ms", done.stdout)]
        return [statistics.median(times)] if times else []

    def _connect(self) -> float:
        """TCP connections a second, one after the other, each closed at once."""
        target = (str(self._target), CONNECT_PORT)
        family = socket.AF_INET if self._target.version == 4 else socket.AF_INET6

        def run() -> float:
            begun, count = time.monotonic(), 0
            while time.monotonic() - begun < CONNECT_S:
                with socket.socket(family) as one:
                    # Ended by a reset: thousands that wait for their last packet would take all ports.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.settimeout(CONNECT_S)
                    with contextlib.suppress(OSError):
                        one.connect(target)
                        count += 1
            return count / (time.monotonic() - begun)

        namespace = os.open(self._namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return netns.inside(namespace, run)
        finally:
            os.close(namespace)

    @staticmethod
    def median(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    def figures(self, base: float | None) -> PathFigures:
        tcp = self.median(self.bits)
        return PathFigures(
            path=self.name,
            tcp_bits_s=tcp,
            rtt_us=self.median(self._rtts),
            udp_packets_s=self.median(self._packets),
            connections_s=self.median(self._connections),
            ratio=tcp / base if tcp is not None and base else None,
            problem=self.problem,
        )


def check_plot(path: str) -> None:
    """Before all measuring. Raises :class:`HostError` without matplotlib, :class:`CallerError` on other ends."""
    if not path.endswith((".png", ".svg")):
        raise CallerError(f"a plot is a .png or an .svg, not {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise HostError(
            "a plot needs matplotlib, which is not installed",
            hint="pip install 'vxnet[plot]'; into the package: docs/operations.md, Install",
        )
    if not os.path.isdir(folder := os.path.dirname(path) or "."):
        raise CallerError(f"cannot write {path}: there is no directory {folder}")


def plot(figures: Sequence[HostFigures], path: str) -> None:
    """Bars, as PNG or SVG by the name's end."""
    # By its name: who checks types need not have it installed.
    drawing: Any = importlib.import_module("matplotlib.figure")
    kinds: dict[str, Callable[[PathFigures], float]] = {
        "TCP, Gb/s": lambda one: (one.tcp_bits_s or 0) / 1e9,
        "round trip, µs": lambda one: one.rtt_us or 0,
        "UDP, 1000 packets/s": lambda one: (one.udp_packets_s or 0) / 1000,
        "connections/s": lambda one: one.connections_s or 0,
    }
    figure = drawing.Figure(figsize=(3 * len(kinds), 3.4), layout="constrained")
    for at, (title, value) in enumerate(kinds.items()):
        axes = figure.add_subplot(1, len(kinds), at + 1)
        for number, name in enumerate(PATHS):
            heights = [value(one) for host in figures for one in host.paths if one.path == name]
            places = [place + number * 0.27 for place in range(len(heights))]
            axes.bar(places, heights, 0.25, label=name)
        axes.set_xticks([place + 0.27 for place in range(len(figures))], [host.host for host in figures])
        axes.set_title(title)
    figure.axes[0].legend()
    figure.savefig(path)

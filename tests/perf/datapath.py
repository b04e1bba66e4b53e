"""Tunnels in user space against the kernel's: two labs that differ in nothing else, in interleaved turns.

The hosts of a lab are joined by veth, which passes 64 KiB at a time, as no plain network card does. So everything is
measured again with the underlay's segmentation offloads off. All threads of both hosts share this machine's cores with
iperf3: a ratio says what a busy machine would see. A round trip is that of one octet over TCP, between a client on the
first core and a server on the second, so that the kernel's way wakes a sleeper, too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.perf.measure import compiled, interval, sh, table
from tests.perf.throughput import Place, make_by_vxnet
from vxnet.host import uvxlan
from vxnet.lab import Lab, state

TURNS = 15
SECONDS = 2
ECHOES = 4000
ECHO_PORT, BLAST_PORT = "7007", "7008"
PROGRAMS = Path("build")
IDLE_S = 20
SEGMENTATION = "tso gso tx-udp-segmentation tx-udp_tnl-segmentation tx-udp_tnl-csum-segmentation"


def iperf3(lab: Lab, place: Place, *flags: str) -> dict[str, dict[str, float]]:
    argv = [*place.enter, "iperf3", "-c", place.server, "-J", *flags]
    end = json.loads(lab.run(place.host, argv, check=True).stdout)["end"]
    assert isinstance(end, dict)
    return end


def gigabits(streams: int, seconds: int) -> Callable[[Lab, Place], float]:
    flags = ("-t", str(seconds), "-P", str(streams))
    return lambda lab, place: iperf3(lab, place, *flags)["sum_received"]["bits_per_second"] / 1e9


def program(name: str) -> str:
    """Where the hosts of a lab see it, too."""
    return str(PROGRAMS.absolute() / name)


def programs() -> None:
    """Compiles them."""
    PROGRAMS.mkdir(exist_ok=True)
    for name in ("echo", "blast"):
        compiled(name, PROGRAMS)


def kilopackets(seconds: int) -> Callable[[Lab, Place], float]:
    """Received, of 64 octets each."""

    def measure(lab: Lab, place: Place) -> float:
        argv = [*place.enter, program("blast"), "send", place.server, BLAST_PORT, str(seconds)]
        return float(lab.run(place.host, argv, check=True).stdout)

    return measure


def rtt_us(lab: Lab, place: Place) -> float:
    argv = [*place.enter, "taskset", "-c", "0", program("echo"), "ask", place.server, ECHO_PORT, str(ECHOES)]
    return float(lab.run(place.host, argv, check=True).stdout)


def into_server(lab: Lab) -> tuple[str, ...]:
    """On h2."""
    pid = json.loads(sh(lab, "h2", "vxnet inspect server"))[0]["pid"]
    return ("nsenter", "--net", "-t", str(pid))


@contextmanager
def serving(lab: Lab, host: str, *argv: str) -> Iterator[None]:
    """Beside iperf3's server."""
    child = lab.popen(host, argv, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.kill()
        child.wait()


RTT = ("RTT, p50", "µs", rtt_us)


def measures(seconds: int) -> Sequence[tuple[str, str, Callable[[Lab, Place], float]]]:
    return (
        ("TCP × 1", "Gb/s", gigabits(1, seconds)),
        ("TCP × 4", "Gb/s", gigabits(4, seconds)),
        ("UDP 64 octets", "kpps", kilopackets(seconds)),
        RTT,
    )


def offloads(lab: Lab, hosts: Iterable[str], on: bool) -> None:
    """Segmentation offload of the hosts' cards. Without it they join what they receive, as the driver of any card does;
    veth does so only where the other end, the switch's port, has no TSO either."""
    cards, ports = (
        " ".join(f"{name} {'on' if on else 'off'}" for name in names.split()) for names in (SEGMENTATION, "tso")
    )
    underlay = state.load(lab.name).underlay
    assert underlay is not None
    for host in hosts:
        sh(lab, host, f"ethtool -K eth1 {cards} gro {'off' if on else 'on'} >/dev/null")
        switch = ["nsenter", "--net", "-t", str(underlay.pid)]
        # Towards an XDP program (that of Open vSwitch's AF_XDP) veth has none, and refuses it.
        subprocess.run([*switch, "ethtool", "-K", host, *ports.split()], check=not on, capture_output=True)


def idle_percent(lab: Lab) -> float:
    """Of one core, for the forwarder of h1 while nothing is sent."""
    (pid,) = sh(lab, "h1", f"pgrep -u {uvxlan.UID}").split()

    def ticks() -> int:
        stat = sh(lab, "h1", f"cat /proc/{pid}/stat").rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    before = ticks()
    time.sleep(IDLE_S)
    return (ticks() - before) / 100 / IDLE_S * 100


def without_spinning(lab: Lab) -> None:
    """Its forwarders sleep at once when there is nothing to do."""
    for host in lab.hosts:
        with (lab[host].root / "etc/vxnet/vxnet.toml").open("a") as configuration:
            configuration.write("spin-us = 0\n")
        lab.kill(host, daemon=True)
        lab.start(host)


def main() -> None:
    programs()
    with (
        Lab(hosts=2, datapath=["kernel"]) as kernel,
        Lab(hosts=2, datapath=["userspace"]) as user,
        ExitStack() as servers,
    ):
        places = [(lab, make_by_vxnet(lab)) for lab in (kernel, user)]
        for lab, _ in places:
            enter = into_server(lab)
            echo = ("taskset", "-c", "1", program("echo"), "serve", ECHO_PORT)
            servers.enter_context(serving(lab, "h2", *enter, *echo))
            servers.enter_context(serving(lab, "h2", *enter, program("blast"), "serve", BLAST_PORT))
        rows = []
        for underlay, on in (("without segmentation offload", False), ("veth", True)):
            for lab, _ in places:
                offloads(lab, lab.hosts, on)
            for what, unit, measure in measures(SECONDS):
                rows.append(row(f"{what}, {underlay}", unit, turns(places, measure)))
        idle = idle_percent(user)
        without_spinning(user)
        what, unit, measure = RTT
        rows.append(row(f"{what}, veth, no busy waiting", unit, turns(places, measure)))
    table(
        f"Tunnels in user space, {TURNS} interleaved turns",
        ["", "kernel", "user space", "user space : kernel [95 % interval]"],
        rows,
    )
    print(f"\nThe idle forwarder takes {idle:.2f} % of a core.")


def turns(places: Sequence[tuple[Lab, Place]], measure: Callable[[Lab, Place], float]) -> list[tuple[float, float]]:
    """What each of the two labs had, in turns of which every second begins with the other."""
    found = []
    for number in range(TURNS):
        values = {lab: measure(lab, place) for lab, place in places[:: 1 if number % 2 else -1]}
        found.append((values[places[0][0]], values[places[1][0]]))
    return found


def row(what: str, unit: str, turns: Sequence[tuple[float, float]]) -> list[str]:
    ratios = [user / kernel for kernel, user in turns]
    low, high = interval(ratios)
    shown = [f"{statistics.median(values):.1f} {unit}" for values in zip(*turns, strict=True)]
    return [what, *shown, f"{statistics.median(ratios):.2f} [{low:.2f}–{high:.2f}]"]

"""Tunnels in user space against the kernel's: two labs that differ in nothing else, in interleaved turns.

The hosts of a lab are joined by veth, which passes 64 KiB at a time, as no plain network card does. So everything is
measured again with the underlay's segmentation offloads off. All threads of both hosts share this machine's cores with
iperf3: a ratio says what a busy machine would see.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence

from tests.perf.measure import interval, sh, table
from tests.perf.throughput import Place, make_by_vxnet
from vxnet.host import uvxlan
from vxnet.lab import Lab

TURNS = 15
SECONDS = 2
PINGS = 500
IDLE_S = 20
OFFLOADS = "tso gso tx-udp-segmentation tx-udp_tnl-segmentation tx-udp_tnl-csum-segmentation"


def iperf3(lab: Lab, place: Place, *flags: str) -> dict[str, dict[str, float]]:
    argv = [*place.enter, "iperf3", "-c", place.server, "-t", str(SECONDS), "-J", *flags]
    end = json.loads(lab.run(place.host, argv, check=True).stdout)["end"]
    assert isinstance(end, dict)
    return end


def gigabits(streams: int) -> Callable[[Lab, Place], float]:
    return lambda lab, place: iperf3(lab, place, "-P", str(streams))["sum_received"]["bits_per_second"] / 1e9


def kilopackets(lab: Lab, place: Place) -> float:
    """Received, of 64 octets each."""
    found = iperf3(lab, place, "-u", "-l", "64", "-b", "0")["sum"]
    return (found["packets"] - found["lost_packets"]) / found["seconds"] / 1e3


def rtt_us(lab: Lab, place: Place) -> float:
    argv = [*place.enter, "ping", "-n", "-i", "0.002", "-c", str(PINGS), place.server]
    times = re.findall(r"time=([\d.]+) ms", lab.run(place.host, argv, check=True).stdout)
    return statistics.median(map(float, times)) * 1000


MEASURES: Sequence[tuple[str, str, Callable[[Lab, Place], float]]] = (
    ("TCP × 1", "Gb/s", gigabits(1)),
    ("TCP × 4", "Gb/s", gigabits(4)),
    ("UDP 64 octets", "kpps", kilopackets),
    ("RTT, p50", "µs", rtt_us),
)


def offloads(lab: Lab, on: bool) -> None:
    for host in lab.hosts:
        switches = " ".join(f"{name} {'on' if on else 'off'}" for name in OFFLOADS.split())
        sh(lab, host, f"ethtool -K eth1 {switches} >/dev/null")


def idle_percent(lab: Lab) -> float:
    """Of one core, for the forwarder of h1 while nothing is sent."""
    (pid,) = sh(lab, "h1", f"pgrep -u {uvxlan.UID}").split()

    def ticks() -> int:
        stat = sh(lab, "h1", f"cat /proc/{pid}/stat").rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    before = ticks()
    time.sleep(IDLE_S)
    return (ticks() - before) / 100 / IDLE_S * 100


def main() -> None:
    with Lab(hosts=2, datapath=["kernel"]) as kernel, Lab(hosts=2, datapath=["userspace"]) as user:
        places = [(lab, make_by_vxnet(lab)) for lab in (kernel, user)]
        rows = []
        for underlay, on in (("veth", True), ("without segmentation offload", False)):
            for lab, _ in places:
                offloads(lab, on)
            for what, unit, measure in MEASURES:
                turns = []
                for number in range(TURNS):
                    order = places if number % 2 else places[::-1]
                    found = {lab: measure(lab, place) for lab, place in order}
                    turns.append((found[kernel], found[user]))
                rows.append(row(f"{what}, {underlay}", unit, turns))
        idle = idle_percent(user)
    table(
        f"Tunnels in user space, {TURNS} interleaved turns",
        ["", "kernel", "user space", "user space : kernel [95 % interval]"],
        rows,
    )
    print(f"\nThe idle forwarder takes {idle:.2f} % of a core.")


def row(what: str, unit: str, turns: Sequence[tuple[float, float]]) -> list[str]:
    ratios = [user / kernel for kernel, user in turns]
    low, high = interval(ratios)
    shown = [f"{statistics.median(values):.1f} {unit}" for values in zip(*turns, strict=True)]
    return [what, *shown, f"{statistics.median(ratios):.2f} [{low:.2f}–{high:.2f}]"]

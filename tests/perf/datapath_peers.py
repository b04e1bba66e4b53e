"""Tunnels in user space beside other people's, and beside the kernel's: all in one run, in interleaved turns.

The kernel's and vxnet's own are made by vxnet, in two labs that differ in nothing else. The others are on bare machines
of the kernel's lab (peers.py): these have no firewall to pass, and no bridge of the kernel's, which is to their good.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from tests.others import NotToBeHadError
from tests.perf import datapath
from tests.perf.datapath import BLAST_PORT, ECHO_PORT, program
from tests.perf.measure import interval, machine, table
from tests.perf.peers import CONTAINER, PEERS, make_by
from tests.perf.throughput import Place, make_by_vxnet
from vxnet.lab import Lab

TURNS = 7
SECONDS = 1
KERNEL, OURS = "kernel", "vxnet"
CONTENDERS = (KERNEL, OURS, "ovs", "nebula", "tinc")
UNDERLAYS = {"cards": ("without segmentation offload", False), "veth": ("veth", True)}


class Contender(NamedTuple):
    name: str
    lab: Lab
    hosts: Sequence[str]
    place: Place


def main(argv: Sequence[str] = ()) -> None:
    asked = _asked(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by somebody"))  # as Ctrl-C: nothing stays behind
    datapath.programs()
    with ExitStack() as stack:
        try:
            contenders = _made(stack, asked.only)
        except NotToBeHadError as error:
            sys.exit(str(error))
        for name in asked.underlay:
            what, on = UNDERLAYS[name]
            for one in contenders:
                datapath.offloads(one.lab, one.hosts, on)
            _measure(f"Tunnels in user space beside others, {what}, {asked.turns} interleaved turns", contenders, asked)


def _asked(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.datapath_peers")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="that one measurement of throughput takes")
    parser.add_argument("--underlay", nargs="+", choices=UNDERLAYS, default=list(UNDERLAYS))
    parser.add_argument(
        "--only", nargs="+", choices=(KERNEL, OURS, *PEERS), default=CONTENDERS, help="these, and the kernel's"
    )
    asked = parser.parse_args(argv)
    asked.only = [KERNEL, *(name for name in asked.only if name != KERNEL)]
    return asked


def _made(stack: ExitStack, names: Sequence[str]) -> list[Contender]:
    peers = [name for name in names if name in PEERS]
    kernel = stack.enter_context(Lab(hosts=2, outside=2 * len(peers), datapath=["kernel"]))
    made = []
    for name in names:
        if name in PEERS:
            number = 2 * peers.index(name) + 1
            near, far = f"x{number}", f"x{number + 1}"
            one = Contender(name, kernel, (near, far), make_by(PEERS[name], kernel, near, far))
            enter: tuple[str, ...] = CONTAINER
            kernel.run(far, [*enter, "iperf3", "-s", "-D"], check=True)
        else:
            lab = kernel if name == KERNEL else stack.enter_context(Lab(hosts=2, datapath=["userspace"]))
            far = "h2"
            one = Contender(name, lab, lab.hosts, make_by_vxnet(lab))
            enter = datapath.into_server(lab)
        echo = ("taskset", "-c", "1", program("echo"), "serve", ECHO_PORT)
        for argv in (echo, (program("blast"), "serve", BLAST_PORT)):
            stack.enter_context(datapath.serving(one.lab, far, *enter, *argv))
        made.append(one)
    return made


def _measure(title: str, contenders: Sequence[Contender], asked: argparse.Namespace) -> None:
    columns: list[list[str]] = [[one.name for one in contenders]]
    header = [""]
    for what, unit, measure in datapath.measures(asked.seconds):
        header.append(f"{what}, {unit}")
        found: dict[str, list[float]] = {one.name: [] for one in contenders}
        for turn in range(asked.turns):
            first = turn % len(contenders)
            for one in (*contenders[first:], *contenders[:first]):
                found[one.name].append(_taken(one, what, measure))
        columns.append([_shown(found[one.name], found[KERNEL]) for one in contenders])
    table(title, header, list(zip(*columns, strict=True)))


def _taken(one: Contender, what: str, measure: Callable[[Lab, Place], float]) -> float:
    """Whoever lets nothing through once is said to, and asked again; twice ends the bench."""
    try:
        return measure(one.lab, one.place)
    except subprocess.CalledProcessError as error:
        print(f"{one.name}, {what}: {error}, {error.stderr.strip()}; once more", file=sys.stderr)
        return measure(one.lab, one.place)


def _shown(values: Sequence[float], kernel: Sequence[float]) -> str:
    """The median; what it is times the kernel's of the same turn, and the 95 % interval of that."""
    median = f"{statistics.median(values):.{2 if statistics.median(values) < 10 else 1}f}"
    if values is kernel:
        return median
    ratios = [one / other for one, other in zip(values, kernel, strict=True)]
    low, high = interval(ratios)
    return f"{median}: {statistics.median(ratios):.2f} [{low:.2f}–{high:.2f}]"


if __name__ == "__main__":
    print(machine())
    main(sys.argv[1:])

"""iperf3 and ping over vxnet against the same devices made by hand, in the same lab, in interleaved turns.

::

     h1  container ─ veth ─ br ─ vxlan ═══╗ underlay ╔═══ vxlan ─ br ─ veth ─ container  h2   vxnet
         netns hc  ─ veth ─ br ─ vxlan ═══╣          ╠═══ vxlan ─ br ─ veth ─ netns hc        by hand, same host
     x1  netns hc  ─ veth ─ br ─ vxlan ═══╝          ╚═══ vxlan ─ br ─ veth ─ netns hc   x2   by hand, bare machine

The hand-made set is what an administrator would type with static FDB rows: the tunnel in a namespace of its own with
its socket in the host's, as vxnet has it, and nothing else: no resolver. On the same host it has the same firewall
before it; on the bare machine there is neither nftables nor conntrack, which every host with NAT or a firewall has.
What counts is the ratio within a turn; its median and the interval of that say whether one is faster.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from tests.perf.measure import interval, sh, table
from vxnet.lab import Lab
from vxnet.model.cluster import DATA_PORT

TURNS = 15
SECONDS = 2
PINGS = 1000


class Place(NamedTuple):
    """Where a client is, and what it calls the server."""

    host: str
    enter: tuple[str, ...]
    server: str


MADE_BY_HAND = """
ip netns add hd; ip netns add hc
ip link add vxh netns hd type vxlan id 77 local {own} dstport {port} nolearning
ip -n hd link set vxh mtu 1450
ip -n hd link add brh type bridge mcast_snooping 0
ip -n hd link set brh mtu 1450 up
ip -n hd link set vxh master brh up
ip -n hd link add vh mtu 1450 type veth peer name eth0 netns hc mtu 1450 address 02:77:00:00:00:0{number}
ip -n hd link set vh master brh up
ip -n hc address add 10.77.0.{number}/24 dev eth0
ip -n hc link set eth0 up; ip -n hc link set lo up
ip netns exec hd bridge fdb append 00:00:00:00:00:00 dev vxh dst {peer}
ip netns exec hd bridge fdb append 02:77:00:00:00:0{other} dev vxh dst {peer}
"""


def make_by_hand(lab: Lab, near: str, far: str) -> Place:
    for number, host, peer in ((1, near, far), (2, far, near)):
        script = MADE_BY_HAND.format(
            own=lab[host].address, peer=lab[peer].address, port=DATA_PORT, number=number, other=3 - number
        )
        sh(lab, host, script)
    sh(lab, far, "ip netns exec hc iperf3 -s -D")
    return Place(near, ("nsenter", "--net=/run/netns/hc"), "10.77.0.2")


def make_by_vxnet(lab: Lab) -> Place:
    sh(lab, "h1", "vxnet network create -d overlay --attachable speed")
    sh(lab, "h2", "vxnet run -d --name server --network speed -- iperf3 -s")
    sh(lab, "h1", "vxnet run -d --name client --network speed -- sleep infinity")
    server = sh(lab, "h1", "vxnet exec client getent ahostsv4 server").split()[0]
    # Straight into the namespace: what is compared is the data path, not two ways of starting iperf3.
    pid = json.loads(sh(lab, "h1", "vxnet inspect client"))[0]["pid"]
    return Place("h1", ("nsenter", "--net", "-t", str(pid)), server)


def megabits(lab: Lab, place: Place) -> float:
    argv = [*place.enter, "iperf3", "-c", place.server, "-t", str(SECONDS), "-J"]
    report = json.loads(lab.run(place.host, argv, check=True).stdout)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def rtt_us(lab: Lab, place: Place) -> float:
    argv = [*place.enter, "ping", "-n", "-i", "0.001", "-c", str(PINGS), place.server]
    times = re.findall(r"time=([\d.]+) ms", lab.run(place.host, argv, check=True).stdout)
    assert len(times) > PINGS * 0.99, f"{PINGS - len(times)} of {PINGS} pings to {place.server} were lost"
    return statistics.median(map(float, times)) * 1000


def main() -> None:
    with Lab(hosts=2, outside=2) as lab:
        places = (make_by_vxnet(lab), make_by_hand(lab, "h1", "h2"), make_by_hand(lab, "x1", "x2"))
        rows = []
        for what, unit, measure, sign in (("TCP, one stream", "Mb/s", megabits, 1), ("RTT, p50", "µs", rtt_us, -1)):
            turns = []
            for number in range(TURNS):
                order = places if number % 2 else places[::-1]
                found = {place: measure(lab, place) for place in order}
                turns.append([found[place] for place in places])
            ours, same, bare = zip(*turns, strict=True)
            rows.append(row(f"{what}: same host", unit, ours, same, sign))
            rows.append(row(f"{what}: bare machine", unit, ours, bare, sign))
    table(
        f"The data path, {TURNS} interleaved turns",
        ["against a hand-made set", "vxnet", "by hand", "vxnet : by hand [95 % interval]", "not worse"],
        rows,
    )


def row(what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], sign: int) -> list[str]:
    """``sign``: 1 where more is better, -1 where less is."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    low, high = interval(ratios)
    holds = high >= 1 if sign > 0 else low <= 1
    shown = [f"{statistics.median(values):.0f} {unit}" for values in (ours, theirs)]
    return [what, *shown, f"{statistics.median(ratios):.3f} [{low:.3f}–{high:.3f}]", "yes" if holds else "NO"]

"""iperf3 and ping over vxnet against the same devices made by hand, in the same lab, in interleaved pairs.

::

     h1  container ─ veth ─ br ─ vxlan ═══╗ underlay ╔═══ vxlan ─ br ─ veth ─ container  h2   vxnet
     x1  netns hc  ─ veth ─ br ─ vxlan ═══╝          ╚═══ vxlan ─ br ─ veth ─ netns hc   x2   by hand

The hand-made set is what an administrator would type with static FDB rows: the tunnel in a namespace of its own with
its socket in the host's, as vxnet has it, and nothing else: no resolver, no nftables, no conntrack. It is on machines
without a daemon, as vxnet's rules would be in its way too. Pairs alternate who goes first. What counts is the ratio
within a pair; its median and the interval of that say whether one is faster.
"""

from __future__ import annotations

import json
import re
import statistics

from tests.perf.measure import interval, sh, table
from vxnet.lab import Lab

PAIRS = 15
SECONDS = 2
PINGS = 400

HAND_PORT = 4789
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


def make_by_hand(lab: Lab) -> None:
    for number, host, peer in ((1, "x1", "x2"), (2, "x2", "x1")):
        script = MADE_BY_HAND.format(
            own=lab[host].address, peer=lab[peer].address, port=HAND_PORT, number=number, other=3 - number
        )
        sh(lab, host, script)
    sh(lab, "x2", "ip netns exec hc iperf3 -s -D")


def megabits(lab: Lab, host: str, prefix: list[str], server: str) -> float:
    argv = [*prefix, "iperf3", "-c", server, "-t", str(SECONDS), "-J"]
    report = json.loads(lab.run(host, argv, check=True).stdout)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def rtt_us(lab: Lab, host: str, prefix: list[str], server: str) -> float:
    argv = [*prefix, "ping", "-n", "-i", "0.002", "-c", str(PINGS), server]
    times = re.findall(r"time=([\d.]+) ms", lab.run(host, argv, check=True).stdout)
    assert len(times) > PINGS * 0.99, f"{PINGS - len(times)} of {PINGS} pings to {server} were lost"
    return statistics.median(map(float, times)) * 1000


def main() -> None:
    with Lab(hosts=2, outside=2) as lab:
        sh(lab, "h1", "vxnet network create -d overlay --attachable speed")
        sh(lab, "h2", "vxnet run -d --name server --network speed -- iperf3 -s")
        sh(lab, "h1", "vxnet run -d --name client --network speed -- sleep infinity")
        server = sh(lab, "h1", "vxnet exec client getent ahostsv4 server").split()[0]
        make_by_hand(lab)
        # Straight into the namespace: what is compared is the data path, not two ways of starting iperf3.
        pid = json.loads(sh(lab, "h1", "vxnet inspect client"))[0]["pid"]
        vxnet = ("h1", ["nsenter", "--net", "-t", str(pid)], server)
        hand = ("x1", ["nsenter", "--net=/run/netns/hc"], "10.77.0.2")

        rows = []
        for what, unit, measure, more_is_better in (
            ("TCP, one stream", "Mb/s", megabits, True),
            ("RTT, p50", "µs", rtt_us, False),
        ):
            pairs = []
            for number in range(PAIRS):
                if number % 2:
                    theirs = measure(lab, *hand)
                    ours = measure(lab, *vxnet)
                else:
                    ours = measure(lab, *vxnet)
                    theirs = measure(lab, *hand)
                pairs.append((ours, theirs))
            rows.append(row(what, unit, pairs, more_is_better=more_is_better))
    table(
        f"The data path: {PAIRS} interleaved pairs",
        ["", "vxnet", "by hand", "vxnet : by hand [95 % interval]", "not worse"],
        rows,
    )


def row(what: str, unit: str, pairs: list[tuple[float, float]], *, more_is_better: bool) -> list[str]:
    ratios = [ours / theirs for ours, theirs in pairs]
    low, high = interval(ratios)
    holds = high >= 1 if more_is_better else low <= 1
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = f"{statistics.median(ratios):.3f} [{low:.3f}–{high:.3f}]"
    return [what, f"{ours:.0f} {unit}", f"{theirs:.0f} {unit}", ratio, "yes" if holds else "NO"]

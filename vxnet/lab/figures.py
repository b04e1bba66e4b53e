"""What the overlay costs: iperf3 and ping from h1 to h2 over the underlay, a VXLAN made by hand, and vxnet.

::

     h1                                                                     h2
     eth1 ══════════════════════════ underlay ══════════════════════════ eth1
     netns byhand ─ veth ─ br ─ vxlan ══════════════ vxlan ─ br ─ veth ─ netns byhand
     iperf-client ─ veth ─ br ─ vxlan ══════════════ vxlan ─ br ─ veth ─ iperf-server

The hand-made set is what an administrator would type, with static rows and the tunnel in a namespace of its own as
vxnet has it. Rounds are interleaved, as a machine is never equally busy; ``python -m tests.perf`` measures at length.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vxnet.lab.machine import Lab
from vxnet.lab.stage import WrongError

ROUNDS: Final = 3
SECONDS: Final = 2
PINGS: Final = 200

LEAST: Final = 0.5
"""Of the hand-made VXLAN's throughput. Three rounds tell a broken path from a sound one, and no more."""

_PORT: Final = 8472
_BY_HAND: Final = """
ip netns add tunnel; ip netns add byhand
ip link add vxlan77 netns tunnel type vxlan id 77 local {own} dstport {port} nolearning
ip -n tunnel link set vxlan77 mtu 1450
ip -n tunnel link add br77 type bridge mcast_snooping 0
ip -n tunnel link set br77 mtu 1450 up
ip -n tunnel link set vxlan77 master br77 up
ip -n tunnel link add port type veth peer name eth0 netns byhand
ip -n tunnel link set port mtu 1450 master br77 up
ip -n byhand link set eth0 mtu 1450 address 02:77:00:00:00:0{number} up
ip -n byhand address add 10.77.0.{number}/24 dev eth0
bridge -n tunnel fdb append 00:00:00:00:00:00 dev vxlan77 dst {peer}
bridge -n tunnel fdb append 02:77:00:00:00:0{other} dev vxlan77 dst {peer}
"""


@dataclass
class Path:
    name: str
    client: list[str]
    """What comes before a command on h1 to run it at this end."""
    server: str
    megabits: list[float] = field(default_factory=list)
    rtt_us: list[float] = field(default_factory=list)


@contextlib.contextmanager
def measured(lab: Lab) -> Iterator[list[Path]]:
    """Needs the containers iperf-client on h1 and iperf-server on h2. Takes its own things away again."""
    paths = [
        Path("underlay", [], str(lab["h2"].address)),
        Path("VXLAN by hand", ["ip", "netns", "exec", "byhand"], "10.77.0.2"),
        Path("vxnet", ["vxnet", "exec", "iperf-client"], "iperf-server"),
    ]
    with contextlib.ExitStack() as stack:
        for number, (host, peer) in enumerate((("h1", "h2"), ("h2", "h1")), 1):
            own, other = lab[host].address, lab[peer].address
            script = _BY_HAND.format(own=own, peer=other, port=_PORT, number=number, other=3 - number)
            stack.callback(lab.run, host, ["sh", "-c", "ip netns del byhand; ip netns del tunnel"])
            lab.run(host, ["sh", "-euc", script], check=True)
        quiet = subprocess.DEVNULL
        for path in paths[:2]:
            stack.callback(_stop, lab.popen("h2", [*path.client, "iperf3", "-s"], stdout=quiet, stderr=quiet))
        for path in paths:
            _wait_listening(lab, path)
        for number in range(ROUNDS):
            for path in paths if number % 2 else reversed(paths):
                path.megabits.append(_megabits(lab, path))
                path.rtt_us.append(_rtt_us(lab, path))
        yield paths


def table(paths: Sequence[Path]) -> list[str]:
    lines = [f"{'':16}{'TCP, one stream':>18}{'round trip':>14}"]
    for path in paths:
        speed, rtt = statistics.median(path.megabits) / 1000, statistics.median(path.rtt_us)
        lines.append(f"{path.name:16}{speed:>13.1f} Gb/s{rtt:>11.0f} µs")
    lines.append(f"medians of {ROUNDS} rounds, {SECONDS} s and {PINGS} pings each, interleaved")
    return lines


def complaint(paths: Sequence[Path]) -> str:
    """Empty if vxnet is about as fast as the same devices made by hand."""
    speeds = {path.name: statistics.median(path.megabits) for path in paths}
    if speeds["vxnet"] >= LEAST * speeds["VXLAN by hand"]:
        return ""
    return f"vxnet carries {speeds['vxnet']:.0f} Mb/s where a VXLAN by hand carries {speeds['VXLAN by hand']:.0f}"


def _wait_listening(lab: Lab, path: Path) -> None:
    deadline = time.monotonic() + 10
    while lab.run("h1", [*path.client, "iperf3", "-c", path.server, "-n", "1K"]).returncode != 0:
        if time.monotonic() > deadline:
            raise WrongError(f"{path.name}: no iperf3 server answers at {path.server}")
        time.sleep(0.1)


def _megabits(lab: Lab, path: Path) -> float:
    argv = [*path.client, "iperf3", "-c", path.server, "-t", str(SECONDS), "-O", "0.5", "-J"]
    done = lab.run("h1", argv)
    try:
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6
    except (ValueError, KeyError):
        raise WrongError(f"{path.name}: iperf3 failed: {(done.stdout + done.stderr).strip()[-300:]}") from None


def _rtt_us(lab: Lab, path: Path) -> float:
    done = lab.run("h1", [*path.client, "ping", "-n", "-i", "0.002", "-c", str(PINGS), path.server])
    times = [float(found) for found in re.findall(r"time=([\d.]+) ms", done.stdout)]
    if len(times) < PINGS:
        raise WrongError(f"{path.name}: {PINGS - len(times)} of {PINGS} pings were lost")
    return statistics.median(times) * 1000


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait()

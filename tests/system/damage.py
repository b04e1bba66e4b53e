"""Run on a host of a lab: damages the kernel's state, and prints how many seconds later all was as before.

    python damage.py PID ADDRESS COMMAND         picture, damage, wait
    python damage.py PID ADDRESS --save FILE     picture
    python damage.py PID ADDRESS --until FILE    wait until it is as that, and print how long that took

``PID``: of a container, whose namespace is a part of the picture, and which must reach ADDRESS again, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEADLINE_S = 15.0
PORT_FLAGS = ("learning", "flood", "neigh_suppress", "isolated", "mcast_flood", "bcast_flood")


def run(command: str) -> str:
    return subprocess.run(command, shell=True, capture_output=True, text=True).stdout


def links(inside: str) -> list[Any]:
    """What vxnet says of each link, and none of what the kernel makes up."""
    found = json.loads(run(f"{inside} ip -d -j link") or "[]")
    return sorted(
        [
            link["ifname"],
            link["mtu"],
            "UP" in link["flags"],
            link.get("master", ""),
            link.get("ifalias", ""),
            link.get("linkinfo", {}).get("info_kind", ""),
            [link.get("linkinfo", {}).get("info_slave_data", {}).get(flag) for flag in PORT_FLAGS],
        ]
        for link in found
    )


def picture(pid: str) -> list[Any]:
    box, datapath = f"nsenter -t {pid} -n", "nsenter --net=/run/netns/vxnet"
    rows = run(f"{datapath} bridge fdb").splitlines()
    addresses = json.loads(run(f"{box} ip -j addr") or "[]")
    return [
        links(""),
        links(datapath),
        links(box),
        sorted(row for row in rows if " static" in row or " dst " in row),
        sorted(run(f"{datapath} ip neigh show nud permanent").splitlines()),
        sorted(f"{one['ifname']} {held['local']}" for one in addresses for held in one["addr_info"]),
        run(f"{box} ip route"),
        run(f"{box} ip -6 route show default"),
        run("ip -o -4 addr show vxnet_gw").split()[1:4],
        run("nft list table inet vxnet"),
        run(f"{box} nft list table inet vxnet"),
        run("cat /proc/sys/net/ipv4/ip_forward"),
    ]


def wait(pid: str, address: str, before: list[Any], since: float) -> None:
    # What the look itself takes on a busy machine is not the daemon's.
    while True:
        looked = time.monotonic()
        now = picture(pid)
        if now == before and run(f"nsenter -t {pid} -n ping -c1 -W1 {address} | grep ' ttl='"):
            break
        if looked > since + DEADLINE_S:
            differences = [f"{was}\n  {is_}" for was, is_ in zip(before, now, strict=True) if was != is_]
            sys.exit("\n".join(differences or [f"{address} does not answer"]))
    print(looked - since)


def main() -> None:
    pid, address, command, *rest = sys.argv[1:]
    if command == "--save":
        Path(rest[0]).write_text(json.dumps(picture(pid)))
    elif command == "--until":
        wait(pid, address, json.loads(Path(rest[0]).read_text()), time.monotonic())
    else:
        before = picture(pid)
        since = time.monotonic()
        subprocess.run(command, shell=True, check=True)
        wait(pid, address, before, since)


if __name__ == "__main__":
    main()

"""``vxnet lab demo``: the tutorial on a terminal, what is typed and what comes back, then figures.

::

    h1  manager        h2  my-app (a web server)      h3  my-standalone-container
     └──────────────────┴── my-overlay-network ────────┘

Everything that is shown is also checked; the first thing that is not as it should be ends the demo, with a status and
with what the daemons wrote.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Final

from vxnet.lab import figures
from vxnet.lab.machine import Lab
from vxnet.lab.stage import Stage, WrongError
from vxnet.model.errors import VxnetError

NAME: Final = "demo"
NETWORK: Final = "my-overlay-network"

# What a host has of networks, mounts and groups: the same before the first command and after the last.
_CENSUS: Final = """
ip -o link | cut -d: -f2; ip netns list; nft list tables; ip rule; ip route
cut -d' ' -f5 /proc/self/mountinfo | grep -v ^/run/netns | sort; find /sys/fs/cgroup -type d | sort
"""


def run() -> int:
    """Exit status: 0 only if all of it held."""
    stage = Stage()
    started = time.monotonic()
    lab = Lab(NAME, hosts=3, join=False)
    try:
        stage.chapter("A lab: three hosts on this machine, each with its own kernel namespaces, files and daemon")
        stage.typed_here("vxnet lab up --name demo --hosts 3 --no-join")
        with lab:
            stage.say(f"up after {time.monotonic() - started:.1f} s: h1, h2, h3 on 192.168.56.0/24")
            with _logs_if_wrong(stage, lab):
                _play(stage, lab)
            stage.chapter("The lab goes")
            stage.typed_here("vxnet lab down --name demo")
    except WrongError as error:
        stage.fail(str(error))
        return 1
    except VxnetError as error:
        stage.fail(f"the lab: {error}")
        return 1
    stage.say(f"All of it held, in {time.monotonic() - started:.0f} s.")
    return 0


def _play(stage: Stage, lab: Lab) -> None:
    before = {host: _census(lab, host) for host in lab.hosts}
    _cluster(stage, lab)
    _network(stage, lab)
    _containers(stage, lab)
    _kernel(stage, lab)
    _two_networks(stage, lab)
    _figures(stage, lab)
    _farewell(stage, lab)
    for host in lab.hosts:
        # The kernel takes namespaces apart in its own time.
        deadline = time.monotonic() + 5
        while (after := _census(lab, host)) != before[host] and time.monotonic() < deadline:
            time.sleep(0.1)
        if after != before[host]:
            left = sorted(set(after) ^ set(before[host]))
            raise WrongError(f"{host} is not as it was before `vxnet init`: {', '.join(left)}")
    stage.say("Links, namespaces, routes, rules, tables, mounts and cgroups of all three are as before `vxnet init`.")


def _cluster(stage: Stage, lab: Lab) -> None:
    stage.chapter("A cluster: h1 makes it, h2 and h3 join")
    said = stage.type(lab, "h1", "vxnet init", r"VXTKN-1-\S+")
    command = re.search(r"vxnet join --token \S+ \S+", said)
    if command is None:
        raise WrongError("`vxnet init` did not say how to join")
    for host in ("h2", "h3"):
        stage.type(lab, host, command[0], r"joined .* as a worker")
    stage.look(lab, "h1", "vxnet node ls", *(rf"\b{host}\b.*Ready" for host in lab.hosts))


def _network(stage: Stage, lab: Lab) -> None:
    stage.chapter("One network over all hosts")
    stage.type(lab, "h1", f"vxnet network create --driver overlay --attachable {NETWORK}")
    for host in ("h2", "h3"):
        stage.look(lab, host, "vxnet network ls", rf"{NETWORK}\s+overlay\s+swarm")


def _containers(stage: Stage, lab: Lab) -> None:
    stage.chapter("A server on h2; from a container on h3 it answers by its name")
    stage.type(lab, "h2", f"vxnet run -d --name my-app --network {NETWORK} -- python3 -m http.server 8080")
    # A look, as python takes its time until it listens.
    stage.look(lab, "h3", f"vxnet run --rm --network {NETWORK} -- curl -sS http://my-app:8080", r"Directory listing")
    stage.converse(
        lab,
        "h3",
        f"vxnet run -it --rm --name my-standalone-container --network {NETWORK} -- sh",
        ("hostname -i", r"10\.\d+\.\d+\.\d+"),
        ("ping -c 1 my-app", r"1 received, 0% packet loss"),
        ("curl -s -o /dev/null -w '%{http_code}\\n' http://my-app:8080", r"\b200\b"),
    )


def _kernel(stage: Stage, lab: Lab) -> None:
    stage.chapter("What the kernel has of it: a VXLAN device, and a row for each container elsewhere")
    stage.type(lab, "h1", f"vxnet run -d --name iperf-client --network {NETWORK} -- sleep infinity")
    stage.look(lab, "h1", "ip -n vxnet -d link show vx65537", r"vxlan id 65537 local 192\.168\.56\.11 .*nolearning")
    stage.look(lab, "h1", "ip netns exec vxnet bridge fdb show dev vx65537", r"dst 192\.168\.56\.12")


def _two_networks(stage: Stage, lab: Lab) -> None:
    stage.chapter("Two networks are two worlds; a container on both lives in both")
    for network in ("network-a", "network-b"):
        stage.type(lab, "h1", f"vxnet network create --driver overlay --attachable {network}")
    stage.look(lab, "h2", "vxnet network ls", "network-a", "network-b", shown=False)
    stage.look(lab, "h3", "vxnet network ls", "network-a", "network-b", shown=False)
    stage.type(lab, "h1", "vxnet run -d --name in-a --network network-a -- sleep infinity")
    stage.type(lab, "h2", "vxnet run -d --name in-b --network network-b -- sleep infinity")
    stage.type(lab, "h3", "vxnet run -d --name in-both --network network-a --network network-b -- sleep infinity")
    stage.look(lab, "h3", "vxnet exec in-both ping -c 1 -W 1 in-a", r"1 received")
    stage.look(lab, "h3", "vxnet exec in-both ping -c 1 -W 1 in-b", r"1 received")
    stage.type(lab, "h1", "vxnet exec in-a getent hosts in-b || echo no such name", r"^no such name$")
    address = lab.run("h2", ["vxnet", "exec", "in-b", "hostname", "-i"], check=True).stdout.split()[0]
    stage.type(lab, "h1", f"vxnet exec in-a ping -c 1 -W 1 {address} || echo no answer", r"^no answer$")


def _figures(stage: Stage, lab: Lab) -> None:
    stage.chapter("How fast: the underlay, a VXLAN made by hand, vxnet")
    stage.type(lab, "h2", f"vxnet run -d --name iperf-server --network {NETWORK} -- iperf3 -s")
    stage.look(lab, "h1", "vxnet exec iperf-client getent hosts iperf-server", r"10\.", shown=False)
    with figures.measured(lab) as paths:
        for line in figures.table(paths):
            stage.say(line)
        if wrong := figures.complaint(paths):
            raise WrongError(wrong)


def _farewell(stage: Stage, lab: Lab) -> None:
    stage.chapter("Nothing stays behind")
    stage.type(lab, "h1", f"vxnet network rm {NETWORK}", r"my-app", refused=True)
    stage.type(lab, "h1", "vxnet rm -f in-a iperf-client")
    stage.type(lab, "h2", "vxnet rm -f my-app in-b iperf-server")
    stage.type(lab, "h3", "vxnet rm -f in-both")
    # A look: it is refused until the manager has heard that the containers are gone.
    stage.look(lab, "h1", f"vxnet network rm {NETWORK} network-a network-b", "network-b")
    stage.look(lab, "h3", "vxnet network ls", r"\A(?!(.|\n)*(overlay-network|network-[ab]))")
    for host, command in (("h3", "vxnet leave"), ("h2", "vxnet leave"), ("h1", "vxnet leave --force")):
        stage.type(lab, host, command)
    stage.look(lab, "h2", "ip -br link; ip netns list; nft list tables", r"\A(?!(.|\n)*\b(vx|br\d|vxnet))")


def _census(lab: Lab, host: str) -> list[str]:
    return lab.run(host, ["sh", "-c", _CENSUS], check=True).stdout.splitlines()


@contextlib.contextmanager
def _logs_if_wrong(stage: Stage, lab: Lab) -> Iterator[None]:
    try:
        yield
    except (WrongError, VxnetError):
        for host in lab.hosts:
            with contextlib.suppress(OSError, VxnetError):
                stage.quote(f"the daemon of {host}", lab[host].log.read_text(errors="replace").splitlines()[-12:])
        raise

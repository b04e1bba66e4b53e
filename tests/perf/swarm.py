"""Docker Swarm beside: Debian's own packages, unpacked and not installed, a dockerd on each of three hosts of a lab.

The same watching as in services.py, for names. There is no column for virtual IPs: Swarm's are IPVS, which not every
kernel has. Where a row of services.py ends when the command returns, this one ends when `docker service ls` says so,
asked every 50 ms: with ``--detach=false`` Swarm waits for five quiet seconds more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.others import Docker, until
from tests.perf.measure import ms, sh, table
from tests.perf.services import Watch, all_at
from vxnet.lab import Lab

RUNS = 5
HOST_KILLS = 3


class Swarm:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._docker = {host: Docker(lab, host) for host in lab.hosts}

    def docker(self, host: str, *argv: str) -> str:
        return self._docker[host].docker(*argv)

    def start(self, host: str) -> None:
        self._docker[host].start()
        self._docker[host].image()

    def join(self, host: str) -> None:
        token = self.docker("h1", "swarm", "join-token", "-q", "worker")
        address = str(self._lab[host].address)
        self.docker(host, "swarm", "join", "--token", token, "--advertise-addr", address, str(self._lab["h1"].address))
        self.docker(host, "run", "-d", "--name", "watch", "--network", "blue", "server:1", "/backends", "serve", "8081")

    def found(self) -> None:
        self.docker("h1", "swarm", "init", "--advertise-addr", str(self._lab["h1"].address))
        self.docker("h1", "network", "create", "-d", "overlay", "--attachable", "blue")
        self.docker("h1", "run", "-d", "--name", "watch", "--network", "blue", "server:1", "/backends", "serve", "8081")

    @contextmanager
    def watching(self, hosts: Sequence[str]) -> Iterator[list[Watch]]:
        with ExitStack() as open_ones:
            watches = []
            for host in hosts:
                pid = self.docker(host, "inspect", "-f", "{{.State.Pid}}", "watch")
                watches.append(Watch(self._lab, host, ("nsenter", "--net", "-t", pid)))
                open_ones.callback(watches[-1].close)
            yield watches

    def running(self, count: int) -> float:
        """When so many tasks run."""
        wanted = f"{count}/{count}"
        until(lambda: self.docker("h1", "service", "ls", "--format", "{{.Replicas}}") == wanted, f"{wanted} run")
        return time.monotonic()

    def create(self, *options: str) -> None:
        words = ("--name", "my-app", "--network", "blue", "--replicas", "6", *options)
        self.docker("h1", "service", "create", "-q", "-d", *words, "server:1", "/backends", "serve", "8080")

    def remove(self, hosts: Sequence[str]) -> None:
        """A name that Docker does not know is asked for outside, so that no answer says that it has gone."""
        self.docker("h1", "service", "rm", "my-app")
        until(lambda: not any(self.docker(host, "ps", "-q", "--filter", "name=my-app") for host in hosts), "all end")


def births(lab: Lab, swarm: Swarm, watches: Sequence[Watch]) -> tuple[list[float], list[float], list[float]]:
    running, known, scaled = [], [], []
    for _ in range(RUNS):
        begun = time.monotonic()
        swarm.create()
        running.append(swarm.running(6) - begun)
        known.append(all_at(watches, lambda found: len(found) == 6, begun) - begun)
        begun = time.monotonic()
        swarm.docker("h1", "service", "scale", "-d", "my-app=12")
        scaled.append(swarm.running(12) - begun)
        all_at(watches, lambda found: len(found) == 12, begun)
        swarm.remove(lab.hosts)
    return running, known, scaled


def deaths(lab: Lab, swarm: Swarm, watches: Sequence[Watch]) -> tuple[list[float], list[float]]:
    free, whole = [], []
    swarm.create("--restart-delay", "0s")
    all_at(watches, lambda found: len(found) == 6, time.monotonic())
    for number in range(RUNS):
        host = lab.hosts[number % len(lab.hosts)]
        task = swarm.docker(host, "ps", "-q", "--filter", "name=my-app").splitlines()[0]
        networks = '{{.State.Pid}} {{(index .NetworkSettings.Networks "blue").IPAddress}}'
        pid, address = swarm.docker(host, "inspect", "-f", networks, task).split()
        killed = time.monotonic()
        sh(lab, host, f"kill -9 {pid}")
        free.append(all_at(watches, lambda found, gone=address: gone not in found, killed) - killed)  # type: ignore[misc]
        after = killed + free[-1]
        whole.append(all_at(watches, lambda found, gone=address: len(found) == 6, after) - killed)  # type: ignore[misc]
        time.sleep(6)
    swarm.remove(lab.hosts)
    return free, whole


def losses(lab: Lab, swarm: Swarm) -> tuple[list[float], list[float]]:
    """h3 is killed, and comes back as a new node."""
    free, whole = [], []
    left = ["h1", "h2"]
    for _ in range(HOST_KILLS):
        with swarm.watching(left) as watches:
            swarm.create("--restart-delay", "0s")
            swarm.running(6)
            all_at(watches, lambda found: len(found) == 6, time.monotonic())
            tasks = swarm.docker("h3", "ps", "-q", "--filter", "name=my-app").split()
            place = '{{(index .NetworkSettings.Networks "blue").IPAddress}}'
            lost = frozenset(swarm.docker("h3", "inspect", "-f", place, *tasks).split())
            assert lost, "nothing of it ran on h3"
            killed = time.monotonic()
            lab.kill("h3")
            free.append(all_at(watches, lambda found, lost=lost: not lost & found, killed) - killed)  # type: ignore[misc]
            after = killed + free[-1]
            whole.append(all_at(watches, lambda found: len(found) == 6, after) - killed)
            swarm.remove(left)
        lab.start("h3")
        swarm.docker("h1", "node", "rm", "--force", "h3")
        swarm.start("h3")
        swarm.join("h3")
    return free, whole


def main() -> None:
    with Lab(hosts=3, join=False) as lab:
        swarm = Swarm(lab)
        for host in lab.hosts:
            swarm.start(host)
        swarm.found()
        for host in lab.hosts[1:]:
            swarm.join(host)
        with swarm.watching(lab.hosts) as watches:
            running, known, scaled = births(lab, swarm, watches)
            died = deaths(lab, swarm, watches)
        lost = losses(lab, swarm)
        version = swarm.docker("h1", "version", "--format", "{{.Server.Version}}")
    table(
        f"Docker Swarm {version} on three hosts; a client on each asks for names, every 3 ms",
        ["", "median [range], ms"],
        [
            ["`service create --replicas 6` → all run", ms(running)],
            ["… → all in DNS on every host", ms(known)],
            ["`service scale` 6 → 12 → all run", ms(scaled)],
            ["task SIGKILLed → out of DNS on every host", ms(died[0])],
            ["… → its replacement is in DNS (`--restart-delay 0s`)", ms(died[1])],
            ["host killed → out of DNS on the others", ms(lost[0])],
            ["… → all 6 tasks run again, and are in DNS", ms(lost[1])],
        ],
    )

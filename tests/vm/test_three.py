"""Three real machines: from the package to a service that answers, and then what can happen to machines.

One story in steps, as in test_one. A lab lends its underlay; its own host takes no part.

::

    vm1 manager 192.168.56.31      vm2 .32      vm3 .33      one service `web`, a task on each, published on port 8080
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.conftest import MakeVm
from tests.vm.machine import Vm
from vxnet.lab import Lab, state

pytestmark = [pytest.mark.vms, pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

FETCH = "vxnet exec probe curl -s -m 5 http://web"
BENCH = "vxnet bench -t 1 -r 1 --format json vm2"
SETTLE_S = 90.0


@pytest.fixture(scope="module")
def machines(make_vm: MakeVm) -> Iterator[list[Vm]]:
    with Lab(hosts=1, join=False) as lab:
        underlay = state.load(lab.name).underlay
        assert underlay is not None
        made = [make_vm(underlay, number) for number in (1, 2, 3)]
        try:
            together(made, Vm.start)
            yield made
        finally:
            for machine in made:  # before the lab, whose underlay they are plugged into
                machine.kill()


def together(machines: Sequence[Vm], do: Callable[[Vm], object]) -> None:
    with ThreadPoolExecutor(len(machines)) as pool:
        list(pool.map(do, machines))


def ready(manager: Vm) -> set[str]:
    return set(re.findall(r"\b(vm\d)\b[^\n]*\bReady\b", manager.sh("vxnet node ls")))


def wait_ready(manager: Vm, *names: str) -> None:
    manager.wait(lambda: ready(manager) == set(names), f"{', '.join(names)} ready", SETTLE_S)


def wait_published(client: Vm, machine: Vm) -> None:
    """The service answers on the published port of ``machine``."""
    fetch = f"curl -s -m 5 http://{machine.address}:8080"
    client.wait(lambda: "Directory listing" in client.sh(fetch), f"answers on {machine.name}'s port", SETTLE_S)


def wait_fetched(machine: Vm, times: int = 3) -> None:
    """The service answers several times in a row, as it is asked by name."""

    def several() -> bool:
        return all("Directory listing" in machine.sh(FETCH) for _ in range(times))

    machine.wait(several, "answers of the service", SETTLE_S)


def test_from_packages_to_a_service(machines: list[Vm], record_property: Callable[[str, object], None]) -> None:
    vm1, *others = machines
    began = time.monotonic()
    together(machines, lambda vm: vm.sh("dpkg -i /media/vxnet.deb", timeout_s=400))
    # Each has 10.0.2.15 on its first card; nobody says --advertise-addr, and none of them takes it.
    vm1.sh("vxnet init")
    token = vm1.sh("vxnet join-token -q worker").strip()
    together(others, lambda vm: vm.sh(f"vxnet join --token {token} {vm1.address}:2377", timeout_s=120))
    wait_ready(vm1, "vm1", "vm2", "vm3")
    assert all(vm.address in vm1.sh("vxnet node ls") for vm in machines)
    vm1.sh("vxnet network create -d overlay --attachable blue")
    create = "vxnet service create --name web --network blue --publish 8080:80 --replicas 3 --replicas-max-per-node 1"
    vm1.sh(f"{create} -- python3 -m http.server 80", timeout_s=180)
    together(machines, lambda vm: vm.sh("vxnet run -d --name probe --network blue -- sleep inf", timeout_s=120))
    together(machines, wait_fetched)
    record_property("from_packages_to_service_s", round(time.monotonic() - began, 1))
    for vm, other in zip(machines, machines[1:] + machines[:1], strict=True):
        wait_published(other, vm)
        assert vm.sh("systemctl list-units 'vxnet-*.service' --plain --no-legend").count("running") == 2
        assert vm.sh("vxnet exec probe ping -c 1 -W 5 web").count("1 received") == 1


def test_doctor_finds_nothing(machines: list[Vm]) -> None:
    """No false alarm on machines that are well: with two cards, of which one is the same everywhere, and systemd."""
    for vm in machines:
        done = vm.run("vxnet", "doctor", "--format", "json", timeout_s=120)
        found = [json.loads(line) for line in done.out.splitlines()]
        assert done.status == 0, done.out
        assert {one["check"] for one in found} >= {
            "kernel",
            "state",
            "gossip port",
            "manager port",
            "data port",
            "clocks",
        }
        assert [one for one in found if one["verdict"] in ("warning", "fault")] == []


def test_bench_measures_all_paths(machines: list[Vm]) -> None:
    vm1, vm2, _ = machines
    (found,) = [json.loads(line) for line in vm1.sh(BENCH, timeout_s=180).splitlines()]
    assert [path["path"] for path in found["paths"]] == ["underlay", "kernel", "user space"]
    for path in found["paths"]:
        assert path["problem"] == "", path
        for figure in ("tcp_bits_s", "rtt_us", "udp_packets_s", "connections_s", "ratio"):
            assert path[figure] > 0, (path, figure)
    assert "iperf3" not in vm2.sh("ps -eo comm")


def test_a_slow_and_lossy_link(machines: list[Vm]) -> None:
    """netem on one machine: 40 ms and a twentieth lost each way is no reason to call it dead."""
    vm1, vm2, _ = machines
    vm2.sh("tc qdisc add dev eth1 root netem delay 40ms loss 5%")
    try:
        address = re.findall(r"inet ([\d.]+)/", vm2.sh("vxnet exec probe ip -4 -o address show eth0"))[0]
        seen = vm1.sh(f"vxnet exec probe ping -i 0.2 -c 100 {address}", timeout_s=120)
        received = int(re.findall(r"(\d+) received", seen)[0])
        assert received >= 70
        assert float(re.findall(r"= [\d.]+/([\d.]+)/", seen)[0]) > 40
        assert ready(vm1) == {"vm1", "vm2", "vm3"}
        wait_fetched(vm2)
    finally:
        vm2.sh("tc qdisc del dev eth1 root")


def test_a_pulled_cable(machines: list[Vm]) -> None:
    """systemd-networkd takes the address away with the carrier and gives it back; the tunnel outlives both."""
    vm1, vm2, vm3 = machines
    vm3.cut()
    vm3.wait(lambda: "192.168.56" not in vm3.sh("ip -4 -o address show eth1"), "address gone", 30)
    vm1.wait(lambda: "vm3" not in ready(vm1), "vm3 down", SETTLE_S)
    # What is cut off goes on by itself, and the others without it.
    assert "Directory listing" in vm3.sh("vxnet exec probe curl -s -m 5 --retry 5 --retry-all-errors http://web")
    wait_fetched(vm2)
    vm3.heal()
    wait_ready(vm1, "vm1", "vm2", "vm3")
    together([vm1, vm3], wait_fetched)


def test_a_paused_machine(machines: list[Vm]) -> None:
    """A machine that stood still comes back late, with a clock that knows nothing of it."""
    vm1, vm2, _ = machines
    vm2.pause()
    try:
        vm1.wait(lambda: "vm2" not in ready(vm1), "vm2 down", SETTLE_S)
    finally:
        vm2.resume()
    wait_ready(vm1, "vm1", "vm2", "vm3")
    together([vm1, vm2], wait_fetched)


def test_a_clock_that_is_set(machines: list[Vm]) -> None:
    """An hour forth, and back: nothing that runs takes the wall clock for time that has passed."""
    vm1, vm2, _ = machines
    daemon = vm2.sh("systemctl show vxnetd -p MainPID")
    for step in ("+1 hour", "-1 hour"):
        vm2.sh(f"date -s '{step}'")
        wait_fetched(vm2)
        wait_fetched(vm1)
        assert ready(vm1) == {"vm1", "vm2", "vm3"}
    assert vm2.sh("systemctl show vxnetd -p MainPID") == daemon
    assert vm2.sh("vxnet exec probe echo here") == "here\n"


def test_a_machine_that_dies(machines: list[Vm]) -> None:
    vm1, vm2, vm3 = machines
    vm3.kill()
    vm1.wait(lambda: ready(vm1) == {"vm1", "vm2"}, "vm3 down", SETTLE_S)
    together([vm1, vm2], wait_fetched)
    vm3.start()
    wait_ready(vm1, "vm1", "vm2", "vm3")
    vm1.wait(lambda: "3/3" in vm1.sh("vxnet service ls"), "three tasks", SETTLE_S)
    # The container that nobody restarts is there with its record; another takes its place.
    vm3.sh("vxnet rm -f probe; vxnet run -d --name probe --network blue -- sleep inf")
    wait_fetched(vm3)


def test_rebooting_the_manager(machines: list[Vm]) -> None:
    vm1, vm2, vm3 = machines
    with ThreadPoolExecutor(1) as pool:
        rebooted = pool.submit(vm1.reboot)
        # Names and traffic need no manager.
        wait_fetched(vm2, times=5)
        rebooted.result()
    wait_ready(vm1, "vm1", "vm2", "vm3")
    vm1.wait(lambda: "3/3" in vm1.sh("vxnet service ls"), "three tasks", SETTLE_S)
    wait_fetched(vm3)
    wait_published(vm3, vm1)


def test_no_unit_failed(machines: list[Vm]) -> None:
    for vm in machines:
        assert vm.sh("systemctl --failed --plain --no-legend") == ""

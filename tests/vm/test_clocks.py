"""Three managers with vxnet's own etcd, and the clock of one host is set while people write.

One story in steps, as in test_one. A network namespace has no clock of its own, so one of the three is a real machine.

::

    vm1   Debian 12, from the package    a manager, a member of etcd    date -s: five hours forth, ten back
    h1 h2 hosts of a lab                 the same, by this machine's clock
    on each: somebody who labels its node, and a task of the service `web`
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.system.managers import client, until
from tests.vm.conftest import MakeVm
from tests.vm.machine import Vm
from vxnet.lab import Lab, state
from vxnet.model.api import JoinRequest, NetworkCreate, NodeUpdate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import VxnetError
from vxnet.model.service import Placement, ServiceSpec, TaskSpec

pytestmark = [pytest.mark.vms, pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

HOSTS = ("h1", "h2")
NAMES = {"h1", "h2", "vm1"}
SETTLE_S = 120.0
MORE = 3
"""Writes of each person that are to be acknowledged after each step."""
STEPS = (5, -10, 5)
"""Hours; the last one makes it right again."""
PAUSE_S = 1.0
WRITER = f"""
import time
from vxnet.cluster.client import Client
from vxnet.model.api import NodeUpdate
from vxnet.model.errors import VxnetError

person, number = Client("/run/vxnet/vxnet.sock", timeout_s=30), 0
while True:
    number += 1
    try:
        person.update_node("vm1", NodeUpdate(labels_added={{f"n{{number}}": "1"}}))
        print(f"n{{number}}", flush=True)
    except (VxnetError, OSError) as error:
        print("#", number, error, flush=True)
    time.sleep({PAUSE_S})
"""


class Person(threading.Thread):
    """Gives the host's own node one label after the other, and remembers those that were acknowledged.

    Each has a record of its own to write: of two that write the same one a machine under emulation would never win.
    """

    def __init__(self, lab: Lab, host: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._lab, self._host = lab, host
        self._over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._over.wait(PAUSE_S):
            number += 1
            try:
                client(self._lab[self._host]).update_node(self._host, NodeUpdate(labels_added={f"n{number}": "1"}))
                self.acknowledged.append(f"n{number}")
            except (VxnetError, OSError) as error:
                print(f"{self._host}, n{number}: {error}")

    def stop(self) -> None:
        self._over.set()
        self.join(60)


class Story:
    def __init__(self, lab: Lab, vm: Vm) -> None:
        self.lab, self.vm = lab, vm
        self.people = [Person(lab, host) for host in HOSTS]

    def written(self) -> dict[str, list[str]]:
        """What each person was told to be done."""
        own = re.findall(r"(?m)^n\d+$", self.vm.sh("cat /root/written"))
        return {"vm1": own, **{host: list(one.acknowledged) for host, one in zip(HOSTS, self.people, strict=True)}}

    def leader(self) -> str:
        """As all agree, with all nodes ready; else empty."""
        views = [client(self.lab[host]).nodes() for host in HOSTS]
        leaders = {view.node.name for nodes in views for view in nodes if view.leader}
        own = [json.loads(line) for line in self.vm.sh("vxnet node ls --format json").splitlines()]
        leaders |= {str(view["node"]["name"]) for view in own if view["leader"]}
        ready = all(view.status == "ready" for nodes in views for view in nodes)
        return leaders.pop() if ready and len(leaders) == 1 else ""

    def tasks(self) -> dict[str, str]:
        """Those that run, and where."""
        found = client(self.lab["h1"]).tasks_of_service("web")
        return {task.id: task.node for task in found if task.state == task.desired == "running"}

    def answers(self) -> bool:
        """The service, asked by its name on the machine and on a host beside it."""
        ask = ["vxnet", "exec", "probe", "curl", "-s", "-m", "5", "http://web"]
        said = [self.vm.sh(" ".join(ask)), self.lab.run("h1", ask).stdout]
        return all("Directory listing" in one for one in said)

    def set_clock(self, hours: int) -> None:
        """And everything goes on."""
        enough = {host: len(one) + MORE for host, one in self.written().items()}
        self.vm.sh(f"date -s '{hours:+} hours'")
        self.vm.wait(
            lambda: all(len(one) >= enough[host] for host, one in self.written().items()),
            f"writes of all three after {hours:+} h",
            SETTLE_S,
        )
        # By names and paths that are proven under the clock as it is.
        self.vm.wait(self.answers, f"answers of the service after {hours:+} h", SETTLE_S)
        self.vm.wait(self.leader, f"one leader after {hours:+} h", SETTLE_S)
        print(f"{hours:+} h: {self.leader() or 'nobody'} leads", flush=True)


@pytest.fixture(scope="module")
def story(make_vm: MakeVm) -> Iterator[Story]:
    with Lab(hosts=2, join=False) as lab:
        underlay = state.load(lab.name).underlay
        assert underlay is not None
        vm = make_vm(underlay, 1)
        try:
            vm.start()
            yield Story(lab, vm)
        finally:
            vm.kill()  # before the lab, whose underlay it is plugged into


def test_three_managers(story: Story) -> None:
    """The machine founds the cluster: its etcd is the first member."""
    lab, vm = story.lab, story.vm
    vm.sh("mountpoint -q /media || mount /media; dpkg -i /media/vxnet.deb", timeout_s=400)
    vm.sh("vxnet init --managed-etcd", timeout_s=120)
    token = vm.sh("vxnet join-token -q manager").strip()
    for host in HOSTS:
        request = JoinRequest(token=token, manager=f"{vm.address}:2377")
        # On a machine that is busy etcd may be without a leader for a moment.
        until(lambda host=host, request=request: client(lab[host]).join(request), f"{host} is in", SETTLE_S)  # type: ignore[misc]
    blue = (NetworkWish(network="blue"),)
    first = client(lab["h1"])
    until(lambda: first.create_network(NetworkCreate(name="blue", attachable=True)), "a network")
    task = TaskSpec(
        container=ContainerSpec(argv=("python3", "-m", "http.server", "80"), networks=blue),
        placement=Placement(max_per_node=1),
    )
    web = ServiceSpec(name="web", replicas=3, task=task)
    until(lambda: first.services() or first.create_service(web), "a service")
    first.create_container(ContainerSpec(name="probe", argv=("sleep", "inf"), networks=blue), start=True)
    vm.sh("vxnet run -d --name probe --network blue -- sleep inf", timeout_s=120)
    vm.run("/bin/sh", "-c", "cat >/root/writer.py", stdin=WRITER)
    write = "exec /usr/lib/vxnet/bin/python3 /root/writer.py >/root/written"
    vm.sh(f"systemd-run -q --unit=writer /bin/sh -c '{write}'")
    for person in story.people:
        person.start()
    vm.wait(lambda: all(story.written().values()), "a write of each that is acknowledged", SETTLE_S)
    vm.wait(lambda: set(story.tasks().values()) == NAMES, "three tasks", SETTLE_S)
    vm.wait(story.answers, "answers of the service", SETTLE_S)
    vm.wait(story.leader, "a leader", SETTLE_S)


def leads_etcd(vm: Vm) -> bool:
    place = "/var/lib/vxnet/etcd"
    keys = f"--cacert {place}/ca.crt --cert {place}/member.crt --key {place}/member.key"
    return "etcd_server_is_leader 1" in vm.sh(f"curl -s {keys} https://{vm.address}:2379/metrics | grep is_leader")


def founder(story: Story) -> None:
    """As it was: its etcd was the first, and leads if it was quick enough all the time."""


def follower(story: Story) -> None:
    """Its member of etcd stands still until the others have chosen a leader without it."""
    story.vm.sh("systemctl kill -s STOP vxnet-etcd")
    first, update = client(story.lab["h1"]), NodeUpdate(labels_added={"without": "vm1"})
    until(lambda: first.update_node("h1", update), "a write without it", SETTLE_S)
    story.vm.sh("systemctl kill -s CONT vxnet-etcd")
    story.vm.wait(lambda: not leads_etcd(story.vm), "another leader of etcd", SETTLE_S)


@pytest.mark.parametrize("become", [founder, follower])
def test_a_clock_is_set(story: Story, become: Callable[[Story], None]) -> None:
    vm = story.vm
    become(story)
    vm.wait(story.leader, "all ready, and one leader", SETTLE_S)
    vm.wait(lambda: set(story.tasks().values()) == NAMES, "three tasks", SETTLE_S)
    tasks, daemon = story.tasks(), vm.sh("systemctl show vxnetd -p MainPID")
    print(f"{story.leader()} leads, vm1's etcd {'leads' if leads_etcd(vm) else 'follows'}")
    for hours in STEPS:
        story.set_clock(hours)
    assert vm.sh("systemctl show vxnetd -p MainPID") == daemon
    assert story.tasks() == tasks, "a task was taken for lost"


def test_nothing_is_lost(story: Story) -> None:
    for person in story.people:
        person.stop()
    story.vm.sh("systemctl stop writer")
    written = story.written()
    print(", ".join(f"{host}: {len(one)} acknowledged" for host, one in written.items()))
    listed = [json.loads(line)["node"] for line in story.vm.sh("vxnet node ls --format json").splitlines()]
    views = [
        {view.node.name: set(view.node.labels) for view in client(story.lab["h1"]).nodes()},
        {view.node.name: set(view.node.labels) for view in client(story.lab["h2"]).nodes()},
        {str(node["name"]): set(node["labels"]) for node in listed},
    ]
    for host, labels in written.items():
        assert len(labels) >= 2 * len(STEPS) * MORE
        assert all(set(labels) <= view[host] for view in views)

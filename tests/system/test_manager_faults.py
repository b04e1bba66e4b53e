"""Managers and their etcd under faults, drawn at random from a seed, while several people change the cluster.

What was acknowledged is there at the end; what may have been done is there or not, as a whole; no VNI, subnet or
address is given twice; every task's fate is known; and each host runs what the managers say that it runs.

``VXNET_FAULT_SEEDS=50 VXNET_FAULT_S=60`` for more than the tests' own: ``make manager-faults``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from typing import NamedTuple

import pytest

from tests.system.managers import client, until
from vxnet.cluster.client import Client
from vxnet.core.wishes import Wishes
from vxnet.model.api import NetworkCreate, NodeUpdate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, NotFoundError, VxnetError
from vxnet.model.service import ServiceSpec, TaskSpec

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]
FAULT_S = float(os.environ.get("VXNET_FAULT_S", "60"))
SEEDS = range(1, int(os.environ.get("VXNET_FAULT_SEEDS", "1")) + 1)
MANAGERS = ("h1", "h2", "h3")
PEOPLE = 4
SETTLE_S = 120.0
PATIENCE_S = 20
"""Of a person. What was not answered by then may be done in as much time again, and no later."""
SHARED = "shared"


class Done(NamedTuple):
    """One wish, and what became of it."""

    kind: str
    name: str
    value: object
    began: float
    ended: float
    outcome: str
    """``ok``, ``refused`` (nothing was done) or ``unknown``."""


class Person(threading.Thread):
    """Makes, changes and removes networks and services of its own, and what all share: a service's replicas, and a
    label, to which no value is ever given twice.
    """

    def __init__(self, lab, number, rng, until):
        super().__init__(daemon=True)
        self.history, self.given = [], []
        self._lab, self._number, self._rng, self._until = lab, number, rng, until
        self._names = itertools.count()
        self._networks, self._services = [], []

    def run(self):
        while time.monotonic() < self._until:
            acts = [self._network, self._network_rm, self._service, self._scale, self._label, self._rm]
            self._rng.choice([self._network, *acts])()
            time.sleep(self._rng.uniform(0.0, 0.1))

    def _client(self):
        root = self._lab[self._rng.choice(MANAGERS)].root
        return Client(str(root / "run/vxnet/vxnet.sock"), timeout_s=PATIENCE_S)

    def _do(self, kind, name, value, act):
        began = time.monotonic()
        answer, outcome = None, "unknown"
        try:
            answer = act(self._client())
            outcome = "ok"
        except NotFoundError:
            outcome = "refused"
        except ConflictError as error:
            # Several that write the same record outrun each other; or a worker, for a moment.
            outcome = "unknown" if "already" in str(error) else "refused"
        except CallerError:
            outcome = "refused"
        except (VxnetError, OSError):
            outcome = "unknown"
        self.history.append(Done(kind, name, value, began, time.monotonic(), outcome))
        return answer

    def _network(self):
        name = f"n{self._number}-{next(self._names)}"
        made = self._do("create", name, None, lambda one: one.create_network(NetworkCreate(name=name, attachable=True)))
        self._networks.append(name)
        if made is not None:
            self.given.append((made.vni, *(subnet.prefix for subnet in made.subnets)))

    def _network_rm(self):
        if len(self._networks) > 3:
            name = self._networks.pop(self._rng.randrange(len(self._networks)))
            self._do("remove", name, None, lambda one: one.remove_network(name))

    def _service(self):
        if len(self._services) > 3:
            self._rm()
            return
        name = f"s{self._number}-{next(self._names)}"
        spec = service(name, self._rng.randint(1, 2))
        self._do("create", name, None, lambda one: one.create_service(spec))
        self._services.append(name)

    def _scale(self):
        replicas = self._number * 10_000 + next(self._names)
        self._do("scale", SHARED, replicas % 7 + 1, lambda one: one.scale_service(SHARED, replicas % 7 + 1))

    def _label(self):
        value = f"{self._number}-{next(self._names)}"
        update = NodeUpdate(labels_added={SHARED: value})
        self._do("label", SHARED, value, lambda one: one.update_node("h4", update))

    def _rm(self):
        if self._services:
            name = self._services.pop(0)
            self._do("remove", name, None, lambda one: one.remove_service(name))


def service(name, replicas):
    container = ContainerSpec(argv=("sleep", "100000"), networks=(NetworkWish(network="field"),))
    task = TaskSpec(container=container, stop_grace_s=1.0)
    return ServiceSpec(name=name, replicas=replicas, task=task)


class Faults:
    """At most one manager is in trouble at a time, which is what three are for; and each fault ends by itself."""

    def __init__(self, lab, rng):
        self.counts = Counter()
        self._lab, self._rng = lab, rng

    def run(self, until):
        kinds = [self.kill_host, self.freeze_daemon, self.freeze_etcd, self.partition, self.kill_etcd, self.kill_daemon]
        order = []
        while time.monotonic() < until:
            order = order or self._rng.sample(kinds, len(kinds))
            fault = order.pop()
            fault(self._rng.choice(MANAGERS), self._rng.uniform(1.0, 4.0))
            self.counts[fault.__name__] += 1
            time.sleep(self._rng.uniform(1.0, 3.0))

    def kill_host(self, name, for_s):
        self._lab.kill(name)
        time.sleep(for_s)
        self._lab.start(name)

    def kill_daemon(self, name, for_s):
        self._lab.kill(name, daemon=True)
        time.sleep(for_s / 4)
        self._lab.start(name)

    def partition(self, name, for_s):
        self._lab.cut(name)
        time.sleep(for_s)
        self._lab.heal(name)

    def freeze_daemon(self, name, for_s):
        self._freeze(self._lab[name].daemon_pid, for_s)

    def freeze_etcd(self, name, for_s):
        self._freeze(etcd_of(self._lab[name]), for_s)

    def kill_etcd(self, name, for_s):
        if pid := etcd_of(self._lab[name]):
            os.kill(pid, signal.SIGKILL)
        time.sleep(for_s)

    def _freeze(self, pid, for_s):
        if pid:
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(for_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def etcd_of(host):
    """Its pid as this machine counts: the one in the host's own pid namespace."""
    namespace = os.readlink(f"/proc/{host.pid}/ns/pid")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            is_etcd = os.readlink(f"/proc/{pid}/exe").endswith("/etcd")
            if is_etcd and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                return int(pid)
    return 0


@pytest.mark.parametrize("number", SEEDS)
def test_nothing_acknowledged_is_lost(make_lab, number, seed):
    rng = random.Random(seed + number)
    lab = make_lab(hosts=4, managers=3)
    until(lambda: client(lab["h1"]).create_network(NetworkCreate(name="field", attachable=True)), "a network", SETTLE_S)
    client(lab["h2"]).create_service(service(SHARED, 1))
    ends = time.monotonic() + FAULT_S
    people = [Person(lab, index, random.Random(rng.random()), ends) for index in range(PEOPLE)]
    for person in people:
        person.start()
    faults = Faults(lab, rng)
    faults.run(ends)
    for person in people:
        person.join(60)
    history = [done for person in people for done in person.history]
    outcomes = Counter(done.outcome for done in history)
    print(f"seed {seed + number}: {dict(outcomes)}, faults {dict(faults.counts)}")
    if FAULT_S >= 60:
        assert outcomes["ok"] >= 200 and sum(faults.counts.values()) >= 5 and len(faults.counts) >= 3
    check_numbers(people)
    views = until(lambda: agreed(lab), "all managers tell the same", SETTLE_S)
    check_objects(history, views[0])
    check_shared(history, "scale", views[1])
    check_shared(history, "label", views[2])
    check_store(client(lab["h1"]).back_up_store())
    until(lambda: hosts_run_their_tasks(lab), "every host runs what the managers say", SETTLE_S)


def agreed(lab):
    """(names of networks and services, replicas of the shared one, the label), once it is the same on all."""
    found = []
    for name in MANAGERS:
        one = client(lab[name])
        services = one.services()
        names = {network.name for network in one.networks()} | {view.service.spec.name for view in services}
        shared = next(view.service.spec.replicas for view in services if view.service.spec.name == SHARED)
        label = next(view.node.labels.get(SHARED) for view in one.nodes() if view.node.name == "h4")
        found.append((frozenset(names), shared, label))
    return found[0] if found.count(found[0]) == len(found) else None


def check_numbers(people):
    """VNIs are never given again, also not after their network is gone."""
    vnis = Counter(given[0] for person in people for given in person.given)
    assert not [vni for vni, times in vnis.items() if times > 1]


def check_objects(history, names):
    """Each name is made once, and removed once, by one person: the last that is known of it decides."""
    of_name = {}
    for done in history:
        if done.kind in ("create", "remove"):
            of_name.setdefault(done.name, []).append(done)
    for name, steps in of_name.items():
        made = next(done for done in steps if done.kind == "create")
        removals = [done.outcome for done in steps if done.kind == "remove"]
        if made.outcome == "ok" and all(outcome == "refused" for outcome in removals):
            assert name in names, f"{name} was acknowledged, and is lost: {steps}"
        if "ok" in removals:
            assert name not in names, f"the removal of {name} was acknowledged, and it is there: {steps}"
        if made.outcome == "refused":
            assert name not in names, f"{name} was refused, and is there: {steps}"


def check_shared(history, kind, value):
    """A register: its value is that of a write which no acknowledged write came after, wholly."""
    writes = [done for done in history if done.kind == kind and done.outcome != "refused"]
    last_begun = max((done.began for done in writes if done.outcome == "ok"), default=0.0)
    late = {"ok": 0.0, "unknown": PATIENCE_S}
    possible = {done.value for done in writes if done.ended + late[done.outcome] >= last_begun}
    assert any(done.outcome == "ok" for done in writes), f"no {kind} was acknowledged"
    assert value in possible, f"{value} is not one of {possible}"


def check_store(backup):
    wishes = Wishes.of(backup.revision, {key: (value, 1) for key, value in backup.records.items()})
    vnis = [network.vni for network in wishes.networks.values() if network.vni]
    assert len(vnis) == len({*vnis})
    subnets = [subnet.prefix for network in wishes.networks.values() for subnet in network.subnets]
    for one, other in itertools.combinations(subnets, 2):
        assert one.version != other.version or not one.overlaps(other), (one, other)
    leases = list(wishes.leases())
    for one, other in itertools.combinations(leases, 2):
        same = one.network == other.network and one.prefix.version == other.prefix.version
        assert not (same and one.prefix.overlaps(other.prefix)), (one, other)


def hosts_run_their_tasks(lab):
    """Every task that is to run runs, on the host that the managers think, and nothing else does."""
    manager = client(lab["h1"])
    wanted = {}
    for view in manager.services():
        tasks = manager.tasks_of_service(view.service.id)
        current = [task for task in tasks if task.desired == "running"]
        if len(current) != view.service.spec.replicas or any(task.state != "running" for task in current):
            return False
        for task in current:
            wanted.setdefault(task.node, set()).add(task.name)
    for name in (*MANAGERS, "h4"):
        found = {one.name for one in client(lab[name]).containers()}
        if found != wanted.get(name, set()):
            return False
    return True

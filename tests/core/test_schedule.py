"""What becomes of services: scenarios, and random histories with everything that can go wrong in them."""

from __future__ import annotations

import ipaddress
import itertools
import random
from collections import Counter

import pytest
from msgspec.structs import replace

from tests.daemon.memory_services import MemoryServices
from vxnet.core import schedule, services
from vxnet.core.decisions import remove_network, update_node
from vxnet.core.lifecycle import ENDED, advance, state_of
from vxnet.model.api import NodeUpdate, ServiceUpdate, TaskReport
from vxnet.model.cluster import Cluster, Network, Node, Subnet
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, NotFoundError, UnsupportedError
from vxnet.model.service import HealthCheck, Placement, RestartPolicy, ServiceSpec, TaskSpec, UpdateConfig

HOUR = 3600.0
COMMAND = ContainerSpec(argv=("x",))


def node(number, **fields):
    address = ipaddress.ip_address(f"192.168.56.{number}")
    fields = {"role": "worker", "cpus": 4.0, "memory": 8 << 30} | fields
    return Node(
        id=f"n{number}", name=f"h{number}", advertise_addr=address, data_path_addr=address, joined_at=0.0, **fields
    )


NETWORK = Network(
    id="net1",
    name="blue",
    vni=65536,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.0.0/24"), gateway=ipaddress.ip_address("10.0.0.1")),),
)


def spec(name="web", *, argv=("serve",), replicas=3, networks=("blue",), task=None, **fields):
    container = ContainerSpec(argv=argv, networks=tuple(NetworkWish(network=one) for one in networks))
    return ServiceSpec(
        name=name, replicas=replicas, task=replace(task or TaskSpec(container=container), container=container), **fields
    )


class World(MemoryServices):
    """Three nodes and a network. Tasks whose command is ``fail`` fail at once; ``fail:h2`` on that node alone;
    ``reject`` cannot be started, ``once`` ends well.
    """

    def __init__(self, nodes=3):
        super().__init__(self.behave)
        pool = ipaddress.ip_network("10.0.0.0/8")
        self.write({"cluster": Cluster(id="c", pools=(pool,), created_at=0.0)})
        self.follow({f"n{number}": node(number) for number in range(1, nodes + 1)}, {NETWORK.id: NETWORK})

    def behave(self, task):
        word, _, where = task.spec.container.argv[0].partition(":")
        if where and self.wishes.nodes[task.node].name != where:
            word = "serve"
        match word:
            case "fail":
                return TaskReport(task=task.id, state="failed", ran_s=0.01, exit_status=1)
            case "once":
                return TaskReport(task=task.id, state="complete", ran_s=0.01, exit_status=0)
            case "reject":
                return TaskReport(task=task.id, state="rejected", message="no such file")
        return TaskReport(task=task.id, state="running", ran_s=0.0)

    def make(self, wish):
        return self._done(services.create(self.wishes, wish, next(self._ids), self.now))

    def change(self, name, **fields):
        base = self.service(name).service.spec
        rebalance = fields.pop("rebalance", False)
        wish = ServiceUpdate(spec=replace(base, **fields), base=base, rebalance=rebalance)
        return self._done(services.update(self.wishes, name, wish, self.now))

    def command(self, name, *argv, **fields):
        base = self.service(name).service.spec
        task = replace(base.task, container=replace(base.task.container, argv=argv))
        return self.change(name, task=task, **fields)

    def set_node(self, ref, **fields):
        decision, _ = update_node(self.wishes, ref, NodeUpdate(**fields))
        self.write(decision.changes)
        self.settle()

    def lose(self, id):
        self.lost[id] = self.now
        self.settle()

    def look(self):
        """One plan, carried out."""
        plan = schedule.plan(self.state(), self.now, self._ids)
        self.write(plan.changes)
        return plan

    def say(self, task, **fields):
        """What the task's node reports."""
        report = TaskReport(task=task.id, **fields)
        task = self.wishes.tasks[task.id]
        self.write({f"status/{task.id}": advance(task, self.wishes.statuses.get(task.id), report, self.now)})

    def end(self, task, *, settle=True):
        """It fails."""
        self.say(task, state="failed", exit_status=1)
        if settle:
            self.settle()

    def running(self, name="web"):
        return [task for task in self.tasks(name) if task.desired == "running" and task.state == "running"]

    def places(self, name="web"):
        return Counter(task.node for task in self.running(name))


def test_replicas_are_spread_and_named():
    world = World()
    world.make(spec(replicas=4))
    assert sorted(world.places().values()) == [1, 1, 2]
    names = [task.name.rpartition(".")[0] for task in world.tasks("web")]
    assert names == ["web.1", "web.2", "web.3", "web.4"]
    view = world.service("web")
    assert (view.running, view.wanted, view.pending) == (4, 4, "")


def test_scaling_goes_from_the_fullest_nodes_and_fills_the_gaps():
    world = World()
    world.make(spec(replicas=7))
    kept = {task.id for task in world.running()}
    world.change("web", replicas=3)
    assert set(world.places().values()) == {1}
    assert {task.id for task in world.running()} <= kept
    assert len(world.wishes.tasks) == 3, "tasks of slots that are gone are forgotten"
    world.change("web", replicas=5)
    assert sorted(int(task.name.split(".")[1]) for task in world.running()) == [1, 2, 3, 4, 5]
    world.change("web", replicas=0)
    assert not world.wishes.tasks and not world.wishes.statuses


def test_a_dead_hosts_tasks_move_after_the_grace():
    world = World()
    world.make(
        spec(replicas=3, task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(host_grace_s=7)))
    )
    before = {task.id: task.node for task in world.running()}
    begun = world.now
    world.lose("n2")
    assert world.now - begun == pytest.approx(7.0, abs=0.1)
    assert set(world.places()) == {"h1", "h3"} and sum(world.places().values()) == 3
    lost = next(task for task in world.tasks("web") if before.get(task.id) == "h2")
    assert (lost.state, lost.desired, lost.superseded, lost.message) == (
        "orphaned",
        "shutdown",
        True,
        "node h2 is down",
    )


def test_a_host_that_is_back_in_time_keeps_its_tasks():
    world = World()
    world.make(spec())
    before = {task.id for task in world.running()}
    world.lost["n2"] = world.now
    plan = schedule.plan(world.state(), world.now, iter(()))
    assert not plan.changes and plan.next_at == pytest.approx(world.now + 1.0)
    del world.lost["n2"]
    world.settle()
    assert {task.id for task in world.running()} == before


def test_silence_is_no_death():
    """A node that never was met, or that gossip has not called dead, is left as it is: for two seconds or two hours."""
    world = World()
    world.make(spec())
    world.now += 7200
    assert not schedule.plan(world.state(), world.now, iter(())).changes


def test_a_host_that_is_back_late_stops_what_was_replaced():
    world = World()
    world.make(spec())
    old = next(task.id for task in world.running() if task.node == "h2")
    world.lose("n2")
    del world.lost["n2"]
    world.settle()
    # What it is told: its old task is to stop. That it says that it runs changes nothing.
    assert world.wishes.tasks[old].desired == "shutdown"
    assert len(world.running()) == 3


def test_a_removed_nodes_tasks_move_at_once():
    world = World()
    world.make(spec())
    world.write({"node/n2": None})
    world.settle()
    assert sorted(world.places().values()) == [1, 2]


def test_nobody_left_means_pending_with_a_reason():
    world = World()
    world.make(
        spec(replicas=2, task=TaskSpec(container=ContainerSpec(argv=("x",)), placement=Placement(max_per_node=1)))
    )
    world.lose("n1")
    world.lose("n2")
    assert len(world.running()) == 1
    why = "no suitable node (3 nodes: 2 down, 1 at --replicas-max-per-node 1)"
    assert world.service("web").pending == why
    assert [task.message for task in world.tasks("web") if task.state == "pending"] == [why]
    del world.lost["n1"]
    world.settle()
    assert len(world.running()) == 2 and world.service("web").pending == ""


def test_drain_moves_and_pause_keeps():
    world = World()
    world.make(spec(replicas=3))
    world.set_node("n1", availability="pause")
    assert world.places()["h1"] == 1
    world.change("web", replicas=6)
    assert world.places()["h1"] == 1
    world.set_node("n2", availability="drain")
    assert world.places() == {"h1": 1, "h3": 5}
    world.set_node("n2", availability="active")
    assert world.places() == {"h1": 1, "h3": 5}, "nothing moves by itself"


def test_a_drain_without_a_refuge_empties_the_node_all_the_same():
    for order in ("stop-first", "start-first"):
        world = World(nodes=1)
        world.make(spec(replicas=1, update=UpdateConfig(order=order)))
        world.set_node("n1", availability="drain")
        assert not world.running()
        assert world.service("web").pending == "no suitable node (1 node: 1 drained)"


def test_labels_that_change_move_tasks():
    world = World()
    world.set_node("n1", labels_added={"zone": "a"})
    world.set_node("n2", labels_added={"zone": "a"})
    task = TaskSpec(container=ContainerSpec(argv=("x",)), placement=Placement(constraints=("node.labels.zone==a",)))
    world.make(spec(replicas=2, task=task))
    world.set_node("n1", labels_removed=("zone",))
    assert world.places() == {"h2": 2}


def test_rebalance_is_asked_for_and_ends():
    world = World()
    world.set_node("n3", availability="drain")
    world.make(spec(replicas=6))
    world.set_node("n3", availability="active")
    assert world.places() == {"h1": 3, "h2": 3}
    kept = {task.id for task in world.running()}
    world.change("web", rebalance=True)
    assert set(world.places().values()) == {2}
    assert len({task.id for task in world.running()} & kept) == 4, "no more are moved than need to be"
    assert not world.service("web").service.rebalance
    again = {task.id for task in world.running()}
    world.change("web", rebalance=True)
    assert {task.id for task in world.running()} == again


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("why", ["full", "fails"])
def test_a_rebalance_ends_where_no_task_can_lie_better(why, order):
    """A node that others have filled, or where the service's tasks fail, is no better place."""
    world = World()
    update = UpdateConfig(order=order)
    if why == "full":
        pinned = Placement(constraints=("node.hostname==h3",))
        world.make(spec("big", replicas=1, task=TaskSpec(container=COMMAND, reserve_cpus=4.0, placement=pinned)))
        world.make(spec(replicas=5, update=update, task=TaskSpec(container=COMMAND, reserve_cpus=0.5)))
    else:
        task = TaskSpec(container=COMMAND, restart=RestartPolicy(delay_s=0.0))
        world.make(spec(argv=("fail:h3",), replicas=5, update=update, task=task))
    kept = {task.id for task in world.running()}
    world.change("web", rebalance=True)
    assert {task.id for task in world.running()} == kept
    assert sorted(world.places().values()) == [2, 3]
    assert not world.service("web").service.rebalance


def test_a_rebalance_moves_nothing_to_where_a_task_has_just_failed():
    """It would come back, be moved again, and so on: of a slot's failures only the last few are remembered."""
    world = World()
    world.make(spec(replicas=4))
    world.set_node("n3", availability="pause")
    for id in [task.id for task in world.running() if task.node == "h3"]:
        world.end(world.wishes.tasks[id])
    world.set_node("n3", availability="active")
    assert world.places() == {"h1": 2, "h2": 2}
    world.change("web", rebalance=True)
    assert world.places() == {"h1": 2, "h2": 2}
    world.now += HOUR
    world.change("web", rebalance=True)
    assert sorted(world.places().values()) == [1, 1, 2]


def test_a_rebalance_spreads_over_zones_first_and_then_over_their_nodes():
    world = World(nodes=5)
    for number, zone in enumerate("aabbb", 1):
        world.set_node(f"n{number}", labels_added={"zone": zone})
    for number in (2, 4, 5):
        world.set_node(f"n{number}", availability="drain")
    task = TaskSpec(container=COMMAND, placement=Placement(preferences=("node.labels.zone",)))
    world.make(spec(replicas=12, task=task))
    assert world.places() == {"h1": 6, "h3": 6}
    for number in (2, 4, 5):
        world.set_node(f"n{number}", availability="active")
    world.change("web", rebalance=True)
    assert world.places() == {"h1": 3, "h2": 3, "h3": 2, "h4": 2, "h5": 2}
    assert not world.service("web").service.rebalance


def test_a_rebalance_moves_nothing_of_a_global_service():
    world = World(nodes=4)
    for number, zone in enumerate("aaab", 1):
        world.set_node(f"n{number}", labels_added={"zone": zone})
    world.make(
        spec(mode="global", task=TaskSpec(container=COMMAND, placement=Placement(preferences=("node.labels.zone",))))
    )
    kept = {task.id for task in world.running()}
    world.change("web", rebalance=True)
    assert {task.id for task in world.running()} == kept
    assert not world.service("web").service.rebalance


def test_tasks_of_two_versions_are_placed_each_as_it_asks():
    world = World()
    world.make(spec(replicas=3, task=TaskSpec(container=COMMAND, reserve_cpus=64.0)))
    base = world.service("web").service.spec
    wish = ServiceUpdate(spec=replace(base, task=replace(base.task, reserve_cpus=1.0)), base=base)
    world.write(services.update(world.wishes, "web", wish, world.now)[0].changes)
    world.look()
    assert {task.version for task in world.wishes.tasks.values() if task.node} == {2}
    world.settle()
    assert set(world.places().values()) == {1}


def test_global_follows_the_nodes():
    world = World()
    world.set_node("n3", labels_added={"gpu": "no"})
    task = TaskSpec(container=ContainerSpec(argv=("x",)), placement=Placement(constraints=("node.labels.gpu!=no",)))
    world.make(spec(mode="global", task=task))
    assert world.places() == {"h1": 1, "h2": 1}
    world.follow({**world.wishes.nodes, "n4": node(4)}, world.wishes.networks)
    world.settle()
    assert set(world.places()) == {"h1", "h2", "h4"}
    world.set_node("n1", availability="drain")
    world.set_node("n3", labels_removed=("gpu",))
    assert set(world.places()) == {"h2", "h3", "h4"}
    world.lose("n2")
    assert set(world.places()) == {"h3", "h4"}
    del world.lost["n2"]
    world.set_node("n1", availability="active")
    assert set(world.places()) == {"h1", "h2", "h3", "h4"}
    assert world.service("web").wanted == 4


def test_a_global_service_takes_no_more_than_there_is_and_says_where_it_lacks():
    world = World()
    pinned = Placement(constraints=("node.hostname==h3",))
    world.make(spec("big", replicas=1, task=TaskSpec(container=COMMAND, reserve_cpus=3.0, placement=pinned)))
    for name in ("web", "api"):
        world.make(spec(name, mode="global", task=TaskSpec(container=COMMAND, reserve_cpus=2.0)))
    assert world.places("web") == world.places("api") == {"h1": 1, "h2": 1}
    assert world.service("web").pending == "short of CPUs (of 2 to be reserved) on h3"
    world._done(services.remove(world.wishes, "big"))
    assert world.places("web") == world.places("api") == {"h1": 1, "h2": 1, "h3": 1}
    assert world.service("web").pending == ""


def test_a_node_that_is_back_before_its_task_has_ended_gets_one_other():
    """However often there is another look meanwhile."""
    world = World(nodes=1)
    world.make(spec(mode="global"))
    world.end(world.running()[0])
    for availability in ("drain", "active"):
        decision, _ = update_node(world.wishes, "n1", NodeUpdate(availability=availability))
        world.write(decision.changes)
        world.look()
    assert not world.look().changes
    assert [task.desired for task in world.wishes.tasks.values()].count("running") == 1


def test_a_task_that_was_given_up_in_the_moment_it_was_made_leaves_nothing():
    world = World(nodes=1)
    world.make(spec(replicas=1))
    world.end(world.running()[0], settle=False)
    world.write(services.scale(world.wishes, "web", 0, world.now)[0].changes)
    world.look()
    assert not world.look().changes
    assert not world.wishes.tasks and not world.wishes.statuses


def test_a_task_that_ends_is_replaced_in_its_slot():
    world = World()
    world.make(
        spec(
            replicas=1,
            argv=("fail",),
            task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(delay_s=2.0, max_attempts=3)),
        )
    )
    tasks = world.tasks("web")
    assert [task.name.split(".")[1] for task in tasks] == ["1"] * 4
    assert [task.state for task in tasks] == ["failed"] * 4, "one and three attempts"
    times = [task.since for task in reversed(tasks)]
    assert [round(b - a, 1) for a, b in itertools.pairwise(times)] == [2.0, 2.0, 2.0]


def test_a_restart_does_not_wait_for_a_clock_that_was_set_back():
    world = World()
    task = TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(delay_s=5.0))
    world.make(spec(replicas=1, task=task))
    true = world.now
    world.now += 10 * HOUR
    (ran,) = world.running()
    ended = world.wishes.tasks[ran.id]
    report = TaskReport(task=ran.id, state="failed", ran_s=1.0, exit_status=1)
    world.write({f"status/{ran.id}": advance(ended, world.wishes.statuses[ran.id], report, world.now)})
    world.write(schedule.plan(world.state(), world.now, iter(["successor"])).changes)
    assert world.wishes.tasks["successor"].desired == "ready", "it waits for its delay"
    world.now = true
    world.settle()
    assert [task.id for task in world.running()] == ["successor"] and world.now - true < 60


def test_an_update_does_not_wait_for_a_clock_that_was_set_back():
    world = World()
    world.make(spec(replicas=4, update=UpdateConfig(parallelism=2, delay_s=30.0, monitor_s=5.0)))
    true = world.now
    world.now += 10 * HOUR
    base = world.service("web").service.spec
    task = replace(base.task, container=replace(base.task.container, argv=("serve2",)))
    wish = ServiceUpdate(spec=replace(base, task=task), base=base)
    world.write(services.update(world.wishes, "web", wish, world.now)[0].changes)
    for number in range(3):
        world.write(schedule.plan(world.state(), world.now, iter([f"a{number}", f"b{number}"])).changes)
        world._work()
    assert {task.argv for task in world.running()} == {("serve",), ("serve2",)}, "it is under way"
    world.now = true
    world.settle()
    update = world.service("web").service.update
    assert update is not None and update.state == "completed" and world.now - true < 2 * 60
    assert {task.argv for task in world.running()} == {("serve2",)}


def test_an_update_that_fails_is_noticed_whose_ever_clock_was_ahead():
    world = World()
    world.make(spec(replicas=6))
    base = world.service("web").service.spec
    task = replace(base.task, container=replace(base.task.container, argv=("fail",)))
    wish = ServiceUpdate(spec=replace(base, task=task), base=base)
    world.write(services.update(world.wishes, "web", wish, world.now + 10 * HOUR)[0].changes)
    world.settle()
    update = world.service("web").service.update
    assert update is not None and update.state == "paused" and len(world.running()) == 5


def test_restarts_back_off_and_history_is_bounded():
    world = World()
    world.make(
        spec(
            replicas=1,
            argv=("fail",),
            task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(delay_s=0.0)),
        )
    )
    tasks = world.tasks("web")
    assert len(tasks) == schedule.HISTORY
    waits = [a.since - b.since for a, b in itertools.pairwise(task for task in tasks if task.state == "failed")]
    assert waits and all(wait >= 59 for wait in waits)


@pytest.mark.parametrize("condition, ends", [("none", 1), ("on-failure", 1)])
def test_work_that_is_done_is_not_done_again(condition, ends):
    world = World()
    world.make(
        spec(
            replicas=2,
            argv=("once",),
            task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(condition=condition)),
        )
    )
    assert [task.state for task in world.tasks("web")] == ["complete"] * 2


def test_a_task_that_cannot_be_made_goes_elsewhere():
    world = World()
    world.make(
        spec(
            replicas=3,
            argv=("reject:h2",),
            task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(delay_s=0.0)),
        )
    )
    assert sum(world.places().values()) == 3 and "h2" not in world.places()


# Updates


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("parallelism", [0, 1, 2, 9])
def test_an_update_replaces_all_and_never_more_than_it_may(order, parallelism):
    world = World()
    world.make(spec(replicas=6, update=UpdateConfig(order=order, parallelism=parallelism)))
    low, high = [], []
    settle = world._work

    def watch():
        moved = settle()
        live = [
            task
            for task in world.wishes.tasks.values()
            if state_of(task, world.wishes.statuses.get(task.id)) == "running"
        ]
        low.append(len(live))
        high.append(len(live))
        return moved

    world._work = watch
    world.command("web", "serve2")
    most = parallelism or 6
    if order == "stop-first":
        assert min(low) >= max(6 - most, 0) and max(high) == 6
    else:
        assert min(low) == 6 and max(high) <= 6 + most
    assert {task.argv for task in world.running()} == {("serve2",)} and len(world.running()) == 6
    update = world.service("web").service.update
    assert update is not None and (update.state, update.message) == ("completed", "update completed")


def test_an_update_waits_between_its_batches():
    world = World()
    world.make(spec(replicas=4, update=UpdateConfig(parallelism=2, delay_s=30.0, monitor_s=5.0)))
    begun = world.now
    world.command("web", "serve2")
    update = world.service("web").service.update
    assert update is not None and update.completed_at is not None
    assert update.completed_at - begun == pytest.approx(35.0, abs=1.0)


def test_an_update_that_waits_for_a_task_looks_when_there_is_something_to_see():
    """And not all the time, once the pause between two batches is over."""
    world = World(nodes=1)
    world.make(spec(replicas=4, update=UpdateConfig(parallelism=2, delay_s=1.0, order="start-first")))
    base = world.service("web").service.spec
    task = replace(base.task, container=replace(base.task.container, argv=("other",)))
    wish = ServiceUpdate(spec=replace(base, task=task), base=base)
    world.write(services.update(world.wishes, "web", wish, world.now)[0].changes)
    world.look()
    first, second = [task for task in world.wishes.tasks.values() if task.version == 2]
    world.say(first, state="running", ran_s=0.0)
    world.say(second, state="preparing")
    world.look()
    assert world.look().next_at == pytest.approx(world.now + 1.0)
    world.now += 30.0
    plan = world.look()
    assert not plan.changes and plan.next_at is None


def test_an_update_that_fails_pauses():
    world = World()
    world.make(
        spec(replicas=6, task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(condition="none")))
    )
    world.command("web", "fail")
    update = world.service("web").service.update
    assert update is not None and update.state == "paused" and "failed: exit status 1" in update.message
    assert len(world.running()) == 5, "only one was touched"
    world.command("web", "serve3")
    assert len(world.running()) == 6


def test_a_paused_update_goes_on_when_somebody_asks_for_it():
    world = World()
    world.make(spec())
    world.command("web", "fail:h2")
    world.set_node("n2", availability="drain")
    world.now += HOUR
    paused = world.service("web").service
    assert paused.update is not None and paused.update.state == "paused"
    assert paused.fallback == paused.previous, "nobody takes what it may have to go back to"
    world._done(services.scale(world.wishes, "web", 4, world.now))
    assert world.service("web").service.update == paused.update, (
        "a pause is no reason not to scale, nor scaling to go on"
    )
    world.change("web", labels={"a": "b"})
    service = world.service("web").service
    assert service.update is not None and service.update.state == "completed"
    assert {task.argv for task in world.running()} == {("fail:h2",)} and len(world.running()) == 4
    assert service.previous is not None and service.previous.task.container.argv == ("serve",)
    assert services.update(world.wishes, "web", ServiceUpdate(spec=service.spec, base=service.spec), world.now)[0] == (
        {},
        (),
    )


def test_a_paused_rollback_goes_on_too():
    world = World()
    world.make(spec(argv=("fail:h2",), replicas=2, rollback=UpdateConfig(failure_action="pause")))
    world.command("web", "serve")
    world.set_node("n1", availability="drain")
    world.set_node("n3", availability="drain")
    world._done(services.roll_back(world.wishes, "web", world.now))
    update = world.service("web").service.update
    assert update is not None and update.state == "rollback_paused"
    world.set_node("n3", availability="active")
    world.set_node("n2", availability="drain")
    world.now += HOUR
    world.change("web")
    update = world.service("web").service.update
    assert update is not None and update.state == "rollback_completed"


def test_an_update_that_fails_is_rolled_back_and_keeps_the_untouched():
    world = World()
    config = UpdateConfig(failure_action="rollback", parallelism=2)
    world.make(spec(replicas=6, update=config))
    before = {task.id for task in world.running()}
    world.command("web", "fail")
    service = world.service("web").service
    assert service.update is not None and service.update.state == "rollback_completed"
    assert service.update.message.startswith("rolled back because task web.")
    assert service.spec.task.container.argv == ("serve",) and service.previous is None
    after = {task.id for task in world.running()}
    assert len(after) == 6 and len(after & before) == 4
    with pytest.raises(ConflictError):
        services.roll_back(world.wishes, "web", world.now)


GREEN = Network(
    id="net2",
    name="green",
    vni=65537,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.1.0/24"), gateway=ipaddress.ip_address("10.0.1.1")),),
)


def test_who_goes_back_by_itself_goes_back_to_its_networks():
    """Several at once, each to a virtual IP of its own."""
    world = World()
    world.follow(world.wishes.nodes, {NETWORK.id: NETWORK, GREEN.id: GREEN})
    for name in ("web", "api"):
        world.make(spec(name, replicas=1, update=UpdateConfig(failure_action="rollback")))
    before = {name: world.service(name).service.networks for name in ("web", "api")}
    for name in ("web", "api"):
        wish = spec(
            name, argv=("fail",), replicas=1, networks=("green",), update=UpdateConfig(failure_action="rollback")
        )
        update = ServiceUpdate(spec=wish, base=world.service(name).service.spec)
        world.write(services.update(world.wishes, name, update, world.now)[0].changes)
    world.settle()
    for name in ("web", "api"):
        service = world.service(name).service
        assert service.update is not None and service.update.state == "rollback_completed"
        assert [place.network for place in service.networks] == [NETWORK.id]
    vips = {name: world.service(name).service.networks[0].vips[0] for name in before}
    leased = {lease.prefix.network_address: lease.service for lease in world.wishes.leases()}
    assert leased == {vip: world.service(name).service.id for name, vip in vips.items()}


def test_a_network_that_an_update_may_go_back_to_stays_and_one_that_is_gone_is_told():
    world = World()
    world.follow(world.wishes.nodes, {NETWORK.id: NETWORK, GREEN.id: GREEN})
    base = world.make(spec()).spec
    wish = replace(base, task=replace(base.task, container=replace(COMMAND, networks=(NetworkWish(network="green"),))))
    world.write(services.update(world.wishes, "web", ServiceUpdate(spec=wish, base=base), world.now)[0].changes)
    with pytest.raises(ConflictError, match="in use by service web"):
        remove_network(world.wishes, "blue", lambda network: [])
    world.settle()
    world.write(remove_network(world.wishes, "blue", lambda network: [])[0].changes)
    with pytest.raises(ConflictError, match="network that has been removed"):
        services.roll_back(world.wishes, "web", world.now)


@pytest.mark.parametrize("mode", ["vip", "dnsrr"])
def test_of_two_managers_one_removes_no_network_that_the_other_gives_a_service(mode):
    """Whichever is the first, the other's commit fails, and is decided anew."""
    world = World()
    world.follow(world.wishes.nodes, {NETWORK.id: NETWORK, GREEN.id: GREEN})
    base = world.make(spec("old", endpoint_mode=mode)).spec
    moved = replace(base, task=replace(base.task, container=replace(COMMAND, networks=(NetworkWish(network="green"),))))
    removal, _ = remove_network(world.wishes, "green", lambda network: [])
    for gift, _ in (
        services.create(world.wishes, spec("new", networks=("green",), endpoint_mode=mode), "new1", world.now),
        services.update(world.wishes, "old", ServiceUpdate(spec=moved, base=base), world.now),
    ):
        assert gift.changes.keys() & {*removal.guards}
        assert removal.changes.keys() & {*gift.guards}


def test_failures_of_earlier_days_do_not_fail_an_update_back_by_hand():
    world = World()
    world.make(spec(replicas=1))
    world.end(world.running()[0])
    world.now += HOUR
    world.command("web", "serve2")
    world.now += HOUR
    world.command("web", "serve")
    service = world.service("web").service
    assert service.version == 1, "its tasks of before are as good as new ones"
    assert service.update is not None and service.update.state == "completed"
    assert {task.argv for task in world.running()} == {("serve",)}


def test_a_few_failures_may_be_allowed():
    world = World()
    config = UpdateConfig(failure_action="rollback", max_failure_ratio=0.34)
    world.make(
        spec(
            replicas=3,
            update=config,
            task=TaskSpec(container=ContainerSpec(argv=("x",)), restart=RestartPolicy(delay_s=0.0)),
        )
    )
    world.command("web", "fail:h2")
    update = world.service("web").service.update
    assert update is not None and update.state == "completed"
    assert len(world.running()) == 3


def test_what_may_fail_and_always_does_holds_up_nobody():
    world = World()
    config = UpdateConfig(max_failure_ratio=0.34)
    world.make(spec(mode="global", update=config))
    world.command("web", "fail:h3")
    update = world.service("web").service.update
    assert update is not None and update.state == "completed"
    assert {task.node for task in world.running()} == {"h1", "h2"}


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("condition", ["any", "on-failure"])
def test_what_ends_well_is_updated(order, condition):
    """Whether or not it begins again: what was there before ends."""
    world = World()
    task = TaskSpec(container=COMMAND, restart=RestartPolicy(condition=condition))
    world.make(spec(replicas=2, task=task, update=UpdateConfig(order=order)))
    world.command("web", "once")
    update = world.service("web").service.update
    assert update is not None and update.state == "completed"
    assert {task.argv for task in world.tasks("web") if task.desired != "shutdown"} == {("once",)}
    assert not world.running()


def test_why_tasks_have_no_node_is_not_told_of_those_that_have_ended():
    """A plan that was written in part ends one before the wish for its end stands in the store."""
    world = World()
    base = world.make(spec(replicas=1, task=TaskSpec(container=COMMAND, reserve_cpus=9.0))).spec
    task = replace(base.task, placement=Placement(constraints=("node.id==n9",)), reserve_cpus=0.0)
    wish = ServiceUpdate(spec=replace(base, task=task), base=base)
    world.write(services.update(world.wishes, "web", wish, world.now)[0].changes)
    plan = schedule.plan(world.state(), world.now, world._ids)
    world.write(dict(list(plan.changes.items())[:-1]))
    assert [task.desired for task in world.wishes.tasks.values()] == ["running", "ready"]
    assert world.service("web").pending == "no suitable node (3 nodes: 3 not node.id==n9)"


def test_continue_goes_on():
    world = World()
    world.make(spec(replicas=3, update=UpdateConfig(failure_action="continue")))
    world.command("web", "fail")
    assert {task.argv for task in world.tasks("web") if task.desired != "shutdown"} == {("fail",)}


def test_rollback_by_request_goes_back_and_forth():
    world = World()
    world.make(spec())
    world.command("web", "serve2")
    for wanted in ("serve", "serve2"):
        world._done(services.roll_back(world.wishes, "web", world.now))
        assert {task.argv for task in world.running()} == {(wanted,)}


def test_what_concerns_no_task_replaces_none():
    world = World()
    world.make(spec())
    before = {task.id for task in world.running()}
    world.change("web", labels={"team": "a"}, update=UpdateConfig(parallelism=3))
    assert {task.id for task in world.running()} == before
    assert world.service("web").service.update is None


# Wishes


def test_refusals():
    world = World()
    world.make(spec())
    with pytest.raises(ConflictError, match="there is a service 'web' already"):
        world.make(spec())
    with pytest.raises(NotFoundError):
        world.make(spec("other", networks=("red",)))
    for wrong in ("-a", "a.b", "x" * 41, ""):
        with pytest.raises(CallerError):
            world.make(spec(wrong))
    with pytest.raises(UnsupportedError):
        world.make(spec("other", networks=("bridge",)))
    stale = ServiceUpdate(spec=spec(), base=spec())
    with pytest.raises(ConflictError, match="changed meanwhile"):
        services.update(world.wishes, "web", stale, world.now)
    for never in ({"interval_s": 0.0}, {"start_interval_s": 0.0}, {"timeout_s": 0.0}, {"retries": 0}):
        health = HealthCheck(argv=("true",), **never)
        with pytest.raises(CallerError, match="health check"):
            world.make(spec("other", task=TaskSpec(container=COMMAND, health=health)))
    container = ContainerSpec(argv=("x",), env=("A={{.Node.Colour}}",))
    with pytest.raises(CallerError, match="no template"):
        world.make(ServiceSpec(name="other", task=TaskSpec(container=container)))


def test_a_vip_on_each_network_and_no_two_alike():
    world = World()
    vips = {world.make(spec(f"web{number}", replicas=0)).networks[0].vips for number in range(20)}
    assert len(vips) == 20
    assert world.make(spec("dns", replicas=0, endpoint_mode="dnsrr")).networks[0].vips == ()
    leases = {lease.prefix for lease in world.wishes.leases_of_network(NETWORK.id)}
    assert {ipaddress.ip_network(vip) for (vip,) in vips} == leases
    world._done(services.remove(world.wishes, "web7"))
    assert len(world.wishes.leases_of_network(NETWORK.id)) == 19
    # With the network goes the lease, and an update to dnsrr gives it back.
    world.change("web8", endpoint_mode="dnsrr")
    assert len(world.wishes.leases_of_network(NETWORK.id)) == 18


def test_templates_are_filled_in_when_a_task_is_placed():
    world = World()
    container = ContainerSpec(
        argv=("x",),
        hostname="{{.Service.Name}}-{{.Task.Slot}}",
        env=("NODE={{.Node.Hostname}}", 'ZONE={{index .Service.Labels "zone"}}', "T={{.Task.Name}}"),
    )
    world.make(ServiceSpec(name="web", replicas=2, task=TaskSpec(container=container), labels={"zone": "a"}))
    for task in world.wishes.tasks.values():
        filled = task.spec.container
        assert filled.hostname == f"web-{task.slot}"
        assert filled.env == (f"NODE={world.wishes.nodes[task.node].name}", "ZONE=a", f"T={task.name}")


# Everything at once


def test_random_histories_end_as_they_should(rng: random.Random):
    """Commands, deaths, returns, drains, and plans of which only a part was written."""
    for _ in range(25):
        world = World(nodes=5)
        wanted: dict[str, int] = {}
        for number in range(40):
            name = rng.choice(("a", "b", "c"))
            id = f"n{rng.randint(1, 5)}"
            match rng.randrange(9):
                case 0 if name not in wanted:
                    wanted[name] = rng.randint(0, 8)
                    order = rng.choice(("stop-first", "start-first"))
                    config = UpdateConfig(parallelism=rng.randint(0, 3), order=order, failure_action="rollback")
                    wish = spec(name, replicas=wanted[name], update=config)
                    world.write(services.create(world.wishes, wish, next(world._ids), world.now)[0].changes)
                case 1 if name in wanted:
                    wanted[name] = rng.randint(0, 8)
                    world.write(services.scale(world.wishes, name, wanted[name], world.now)[0].changes)
                case 2 if name in wanted:
                    base = world.service(name).service.spec
                    task = replace(base.task, force=number)
                    wish = ServiceUpdate(spec=replace(base, task=task), base=base, rebalance=rng.random() < 0.2)
                    world.write(services.update(world.wishes, name, wish, world.now)[0].changes)
                case 3 if name in wanted:
                    del wanted[name]
                    world.write(services.remove(world.wishes, name)[0].changes)
                case 4:
                    world.lost.setdefault(id, world.now)
                case 5:
                    world.lost.pop(id, None)
                case 6:
                    availability = rng.choice(("active", "pause", "drain"))
                    world.write(update_node(world.wishes, id, NodeUpdate(availability=availability))[0].changes)
                case _:
                    pass
            plan = schedule.plan(world.state(), world.now, world._ids)
            part = dict(itertools.islice(plan.changes.items(), rng.randint(0, len(plan.changes))))
            world.write(part)
            world._work()
            world.now += rng.random() * 3
        world.lost.clear()
        for id in list(world.wishes.nodes):
            world.write(update_node(world.wishes, id, NodeUpdate(availability="active"))[0].changes)
        world.settle()
        assert {view.service.name: view.running for view in world.all()} == wanted
        alive = [
            task
            for task in world.wishes.tasks.values()
            if state_of(task, world.wishes.statuses.get(task.id)) not in ENDED
        ]
        assert Counter(world.wishes.services[task.service].name for task in alive) == Counter(wanted)
        assert not schedule.plan(world.state(), world.now, world._ids).changes
        assert world.wishes.statuses.keys() <= world.wishes.tasks.keys()

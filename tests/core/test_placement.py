"""Which nodes may take a task, which does, and why not."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vxnet.core.placement import Board, Rules, Used, explain, parse_constraint
from vxnet.model.cluster import Node
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError, UnsupportedError
from vxnet.model.service import Placement, TaskSpec


def node(number, **fields):
    address = ipaddress.ip_address(f"192.168.56.{number}")
    fields = {"role": "worker", "cpus": 4.0, "memory": 8 << 30, "os": "linux", "arch": "x86_64"} | fields
    return Node(
        id=f"n{number:02d}", name=f"h{number}", advertise_addr=address, data_path_addr=address, joined_at=0.0, **fields
    )


def task(**fields):
    placement = {name: fields.pop(name) for name in ("constraints", "preferences", "max_per_node") if name in fields}
    return TaskSpec(container=ContainerSpec(argv=("x",)), placement=Placement(**placement), **fields)


def board(nodes, used=None, down=()):
    return Board(nodes, {one.id for one in nodes} - set(down), used or {})


def test_tasks_are_spread_evenly():
    nodes = [node(number) for number in range(1, 6)]
    for number in (1, 5, 7, 50):
        counts = Counter(board(nodes).place(task(), number, {}, {}))
        assert sum(counts.values()) == number
        assert max(counts.values()) - min(counts.get(one.id, 0) for one in nodes) <= 1


def test_the_services_own_tasks_count_more_than_those_of_others():
    nodes = [node(1), node(2)]
    used = {"n01": Used(tasks=9), "n02": Used(tasks=1)}
    assert board(nodes, used).place(task(), 1, {}, {}) == ["n02"]
    assert board(nodes, used).place(task(), 1, {"n02": 1}, {}) == ["n01"]


def test_services_placed_one_after_the_other_see_each_other():
    nodes = [node(number) for number in range(1, 5)]
    one = board(nodes)
    chosen = Counter(id for _ in range(8) for id in one.place(task(), 1, {}, {}))
    assert set(chosen.values()) == {2}
    # Several ways of choosing keep one board.
    one = board(nodes)
    for spec, number in ((task(), 3), (task(preferences=("node.labels.zone",)), 5), (task(max_per_node=2), 8)):
        one.place(spec, number, {}, {})
    assert Counter(used.tasks for used in one.used.values()) == {4: 4}


def test_nodes_that_failed_are_left_alone():
    nodes = [node(1), node(2), node(3)]
    assert set(board(nodes).place(task(), 4, {}, {"n02": 3})) == {"n01", "n03"}
    assert set(board(nodes).place(task(), 3, {}, {"n02": 2})) == {"n01", "n02", "n03"}
    # Better there than nowhere.
    assert board(nodes[1:2]).place(task(), 1, {}, {"n02": 99}) == ["n02"]


@pytest.mark.parametrize(
    "text, fits",
    [
        ("node.hostname==h1", {1}),
        ("node.hostname!=h1", {2, 3}),
        ("node.hostname == H1", {1}),
        ("node.id==n03", {3}),
        ("node.role==manager", {2}),
        ("node.labels.zone==a", {1, 2}),
        ("node.labels.zone!=a", {3}),
        ("node.labels.rack==7", set()),
        ("node.ip==192.168.56.2", {2}),
        ("node.ip!=192.168.56.0/31", {2, 3}),
        ("node.platform.arch==x86_64", {1, 2, 3}),
        ("node.platform.os==plan9", set()),
    ],
)
def test_constraints(text, fits):
    nodes = [node(1, labels={"zone": "a"}), node(2, labels={"zone": "A"}, role="manager"), node(3)]
    chosen = board(nodes).place(task(constraints=(text,)), 6, {}, {})
    assert set(chosen) == {f"n{number:02d}" for number in fits}
    assert len(chosen) == (6 if fits else 0)


@pytest.mark.parametrize(
    "text", ["", "zone==a", "node.labels.==a", "node.labels.zone=a", "node.ip==h1", "node.zone==a"]
)
def test_what_is_no_constraint(text):
    with pytest.raises(CallerError):
        parse_constraint(text)


def test_engine_labels_are_dockers():
    with pytest.raises(UnsupportedError):
        parse_constraint("engine.labels.disk==ssd")


def test_preferences_even_out_values_first():
    zones = ["a", "a", "a", "b", ""]
    nodes = [node(number, labels={"zone": zone} if zone else {}) for number, zone in enumerate(zones, 1)]
    chosen = board(nodes).place(task(preferences=("node.labels.zone",)), 6, {}, {})
    by_zone = Counter(zones[int(id[1:]) - 1] for id in chosen)
    assert by_zone == {"a": 2, "b": 2, "": 2}
    # What is there already counts.
    chosen = board(nodes).place(task(preferences=("node.labels.zone",)), 2, {"n01": 2}, {})
    assert Counter(chosen) == {"n04": 1, "n05": 1}


def test_two_preferences_nest():
    nodes = [
        node(number, labels={"zone": zone, "rack": rack})
        for number, (zone, rack) in enumerate([("a", "1"), ("a", "1"), ("a", "2"), ("b", "3")], 1)
    ]
    chosen = board(nodes).place(task(preferences=("node.labels.zone", "node.labels.rack")), 8, {}, {})
    counts = Counter(chosen)
    assert counts["n04"] == 4 and counts["n03"] == 2 and counts["n01"] == counts["n02"] == 1


def test_full_branches_leave_the_rest_to_the_others():
    nodes = [node(1, labels={"zone": "a"}), node(2, labels={"zone": "b"}), node(3, labels={"zone": "b"})]
    spec = task(preferences=("node.labels.zone",), max_per_node=2)
    assert Counter(board(nodes).place(spec, 9, {}, {})) == {"n01": 2, "n02": 2, "n03": 2}


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 16)), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(0, 4),
    st.integers(0, 3),
    st.booleans(),
)
def test_nothing_is_given_twice(sizes, number, cpus, gigabytes, most, prefer):
    """Reservations and limits hold, and nobody waits while there is room."""
    nodes = [node(place, cpus=float(cpu), memory=gb << 30) for place, (cpu, gb) in enumerate(sizes, 1)]
    spec = task(
        reserve_cpus=cpus,
        reserve_memory=gigabytes << 30,
        max_per_node=most,
        preferences=("node.labels.zone",) if prefer else (),
    )
    chosen = Counter(board(nodes).place(spec, number, {}, {}))
    room = 0
    for one in nodes:
        most_here = min(
            int(one.cpus / cpus + 1e-9) if cpus else number,
            one.memory // (gigabytes << 30) if gigabytes else number,
            most or number,
        )
        assert chosen[one.id] <= most_here
        room += most_here
    assert sum(chosen.values()) == min(number, room)


def test_each_refusal_is_counted_once_by_its_first_reason():
    nodes = [
        node(1),
        replace(node(2), availability="drain"),
        replace(node(3), availability="pause"),
        node(4, labels={"zone": "b"}),
        node(5, labels={"zone": "a"}, memory=1 << 30),
        node(6, labels={"zone": "a"}, cpus=0.5),
        node(7, labels={"zone": "a"}),
        node(8, labels={"zone": "a"}),
    ]
    spec = task(constraints=("node.labels.zone==a",), max_per_node=1, reserve_memory=2 << 30, reserve_cpus=1.0)
    alive = {one.id for one in nodes} - {"n08"}
    text = explain(Rules(spec), nodes, alive, {"n07": 1}, {})
    assert text == (
        "no suitable node (8 nodes: 2 not node.labels.zone==a, 1 drained, 1 paused, "
        "1 short of memory (of 2048 MiB to be reserved), 1 short of CPUs (of 1 to be reserved), "
        "1 at --replicas-max-per-node 1, 1 down)"
    )

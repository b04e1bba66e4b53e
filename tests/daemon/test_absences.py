"""Since when nodes are lost, from what gossip says of them."""

from __future__ import annotations

import ipaddress

import pytest

from vxnet.core.members import Member, Status
from vxnet.daemon import absences
from vxnet.daemon.absences import MET_S, Absences
from vxnet.model.cluster import Node

ADDRESS = ipaddress.ip_address("192.0.2.1")


def member(node_id: str, status: Status = "alive", **tags: str) -> Member:
    return Member(f"name-{node_id}", node_id, ADDRESS, {"vxnet": "1", **tags}, status, 1, 7946)


def node(node_id: str) -> Node:
    return Node(id=node_id, name=node_id, role="worker", advertise_addr=ADDRESS, data_path_addr=ADDRESS, joined_at=0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that has passed, and what the wall clock is ahead of it."""
    time = [1000.0, 0.0]
    monkeypatch.setattr("vxnet.daemon.absences.time.monotonic", lambda: time[0])
    monkeypatch.setattr("vxnet.daemon.absences.time.time", lambda: time[0] + time[1])
    return time


def test_a_silence_has_a_beginning_and_an_end(clock: list[float]) -> None:
    told: list[int] = []
    seen = Absences(lambda: [node("a"), node("b"), node("never")], lambda: told.append(1), "me")
    seen.look([member("a"), member("b")])
    assert seen.lost() == {} and told == []
    clock[0] += 10
    for _ in range(2):
        seen.look([member("a", "dead"), member("b", "dead", restarting="60")])
        clock[0] += 1
    assert seen.lost() == {"a": 1010.0, "b": 1070.0} and told == [1]
    seen.look([member("a"), member("b", "dead", restarting="60")])
    assert seen.lost() == {"b": 1070.0} and told == [1, 1]
    clock[0] = 1000.0 + MET_S + 1
    assert seen.lost() == {"b": 1070.0, "never": 1000.0 + MET_S}


@pytest.mark.parametrize("step", [36_000.0, -36_000.0])
def test_a_clock_that_is_set_makes_nobody_lost_sooner_or_later(clock: list[float], step: float) -> None:
    seen = Absences(lambda: [node("a"), node("never")], None, "me")
    seen.look([member("a", "dead", restarting="60")])
    clock[0] += 5
    clock[1] = step
    assert seen.lost() == {"a": 1060.0 + step}
    clock[0] += MET_S
    assert seen.lost() == {"a": 1060.0 + step, "never": 1000.0 + MET_S + step}


def test_who_calls_itself_another_each_time_is_not_remembered(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absences, "MET_LIMIT", 50)
    seen = Absences(lambda: [node("a")], None, "me")
    seen.look([member("a")])
    for number in range(300):
        seen.look([member(f"x{number}")])
    assert len(seen._met) <= 51
    clock[0] += MET_S + 1
    assert seen.lost() == {}, "who was met is not taken for one that was not"

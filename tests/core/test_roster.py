"""Who is known: the shared dict against a plain one, drawing, rounds, and the ring that is divided."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core.layered import Layered
from vxnet.core.members import Member, Status
from vxnet.core.roster import Roster, Round, Span, all_besides, position


def member(number: int, status: Status = "alive", incarnation: int = 1) -> Member:
    address = ipaddress.ip_address(f"192.0.{number // 250}.{number % 250}")
    return Member(f"h{number}", f"id{number}", address, {"vxnet": "1"}, status, incarnation, 7946)


def roster(count: int, base: Roster | None = None) -> Roster:
    made = Roster(base)
    for number in range(1, count + 1):
        made.put(member(number))
    return made


@given(
    st.dictionaries(st.integers(0, 5), st.integers(1, 9)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(1, 9)), max_size=30),
)
def test_a_layered_dict_is_a_dict(base: dict[int, int], acts: list[tuple[bool, int, int]]) -> None:
    below: Layered[int, int] = Layered()
    below.update(base)
    layered, plain = Layered(below), dict(base)
    for put, key, value in acts:
        if put:
            layered[key] = plain[key] = value
        else:
            assert layered.pop(key, None) == plain.pop(key, None)
        assert dict(layered) == plain and len(layered) == len(plain)
        assert all((k in layered) == (k in plain) and layered.get(k) == plain.get(k) for k in range(8))
        assert not any(layered.is_shared(k) and layered[k] != base[k] for k in plain)
    assert dict(below) == base


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["alive", "suspect", "dead", "left"]), st.integers(1, 3))),
    st.booleans(),
)
def test_a_roster_on_another_is_as_one_of_its_own(acts: list[tuple[int, Status, int]], forked: bool) -> None:
    """Counts, hash, ring and order agree with what a look at all members says."""
    found = Roster(roster(6)) if forked else roster(6)
    for number, status, incarnation in acts:
        found.put(member(number, status, incarnation))
        if incarnation == 3:
            found.remove(f"h{number}")
    fresh = Roster()
    for one in found.values():
        fresh.put(one)
    assert (found.present, found.present_hash) == (fresh.present, fresh.present_hash)
    assert set(found.absent) == {one.name for one in found.values() if not one.present}
    assert {found.nth(at).name for at in range(len(found))} == set(found)
    span, dice = all_besides("nobody"), random.Random(1)
    assert [m.name for m, _ in found.divide(dice, span, "", 99)] == [
        m.name for m, _ in fresh.divide(dice, span, "", 99)
    ]
    assert all(found.at(one.endpoint) == one and found.of_id(one.id) == one for one in found.values())


def test_who_calls_itself_another_each_time_is_known_by_the_last_name_alone() -> None:
    found = roster(3)
    for number in range(200):
        found.put(member(1)._replace(id=f"liar{number}", incarnation=number + 2))
    assert found.of_id("liar199") == found["h1"]
    assert len(found._ids) == 3
    found.put(member(1, incarnation=300))
    assert found.of_id("id1") == found["h1"] and len(found._ids) == 3


def test_drawing_finds_the_few_among_many(rng: random.Random) -> None:
    found = roster(500)
    found.put(member(77, "suspect"))
    assert [one.name for one in found.pick(rng, 3, lambda m: m.status == "suspect")] == ["h77"]
    for _ in range(50):
        chosen = found.pick(rng, 3, lambda m: m.status == "alive", ("h1",))
        assert len({one.name for one in chosen} - {"h1", "h77"}) == 3
    assert len(found.pick(rng, 600, lambda m: m.present)) == 500
    found.put(member(78, "dead"))
    assert [one.name for one in found.pick_absent(rng, 2, lambda m: m.status == "dead")] == ["h78"]


@pytest.mark.parametrize("length", [1, 2, 3, 10, 97, 100])
def test_a_round_meets_everybody_once(rng: random.Random, length: int) -> None:
    round_ = Round(rng)
    for _ in range(5):
        assert sorted(round_.next(length) for _ in range(length)) == list(range(length))
    assert 0 <= round_.next(max(1, length - 1)) < length


@pytest.mark.parametrize("count, parts", [(1, 3), (2, 3), (4, 3), (5, 2), (40, 3), (300, 4)])
def test_what_is_passed_along_the_ring_reaches_everybody_once(rng: random.Random, count: int, parts: int) -> None:
    found = roster(count)
    for source in rng.sample(range(1, count + 1), min(count, 10)):
        told: list[str] = []
        hops = 0
        work: list[tuple[str, Span]] = [(f"h{source}", all_besides(f"h{source}"))]
        while work:
            hops += 1
            following: list[tuple[str, Span]] = []
            for name, span in work:
                for delegate, part in found.divide(rng, span, name, parts):
                    told.append(delegate.name)
                    if part is not None:
                        following.append((delegate.name, part))
            work = following
        assert sorted(told) == sorted(set(found) - {f"h{source}"})
        assert parts ** (hops - 3) <= count


def test_those_whom_the_source_does_not_know_are_told_by_those_who_do(rng: random.Random) -> None:
    all_of_them, fewer = roster(60), roster(60)
    for number in range(10, 60, 7):
        fewer.put(member(number, "dead"))
    told = []
    for delegate, part in fewer.divide(rng, all_besides("h1"), "h1", 3):
        told.append(delegate.name)
        assert part is not None
        told += [found.name for found, _ in all_of_them.divide(rng, part, delegate.name, 99)]
    assert sorted(told) == sorted(set(all_of_them) - {"h1"})


def test_places_on_the_ring_do_not_depend_on_the_process() -> None:
    assert position("h1") == 0x9416A678

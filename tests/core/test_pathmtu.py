"""What a path carries is found by probes, whatever it is."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core.pathmtu import SMALL, Path, Probe, Survey
from vxnet.model.address import IPAddress

A, B, C = (ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::3"))


def surveyed(promised: dict[IPAddress, int], real: dict[IPAddress, int]) -> tuple[dict[IPAddress, Path], int]:
    """Over paths that carry ``real``, 0: nothing; and the number of rounds."""
    survey, rounds = Survey(promised), 0
    while probes := survey.probes():
        survey.take({probe for probe in probes if probe.size <= real[probe.destination]})
        rounds += 1
        assert rounds < 20
    return survey.paths(), rounds


@pytest.mark.parametrize("promised, most", [(1500, 5), (9000, 6), (65535, 7)])
def test_any_size_is_found_exactly_and_soon(promised: int, most: int) -> None:
    for real in {SMALL, SMALL + 1, 575, 576, 1280, 1399, 1400, 1499, promised - 1, promised, promised + 20}:
        paths, rounds = surveyed({A: promised}, {A: real})
        assert paths[A] == Path(promised, min(real, promised))
        assert paths[A].is_short is (real < promised)
        assert rounds <= (1 if real >= promised else most)


def test_several_at_once_and_one_that_is_silent() -> None:
    paths, _ = surveyed({A: 1500, B: 1500, C: 9000}, {A: 1500, B: 0, C: 1452})
    assert paths == {A: Path(1500, 1500), B: Path(1500, None), C: Path(9000, 1452)}
    assert [path.is_short for path in paths.values()] == [False, False, True]
    assert Survey({}).probes() == []


@given(real=st.integers(0, 1600), seed=st.integers(0, 1000))
def test_losses_make_it_no_larger_and_end(real: int, seed: int) -> None:
    """A probe that is lost by accident is taken for one that did not fit: the next survey knows better."""
    chance = random.Random(seed)
    survey = Survey({A: 1500})
    for _ in range(20):
        probes = survey.probes()
        survey.take({probe for probe in probes if probe.size <= real and chance.random() < 0.7})
        if not probes:
            break
    assert survey.probes() == []
    assert (survey.paths()[A].carried or 0) <= min(real, 1500)


def test_one_that_was_only_late_the_first_time_is_whole() -> None:
    survey = Survey({A: 1500})
    survey.take({Probe(A, SMALL)})
    assert Probe(A, 1500) in survey.probes()
    survey.take(set(survey.probes()))
    assert survey.paths() == {A: Path(1500, 1500)} and survey.probes() == []

"""Fixtures of real kernels in throw-away namespaces (see throwaway.py for how)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host import uvxlan_rig
from tests.host.rig import Machine, Pair
from tests.host.throwaway import Place
from tests.host.uvxlan_rig import End, Kind, cable


@pytest.fixture
def place() -> Iterator[Place]:
    """A network namespace, and nothing of vxnet's in it."""
    place = Place()
    yield place
    place.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two hosts whose kernels have been made what they should be."""
    pair = Pair()
    pair.reconcile()
    yield pair
    pair.close()


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Callable[..., uvxlan_rig.Pair]]:
    """Two hosts with tunnels of these kinds to each other, which are up."""
    made: list[End] = []

    def make(
        one: Kind = "user",
        two: Kind = "user",
        *,
        family: int = 4,
        queues: int = 1,
        between: uvxlan_rig.Between | None = None,
        virtual_underlay: bool = True,
    ) -> uvxlan_rig.Pair:
        kinds = enumerate((one, two), 1)
        first, second = (End(number, kind, family, tmp_path, queues, virtual_underlay) for number, kind in kinds)
        ends = first, second
        made.extend(ends)
        if between is None:
            cable(ends[0], "eth0", ends[1], "eth0")
        else:
            between.join(*ends)
        for end in ends:
            end.up()
        return ends

    try:
        yield make
    finally:
        for end in made:
            end.close()

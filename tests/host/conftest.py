"""Fixtures of real kernels in throw-away namespaces (see throwaway.py for how)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.rig import Machine, Pair


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

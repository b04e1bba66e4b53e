"""A cluster's records in another store: what must not be taken for what was before."""

from __future__ import annotations

import pytest

from vxnet.core.restoration import GENERATION, next_generation

NOW = 1.8e9


@pytest.mark.parametrize("revision", [0, 7, GENERATION - 1, GENERATION, 5 * GENERATION + 3])
@pytest.mark.parametrize("now", [0.0, NOW])
def test_a_new_store_begins_above_the_old_one(revision: int, now: float) -> None:
    assert next_generation(revision, now) > revision


def test_a_backup_that_is_restored_twice_begins_above_what_the_first_told() -> None:
    """So does one from before the cluster moved to another store. All that is left of that is what nodes have heard."""
    told = next_generation(7, NOW) + 3 * 86400 * 1000
    assert next_generation(7, NOW + 3 * 86400) > told


def test_json_can_carry_it() -> None:
    assert next_generation(0, NOW * 2) < 2**53

"""What all tests share: who may run what, how hypothesis behaves, and seeds that are told when a test fails."""

from __future__ import annotations

import os
import random
import zlib

import pytest
from hypothesis import HealthCheck, settings

from tests.lab_fixture import lab, make_lab, shared_lab  # noqa: F401  fixtures are found by their names here

# Cores are shared: a slow example is no failure. Examples are drawn from a fixed seed so that a red run is red again;
# `HYPOTHESIS_PROFILE=explore` looks for new ones.
settings.register_profile(
    "vxnet", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("vxnet"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vxnet"))

_SEED = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    needs_root = pytest.mark.skip(reason="needs root")
    for item in items:
        if any(item.get_closest_marker(name) for name in ("host", "lab", "root")):
            item.add_marker(needs_root)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that is the same in every run for the same test; ``VXNET_SEED`` chooses another."""
    chosen = int(os.environ.get("VXNET_SEED") or zlib.crc32(request.node.nodeid.encode()))
    request.node.stash[_SEED] = chosen
    return chosen


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed and _SEED in item.stash:
        report.sections.append(("seed", f"VXNET_SEED={item.stash[_SEED]}"))
    return report

"""Deleted or altered behind vxnet's back, one test each: the next look mends it, counts it once, and traffic flows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.host.damages import DAMAGES, Damage, assert_mended, picture_at_rest, settles_to, works
from tests.host.rig import Lasting, Pair, errors, wait_until
from vxnet.model.host import HostState

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def lasting() -> Iterator[Lasting]:
    with contextlib.closing(Lasting(("kernel", "kernel"))) as lasting:
        yield lasting


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.what.replace(" ", "-"))
def test_is_mended(lasting: Lasting, damage: Damage) -> None:
    with lasting.borrowed() as pair:
        assert_mended(pair, damage)


def test_everything_at_once(pair: Pair) -> None:
    """Whatever can be done without the rest in its way; then one look mends it all."""
    before = picture_at_rest(pair)
    for damage in DAMAGES:
        if "deleted" not in damage.what and "namespace" not in damage.what:
            try:
                damage.do(pair)
            except AssertionError:
                continue  # an earlier one took what it is about
    changes = pair.h1.reconcile(pair.s1) + pair.h1.reconcile(pair.s1)
    assert errors(changes) == []
    assert settles_to(pair, before)
    assert works(pair)


def test_namespace_is_gone_with_the_daemon(pair: Pair) -> None:
    """Nobody held it: every device, every container's interface on the overlay died with it."""
    before = picture_at_rest(pair)
    pair.h1.stop()
    pair.h1.sh("ip netns del vxnet")
    assert wait_until(lambda: "eth0" not in pair.c1.links())
    pair.h1.start()
    assert errors(pair.h1.reconcile(pair.s1)) == []
    assert pair.h1.reconcile(pair.s1) == []
    assert settles_to(pair, before)
    assert works(pair)


@pytest.mark.parametrize("others", [False, True])
def test_a_name_that_is_mounted_out_of_sight(pair: Pair, others: bool) -> None:
    """Found by the fault test: the directory was mounted upon itself, and the name's file could not be taken away."""
    if others:
        pair.h1.sh("ip netns add other")
    # As it is left when two do what ip-netns(8) does at the same time.
    pair.h1.sh("mount --make-rprivate /run; mount --bind /run/netns /run/netns")
    assert pair.h1.run("nsenter", "--net=/run/netns/vxnet", "true", check=False) == ""
    assert errors(pair.h1.reconcile(pair.s1)) == []
    assert "vx65536" in pair.h1.inside("ip", "-br", "link")
    assert works(pair)
    assert pair.h1.reconcile(pair.s1) == []
    assert errors(pair.h1.do(pair.h1.kernel.teardown)) == []
    if not others:
        assert "netns/vxnet" not in pair.h1.run("cat", "/proc/thread-self/mountinfo")


def test_somebody_elses_namespace_took_the_name(pair: Pair) -> None:
    before = picture_at_rest(pair)
    pair.h1.sh("ip netns del vxnet; ip netns add vxnet")
    assert errors(pair.h1.reconcile(pair.s1)) == []
    assert pair.h1.reconcile(pair.s1) == []
    assert settles_to(pair, before)
    assert works(pair)


def test_partial_look_mends_links_and_the_full_one_rows(pair: Pair) -> None:
    pair.h1.inside("ip", "link", "set", "vx65536", "mtu", "1300")
    assert errors(pair.h1.reconcile(pair.s1, ())) == []
    assert pair.h1.links("-n", "vxnet")["vx65536"]["mtu"] == 1450
    pair.h1.inside("ip", "neigh", "del", "10.0.16.3", "dev", "br65536")
    assert pair.h1.reconcile(pair.s1, ()) == [], "rows are taken as last seen"
    assert len(pair.h1.reconcile(pair.s1)) == 1


def test_adopted_by_the_next_daemon(pair: Pair) -> None:
    pair.h1.stop()
    pair.h1.start()
    assert pair.h1.reconcile(pair.s1) == []
    assert pair.h1.reconcile(pair.s1, ()) == []


def test_same_state_twice_changes_nothing(pair: Pair) -> None:
    assert pair.h1.reconcile(pair.s1) == []
    assert pair.h1.reconcile(pair.s1, [pair.c1.id]) == []
    assert pair.h1.reconcile(pair.s1, ()) == []


def test_empty_state_is_a_host_without_vxnet(pair: Pair) -> None:
    assert errors(pair.h1.reconcile(HostState())) == []
    assert pair.h1.reconcile(HostState()) == []

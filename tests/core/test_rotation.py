"""A key's way: install, use, remove; who is waited for; and that two nodes understand each other at every moment."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vxnet.core import rotation
from vxnet.core.keyring import KeyRing
from vxnet.core.rotation import INTERVAL_S, KEPT_S, REMOVAL_S, GossipKeys
from vxnet.model.cluster import GossipKey, Node
from vxnet.model.errors import CallerError

FIRST = GossipKeys(keys=(GossipKey(epoch=1, secret=b"1" * 32),), made_at=1000.0, turned_at=1000.0)


def node(name: str, *epochs: int) -> Node:
    address = ipaddress.ip_address("192.0.2.1")
    return Node(
        id=name,
        name=name,
        role="worker",
        advertise_addr=address,
        data_path_addr=address,
        joined_at=0,
        key_epochs=epochs,
    )


def nodes(**epochs: tuple[int, ...]) -> dict[str, Node]:
    return {name: node(name, *of) for name, of in epochs.items()}


def epochs(ring: GossipKeys) -> tuple[int, ...]:
    return tuple(key.epoch for key in ring.keys)


def all_alive(node_id: str) -> bool:
    return True


def test_a_clock_that_was_set_back_keeps_no_key() -> None:
    """Ten hours: neither the old one, nor one that a node knows which was removed meanwhile."""
    ring = rotation.use(rotation.install(FIRST, b"2" * 16, 2000.0 + 36_000), 2000.0 + 36_000)
    assert rotation.step(ring, nodes(a=(2, 1)), all_alive, 2000.0).settled
    assert rotation.is_due(ring, [2000.0], 2000.0 + REMOVAL_S)
    # Another manager's may be a little ahead.
    assert rotation.step(ring, nodes(a=(2, 1)), all_alive, 2000.0 + 35_999) == ring


def test_a_key_is_installed_used_and_the_old_one_removed() -> None:
    ring = rotation.install(FIRST, b"2" * 16, 2000.0)
    assert epochs(ring) == (1, 2) and ring.installing and not ring.settled
    # Not used before all have it, not removed before all use it and packets under way have come.
    assert rotation.step(ring, nodes(a=(1, 2), b=(1,)), all_alive, 2001.0) == ring
    assert list(rotation.unready(ring, nodes(a=(1, 2), b=(1,)), all_alive)) == ["b"]
    ring = rotation.step(ring, nodes(a=(1, 2), b=(1, 2)), all_alive, 2002.0)
    assert epochs(ring) == (2, 1) and not ring.installing
    assert rotation.step(ring, nodes(a=(2, 1), b=(1, 2)), all_alive, 9999.0) == ring
    assert rotation.step(ring, nodes(a=(2, 1), b=(2, 1)), all_alive, 2002.0 + KEPT_S - 1) == ring
    ring = rotation.step(ring, nodes(a=(2, 1), b=(2, 1)), all_alive, 2002.0 + KEPT_S)
    assert epochs(ring) == (2,) and ring.settled
    assert rotation.step(ring, nodes(a=(2,), b=(2,)), all_alive, 99999.0) == ring


def test_who_is_away_is_not_waited_for() -> None:
    ring = rotation.install(FIRST, b"2" * 16, 2000.0)
    assert epochs(rotation.step(ring, nodes(a=(1, 2), b=(1,)), lambda name: name == "a", 2000.0)) == (2, 1)
    # A node of an older version reports no epochs: while it is here, it is waited for.
    assert rotation.step(ring, nodes(a=(1, 2), b=()), all_alive, 2000.0) == ring


def test_a_second_wish_while_one_is_on_its_way_is_the_same() -> None:
    ring = rotation.install(FIRST, b"2" * 16, 2000.0)
    assert rotation.install(ring, b"3" * 16, 2001.0) == ring
    ring = rotation.install(rotation.use(ring, 2002.0), b"3" * 24, 2003.0)
    assert epochs(ring) == (2, 1, 3)
    assert epochs(rotation.use(ring, 2004.0)) == (3, 2)


@pytest.mark.parametrize("secret, words", [(b"2" * 15, "16, 24 or 32"), (b"", "not 0"), (b"1" * 32, "in the ring")])
def test_keys_that_cannot_be(secret: bytes, words: str) -> None:
    with pytest.raises(CallerError, match=words):
        rotation.install(FIRST, secret, 2000.0)


def test_when_a_key_is_due() -> None:
    assert not rotation.is_due(FIRST, (), 1000.0 + INTERVAL_S - 1)
    assert rotation.is_due(FIRST, (), 1000.0 + INTERVAL_S)
    assert rotation.is_due(replace(FIRST, made_at=0.0), (), 1_800_000_000.0)  # one of before keys had a time
    # A removed node knows the key that it had.
    assert not rotation.is_due(FIRST, [1500.0], 1500.0 + REMOVAL_S - 1)
    assert rotation.is_due(FIRST, [200.0, 1500.0], 1500.0 + REMOVAL_S)
    assert not rotation.is_due(FIRST, [999.0], 5000.0)
    assert not rotation.is_due(rotation.install(FIRST, b"2" * 32, 1100.0), (), 1e9)


@given(st.data())
def test_at_no_moment_do_two_nodes_that_are_here_not_understand_each_other(data: st.DataObject) -> None:
    """Nodes take over rings late and report late, in any order; some are away for a while, and are told the ring when
    they are back. Whatever one of those that are here seals, all others that are here open."""
    told = dict.fromkeys("abcd", FIRST)
    reported = nodes(**dict.fromkeys("abcd", (1,)))
    here = set("abcd")
    ring, now = FIRST, 1000.0
    secrets = (bytes((number,)) * 32 for number in itertools.count(50))
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.sampled_from([0.01, 1.0, KEPT_S, INTERVAL_S]))
        name = data.draw(st.sampled_from("abcd"))
        match data.draw(st.sampled_from(["hear", "report", "ask", "go", "come", "step", "step"])):
            case "hear" if name in here:
                told[name] = ring
            case "report" if name in here:
                reported[name] = replace(reported[name], key_epochs=epochs(told[name]))
            case "ask":
                ring = rotation.install(ring, next(secrets), now)
            case "go":
                here.discard(name)
            case "come":
                here.add(name)
                told[name] = ring
            case "step":
                after = rotation.step(ring, reported, here.__contains__, now)
                if after == ring and rotation.is_due(ring, (), now):
                    after = rotation.install(ring, next(secrets), now)
                ring = after
        assert len(ring.keys) <= 3
        ciphers = {name: KeyRing([key.secret for key in told[name].keys]) for name in here}
        for sender, receiver in itertools.permutations(here, 2):
            assert ciphers[receiver].open(ciphers[sender].seal(b"x", b"", b"n" * 12), b"") == b"x"

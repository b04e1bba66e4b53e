"""Leases as octets that are signed: many of them fit a row, and what nobody could have packed is an error."""

from __future__ import annotations

import ipaddress
import random
import zlib

import pytest

from vxnet.core import lease_sets
from vxnet.core.author import ROW_OCTETS
from vxnet.model.cluster import Lease, LeaseSet
from vxnet.model.codec import to_json

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def of(networks: int, seed: int = 1) -> LeaseSet:
    rng = random.Random(seed)
    id_ = lambda: "".join(rng.choices(ALPHABET, k=25))  # noqa: E731
    node = id_()
    leases = tuple(
        Lease(
            network=id_(),
            vni=65536 + one,
            prefix=ipaddress.ip_network((0x0A000000 + (one << 12), 24)),
            node=node,
            epoch=1,
        )
        for one in range(networks)
    )
    return LeaseSet(node=node, revision=7, leases=leases)


@pytest.mark.parametrize("networks", [0, 1, 100, 200, 1500])
def test_what_was_packed_comes_out(networks: int) -> None:
    packed = lease_sets.pack(of(networks))
    assert lease_sets.unpack(packed) == of(networks)
    assert len(packed) < ROW_OCTETS - 4096, "beside signature and certificate in a row"


def test_short_sets_are_as_before() -> None:
    assert lease_sets.pack(of(100)) == to_json(of(100))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\x78",
        b"\x78\x9cno zlib",
        zlib.compress(b"{}"),
        zlib.compress(to_json(of(200)))[:-40],
        zlib.compress(bytes(lease_sets.LIMIT_OCTETS + 1)),
        zlib.compress(b"[" * 100_000),
    ],
)
def test_what_cannot_be_read_is_an_error(content: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        lease_sets.unpack(content)

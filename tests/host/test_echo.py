"""Echoes over a real cable that is narrower than its ends think."""

from __future__ import annotations

import pytest

from tests.host.rig import Pair, addresses
from vxnet.host.echo import echo

pytestmark = pytest.mark.host


@pytest.mark.parametrize("version", [4, 6])
def test_what_fits_comes_back(version: int) -> None:
    pair = Pair(version)
    try:
        pair.reconcile()
        pair.h2.sh("ip link set eth0 mtu 1400")  # and 4 for a VLAN tag: what is larger it drops
        (nobody,) = addresses("192.168.9.77" if version == 4 else "fd00:9::77")
        sizes = (128, 129, 576, 1280, 1400, 1404, 1405, 1500, 1501, 9000)
        wanted = [(place, size) for place in (pair.v2, nobody) for size in sizes]
        found = pair.h1.do(lambda source, probes: echo(source, probes, tries=2, wait_s=0.2), pair.v1, wanted)
        assert found == {(pair.v2, size) for size in sizes if size <= 1404}
        # What the kernel was told of the path does not count.
        pair.h2.sh("ip link set eth0 mtu 1500")
        assert pair.h1.do(echo, pair.v1, [(pair.v2, 1500)]) == {(pair.v2, 1500)}
        assert pair.h1.do(echo, pair.v1, []) == set()
    finally:
        pair.close()

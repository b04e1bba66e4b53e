"""The program nft where it does not do as it should, and files that are not as they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.throwaway import Place
from vxnet.host import elements, hooks, nft, passage
from vxnet.host.netlink import Netlink
from vxnet.model.errors import HostError

pytestmark = pytest.mark.host


@pytest.fixture
def netlink(place: Place) -> Iterator[Netlink]:
    with Netlink(place.fd, elements.NETLINK_NETFILTER) as netlink:
        yield netlink


def test_an_nft_that_does_not_answer_is_the_hosts_fault(
    place: Place, netlink: Netlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was nobody's, and ended the daemon."""
    rules = "table inet other {\n chain in { type filter hook input priority 0; policy drop; }\n}\n"
    place.run("nft", "-f", "-", stdin=rules)
    (tmp_path / "nft").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(nft, "TIMEOUT_S", 0.1)
    with pytest.raises(HostError, match="nft did not answer"):
        nft.read(place.fd, netlink)
    with pytest.raises(HostError, match="nft did not answer"):
        nft.run("", place.fd)
    with pytest.raises(HostError, match="nft did not answer"):
        passage.obstacles(place.fd, netlink, [("udp", 4789, "VXLAN")])


def test_rules_of_the_operators_that_are_no_text_are_told(place: Place, netlink: Netlink, tmp_path: Path) -> None:
    """As rules that nft refuses: the table is made without them."""
    (tmp_path / "hooks.nft").write_bytes("# für später\n".encode("latin-1"))
    (change,) = hooks.ensure(place.fd, netlink, tmp_path / "hooks.nft")
    assert "UTF-8" in change.error and hooks.exists(netlink)
